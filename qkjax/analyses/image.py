"""The job of `qkjax image`: the modes that contribute most to the attention logits of one image."""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from tqdm import tqdm

from qkjax import figures
from qkjax.activations.contribution import Contributions, contributions
from qkjax.activations.project import Maps, Stream, query_key_maps
from qkjax.errors import QkjaxError, nearest
from qkjax.figures.sheets import SheetRow, Tile
from qkjax.images.photographs import photographs
from qkjax.images.preprocess import normalise, open_image, picture
from qkjax.interaction.bias import bias_terms
from qkjax.interaction.metrics import measure
from qkjax.interaction.mode_name import ModeName, chosen
from qkjax.interaction.modes import Modes, decompose
from qkjax.passes.inputs import for_photographs, photograph_grid, resolution_of, seen_picture
from qkjax.results.rows import Row, format_rows, head_mean, write_csv
from qkjax.runtime.files import make_folder
from qkjax.runtime.interrupt import held
from qkjax.vit.model import ViT
from qkjax.vit.tree import query_key
from qkjax.weights.load import Checkpoint, load


class ImageOptions(NamedTuple):
    """What is drawn of an image.

    Attributes:
      layer, head: of this one alone; None for all.
      top: modes for each head.
      contribution: by which they are chosen, see `qkjax.activations.contribution.contributions`.
      stream: what the maps show; contributions are always those to the logits, of the LayerNorm's output.
      resolution: (height, width) in pixels; None for the checkpoint's own.
    """

    layer: int | None = None
    head: int | None = None
    top: int = 6
    contribution: Literal["variance", "attention"] = "variance"
    stream: Stream = "norm"
    resolution: tuple[int, int] | None = None


class Dissected(NamedTuple):
    """One image under all modes: the picture that the model saw, maps (batch of one), contributions."""

    picture: UInt8[np.ndarray, "height width 3"]
    maps: Maps
    contributions: Contributions


def image(model: str, photo: str, out: Path | None, options: ImageOptions, settings: Mapping) -> None:
    """Writes contributions.csv, heads.csv and a contact sheet for each layer (png, pdf); prints a table.

    Raises:
      QkjaxError: bad input, or a result cannot be written.
    """
    checkpoint = for_photographs(load(model, **settings))
    layers = chosen("layer", options.layer, checkpoint.config.depth)
    heads = chosen("head", options.head, checkpoint.config.heads)
    photograph_grid(checkpoint, options.resolution)  # or say at once why not
    if options.top < 1:
        raise QkjaxError("--top is a whole number from 1 up")
    name, opened = open_photo(photo)
    folder = out or Path("results") / checkpoint.name / "images" / (name.strip(".") or "image")
    make_folder(folder)
    parts = query_key(checkpoint.params)
    modes = decompose(*parts[:2])
    found = dissect(checkpoint, modes, bias_terms(parts).key_direction, opened, options)
    metrics = measure(modes)
    by_mode, by_head = tables(found.contributions, metrics, options)
    print(f"{checkpoint.name}, {name}\n{format_rows(by_layer(found.contributions, options))}", flush=True)
    write_csv(by_mode, folder / "contributions.csv")
    write_csv(by_head, folder / "heads.csv")
    with held() as interrupted:
        for layer in tqdm(layers, desc="drawing", unit="sheet", disable=len(layers) < 3):
            rows = contact_rows(found, metrics.cosine, layer, heads, options)
            title = f"{checkpoint.name}, layer {layer}, {name}: modes with the largest share of the logits' variance"
            title += {"variance": "", "attention": ", attention-weighted"}[options.contribution]
            figures.save(figures.contact_sheet(title, found.picture, rows), folder / f"layer_{layer:02d}")
            interrupted()
    print(f"wrote contributions.csv, heads.csv and {len(layers)} sheets (png, pdf) to {folder}", file=sys.stderr)


def open_photo(photo: str) -> tuple[str, "PIL.Image.Image"]:
    """Name and picture of a file, or of one of the default photographs by its name.

    Raises:
      QkjaxError: neither, or it cannot be read.
    """
    path = Path(photo)
    if path.exists() and not path.is_file():
        raise QkjaxError(f"{photo} is no file; `qkjax modes --images` takes folders")
    if path.exists() or "/" in photo or "." in photo:
        return path.stem.encode(errors="replace").decode(), open_image(path)
    known = photographs(crops=False)
    if photo not in known.names:
        raise QkjaxError(
            f"there is no image {photo!r}, and no such photograph{nearest(photo, known.names)}; "
            f"give a file, or one of {', '.join(known.names)}"
        )
    return photo, known.read(known.names.index(photo))


