"""Collects the facts about a model that its pages show: architecture, measures of modes, and results of commands."""

import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qkjax.analyses.decomposition import query_key
from qkjax.analyses.positions import position_measures
from qkjax.errors import QkjaxError
from qkjax.figures import ABLATIONS
from qkjax.interaction.metrics import Metrics
from qkjax.report.commands import commands
from qkjax.report.subject import ModelData, attributes
from qkjax.results.store import stated_settings
from qkjax.vit.config import ViTConfig
from qkjax.weights import catalogue
from qkjax.weights.checkpoint import Checkpoint

OTHERS = (
    ("Which tokens attend to which", "preference", {
        "preference_by_layer": "Attention of tokens to their own category, the other category, and the background",
        "links": "Attention preference of each head against the weighted cosine of its modes",
        "anisotropy": "Mean cosine between tokens of different images, by layer",
        "example": "Attention of a target token and of a distractor token in one scene"}),
    ("Same object or two objects", "objects", {
        "same_object": "Probability that the query and the key of a mode are on the same object, by layer"}),
    ("What tokens meet", "tokens", {
        "map_correlation": "Map correlation of whole tokens and of their parts, and weighted cosines, by layer",
        "position_and_content": "Shares of position and content in the variance of the attention logits"}),
    ("Without some modes", "ablations", {
        name: f"Effects of ablations: {name.replace('_', ' ')}" for name in ABLATIONS}),
)  # fmt: skip
"""Sections of a page. Each has a title, the name of the folder (which is also the name of the table in the folder), and
a dict from figure names to captions."""


def facts(data: ModelData, images: Sequence[str], metrics: Metrics, photos: Sequence[str]) -> dict:
    """Returns facts about a model as JSON values, without large arrays.

    Args:
      data: the data of the model's pages.
      images: names of the images in the scan.
      metrics: measures of the modes.
      photos: names of the images in which the reader can pick a patch.
    """
    subject, top, maps = data.subject, data.top, data.maps
    config, missing = subject.checkpoint.config, set(maps.left_out.values)
    return {
        "name": subject.name,
        "card": _card(subject.checkpoint, subject.origin["checkpoint"]) + _positions(data),
        "layers": config.depth,
        "heads": config.heads,
        "modes": int(metrics.singular_value.shape[-1]),
        "shown": maps.sizes["mode"],
        "places": maps.sizes["place"],
        "grid": [maps.sizes["row"], maps.sizes["column"]],
        "patch": list(config.patch_size),
        "special": config.prefix_names,
        "null": {name: float(getattr(metrics.null, name)) for name in ("weighted_cosine", "head_weighted_cosine")},
        "scan": {"images": str(top.attrs["images"]), "count": top.sizes["image"],
                 "score": str(top.score.values[0]), "stream": data.scan.stream},
        "gone": [index for index, name in enumerate(images) if name in missing],
        "commands": commands(data),
        "look": list(photos),
        "versions": {name[8:]: str(x) for name, x in top.attrs.items() if name.startswith("version_")},
    }  # fmt: skip


def arrays(metrics: Metrics, key_bias: np.ndarray, share: np.ndarray, bias_share: np.ndarray) -> dict[str, np.ndarray]:
    """Returns arrays of measures per head and per mode, in float32.

    Args:
      metrics: measures of the modes.
      key_bias: spread of the key bias term of each head, relative to that of y_i M y_j.
      share: share of each mode in the variance of the attention logits, averaged over the images in which the reader
        can pick a patch; NaN if undefined in any of these images.
      bias_share: share of the key bias in this variance, averaged in the same way.
    """
    names = ("weighted_cosine", "mean_cosine", "effective_rank", "stable_rank", "symmetric_share", "singular_value",
             "cosine")  # fmt: skip
    values = {name: getattr(metrics, name) for name in names} | {"key_bias": key_bias}
    values |= {"share": share, "bias_share": bias_share}
    packed = {name: np.asarray(x, np.float32) for name, x in values.items()}
    return packed | {"degenerate": np.asarray(metrics.degenerate, np.int8)}


