"""`qkjax ablate`: the effects of editing modes."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from qkjax.cli.behaviour import Count, Folder, Grid, Resolution, join_hosts
from qkjax.cli.options import Dtype, EditKind, KeyBias, Pool, given_options
from qkjax.errors import QkjaxError


def ablate(
    model: Annotated[Positional[str], arg(metavar="MODEL")],
    /,
    edit: EditKind | None = None,
    select: Annotated[tuple[str, ...], arg(metavar="SELECTION...")] = (),
    controls: Annotated[int, arg(metavar="N")] = 0,
    key_bias: KeyBias = True,
    plan: Annotated[Path | None, arg(metavar="FILE.toml")] = None,
    images: Annotated[Path | None, arg(metavar="PATH")] = None,
    limit: Count = None,
    labels: bool = False,
    out: Folder = None,
    queries: Annotated[int, arg(metavar="N")] = 16,
    exact: bool = False,
    batch: Count = None,
    resolution: Resolution = None,
    dtype: Dtype = "float32",
    distributed: bool = False,
    grid: Grid = None,
    pool: Pool | None = None,
    heads: Count = None,
    json: bool = False,
) -> None:
    """Edit modes and measure the effects on a set of images: ablations.nc, ablations.csv, figures.

    For example: qkjax ablate dinov2-vits14-focus --select "cosine>0.5 layers=0-3" --controls 3. The same command
    resumes an interrupted plan, and computes only the new ablations of an extended plan.

    Args:
      model: a name from `qkjax models`, or a path.
      edit: the edit of the selected modes, as for export; by default drop.
      select: selections of modes, as for export; each one is an ablation.
      controls: number of ablations of strength-matched random modes for each selection.
      key_bias: remove the part of the logits that depends on the query bias and the key, as for export.
      plan: a TOML file with a grid of ablations, which replaces the options above; see docs/ablations.md.
      images: a folder, a .zip, a .tar, or a folder of archives; by default the photographs that come with scikit-image
        and scikit-learn.
      limit: number of images, evenly spaced; by default all.
      labels: also measure accuracy, with the images' folders as classes: by the model's own head if its outputs are
        these classes, by a linear probe, and by nearest neighbours.
      out: folder for the results; by default results/MODEL/ablations.
      queries: number of patches per image, evenly spaced, whose attention is compared.
      exact: widen all heads to 2 head_dim + 1 columns, which represent symmetric parts and rotated modes exactly.
      batch: images per batch; by default 8 on a CPU, and 64 per device on accelerators.
      resolution: height and width of the images in pixels; by default the model's own.
      dtype: number format of the forward pass.
      distributed: share the images among several processes that run this command (jax.distributed).
      grid: number of rows and of columns in the grid of the position embedding, if it is not square.
      pool: pooling, if it is not the one inferred from the parameters ("gap" is inferred for "none" and "0", too).
      heads: number of attention heads, for a torch file without config.json.
      json: print the table and the findings as JSON instead of text.
    """
    if plan and (select or controls or edit or not key_bias):
        raise QkjaxError(
            "--plan replaces --edit, --select, --controls and --no-key-bias: give either the plan or these"
        )
    if not plan and not select:
        raise QkjaxError('no modes are selected: give --select, such as --select "cosine>0.5 layers=0-3", or --plan')
    join_hosts(distributed)
    from qkjax.analyses.ablate.command import AblationArguments, write_ablations
    from qkjax.analyses.ablate.plan import specs_of
    from qkjax.analyses.outcome import print_outcome
    from qkjax.passes.options import PassOptions
    from qkjax.weights.load import load, origin

    grids = [{"edit": edit or "drop", "select": list(select), "controls": controls, "key_bias": key_bias}]
    specs = specs_of(plan or grids)
    settings = given_options(grid=grid, pool=pool, heads=heads)
    checkpoint, options = load(model, **settings), PassOptions(batch, resolution, dtype)
    arguments = AblationArguments(images, limit, labels, queries, exact, options)
    folder = out or Path("results") / checkpoint.name / "ablations"
    written = write_ablations(checkpoint, specs, arguments, folder, origin(model, settings))
    print_outcome(checkpoint.name, written, as_json=json, next_step=f"qkjax report {model}")