@partial(jax.jit, static_argnames=("model",))
def _contributions(model: ViT, params, images, modes: Modes, key_direction):
    """Logits and attention of a layer are used up before the next: together they would not fit in memory."""
    seen = ("norm", "attention_logits", "attention", "residual")
    _, out = model.apply({"params": params}, images, capture=seen)
    blocks = [out["encoder"][f"block{layer:02d}"] for layer in range(model.config.depth)]
    found = [
        contributions(*(b[name] for name in seen[:3]), *(x[i] for x in modes), key_direction[i], model.config.head_dim)
        for i, b in enumerate(blocks)
    ]
    streams = {name: jnp.stack([b[name] for b in blocks]) for name in ("norm", "residual")}
    return Contributions(*map(jnp.stack, zip(*found, strict=True))), streams


def dissect(
    checkpoint: Checkpoint,
    modes: Modes,
    key_direction: Float[Array, "layers heads embed"],
    photo: "PIL.Image.Image",
    options: ImageOptions,
) -> Dissected:
    """Maps and contributions of all modes on one photograph.

    Args:
      modes: of the checkpoint, in the plain frame (no folding).
      key_direction: of `bias_terms`.
      options: `stream` and `resolution` are what counts here.

    Raises:
      QkjaxError: a resolution that the model cannot take, or a photograph too small for it.
    """
    config = checkpoint.config
    pixels = picture(photo, checkpoint.preprocess, resolution_of(checkpoint, options.resolution))
    grid = photograph_grid(checkpoint, options.resolution)
    images = normalise(pixels, checkpoint.preprocess)[None]
    found, streams = _contributions(ViT(config), checkpoint.params, images, modes, key_direction)
    maps = query_key_maps(streams[options.stream], modes, config.prefix_tokens, grid)
    return Dissected(seen_picture(checkpoint, pixels), *(jax.tree.map(np.asarray, x) for x in (maps, found)))


def ranked(found: Contributions, options: ImageOptions) -> np.ndarray:
    """The modes of each head by their contribution, largest first: (layers, heads, rank)."""
    return np.argsort(-getattr(found, options.contribution)[:, 0], axis=-1, kind="stable")


def tables(found: Contributions, metrics, options: ImageOptions) -> tuple[list[Row], list[Row]]:
    """A row for each mode (`place` among its head's, 0 the largest contribution), and one for each head."""
    order = ranked(found, options)
    place = np.argsort(order, axis=-1)
    s, cosine = np.asarray(metrics.singular_value), np.asarray(metrics.cosine)
    variance, weighted = found.variance[:, 0], found.attention[:, 0]
    by_mode = [
        {"layer": at[0], "head": at[1], "mode": at[2], "place": int(place[at]), "singular_value": float(s[at]),
         "cosine": float(cosine[at]), "variance_share": float(variance[at]), "attention_share": float(weighted[at])}
        for at in np.ndindex(place.shape)
    ]  # fmt: skip
    by_head = [
        {"layer": at[0], "head": at[1], "modes_variance_share": float(variance[at].sum()),
         "key_bias_variance_share": float(found.key_bias_variance[:, 0][at]),
         "modes_attention_share": float(weighted[at].sum()),
         "key_bias_attention_share": float(found.key_bias_attention[:, 0][at])}
        for at in np.ndindex(place.shape[:2])
    ]  # fmt: skip
    return by_mode, by_head


def by_layer(found: Contributions, options: ImageOptions) -> list[Row]:
    """What to print: shares of the first mode, of the first modes and of the key bias, means over heads."""
    shares = getattr(found, options.contribution)[:, 0]
    sorted_shares = -np.sort(-shares, axis=-1)
    bias = getattr(found, f"key_bias_{options.contribution}")[:, 0]
    columns = {
        "first mode": sorted_shares[..., 0],
        f"first {options.top}": sorted_shares[..., : options.top].sum(-1),
        "all modes": shares.sum(-1),
        "key bias": bias,
    }
    means = {name: head_mean(values) for name, values in columns.items()}
    return [{"layer": i, **{name: float(v[i]) for name, v in means.items()}} for i in range(len(shares))]


def contact_rows(found: Dissected, cosine, layer: int, heads: Sequence[int], options: ImageOptions) -> list[SheetRow]:
    """For each head of a layer, the row that `figures.contact_sheet` draws: the modes that contribute most.

    Args:
      cosine: of the modes, (layers, heads, rank).
      options: `top` and `contribution` are what counts here.
    """
    order = ranked(found.contributions, options)
    rows = []
    for head in heads:
        shares = getattr(found.contributions, options.contribution)[layer, 0, head]
        tiles = []
        for mode in order[layer, head, : options.top]:
            query, key = (x[layer, 0, :, :, head, mode] for x in (found.maps.query, found.maps.key))
            # Of the two signs, which are the same mode, the one that this image excites more.
            sign = 1 if query.max() * key.max() >= query.min() * key.min() else -1
            name = str(ModeName(layer, head, int(mode), sign)).split()[-1]
            caption = f"{name}  {shares[mode]:.0%}\ncos {float(cosine[layer, head, mode]):.2f}"
            tiles.append(Tile(found.picture, sign * query, sign * key, caption))
        rows.append(SheetRow(f"L{layer} H{head}", tiles))
    return rows
