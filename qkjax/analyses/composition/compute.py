"""Measures the composition of all pairs of heads of a checkpoint, from its weights alone."""

import json
from pathlib import Path

import numpy as np
import xarray as xr

from qkjax.analyses.composition.tables import composition_dataset
from qkjax.analyses.decomposition import decompose, frame_attrs
from qkjax.analyses.output_value import output_value_modes
from qkjax.analyses.usable import require_finite_heads, require_finite_modes
from qkjax.interaction.composition import Composition, compose, largest_cosine
from qkjax.vit.output_value import output_value
from qkjax.weights.checkpoint import Checkpoint, origin_of


def composition(checkpoint: Checkpoint, *, fold_norm: bool = True) -> xr.Dataset:
    """Measures how strongly queries, keys and values of each head read what other heads write. No images are needed.

    The composition of a head A with matrix W = Wv Wo and a head B is ||W M||_F / (||W||_F ||M||_F), where M is the
    query-key interaction of B (side "query"), its transpose (side "key"), or Wv Wo of B (side "value"); see
    `qkjax.interaction.composition` (Elhage et al. 2021). For matrices with random directions, the mean of the squared
    composition is 1 / D.

    The result contains all pairs of heads. If B is not in a later layer than A, B cannot read what A writes: the values
    of these pairs are a control. They show how much composition there is without any path from A to B, since all heads
    share a residual stream whose directions are not equally used.

    Args:
      checkpoint: any checkpoint. For a model with rotary positions, query-key modes are those of the mean over places.
      fold_norm: whether matrices act on normalised tokens: they include the LayerNorm scale and (for LayerNorm) exclude
        the mean over the embedding, which LayerNorm removes. If False, the norm is ignored.

    Returns:
      A dataset with dimensions side (query, key, value), from_layer, from_head, to_layer and to_head; see
      `qkjax.interaction.composition.Composition`.

    Raises:
      QkjaxError: the kernels are not finite, or a norm lies between values and output (BEiT-3).

    Example:
      >>> import qkjax
      >>> result = qkjax.composition(qkjax.load("dinov2-vits14-focus"))
      >>> result.score.dims
      ('side', 'from_layer', 'from_head', 'to_layer', 'to_head')
    """
    parts = output_value(checkpoint.params)
    frame = {"fold_scale": fold_norm, "center": fold_norm and parts.norm_centers}
    written, read = output_value_modes(parts, **frame), decompose(checkpoint, **frame)
    require_finite_modes(read, checkpoint.name)
    values = {"output-value strengths": written.s, "written directions": written.v}
    require_finite_heads(values, checkpoint.name, "value and output")
    dimensions = checkpoint.config.width - frame["center"]
    sides = {"query": (read.u, read.s), "key": (read.v, read.s), "value": (written.u, written.s)}
    pairs = [compose(written.v, written.s, *side, dimensions) for side in sides.values()]
    attrs = {
        **origin_of(checkpoint),
        "source": Path(checkpoint.source).name,
        "config": json.dumps(checkpoint.config.to_dict()),
        "options": json.dumps(frame),
        "mean_by_chance": float(np.sqrt(1 / dimensions)),
        "largest_cosine_by_chance": largest_cosine(dimensions, written.s.shape[-1] * read.s.shape[-1]),
        **frame_attrs(read),
    }
    return composition_dataset(Composition(*map(np.stack, zip(*pairs, strict=True))), list(sides), attrs)
