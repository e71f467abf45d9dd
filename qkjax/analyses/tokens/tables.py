"""Converts map correlations and the parts of logits to a labelled dataset."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float

from qkjax.activations.position_content import KEY_PARTS, QUERY_PARTS
from qkjax.activations.token_moments import TokenStatistics
from qkjax.analyses.tokens.photographs import photograph_indices
from qkjax.analyses.tokens.shares import summary
from qkjax.interaction.map_correlation import map_correlation, map_shares
from qkjax.interaction.modes import Modes
from qkjax.results.annotate import Label, annotated
from qkjax.results.modes import PER_HEAD, PER_MODE
from qkjax.results.store import texts, versions

PARTS, KINDS = ("whole", "content", "position"), ("patches", "all")
LABELS = {
    "map_correlation": Label("map correlation", "1", "Correlation of a mode's query map and key map over patches."),
    "map_strength": Label("strength in the logits", "1", "s sqrt(uSu vSv): weight of the mode in its head."),
    "head_map_correlation": Label("map correlation", "1", "Mean over the modes of a head, weighted by map_strength."),
    "null_map_correlation": Label("chance of the map correlation", "1",
                                  "Half width of the 95% interval for a head, or a layer, with random kernels."),
    "singular_value": Label("singular value", "1", "Strength s of the mode, in the plain frame."),
    "cosine": Label("cosine", "1", "u . v of the mode, in the plain frame."),
    "weighted_cosine": Label("weighted cosine", "1", "Mean cosine of the modes weighted by s, in the plain frame."),
    "folded_cosine": Label("weighted cosine, folded", "1", "The same for modes that include the LayerNorm scale."),
    "query_share": Label("share of the query map", "1", "Share of a part of the token in the squared query map."),
    "key_share": Label("share of the key map", "1", "Share of a part of the token in the variance of the key map."),
    "logit_parts": Label("part of the variance of logits", "logit^2",
                         "Covariance of the part with the logits, centred over keys. The six parts add up."),
    "position_share": Label("share of position", "1", "Share of the position factor in the variance of tokens."),
    "position_share_halves": Label("share of position across halves", "1",
                                   "The same share from the covariance of the factors of two halves of the images."),
    "photograph": Label("photograph", "1", "Index of the photograph that the image shows."),
    "part": Label("part of the tokens", "1", "Whole tokens, their content, or their position factor."),
    "query_part": Label("part of the query", "1", "Mean over images and places, position factor, or content."),
    "key_part": Label("part of the key", "1", "Position factor or content."),
    "tokens": Label("tokens", "1", "Tokens between which the logits are: patches, or all tokens."),
    "scope": Label("scope", "1", "A single head, or the mean over the heads of a layer."),
    "left_out": Label("image left out", "", "Name of an image that was left out."),
    "reason": Label("reason", "", "Why the image was left out."),
}  # fmt: skip


def tokens_dataset(
    both_frames: tuple[Modes, Modes],
    statistics: TokenStatistics,
    parts: Float[np.ndarray, "images layers heads kinds 3 2"],
    images: Sequence[str],
    left_out: Sequence[tuple[str, str]],
    attrs: Mapping[str, str],
) -> xr.Dataset:
    """Collects in a dataset what modes meet in the tokens of images.

    Args:
      both_frames: modes in the plain frame (or of the mean over places), and modes that include the LayerNorm scale.
      statistics: mean, position factor and content of the tokens.
      parts: the parts of the logits of each image between patches, and between all tokens if there are special tokens;
        see `logit_parts`.
      images: names of the images of `parts`.
      left_out: name and reason for each image that was left out.
      attrs: attributes of the dataset.

    Returns:
      A dataset with dimensions part (whole, content, position), layer, head, mode, image, tokens (patches, all),
      query_part (mean, position, content), key_part (position, content) and scope (head, layer). Its variables are the
      keys of `LABELS`.
    """
    modes, folded = both_frames
    covariances = statistics.position + statistics.content, statistics.content, statistics.position
    maps = [map_correlation(modes, covariance) for covariance in covariances]
    query_share, key_share = map_shares(modes, statistics.mean, statistics.position, statistics.content)
    cosine, weighted_cosine = _cosines(modes)
    values = {
        "map_correlation": (("part", *PER_MODE), np.stack([x.mode for x in maps])),
        "map_strength": (("part", *PER_MODE), np.stack([x.strength for x in maps])),
        "head_map_correlation": (("part", *PER_HEAD), np.stack([x.head for x in maps])),
        "null_map_correlation": (("part", "scope", "layer"), np.stack([x.null for x in maps])),
        "singular_value": (PER_MODE, np.asarray(modes.s)),
        "cosine": (PER_MODE, cosine),
        "weighted_cosine": (PER_HEAD, weighted_cosine),
        "folded_cosine": (PER_HEAD, _cosines(folded)[1]),
        "query_share": ((*PER_MODE, "query_part"), query_share),
        "key_share": ((*PER_MODE, "key_part"), key_share),
        "logit_parts": (("image", *PER_HEAD, "tokens", "query_part", "key_part"), parts),
        "position_share": ("layer", statistics.position_share),
        "position_share_halves": ("layer", statistics.position_share_halves),
        "left_out": ("missing", texts([name for name, _ in left_out])),
        "reason": ("missing", texts([reason for _, reason in left_out])),
    }
    coords = {
        "image": ("image", texts(images)),
        "photograph": ("image", photograph_indices(images)),
        "part": ("part", list(PARTS)),
        "query_part": ("query_part", list(QUERY_PARTS)),
        "key_part": ("key_part", list(KEY_PARTS)),
        "tokens": ("tokens", list(KINDS[: parts.shape[3]])),
        "scope": ("scope", ["head", "layer"]),
    }
    dataset = annotated(xr.Dataset(values, coords, {**attrs, **versions()}), LABELS)
    return dataset.assign_attrs(summary=summary(dataset))


def _cosines(modes: Modes) -> tuple[Float[np.ndarray, "layers heads rank"], Float[np.ndarray, "layers heads"]]:
    """The cosines of all modes, and the weighted cosines of all heads."""
    u, s, v = (np.asarray(x, np.float64) for x in modes)
    cosine = np.einsum("lhdr,lhdr->lhr", u, v)
    with np.errstate(divide="ignore", invalid="ignore"):
        return cosine, (s * cosine).sum(-1) / s.sum(-1)
