"""`qkjax preference`, `objects`, `ablate`: what attention does, and what becomes of it without some modes."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from qkjax.cli.said import EditKind, Pool, said
from qkjax.errors import QkjaxError


def preference(
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL...")],
    /,
    o3: Path | None = None,
    kind: Literal["patterns", "pasted"] | None = None,
    count: int | None = None,
    seed: int | None = None,
    out: Path | None = None,
    batch: int | None = None,
    resolution: tuple[int, int] | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    grid: tuple[int, int] | None = None,
    heads: int | None = None,
) -> None:
    """Do tokens attend to their own object, to others, or to the background? preference.nc, tables, figures.

    On images with one odd target among alike distractors (the paper's figure 2). Generated ones by default, so that
    nothing is downloaded. The pass can be interrupted: the same command goes on with it.

    Args:
      models: names from `qkjax models`, or paths; several are overlaid.
      o3: folder of the Odd-One-Out (O3) or P3 data set, unpacked.
      kind: of generated scenes: patterns, bars of which one differs in colour, orientation or size (the default); or
        pasted, round pieces of photographs on another.
      count: of generated scenes; by default 200.
      seed: of generated scenes; by default 0.
      out: folder for the results; by default results/MODEL/preference. With several models each has a folder of its
        own in it.
      batch: images at once; by default 8 on a CPU, 64 a device elsewhere.
      resolution: height and width in pixels, if not the model's own.
      dtype: of the forward pass.
      grid: rows and columns of the position embedding, for a checkpoint whose grid is not square.
      heads: attention heads, for a torch file that neither config.json nor the width tells them of.
    """
    from qkjax.analyses.preference.job import ScenesWanted, preference_of_models
    from qkjax.analyses.preference.scenes_pass import PreferenceOptions

    if not models:
        raise QkjaxError("no model given; for example: qkjax preference dinov2-vits14-focus")
    generated = said(kind=kind, count=count, seed=seed)
    if o3 and generated:
        raise QkjaxError(f"--{next(iter(generated))} is for generated scenes: leave it out with --o3")
    options, wanted = PreferenceOptions(batch, resolution, dtype), ScenesWanted(o3, **generated)
    preference_of_models(models, wanted, out, options, said(grid=grid, heads=heads))


def objects(
    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL...")],
    /,
    masks: Path | None = None,
    count: int = 200,
    seed: int = 0,
    top: int = 5,
    stream: Literal["norm", "residual"] = "norm",
    out: Path | None = None,
    batch: int | None = None,
    resolution: tuple[int, int] | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    grid: tuple[int, int] | None = None,
    heads: int | None = None,
) -> None:
    """Do modes join parts of one object, or two objects? objects.nc, objects.csv, a figure.

    For each mode the images that excite it most, and in each the object with the largest projection per area on the
    query direction, and on the key direction: are they the same (the paper's figure 6)? The pass can be interrupted:
    the same command goes on with it.

    Args:
      models: names from `qkjax models`, or paths; several are overlaid.
      masks: ADE20K (images beside annotations_instance or annotations, or NAME_seg.png beside images), or a folder
        with images/ and masks/ of the same names; by default scenes composed of photographs.
      count: of composed scenes.
      seed: of composed scenes.
      top: images for each mode.
      stream: as for modes.
      out: folder for the results; by default results/MODEL/objects. With several models each has a folder of its own
        in it.
      batch: images at once; by default 8 on a CPU, 64 a device elsewhere.
      resolution: height and width in pixels, if not the model's own.
      dtype: of the forward pass.
      grid: rows and columns of the position embedding, for a checkpoint whose grid is not square.
      heads: attention heads, for a torch file that neither config.json nor the width tells them of.
    """
    from qkjax.analyses.objects.job import ObjectsWanted, objects_of_models
    from qkjax.analyses.objects.objects_pass import ObjectOptions

    if not models:
        raise QkjaxError("no model given; for example: qkjax objects dinov2-vits14-focus")
    options = ObjectOptions(top, stream, batch, resolution, dtype)
    objects_of_models(models, ObjectsWanted(masks, count, seed), out, options, said(grid=grid, heads=heads))


def ablate(
    model: Annotated[Positional[str], arg(metavar="MODEL")],
    /,
    edit: EditKind | None = None,
    select: tuple[str, ...] = (),
    controls: int = 0,
    key_bias: bool = True,
    plan: Path | None = None,
    images: Path | None = None,
    limit: int | None = None,
    labels: bool = False,
    out: Path | None = None,
    queries: int = 16,
    exact: bool = False,
    batch: int | None = None,
    resolution: tuple[int, int] | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    grid: tuple[int, int] | None = None,
    pool: Pool | None = None,
    heads: int | None = None,
) -> None:
    """Edit modes and measure what it does to a set of images: ablations.nc, ablations.csv, figures.

    For example: qkjax ablate dinov2-vits14-focus --select "cosine>0.5 layers=0-3" --controls 3. The same command goes
    on with what was stopped, and with a plan that has grown.

    Args:
      model: a name from `qkjax models`, or a path.
      edit: as for export; by default drop.
      select: the modes, as for export; several are several ablations.
      controls: also so many ablations of random modes as strong, for each.
      key_bias: as for export.
      plan: a TOML file with a grid of ablations, instead of the above; see docs/ablations.md.
      images: a folder, a .zip, a .tar or a folder of those; by default the photographs that come with scikit-image
        and scikit-learn.
      limit: so many of the images, evenly spaced.
      labels: the folders that images lie in are their classes: also accuracy, by the model's own head where its
        outputs are these classes, by a linear probe and by nearest neighbours.
      out: folder for the results; by default results/MODEL/ablations.
      queries: patches of each image whose attention is compared, evenly spaced.
      exact: give all heads twice as many columns and one, which hold symmetric parts and rotated modes exactly.
      batch: images at once; by default 8 on a CPU, 64 a device elsewhere.
      resolution: height and width in pixels, if not the model's own.
      dtype: of the forward pass.
      grid: rows and columns of the position embedding, for a checkpoint whose grid is not square.
      pool: pooling, where it is not the one that the tree shows ("gap" stands for "none" and "0").
      heads: attention heads, for a torch file that neither config.json nor the width tells them of.
    """
    from qkjax.analyses.ablate.ablator import AblationOptions
    from qkjax.analyses.ablate.job import ImagesWanted, ablate_model
    from qkjax.analyses.ablate.plan import expand, read_plan

    if plan and (select or controls or edit or not key_bias):
        raise QkjaxError("--plan says what is done: leave out --edit, --select, --controls and --no-key-bias")
    if not plan and not select:
        raise QkjaxError('nothing is selected; for example: --select "cosine>0.5 layers=0-3", or a --plan')
    grids = [{"edit": edit or "drop", "select": list(select), "controls": controls, "key_bias": key_bias}]
    lines = read_plan(plan) if plan else expand(grids)
    options = AblationOptions(queries, batch, resolution, dtype, exact)
    settings = said(grid=grid, pool=pool, heads=heads)
    ablate_model(model, lines, ImagesWanted(images, limit, labels), out, options, settings)
