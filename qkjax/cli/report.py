"""`qkjax report`: results to look at in a browser."""

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
    """Write a static site in which to look at modes, images and attention: opens from disk, needs no server.

    A model without a scan is scanned first, as by `qkjax top-images`. What preference, objects and ablate wrote is
    shown, too. An interrupted pass resumes when the command is repeated.

    Args:
      targets: names from `qkjax models`, paths, or folders of results, such as results/MODEL; of several
        models any two can be looked at side by side.
      images: as for top-images: those that were scanned, or are to be.
      out: folder for the site; by default results/MODEL/report.
      top: images of each mode and sign.
      modes: of each head, strongest first; by default all.
      look: images in which to pick a patch and see where it attends: files, or names of photographs of
        scikit-image and scikit-learn, such as chelsea; by default two of the images.
      distributed: share the images among several processes that run this command (jax.distributed).
      grid: rows and columns of the position embedding, for a checkpoint whose grid is not square.
      heads: attention heads, for a torch file that neither config.json nor the width tells them of.
    """
    if not targets:
        raise QkjaxError("no model or results given; for example: qkjax report dinov2-vits14-focus")
    if distributed:
        from qkjax.runtime.hosts import join

        join()
    import jax

    from qkjax.report.job import ReportOptions
    from qkjax.report.job import report as write

    path = write(targets, images, out, ReportOptions(top, modes, look), given_options(grid=grid, heads=heads))
    if not jax.process_index():
        print(path)
