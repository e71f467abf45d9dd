"""The command `qkjax tokens`, which measures what the modes meet in the tokens of images."""

from qkjax.cli.each_model import Count, Folder, Grid, Models, Resolution, each_model, photograph_models
from qkjax.cli.options import Dtype, given_options, join_hosts


def tokens(
    models: Models,
    /,
    images: Folder = None,
    out: Folder = None,
    batch: Count = None,
    resolution: Resolution = None,
    dtype: Dtype = "float32",
    fresh: bool = False,
    distributed: bool = False,
    grid: Grid = None,
    heads: Count = None,
    json: bool = False,
) -> None:
    """Measure what the modes meet in the tokens of images, and whether logits come from position or from content.

    The map correlation of a mode is the correlation of its query map and its key map over the patches of all images.
    The cosine of a mode states what the weights allow, and the map correlation states what the tokens of the model
    meet. The variance of the attention logits is divided exactly into parts of position and content. The command writes
    tokens.nc, tables and figures. Run the same command again to resume after an interruption.

    Args:
      models: names of models listed by `qkjax models`, or paths of checkpoints; if there are several models, one more
        figure compares them.
      images: image set, as a .zip archive, a .tar archive (webdataset), a folder of images or archives, or the URL of
        a folder on an object store (s3://...). The default is the photographs that come with scikit-image and
        scikit-learn.
      out: folder for the results; by default results/MODEL/tokens. With several models, each model gets its own
        subfolder.
      batch: number of images per batch; by default 8 on a CPU, and 64 per device on accelerators.
      resolution: height and width of the images in pixels; by default the model's own resolution.
      dtype: floating-point format of the forward pass.
      fresh: discard any earlier result and the progress of any interrupted run, and start again.
      distributed: divide the images among several processes, each of which runs this same command (jax.distributed).
      grid: number of rows and number of columns in the grid of position embeddings; needed only if the grid is not
        square.
      heads: number of attention heads; needed only for a torch file without config.json.
      json: print the table and the findings as JSON instead of text.
    """
    join_hosts(distributed)
    from qkjax.analyses.outcome import print_notes
    from qkjax.analyses.tokens.compute import check_supported, token_statistics
    from qkjax.analyses.tokens.describe import describe, overlay
    from qkjax.images.default_set import photographs
    from qkjax.images.sources import open_images
    from qkjax.passes.options import PassOptions
    from qkjax.passes.settings import settings_of

    loaded = photograph_models("tokens", models, given_options(grid=grid, heads=heads), resolution, out)
    options = PassOptions(batch, resolution, dtype)
    for checkpoint, _ in loaded.values():
        check_supported(checkpoint, options)
    pictures = open_images(images) if images else photographs()
    print_notes(pictures)
    each_model(
        loaded,
        out,
        "tokens",
        ("tokens_of_models", overlay),
        lambda c: settings_of(c, pictures, options),
        lambda c, partial: token_statistics(c, pictures, options=options, partial=partial, fresh=fresh),
        lambda _, dataset: describe(dataset),
        fresh,
        None,
        json,
        "qkjax preference {model}",
    )
