"""A page's facts about a model: its card, its metrics, and the results of other commands."""

import csv
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qkjax.errors import QkjaxError
from qkjax.figures import ABLATIONS
from qkjax.interaction.bias import BiasTerms, relative_spreads
from qkjax.interaction.metrics import Metrics
from qkjax.report.commands import commands
from qkjax.report.subject import ModelData, attributes
from qkjax.vit.config import ViTConfig
from qkjax.weights import catalogue
from qkjax.weights.load import Checkpoint

OTHERS = (
    ("Which tokens attend to which", "preference", {
        "preference_by_layer": "Attention of tokens to their own category, to another and to the background",
        "links": "Attention preference of each head against the weighted cosine of its modes",
        "anisotropy": "Mean cosine of tokens of different images, by layer",
        "example": "Attention of a target's and a distractor's token on one scene"}),
    ("Same object or two objects", "objects", {
        "same_object": "Probability that query and key of a mode lie on the same object, by layer"}),
    ("Without some modes", "ablations", {
        name: f"Effects of ablations: {name.replace('_', ' ')}" for name in ABLATIONS}),
)  # fmt: skip
"""Title, folder and name of the table, and figures with what they show."""


def facts(found: ModelData, images: Sequence[str], metrics: Metrics, looked_at: Sequence[str]) -> dict:
    """Facts about a model, without large arrays.

    Args:
      images: names of the images that were scanned.
      looked_at: names of the images in which patches can be picked.
    """
    subject, top, maps = found.subject, found.top, found.maps
    config, missing = subject.checkpoint.config, set(maps.left_out.values)
    return {
        "name": subject.name,
        "card": _card(subject.checkpoint, subject.origin["checkpoint"]),
        "layers": config.depth,
        "heads": config.heads,
        "modes": int(metrics.singular_value.shape[-1]),
        "shown": maps.sizes["mode"],
        "places": maps.sizes["place"],
        "grid": [maps.sizes["row"], maps.sizes["column"]],
        "patch": list(config.patch_size),
        "special": _special(config),
        "null": {name: float(getattr(metrics.null, name)) for name in ("weighted_cosine", "head_weighted_cosine")},
        "scan": {"images": str(top.attrs["images"]), "count": top.sizes["image"],
                 "score": str(top.score.values[0]), "stream": found.scan.stream},
        "gone": [index for index, name in enumerate(images) if name in missing],
        "commands": commands(found),
        "look": list(looked_at),
        "versions": {name[8:]: str(x) for name, x in top.attrs.items() if name.startswith("version_")},
    }  # fmt: skip


def arrays(metrics: Metrics, bias: BiasTerms, share: np.ndarray, bias_share: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics per head and per mode, float32. `share` is that of a mode in the logits of the images in which patches
    can be picked, `bias_share` that of the key bias; NaN if an image has none."""
    names = ("weighted_cosine", "mean_cosine", "effective_rank", "stable_rank", "symmetric_share", "singular_value",
             "cosine")  # fmt: skip
    found = {name: getattr(metrics, name) for name in names} | {"key_bias": relative_spreads(bias)[1]}
    found |= {"share": share, "bias_share": bias_share}
    packed = {name: np.asarray(x, np.float32) for name, x in found.items()}
    return packed | {"degenerate": np.asarray(metrics.degenerate, np.int8)}


def results_of(gathered: ModelData, site: Path) -> list[dict]:
    """Figures and tables of other commands in a folder of results; the figures are copied to the site.

    Results of a model with other parameters are left out, with a note on standard error.

    Raises:
      QkjaxError: one cannot be read.
    """
    folder, found = gathered.subject.folder, []
    parameters = json.loads(gathered.top.attrs["settings"])["parameters"]
    for title, name, figures in OTHERS:
        table = folder / name / f"{name}.csv"
        if not table.with_suffix(".nc").is_file():
            continue
        if json.loads(attributes(table.with_suffix(".nc")).get("settings", "{}")).get("parameters") != parameters:
            print(f"{folder / name} is of a model with other parameters, and is left out", file=sys.stderr)
            continue
        drawn = {stem: alt for stem, alt in figures.items() if (folder / name / f"{stem}.png").is_file()}
        try:
            data = {stem: (folder / name / f"{stem}.png").read_bytes() for stem in drawn}
            rows = list(csv.reader(table.read_text().splitlines())) if table.is_file() else []
        except (OSError, csv.Error, UnicodeDecodeError) as error:
            raise QkjaxError(f"a result in {folder / name} cannot be read: {error}") from error
        for stem, picture in data.items():
            (site / f"{name}_{stem}.png").write_bytes(picture)
        pictures = [{"file": f"{name}_{stem}.png", "alt": alt} for stem, alt in drawn.items()]
        found.append({"title": title, "file": table.name, "figures": pictures, "rows": rows})
    return found


def _card(checkpoint: Checkpoint, where: str) -> list[list[str]]:
    """Pairs of name and value. A file outside the catalogue has no catalogue entry, whatever its name."""
    c, entry = checkpoint.config, None if os.path.isabs(where) else catalogue.entry(where)
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


def _features(config: ViTConfig) -> list[str]:
    names = {"layer_scale": "layer scale", "pre_norm": "LayerNorm before the first layer",
             "relative_positions": "relative position biases", "classes": f"{config.classes} classes"}  # fmt: skip
    return [*(text for name, text in names.items() if getattr(config, name)), f"{config.activation} activation"]


def _special(config: ViTConfig) -> list[str]:
    """What the tokens before the patches are called."""
    registers = [f"register {i}" for i in range(config.registers)]
    return [
        *(["class token"] if config.class_token else []),
        *(["distillation token"] if config.distilled else registers),
    ]
