"""The commands `qkjax preference` and `qkjax objects`.

`preference` measures which tokens attend to which. `objects` measures whether modes link parts of the same object.
"""

from typing import Annotated, Literal

from tyro.conf import arg

from qkjax.cli.each_model import Count, Folder, Grid, Models, Resolution, each_model, photograph_models
from qkjax.cli.options import Dtype, FrameName, Shard, Stream, given_options, join_hosts, shard_of
from qkjax.errors import QkjaxError


def preference(
    models: Models,
    /,
    o3: Folder = None,
    kind: Literal["patterns", "pasted"] | None = None,
    count: Count = None,
    seed: Count = None,
    out: Folder = None,
    batch: Count = None,
    resolution: Resolution = None,
    dtype: Dtype = "float32",
    fresh: bool = False,
    distributed: bool = False,
    shard: Shard = None,
    frame: FrameName = "plain",
    grid: Grid = None,
    heads: Count = None,
    json: bool = False,
) -> None:
    """Measure how much tokens attend to their own category, to the opposite category, and to the background.

    Every image shows one odd target among identical distractors (the paper's figure 2). Target and distractors are the
    two categories. By default, the command generates the images, and downloads nothing. The command writes
    preference.nc, tables and figures. Run the same command again to resume after an interruption.

    Args:
      models: names of models listed by `qkjax models`, or paths of checkpoints; if there are several models, one more
        figure compares them.
      o3: folder of the unpacked Odd-One-Out (O3) or P3 data set, which replaces the generated scenes.
      kind: kind of generated scenes; by default patterns. Scenes of the kind "patterns" show bars, one of which differs
        in colour, orientation or size. Scenes of the kind "pasted" show round pieces of photographs, pasted onto
        another photograph.
      count: number of generated scenes; by default 200.
      seed: random seed for generating the scenes; by default 0.
      out: folder for the results; by default results/MODEL/preference. With several models, each model gets its own
        subfolder.
      batch: number of images per batch; by default 8 on a CPU, and 64 per device on accelerators.
      resolution: height and width of the images in pixels; by default the model's own resolution.
      dtype: floating-point format of the forward pass.
      fresh: discard any earlier result and the progress of any interrupted run, and start again.
      distributed: divide the scenes among several processes, each of which runs this same command (jax.distributed).
      shard: compute only share I of N shares, written I/N (0/8 to 7/8 for 8 shares), independently of the other shares.
        Run the same command, with the same output folder, for each share. The last share to finish writes the result.
      frame: frame of the weighted cosine that is compared with the preferences: plain for the modes of M, or folded for
        modes that include the LayerNorm scale.
      grid: number of rows and number of columns in the grid of position embeddings; needed only if the grid is not
        square.
      heads: number of attention heads; needed only for a torch file without config.json.
      json: print the table and the findings as JSON instead of text.
    """
    join_hosts(distributed)
    from qkjax.analyses.preference.compute import attention_preference
    from qkjax.analyses.preference.describe import describe, overlay
    from qkjax.images.generated import patterns
    from qkjax.images.o3 import open_o3
    from qkjax.passes.options import PassOptions
    from qkjax.passes.settings import settings_of

    generated = given_options(kind=kind, count=count, seed=seed)
    if o3 and generated:
        raise QkjaxError(
            f"--{next(iter(generated))} applies only to generated scenes, but --o3 is given: remove one of the two"
        )
    loaded = photograph_models("preference", models, given_options(grid=grid, heads=heads), resolution, out)
    scenes = open_o3(o3) if o3 else patterns(**_generated(count, seed), kind=kind or "patterns")
    options = PassOptions(batch, resolution, dtype, shard_of(shard))
    each_model(
        loaded,
        out,
        "preference",
        ("preference_by_layer", overlay),
        lambda c: settings_of(c, scenes, options, frame=frame),
        lambda c, partial: attention_preference(c, scenes, frame=frame, options=options, partial=partial),
        lambda c, dataset: describe(dataset, c, scenes, options),
        fresh,
        options.shard,
        json,
        "qkjax ablate {model} --select grouping=0.3 --controls 3",
    )


def objects(
    models: Models,
    /,
    masks: Folder = None,
    count: Annotated[int, arg(metavar="N")] = 200,
    seed: Annotated[int, arg(metavar="N")] = 0,
    top: Annotated[int, arg(metavar="N")] = 5,
    stream: Stream = "norm",
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
    """Measure how often the query and the key of a mode are on the same object, and write objects.nc and objects.csv.

    For each mode, qkjax finds the images that excite the mode most. In each image, the query object is the object with
    the largest mean projection onto the query direction, and the key object is the object with the largest mean
    projection onto the key direction. The result is how often the query object and the key object are the same (the
    paper's figure 6), which the command also draws as a figure. Run the same command again to resume after an
    interruption.

    Args:
      models: names of models listed by `qkjax models`, or paths of checkpoints; if there are several models, one more
        figure compares them.
      masks: folder of images with object masks; by default, qkjax composes scenes from photographs. The folder may be
        ADE20K, or a folder with subfolders images/ and masks/ whose files have matching names. In ADE20K, the masks are
        in annotations_instance or annotations, or in NAME_seg.png next to each image.
      count: number of composed scenes.
      seed: random seed for composing the scenes.
      top: number of images to use for each mode.
      stream: tokens to project onto the modes: norm (the output of the LayerNorm before attention, on which the modes
        act) or residual (the residual stream before this LayerNorm).
      out: folder for the results; by default results/MODEL/objects. With several models, each model gets its own
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
    from qkjax.analyses.objects.compute import same_object
    from qkjax.analyses.objects.describe import describe, overlay
    from qkjax.images.segmented import mosaics, open_objects
    from qkjax.passes.options import PassOptions
    from qkjax.passes.settings import settings_of

    loaded = photograph_models("objects", models, given_options(grid=grid, heads=heads), resolution, out)
    images = open_objects(masks) if masks else mosaics(**_generated(count, seed))
    options, choices = PassOptions(batch, resolution, dtype, shard_of(shard)), {"top": top, "stream": stream}
    each_model(
        loaded,
        out,
        "objects",
        ("same_object", overlay),
        lambda c: settings_of(c, images, options, **choices),
        lambda c, partial: same_object(c, images, **choices, options=options, partial=partial),
        lambda c, dataset: describe(dataset, c.name),
        fresh,
        options.shard,
        json,
        "qkjax preference {model}",
    )


def _generated(count: int | None, seed: int | None) -> dict[str, int]:
    """The number and the seed of generated images; a default value replaces None."""
    count, seed = 200 if count is None else count, seed or 0
    for name, value, least in (("count", count, 1), ("seed", seed, 0)):
        if value < least:
            raise QkjaxError(f"{name}={value}: expected a whole number of at least {least}")
    return {"count": count, "seed": seed}
