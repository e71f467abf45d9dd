"""The command `qkjax report`, which shows results in a browser."""

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
    fresh: bool = False,
    distributed: bool = False,
    grid: tuple[int, int] | None = None,
    heads: int | None = None,
) -> None:
    """Write a static website about modes, images and attention, which opens from disk without a server.

    If there is no result of `qkjax top-images` yet, the command first computes this result. The site also shows
    existing results of `qkjax preference`, `qkjax objects` and `qkjax ablate`. Run the same command again to resume
    after an interruption.

    Args:
      targets: names of models listed by `qkjax models`, paths of checkpoints, or folders of results such as
        results/MODEL. With several models, the site can show any two models side by side.
      images: image set for `qkjax top-images`. If there is a result already, pass the folder or archive from which this
        result was computed.
      out: folder for the site; by default results/MODEL/report.
      top: number of images per mode and sign.
      modes: number of modes per head, strongest first; by default all modes.
      look: images for the site's attention view: a reader picks a patch and sees where the patch attends. Pass image
        files, or names of photographs that come with scikit-image or scikit-learn, such as chelsea. The default is two
        images from the image set.
      fresh: discard earlier results of `qkjax top-images` for these models, their maps, and the progress of an
        interrupted run.
      distributed: divide the images among several processes, each of which runs this same command (jax.distributed).
      grid: number of rows and number of columns in the grid of position embeddings; needed only if the grid is not
        square.
      heads: number of attention heads; needed only for a torch file without config.json.
    """
    if not targets:
        raise QkjaxError("no model or results given: expected at least one, such as qkjax report dinov2-vits14-focus")
    if distributed:
        from qkjax.runtime.hosts import join

        join()
    import jax

    from qkjax.report.job import ReportOptions
    from qkjax.report.job import report as write

    options, settings = ReportOptions(top, modes, look), given_options(grid=grid, heads=heads)
    path = write(targets, images, out, options, settings, fresh=fresh)
    if not jax.process_index():
        print(path)
