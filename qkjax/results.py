"""The results of one model as a labelled dataset and as a table, and their files."""

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import xarray as xr

from qkjax.errors import QkjaxError
from qkjax.files import atomic_path, remove
from qkjax.interaction.bias import BiasTerms, relative_spreads
from qkjax.interaction.difference import Difference
from qkjax.interaction.metrics import Metrics
from qkjax.interaction.modes import Modes
from qkjax.scan import Scan
from qkjax.weights.load import Checkpoint

Row = dict[str, int | float | str]
PER_MODE, PER_HEAD = ("layer", "head", "mode"), ("layer", "head")
VECTORS = ("layer", "head", "embed", "mode")
DIMS = {"symmetric_eigenvalues": (*PER_HEAD, "eigen"), "antisymmetric_spectrum": (*PER_HEAD, "pair")}


def to_dataset(modes: Modes, metrics: Metrics, bias: BiasTerms, attrs: Mapping[str, str]) -> xr.Dataset:
    """Everything known of one model's modes.

    Returns:
      A dataset with dims layer, head, mode, embed (and eigen, pair): `u`, `v`, `singular_value`,
      `cosine`, the other `Metrics`, the bias terms as `bias_*`, the null as attributes `null_*`,
      and the versions of the libraries that made it.
    """
    variables = {"u": (VECTORS, modes.u), "v": (VECTORS, modes.v)}
    for name, value in metrics._asdict().items():
        if name != "null":
            variables[name] = (DIMS.get(name, PER_MODE if value.ndim == 3 else PER_HEAD), value)
    for name, value in bias._asdict().items():
        variables[f"bias_{name}"] = ((*PER_HEAD, "embed") if value.ndim == 3 else PER_HEAD, value)
    null = {f"null_{name}": value for name, value in metrics.null._asdict().items()}
    attrs = {**attrs, **null, **versions()}
    dataset = xr.Dataset({n: (d, np.asarray(v)) for n, (d, v) in variables.items()}, attrs=attrs)
    return dataset.assign_coords({dim: np.arange(dataset.sizes[dim]) for dim in ("layer", "head", "mode")})


def versions() -> dict[str, str]:
    """Of the libraries that made a result, for its attributes."""
    return {f"version_{name}": version(name) for name in ("qkjax", "jax", "numpy")}


def layer_table(metrics: Metrics, bias: BiasTerms) -> list[Row]:
    """One row a layer, means over its heads; a head whose M is zero is left out.

    `half_strength_modes` is how many modes hold half of sum(s); `key_bias` and `query_bias` are the
    spreads of their terms relative to the spread of y_i M y_j (see `BiasTerms`). The `null_` columns
    are half widths of the 95% interval of chance.
    """
    held = np.asarray(metrics.cumulative_strength)
    half = np.where(np.isfinite(held[..., 0]), 1 + (held < 0.5).sum(-1), np.nan)
    query_bias, key_bias = relative_spreads(bias)
    columns = {
        "weighted_cosine": metrics.weighted_cosine,
        "mean_cosine": metrics.mean_cosine,
        "effective_rank": metrics.effective_rank,
        "stable_rank": metrics.stable_rank,
        "half_strength_modes": half,
        "symmetric_share": metrics.symmetric_share,
        "key_bias": key_bias,
        "query_bias": query_bias,
        "degenerate_share": np.asarray(metrics.degenerate, float).mean(-1),
    }
    null = {"null_weighted_cosine": metrics.null.weighted_cosine, "null_mean_cosine": metrics.null.mean_cosine}
    means = {name: head_mean(values) for name, values in columns.items()}
    depth = len(means["mean_cosine"])
    return [
        {"layer": i, "relative_depth": i / max(depth - 1, 1), **{n: float(v[i]) for n, v in means.items()}, **null}
        for i in range(depth)
    ]


def head_mean(values) -> np.ndarray:
    """Mean over the heads (last axis) that have a value; NaN for a layer where none has."""
    values = np.asarray(values, np.float64)
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(-1) / known.sum(-1)


def write_dataset(dataset: xr.Dataset, path: Path) -> None:
    """Writes netCDF (HDF5). Atomic.

    The file is made in memory first: HDF5 crashes the process when its own writing fails.

    Raises:
      QkjaxError: the file cannot be written.
    """
    data = dataset.to_netcdf(engine="h5netcdf")
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_csv(rows: list[Row], path: Path) -> None:
    """Writes rows of one kind, under the names of the first one's columns. Atomic.

    Raises:
      QkjaxError: the file cannot be written.
    """
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


HOW = ("model", "batch", "devices", "jax", "qkjax")
"""Settings on which the last bits of a result, or its name, depend, but not what it is."""


def read_earlier(path: Path, settings: Mapping[str, str], at_least: Sequence[str] = ()) -> xr.Dataset | None:
    """The result of an earlier run with the same settings (its attribute of that name, as JSON); None without one.

    Args:
      at_least: settings that are numbers, of which it may have had more.

    Raises:
      QkjaxError: it is of other settings, or cannot be read: hours of work may lie in it.
    """
    if not path.exists():
        return None
    try:
        with xr.open_dataset(path, engine="h5netcdf") as opened:
            data, was = opened.load(), json.loads(opened.attrs["settings"])
    except Exception as error:  # h5netcdf raises whatever it stumbles over
        raise QkjaxError(f"{path} is no result that can be read ({error}); remove it") from error
    enough = {*HOW, *(name for name in at_least if int(was.get(name, 0)) >= int(settings[name]))}
    if other := [name for name in settings if was.get(name) != settings[name] and name not in enough]:
        raise QkjaxError(
            f"{path} has the result of other settings ({', '.join(other)}): remove it, or write to another folder, "
            "which --out names"
        )
    return data


