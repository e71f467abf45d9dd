"""`qkjax report`: results in a browser."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from qkjax.cli.options import given_options
from qkjax.errors import QkjaxError


def report(
    targets: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN_OR_MODEL...")],
    /,
    images: Path | None = None,
    out: Path | None = None,
    top: int = 9,
    modes: int | None = None,
    look: tuple[str, ...] = (),
    distributed: bool = False,
    grid: tuple[int, int] | None = None,
    heads: int | None = None,
) -> None:
    """Write a static site on modes, images and attention. It opens from disk and needs no server.

    If there is no result of `qkjax top-images`, it is computed first. Results of preference, objects and ablate are
    shown, too. The same command resumes an interrupted pass.

    Args:
      targets: names from `qkjax models`, paths, or folders of results, such as results/MODEL. With several models, the
        site shows any two of them side by side.
      images: the images of top-images, which are also used if top-images is computed first.
      out: folder for the site; by default results/MODEL/report.
      top: number of images per mode and sign.
      modes: number of modes per head, strongest first; by default all.
      look: images in which you can pick a patch and see where it attends: files, or names of photographs of
        scikit-image and scikit-learn, such as chelsea; by default two of the images.
      distributed: share the images among several processes that run this command (jax.distributed).
      grid: number of rows and of columns in the grid of the position embedding, if it is not square.
      heads: number of attention heads, for a torch file without config.json.
    """
    if not targets:
        raise QkjaxError("no model or results given: give at least one, such as qkjax report dinov2-vits14-focus")
    if distributed:
        from qkjax.runtime.hosts import join

        join()
    import jax

    from qkjax.report.job import ReportOptions
    from qkjax.report.job import report as write

    path = write(targets, images, out, ReportOptions(top, modes, look), given_options(grid=grid, heads=heads))
    if not jax.process_index():
        print(path)
