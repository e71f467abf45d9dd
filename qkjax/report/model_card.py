"""What a page says of a model: its card, its measures, and the results that lie beside them."""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from qkjax.errors import QkjaxError
from qkjax.figures import ABLATIONS
from qkjax.interaction.bias import BiasTerms
from qkjax.interaction.metrics import Metrics
from qkjax.vit.config import ViTConfig
from qkjax.weights import catalogue
from qkjax.weights.load import Checkpoint

OTHERS = (
    ("Whom tokens attend to", "preference", {
        "preference_by_layer": "Attention of tokens to their own kind of object, to another and to the background",
        "links": "Attention preference of each head against the weighted cosine of its modes",
        "anisotropy": "Mean cosine of tokens of different images, by layer",
        "example": "Attention of a target's and a distractor's token on one scene"}),
    ("Parts of one object, or two objects", "objects", {
        "same_object": "Probability that query and key of a mode lie on the same object, by layer"}),
    ("Without some modes", "ablations", {
        name: f"Effects of taking modes away: {name.replace('_', ' ')}" for name in ABLATIONS}),
)  # fmt: skip
"""Title, folder and name of the table, and figures with what they show."""


def facts(
    checkpoint: Checkpoint, where: str, metrics: Metrics, top: xr.Dataset, maps: xr.Dataset, looked_at: Sequence[str]
) -> dict:
    """All of a model that is no large array.

    Args:
      where: `address` of the checkpoint.
      top, maps: of `found_images` and `map_tiles`.
      looked_at: names of the images in which patches can be picked.
    """
    config, settings = checkpoint.config, json.loads(top.attrs["settings"])
    return {
        "name": checkpoint.name,
        "card": _card(checkpoint, where),
        "layers": config.depth,
        "heads": config.heads,
        "modes": int(metrics.singular_value.shape[-1]),
        "shown": maps.sizes["mode"],
        "places": maps.sizes["place"],
        "grid": [maps.sizes["row"], maps.sizes["column"]],
        "patch": list(config.patch_size),
        "special": _special(config),
        "null": {name: float(getattr(metrics.null, name)) for name in ("weighted_cosine", "mean_cosine")},
        "scan": {"images": str(top.attrs["images"]), "count": top.sizes["image"],
                 "score": str(top.score.values[0]), "stream": settings["stream"]},
        "look": list(looked_at),
        "versions": {name[8:]: str(x) for name, x in top.attrs.items() if name.startswith("version_")},
    }  # fmt: skip


def arrays(metrics: Metrics, bias: BiasTerms, shares: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """Per head and per mode, float32; `share` and `bias_share` in the logits of the images looked at."""
    names = ("weighted_cosine", "mean_cosine", "effective_rank", "stable_rank", "symmetric_share", "singular_value",
             "cosine")  # fmt: skip
    with np.errstate(divide="ignore", invalid="ignore"):
        key_bias = np.asarray(bias.key_spread) / np.asarray(bias.interaction_spread)
    found = {name: getattr(metrics, name) for name in names} | {"key_bias": key_bias}
    found |= {"share": shares[0], "bias_share": shares[1]}
    packed = {name: np.asarray(x, np.float32) for name, x in found.items()}
    return packed | {"degenerate": np.asarray(metrics.degenerate, np.int8)}


def results_of(folder: Path, site: Path) -> list[dict]:
    """Figures and tables of other commands in a folder of results; the figures are copied to the site.

    Raises:
      QkjaxError: one cannot be read.
    """
    found = []
    for title, name, figures in OTHERS:
        table = folder / name / f"{name}.csv"
        drawn = {stem: alt for stem, alt in figures.items() if (folder / name / f"{stem}.png").is_file()}
        if not drawn and not table.is_file():
            continue
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
    """Lines of name and value; a file of one's own has no line in the catalogue, whatever its name."""
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
