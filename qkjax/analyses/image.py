"""Measures how much each mode contributes to the attention in one image (the paper's figures 5 and S17 to S19)."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Bool, UInt8

from qkjax.activations import project
from qkjax.activations.contribution import Contributions, contributions
from qkjax.activations.project import Maps, Stream
from qkjax.analyses.decomposition import bias_terms, decompose, frame_attrs
from qkjax.analyses.image_rotary import maps_at_places, shares_at_places
from qkjax.analyses.image_tables import LABELS, summary
from qkjax.analyses.usable import require_finite
from qkjax.errors import QkjaxError, nearest
from qkjax.images.default_set import photographs
from qkjax.images.preprocess import Photograph, normalise, open_image, picture
from qkjax.interaction.metrics import measure
from qkjax.interaction.modes import Modes
from qkjax.passes.inputs import crop_to_patches, for_photographs, photograph_grid, resolution_of
from qkjax.results.annotate import annotated
from qkjax.results.modes import PER_HEAD, PER_MODE
from qkjax.results.store import versions
from qkjax.vit.model import ViT, forward
from qkjax.vit.tree import layer_outputs
from qkjax.vit.windows import described_windows, has_several_windows
from qkjax.weights.checkpoint import Checkpoint, origin_of


def open_photo(photo: str | Path) -> tuple[str, "PIL.Image.Image"]:
    """Opens an image file, or a default photograph such as "chelsea"; returns the name and the picture.

    Raises:
      QkjaxError: there is no such file or photograph, or the file cannot be read.
    """
    path = Path(photo)
    photo = str(photo)
    if path.exists() and not path.is_file():
        raise QkjaxError(f"{photo} is a folder: expected a single image file; for a folder of images, use `top_images`")
    if path.exists() or "/" in photo or "." in photo:
        return path.stem.encode(errors="backslashreplace").decode(), open_image(path)
    known = photographs(crops=False)
    if photo not in known.names:
        raise QkjaxError(
            f"there is no image file or photograph {photo!r}{nearest(photo, known.names)}; "
            f"pass a file, or one of {', '.join(known.names)}"
        )
    return photo, known.read(known.names.index(photo))


def attribute_logits(
    checkpoint: Checkpoint, photograph: Photograph | str | Path, *, resolution: tuple[int, int] | None = None
) -> xr.Dataset:
    """Computes which share of the attention logits of one image comes from each mode, and from the key bias.

    The shares of all terms of a head add up to 1; see `qkjax.activations.contribution.contributions`.

    For a model with rotary positions, the modes are those of the mean over places of the checkpoint's own grid, and
    the shares are those of their exact terms, in which queries and keys are rotated; see
    `qkjax.interaction.rotary.exact`.

    Args:
      checkpoint: the checkpoint.
      photograph: a Pillow image, a uint8 array (height, width, 3), the path of an image file, or the name of a default
        photograph.
      resolution: (height, width) in pixels; by default the checkpoint's own resolution.

    Returns:
      A dataset with dimensions layer, head and mode. `variance_share` and `attention_share` are shares of the modes.
      `key_bias_variance_share` and `key_bias_attention_share` are shares of the key bias. `singular_value` and `cosine`
      describe the modes. For a model with rotary positions, there are also shares of the query bias and of the offset
      bias bq R(delta) bk^T, both of which depend on the key, and of the planes that no mode includes (`rest_*`).

    Raises:
      QkjaxError: the model does not support the resolution, the photograph cannot be read, or the activations overflow.

    Example:
      >>> import qkjax
      >>> shares = qkjax.attribute_logits(qkjax.load("dinov2-vits14-focus"), "chelsea")
      >>> shares.variance_share.dims
      ('layer', 'head', 'mode')
    """
    checkpoint = for_photographs(checkpoint)
    name, pixels = _pixels(checkpoint, photograph, resolution)
    modes = decompose(checkpoint)
    images = normalise(pixels, checkpoint.preprocess)[None]
    grid = photograph_grid(checkpoint, resolution)
    shares, finite = _shares(checkpoint, images, modes, grid)
    require_finite({"tokens and logits": np.where(finite, 0, np.nan)}, name)
    metrics = measure(modes)
    variables = {
        **shares,
        "singular_value": (PER_MODE, np.asarray(metrics.singular_value)),
        "cosine": (PER_MODE, np.asarray(metrics.cosine)),
    }
    settings = {"resolution": json.dumps(pixels.shape[:2])}
    attrs = {**origin_of(checkpoint), "image": name, "settings": json.dumps(settings), **versions()}
    attrs |= frame_attrs(modes)
    dataset = annotated(xr.Dataset(variables, attrs=attrs), LABELS)
    text = summary(dataset)
    if has_several_windows(checkpoint.config, grid):
        text += f" The model has {described_windows(checkpoint.config)}; shares are over the keys in a query's window."
    return dataset.assign_attrs(summary=text)


def _shares(checkpoint: Checkpoint, images, modes: Modes, grid: tuple[int, int]):
    """The shares of all terms as variables of a dataset, and whether the tokens and logits of each layer are finite."""
    if checkpoint.config.rotary is None:
        key_direction = bias_terms(checkpoint).key_direction
        shares, finite = _contributions(ViT(checkpoint.config), checkpoint.params, images, modes, key_direction)
        shares = Contributions(*(np.asarray(x)[:, 0] for x in shares))
        return {
            "variance_share": (PER_MODE, shares.variance),
            "attention_share": (PER_MODE, shares.attention),
            "key_bias_variance_share": (PER_HEAD, shares.key_bias_variance),
            "key_bias_attention_share": (PER_HEAD, shares.key_bias_attention),
        }, finite
    shares, finite = shares_at_places(checkpoint, images, modes, grid)
    names = {"": shares.modes, "key_bias_": shares.key_bias, "query_bias_": shares.query_bias}
    names |= {"offset_bias_": shares.constant, "rest_": shares.rest}
    return {
        f"{name}{kind}_share": (PER_HEAD if name else PER_MODE, np.asarray(values)[:, index, 0])
        for name, values in names.items()
        for index, kind in enumerate(("variance", "attention"))
    }, finite


def query_key_maps(
    checkpoint: Checkpoint,
    photograph: Photograph | str | Path,
    modes: Modes | None = None,
    *,
    stream: Stream = "norm",
    resolution: tuple[int, int] | None = None,
    rotated: bool = True,
) -> Maps:
    """Computes query and key maps of all layers, heads and modes on one image (the paper, section 2.2 and figure 4).

    For a model with rotary positions, the maps are by default the factors of each mode's exact term in the logits,
    which depend on the place of a token; see `qkjax.activations.rotary_maps`. In a layer with windows, the product of a
    query and a key is such a term only if both are in the same window; see `qkjax.vit.windows.layer_windows`.

    Args:
      checkpoint: the checkpoint.
      photograph: a Pillow image, a uint8 array (height, width, 3), the path of an image file, or the name of a default
        photograph.
      modes: modes of the checkpoint, in the plain frame (see `Frame`). If None, the function computes the modes.
      stream: the tokens to project; see `qkjax.activations.project.Stream`.
      resolution: (height, width) in pixels; by default the checkpoint's own resolution.
      rotated: for a model with rotary positions, whether queries and keys are rotated. If False, the maps are y . u_n
        and y . v_n, which depend only on the content of a token; they are the means over all places.

    Returns:
      `Maps` in which `query` and `key` have shape (layers, 1, rows, columns, heads, rank).

    Raises:
      QkjaxError: the model does not support the resolution, the photograph cannot be read, or the modes do not fit the
        model or are not in the plain frame.

    Example:
      >>> import qkjax
      >>> maps = qkjax.query_key_maps(qkjax.load("dinov2-vits14-focus"), "chelsea")
      >>> maps.query.shape
      (12, 1, 16, 16, 6, 64)
    """
    checkpoint = for_photographs(checkpoint)
    config = checkpoint.config
    _, pixels = _pixels(checkpoint, photograph, resolution)
    images = normalise(pixels, checkpoint.preprocess)[None]
    _, captured = forward(ViT(config), checkpoint.params, images, capture=(stream,))
    require_finite({"tokens": captured[stream]}, "the photograph")
    modes = decompose(checkpoint) if modes is None else modes
    grid = photograph_grid(checkpoint, resolution)
    if config.rotary is not None and rotated:
        maps = maps_at_places(checkpoint, captured[stream], modes, grid)
    else:
        if config.rotary is not None:
            modes = replace(modes, frame=replace(modes.frame, positions=None))
        maps = project.query_key_maps(captured[stream], modes, config.prefix_tokens, grid)
    return jax.tree.map(np.asarray, maps)


def visible_picture(
    checkpoint: Checkpoint, photograph: Photograph | str | Path, resolution: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels that the model sees: the photograph, resized and cropped to whole patches."""
    checkpoint = for_photographs(checkpoint)
    return crop_to_patches(checkpoint, _pixels(checkpoint, photograph, resolution)[1])