def list_unreadable(data: xr.Dataset, path: Path, names: str = "unreadable", said: str = "could not be read") -> None:
    """Writes the images that could not be read, with the reasons, or removes what an earlier scan wrote.

    Args:
      names: variable that has the images' names; their reasons are in `reason`.
      said: what is said of them.
    """
    remove(path)
    if broken := [str(name) for name in data[names].values]:
        rows = [{"image": n, "reason": str(r)} for n, r in zip(broken, data.reason.values, strict=True)]
        write_csv(rows, path)
        print(f"{len(broken)} images {said}; {path} says why", file=sys.stderr)


def difference_dataset(found: Difference, attrs: Mapping[str, str]) -> xr.Dataset:
    """How two models differ, with dims layer, head, mode (of the first model; for `_angles` their order)."""
    variables = {
        name: (PER_MODE if value.ndim == 3 else PER_HEAD, np.asarray(value)) for name, value in found._asdict().items()
    }
    return xr.Dataset(variables, attrs={**attrs, **versions()})


def top_images_dataset(found: Scan, names: Sequence[str], metrics: Metrics, attrs: Mapping[str, str]) -> xr.Dataset:
    """The images that excite each mode most.

    Args:
      found: what `scan` found.
      names: of all images of the set.
      metrics: of the modes.

    Returns:
      A dataset with dims score, layer, head, mode, sign (1 as in `Modes`, -1 the other), place (0 best)
      and image: `value` of the score, `image_index` (-1 where there were too few images), the names as
      coordinate `image`; `singular_value` and `cosine` of the modes; `unreadable`, the names of images
      that could not be read, and each one's `reason`.
    """
    dims = ("score", *PER_MODE, "sign", "place")
    scores = json.loads(found.settings["scores"])
    unreadable = [(names[index], reason) for index, reason in found.unreadable]
    variables = {
        "value": (dims, np.asarray(found.top.score)),
        "image_index": (dims, np.asarray(found.top.image)),
        "singular_value": (PER_MODE, np.asarray(metrics.singular_value)),
        "cosine": (PER_MODE, np.asarray(metrics.cosine)),
        "unreadable": ("broken", texts([name for name, _ in unreadable])),
        "reason": ("broken", texts([reason for _, reason in unreadable])),
    }
    coords = {"score": ("score", texts(scores)), "sign": ("sign", [1, -1]), "image": ("image", texts(names))}
    return xr.Dataset(variables, coords, {**attrs, **versions(), "settings": json.dumps(found.settings)})


def texts(values: Sequence[str]) -> np.ndarray:
    """As netCDF holds them; file names may hold bytes that are no text."""
    return np.array([v.encode("utf-8", "replace").decode() for v in values], dtype=object)


def by_name(checkpoints: Sequence[Checkpoint]) -> dict[str, Checkpoint]:
    """Checkpoints by the names under which their results are kept; those of one name, such as "seed0" of two sweeps,
    are called by their folder too: "tied-seed0".

    Raises:
      QkjaxError: two of one name, all the same.
    """
    labels = [checkpoint.name for checkpoint in checkpoints]
    named = [_with_folder(c) if labels.count(c.name) > 1 else c for c in checkpoints]
    labels = [checkpoint.name for checkpoint in named]
    if twice := {label for label in labels if labels.count(label) > 1}:
        raise QkjaxError(f"two models are called {min(twice)!r}: rename a file, or analyse them apart")
    return dict(zip(labels, named, strict=True))


def folders(names: Iterable[str], out: Path | None, kind: str) -> dict[str, Path]:
    """Where each model's results of a kind lie: results/MODEL/kind, or `out`, or, of several models, out/MODEL."""
    names = list(names)
    if out is None:
        return {name: Path("results") / name / kind for name in names}
    return {name: out / name if len(names) > 1 else out for name in names}


def _with_folder(checkpoint: Checkpoint) -> Checkpoint:
    """The file may lie in a folder of the checkpoint's name, as that of a run does."""
    above = Path(checkpoint.source).absolute().parent
    above = above.parent if above.name == checkpoint.name else above
    return replace(checkpoint, name=f"{above.name}-{checkpoint.name}") if above.name else checkpoint


def format_table(rows: list[Row]) -> str:
    """The columns of the layer table that one looks at first, as text."""
    shown = {
        "layer": ("layer", "d"),
        "weighted_cosine": ("weighted cos", ".3f"),
        "mean_cosine": ("plain cos", ".3f"),
        "null_weighted_cosine": ("chance +-", ".3f"),
        "effective_rank": ("eff. rank", ".1f"),
        "stable_rank": ("stable rank", ".1f"),
        "half_strength_modes": ("modes of 50%", ".1f"),
        "symmetric_share": ("symmetric", ".2f"),
        "degenerate_share": ("degenerate", ".2f"),
        "key_bias": ("key bias", ".2f"),
    }
    return format_rows([{title: row[name] for name, (title, _) in shown.items()} for row in rows], dict(shown.values()))


def format_rows(rows: list[Row], formats: Mapping[str, str] | None = None) -> str:
    """Rows as text under their column names, right-aligned; numbers to three places unless said."""
    heads = list(rows[0])
    spec = {head: "d" if isinstance(rows[0][head], int) else ".3f" for head in heads} | dict(formats or {})
    cells = [[format(row[head], spec[head]) for head in heads] for row in rows]
    widths = [max(len(head), *(len(line[i]) for line in cells)) for i, head in enumerate(heads)]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(line, widths, strict=True)) for line in [heads, *cells])
