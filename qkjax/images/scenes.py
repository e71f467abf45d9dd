"""Images with masks of an odd object and of its distractors, and the share of each mask in each patch."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from qkjax.errors import QkjaxError
from qkjax.images.preprocess import Preprocess, Resolution, picture, side_lengths

REGIONS = ("target", "distractors", "background")
Mask = UInt8[np.ndarray, "height width"]
Regions = Float[np.ndarray, "regions rows columns"]


class Scene(NamedTuple):
    """An image in RGB, and two masks of its size: 0 for pixels outside of the target or the distractors, 255 inside."""

    image: "PIL.Image.Image"
    target: Mask
    distractors: Mask


def crop_to_model(
    scene: Scene, name: str, preset: Preprocess, resolution: Resolution | None, patch_size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "height width 3"], Regions]:
    """The pixels that the model sees, and the share of each patch that each region covers.

    Masks are resized and cropped like the image, then averaged over each patch.

    Raises:
      QkjaxError: the masks differ from the image in size, overlap, or are empty before or after cropping.
    """
    target, distractors = scene.target, scene.distractors
    for what, mask in (("target", target), ("distractors", distractors)):
        if mask.shape != (scene.image.height, scene.image.width):
            raise QkjaxError(
                f"{name}: the mask of its {what} has {mask.shape[1]} x {mask.shape[0]} pixels, and the image "
                f"{scene.image.width} x {scene.image.height}"
            )
        if mask.max() < 128:
            raise QkjaxError(f"{name}: the mask of its {what} is empty")
    both = ((target >= 128) & (distractors >= 128)).sum()
    if both > 0.01 * min((mask >= 128).sum() for mask in (target, distractors)):  # edges of hand-drawn masks may touch
        raise QkjaxError(f"{name}: target and distractors overlap in {both} pixels; make their masks again")
    shares = [_patch_means(_cut(mask, preset, resolution), patch_size) for mask in (target, distractors)]
    for what, share in zip(REGIONS, shares, strict=False):
        if not share.any():
            raise QkjaxError(f"{name}: its {what} is outside of the crop that the model sees, or too small in it")
    background = np.clip(1 - shares[0] - shares[1], 0, 1)
    regions = np.stack([*shares, background])
    return picture(scene.image, preset, resolution), (regions / regions.sum(0)).astype(np.float32)


def _cut(mask: Mask, preset: Preprocess, resolution: Resolution | None) -> Float[np.ndarray, "_ _"]:
    """The mask from 0 to 1, resized and cropped like the image. Averaging, unlike sampling, keeps small objects."""
    preset = replace(preset, filter="area")
    return picture(np.repeat(mask[..., None], 3, axis=2), preset, resolution)[..., 0] / 255


def _patch_means(mask: Float[np.ndarray, "height width"], patch_size: tuple[int, int]) -> Float[np.ndarray, "_ _"]:
    rows, columns = (n // p for n, p in zip(mask.shape, patch_size, strict=True))
    cut = mask[: rows * patch_size[0], : columns * patch_size[1]]
    return cut.reshape(rows, patch_size[0], columns, patch_size[1]).mean((1, 3))


def blank_scene(
    preset: Preprocess, resolution: Resolution | None, patch_size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "height width 3"], Regions]:
    """The replacement of a missing scene: black pixels, all background."""
    side = side_lengths(preset, resolution)
    grid = tuple(n // p for n, p in zip(side, patch_size, strict=True))
    regions = np.concatenate([np.zeros((2, *grid)), np.ones((1, *grid))]).astype(np.float32)
    return np.zeros((*side, 3), np.uint8), regions