def _pixels(checkpoint: Checkpoint, photograph, resolution: tuple[int, int] | None):
    """The name and the preprocessed pixels of a photograph."""
    photograph_grid(checkpoint, resolution)  # raises before any computation if the resolution is not supported
    name, photo = open_photo(photograph) if isinstance(photograph, str | Path) else ("image", photograph)
    return name, picture(photo, checkpoint.preprocess, resolution_of(checkpoint, resolution))


@partial(jax.jit, static_argnames=("model",))
def _contributions(
    model: ViT, params, images, modes: Modes, key_direction
) -> tuple[Contributions, Bool[Array, "layers"]]:
    """Contributions in all layers, and whether tokens and logits of each layer are finite.

    Logits and attention are processed layer by layer to save memory.
    """
    names = ("norm", "attention_logits", "attention")
    _, out = model.apply({"params": params}, images, capture=names)
    captured = list(zip(*(layer_outputs(out, name) for name in names), strict=True))
    u, s, v = modes
    layers = [
        contributions(*arrays, u[i], s[i], v[i], key_direction[i], model.config.head_dim)
        for i, arrays in enumerate(captured)
    ]
    finite = [jnp.isfinite(tokens).all() & jnp.isfinite(logits).all() for tokens, logits, _ in captured]
    return Contributions(*map(jnp.stack, zip(*layers, strict=True))), jnp.stack(finite)
