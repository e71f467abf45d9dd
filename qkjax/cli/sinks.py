"""The command `qkjax sinks`, which measures attention sinks and the norms of tokens."""

from qkjax.cli.each_model import Count, Folder, Grid, Models, Resolution, each_model, photograph_models
from qkjax.cli.options import Dtype, Shard, given_options, join_hosts, shard_of


def sinks(
    models: Models,
    /,
    images: Folder = None,
    out: Folder = None,
    batch: Count = None,
    resolution: Resolution = None,
    dtype: Dtype = "float32",
    fresh: bool = False,
    distributed: bool = False,
    shard: Shard = None,
    grid: Grid = None,
    heads: Count = None,
    json: bool = False,
) -> None:
    """Measure which keys most patches attend to, and the norms of tokens and values.

    A sink is a key that receives a large share of the attention of all patches: the class token, a register, or a
    patch. The command measures the shares with and without the key bias, and states whether there are patches of high
    norm. Run the same command again to resume after an interruption.

    Args:
      models: names of models listed by `qkjax models`, or paths of checkpoints; if there are several models, one more
        figure compares them.
      images: image set, as a .zip archive, a .tar archive (webdataset), a folder of images or archives, or the URL of
        a folder on an object store (s3://...). The default is the photographs that come with scikit-image and
        scikit-learn.
      out: folder for the results; by default results/MODEL/sinks. With several models, each model gets its own
        subfolder.
      batch: number of images per batch; by default 8 on a CPU, and 64 per device on accelerators.
      resolution: height and width of the images in pixels; by default the model's own resolution.
      dtype: floating-point format of the forward pass.
      fresh: discard any earlier result and the progress of any interrupted run, and start again.
      distributed: divide the images among several processes, each of which runs this same command (jax.distributed).
      shard: compute only share I of N shares, written I/N (0/8 to 7/8 for 8 shares), independently of the other shares.
        Run the same command, with the same output folder, for each share. The last share to finish writes the result.
      grid: number of rows and number of columns in the grid of position embeddings; needed only if the grid is not
        square.
      heads: number of attention heads; needed only for a torch file without config.json.
      json: print the table and the findings as JSON instead of text.
    """
    join_hosts(distributed)
    from qkjax.analyses.outcome import print_notes
    from qkjax.analyses.sinks.compute import attention_sinks
    from qkjax.analyses.sinks.describe import describe, overlay
    from qkjax.images.default_set import photographs
    from qkjax.images.sources import open_images
    from qkjax.passes.options import PassOptions
    from qkjax.passes.settings import settings_of

    loaded = photograph_models("sinks", models, given_options(grid=grid, heads=heads), resolution, out)
    pictures = open_images(images) if images else photographs()
    print_notes(pictures)
    options = PassOptions(batch, resolution, dtype, shard_of(shard))
    each_model(
        loaded,
        out,
        "sinks",
        ("sinks_by_layer", overlay),
        lambda c: settings_of(c, pictures, options),
        lambda c, partial: attention_sinks(c, pictures, options=options, partial=partial),
        lambda _, dataset: describe(dataset),
        fresh,
        options.shard,
        json,
        "qkjax ablate {model} --select all --edit unbias",
    )