def positions(checkpoint: Checkpoint) -> tuple[dict, dict[str, np.ndarray]]:
    """How the interaction of each head depends on position, for a model with rotary positions.

    Returns:
      Facts about chance, distances and offsets, and arrays: `position_share` of shape (layers, heads),
      `distance_cosine` of shape (layers, heads, distances), and `offset_cosine` of shape (layers, heads, offsets along
      rows, offsets along columns) in steps of 1/127, where -128 is NaN. Both are empty if the grid has a single
      position, and there is no `offset_cosine` if the grid does not have two axes.
    """
    parts = query_key(checkpoint)
    if np.prod(parts.rotation.grid) < 2:
        return {}, {}
    measures = position_measures(parts)
    null, curve = measures.null, measures.curve
    facts = {
        "share": float(null.share),
        "share_width": float(null.share_width.head),
        "distances": [float(distance) for distance in curve.distance],
        "cosine_width": [float(width) for width in np.asarray(null.curve_width.head)],
    }
    values = {"position_share": measures.share.share, "distance_cosine": curve.value}
    arrays = {name: np.asarray(value, np.float32) for name, value in values.items()}
    if len(measures.grid) == 2:
        facts["offsets"] = measures.cosine.shape[2:]
        steps = np.clip(np.rint(127 * np.asarray(measures.cosine, np.float64)), -127, 127)
        arrays["offset_cosine"] = np.where(np.isnan(steps), -128, steps).astype(np.int8)
    return facts, arrays


def results_of(data: ModelData, site: Path) -> list[dict]:
    """Finds figures and tables of `qkjax preference`, `objects`, `tokens` and `ablate` in the folder of results.

    The function copies the figures to the site. The function leaves out results of a model with different parameters,
    and prints a note to standard error.

    Raises:
      QkjaxError: a result cannot be read.
    """
    folder, results = data.subject.folder, []
    parameters = json.loads(data.top.attrs["settings"])["parameters"]
    for title, name, figures in OTHERS:
        table = folder / name / f"{name}.csv"
        if not table.with_suffix(".nc").is_file():
            continue
        result = table.with_suffix(".nc")
        if stated_settings({"settings": "{}", **attributes(result)}, result).get("parameters") != parameters:
            print(f"{folder / name} belongs to a model with different parameters and is left out", file=sys.stderr)
            continue
        drawn = {stem: alt for stem, alt in figures.items() if (folder / name / f"{stem}.png").is_file()}
        try:
            pngs = {stem: (folder / name / f"{stem}.png").read_bytes() for stem in drawn}
            rows = list(csv.reader(table.read_text().splitlines())) if table.is_file() else []
        except (OSError, csv.Error, UnicodeDecodeError) as error:
            raise QkjaxError(f"cannot read a result in {folder / name} ({error}); remove this folder") from error
        for stem, png in pngs.items():
            (site / f"{name}_{stem}.png").write_bytes(png)
        pictures = [{"file": f"{name}_{stem}.png", "alt": alt} for stem, alt in drawn.items()]
        results.append({"title": title, "file": table.name, "figures": pictures, "rows": rows})
    return results


def _card(checkpoint: Checkpoint, address: str) -> list[list[str]]:
    """Returns facts about the origin and the architecture of a model, as pairs of name and value.

    A model loaded from a path has no catalogue entry, even if its name is in the catalogue.
    """
    c, entry = checkpoint.config, None if os.path.isabs(address) else catalogue.entry(address)
    known = {"what": entry.title, "family": entry.family, "objective": entry.objective, "licence": entry.licence,
             "source": entry.url or entry.repo or entry.path or f"{entry.package} {entry.version}"} if entry else {
             "file": Path(checkpoint.source).name}  # fmt: skip
    shape = {
        "layers x heads": f"{c.depth} x {c.heads}",
        "width": f"{c.width}, {c.head_dim} a head, {c.mlp_dim} in the MLP",
        "patch": f"{c.patch_size[0]} x {c.patch_size[1]} pixels",
        "pooling": c.pool,
        "other": ", ".join(_features(c)),
    }
    return [[name, value] for name, value in (known | shape).items() if value]


def _positions(data: ModelData) -> list[list[str]]:
    """Which modes the pages show, if the model has rotary positions."""
    return [] if data.modes.frame.positions is None else [["rotary positions", f"modes of the {data.modes.frame}"]]


def _features(config: ViTConfig) -> list[str]:
    names = {"layer_scale": "layer scale", "pre_norm": "LayerNorm before the first layer",
             "relative_positions": "relative position biases", "classes": f"{config.classes} classes"}  # fmt: skip
    return [*(text for name, text in names.items() if getattr(config, name)), f"{config.activation} activation"]
