"""Measures how much each mode contributes to the attention in one image (the paper's figures 5 and S17 to S19)."""

import json
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
from qkjax.analyses.decomposition import bias_terms, decompose
from qkjax.analyses.image_tables import summary
from qkjax.analyses.usable import require_finite, require_no_rotation
from qkjax.errors import QkjaxError, nearest
from qkjax.images.default_set import photographs
from qkjax.images.preprocess import Photograph, normalise, open_image, picture
from qkjax.interaction.metrics import measure
from qkjax.interaction.modes import Modes
from qkjax.passes.inputs import crop_to_patches, for_photographs, photograph_grid, resolution_of
from qkjax.results.annotate import Label, annotated
from qkjax.results.modes import PER_HEAD, PER_MODE
from qkjax.results.store import versions
from qkjax.vit.model import ViT, forward
from qkjax.vit.tree import layer_outputs
from qkjax.weights.checkpoint import Checkpoint, origin_of

LABELS = {
    "variance_share": Label(
        "share of the variance", "1", "Share of the variance of the logits over keys that a mode explains."
    ),
    "attention_share": Label(
        "share, attention-weighted", "1", "The same share, but with keys weighted by their attention."
    ),
    "key_bias_variance_share": Label(
        "share of the key bias", "1", "Share of the key bias term, with equal weights for all keys."
    ),
    "key_bias_attention_share": Label(
        "share of the key bias", "1", "Share of the key bias term, with keys weighted by their attention."
    ),
    "singular_value": Label("singular value", "1", "Strength s of the mode."),
    "cosine": Label("cosine", "1", "Cosine between the query direction and the key direction of the mode."),
}


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
        return path.stem.encode(errors="replace").decode(), open_image(path)
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

    Args:
      checkpoint: the checkpoint.
      photograph: a Pillow image, a uint8 array (height, width, 3), the path of an image file, or the name of a default
        photograph.
      resolution: (height, width) in pixels; by default the checkpoint's own resolution.

    Returns:
      A dataset with dimensions layer, head and mode. `variance_share` and `attention_share` are shares of the modes.
      `key_bias_variance_share` and `key_bias_attention_share` are shares of the key bias. `singular_value` and `cosine`
      describe the modes.

    Raises:
      QkjaxError: the model does not support the resolution, the photograph cannot be read, or the activations overflow.

    Example:
      >>> import qkjax
      >>> shares = qkjax.attribute_logits(qkjax.load("dinov2-vits14-focus"), "chelsea")
      >>> shares.variance_share.dims
      ('layer', 'head', 'mode')
    """
    require_no_rotation(checkpoint.config, "attribute_logits")
    checkpoint = for_photographs(checkpoint)
    name, pixels = _pixels(checkpoint, photograph, resolution)
    modes = decompose(checkpoint)
    images = normalise(pixels, checkpoint.preprocess)[None]
    key_direction = bias_terms(checkpoint).key_direction
    shares, finite = _contributions(ViT(checkpoint.config), checkpoint.params, images, modes, key_direction)
    require_finite({"tokens and logits": np.where(finite, 0, np.nan)}, name)
    shares = Contributions(*(np.asarray(x)[:, 0] for x in shares))
    metrics = measure(modes)
    variables = {
        "variance_share": (PER_MODE, shares.variance),
        "attention_share": (PER_MODE, shares.attention),
        "key_bias_variance_share": (PER_HEAD, shares.key_bias_variance),
        "key_bias_attention_share": (PER_HEAD, shares.key_bias_attention),
        "singular_value": (PER_MODE, np.asarray(metrics.singular_value)),
        "cosine": (PER_MODE, np.asarray(metrics.cosine)),
    }
    settings = {"resolution": json.dumps(pixels.shape[:2])}
    attrs = {**origin_of(checkpoint), "image": name, "settings": json.dumps(settings), **versions()}
    dataset = annotated(xr.Dataset(variables, attrs=attrs), LABELS)
    return dataset.assign_attrs(summary=summary(dataset))


def query_key_maps(
    checkpoint: Checkpoint,
    photograph: Photograph | str | Path,
    modes: Modes | None = None,
    *,
    stream: Stream = "norm",
    resolution: tuple[int, int] | None = None,
) -> Maps:
    """Computes query and key maps of all layers, heads and modes on one image (the paper, section 2.2 and figure 4).

    Args:
      checkpoint: the checkpoint.
      photograph: a Pillow image, a uint8 array (height, width, 3), the path of an image file, or the name of a default
        photograph.
      modes: modes of the checkpoint, in the plain frame (see `Frame`). If None, the function computes the modes.
      stream: the tokens to project; see `qkjax.activations.project.Stream`.
      resolution: (height, width) in pixels; by default the checkpoint's own resolution.

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
    require_no_rotation(checkpoint.config, "query_key_maps")
    checkpoint = for_photographs(checkpoint)
    config = checkpoint.config
    _, pixels = _pixels(checkpoint, photograph, resolution)
    images = normalise(pixels, checkpoint.preprocess)[None]
    _, captured = forward(ViT(config), checkpoint.params, images, capture=(stream,))
    require_finite({"tokens": captured[stream]}, "the photograph")
    modes = decompose(checkpoint) if modes is None else modes
    grid = photograph_grid(checkpoint, resolution)
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
