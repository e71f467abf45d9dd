"""The command `qkjax ablate`, which measures the effects of editing modes."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from qkjax.cli.behaviour import Count, Folder, Grid, Resolution
from qkjax.cli.options import Dtype, EditKind, KeyBias, Match, Pool, Shard, given_options, join_hosts, quoted, shard_of
from qkjax.errors import QkjaxError


def ablate(
    model: Annotated[Positional[str], arg(metavar="MODEL")],
    /,
    edit: EditKind | None = None,
    select: Annotated[tuple[str, ...], arg(metavar="SELECTION...")] = (),
    controls: Annotated[int, arg(metavar="N")] = 0,
    match: Match = "logits",
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
    fresh: bool = False,
    distributed: bool = False,
    shard: Shard = None,
    grid: Grid = None,
    pool: Pool | None = None,
    heads: Count = None,
    json: bool = False,
) -> None:
    """Edit modes, measure the effects on a set of images, and write ablations.nc, ablations.csv and figures.

    For example: qkjax ablate dinov2-vits14-focus --select "cosine>0.5 layers=0-3" --controls 3. Run the same command
    again to resume after an interruption. If the plan has been extended, only the new ablations are computed.

    Args:
      model: name of a model listed by `qkjax models`, or path of a checkpoint.
      edit: edit to apply to the selected modes (see `qkjax export --help`); by default drop.
      select: selections of modes (see `qkjax export --help`); each selection is one ablation.
      controls: number of control ablations for each selection. A control edits random modes, and its change is as large
        as that of the selected modes.
      match: measure of doses, such as grouping=0.3, and of the size that controls have in common with the selected
        modes: the variance of the attention logits over the images, or the squared strength of the weights. A grid of a
        plan may state its own measure. Models with rotary positions need --match strength.
      key_bias: remove the key bias term of the edited heads. This term is the part of the attention logits that depends
        on the query bias and the key (see `qkjax export --help`).
      plan: TOML file that defines a grid of ablations. The file replaces the options above; see docs/ablations.md.
      images: image set, as a .zip archive, a .tar archive, a folder of images or archives, or the URL of a folder on
        an object store (s3://...). The default is the photographs that come with scikit-image and scikit-learn.
      limit: number of images to use, evenly spaced in the set; by default all images.
      labels: also measure classification accuracy; the class of an image is the name of its folder. Accuracy is
        measured with a linear probe and with nearest neighbours. If the model has a classifier for these classes, the
        accuracy of the classifier is measured too.
      out: folder for the results; by default results/MODEL/ablations.
      queries: number of evenly spaced query patches per image. The attention from these patches is compared between the
        edited and the unedited model.
      exact: widen all heads to 2 head_dim + 1 columns, so that symmetric parts and rotated modes are represented
        exactly.
      batch: number of images per batch; by default 8 on a CPU, and 64 per device on accelerators.
      resolution: height and width of the images in pixels; by default the model's own resolution.
      dtype: floating-point format of the forward pass.
      fresh: discard any earlier result and all finished ablations, and start again.
      distributed: divide the images among several processes, each of which runs this same command (jax.distributed).
      shard: compute only share I of N shares, written I/N (0/8 to 7/8 for 8 shares), independently of the other shares.
        Run the same command, with the same output folder, for each share. The last share to finish writes the result.
      grid: number of rows and number of columns in the grid of position embeddings; needed only if the grid is not
        square.
      pool: pooling of the model; needed only if it differs from the pooling that qkjax infers from the parameters.
        (qkjax also infers "gap" for models whose pooling is "none" or "0".)
      heads: number of attention heads; needed only for a torch file without config.json.
      json: print the table and the findings as JSON instead of text.
    """
    if plan and (select or controls or edit or not key_bias):
        raise QkjaxError(
            "--plan is given together with --edit, --select, --controls or --no-key-bias: pass either --plan, or the "
            "options that --plan replaces"
        )
    if not plan and not select:
        raise QkjaxError('no modes are selected: pass --select, such as --select "cosine>0.5 layers=0-3", or --plan')
    join_hosts(distributed)
    from qkjax.analyses.ablate.command import AblationArguments, write_ablations
    from qkjax.analyses.ablate.plan import specs_of
    from qkjax.analyses.outcome import print_outcome
    from qkjax.passes.options import PassOptions
    from qkjax.runtime.folders import check_folder
    from qkjax.weights.load import load, origin

    check_folder(out or Path("results"))
    grids = [{"edit": edit or "drop", "select": list(select), "controls": controls, "key_bias": key_bias}]
    specs = specs_of(plan or grids, match)
    settings = given_options(grid=grid, pool=pool, heads=heads)
    checkpoint, options = load(model, **settings), PassOptions(batch, resolution, dtype, shard_of(shard))
    arguments = AblationArguments(images, limit, labels, queries, exact, options)
    folder = out or Path("results") / checkpoint.name / "ablations"
    check_folder(folder)
    check_folder(folder / "done")
    written = write_ablations(checkpoint, specs, arguments, folder, origin(model, settings), fresh=fresh)
    print_outcome(checkpoint.name, written, as_json=json, next_step=f"qkjax report {quoted(model)}")
