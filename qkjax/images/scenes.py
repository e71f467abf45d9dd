"""Scenes: images with a mask of the target (the odd object) and a mask of the distractors."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from qkjax.errors import QkjaxError
from qkjax.images.preprocess import Preprocess, Resolution, picture, side_lengths

REGIONS = ("target", "distractors", "background")
Mask = UInt8[np.ndarray, "height width"]
Regions = Float[np.ndarray, "regions rows columns"]


class Scene(NamedTuple):
    """An image in RGB, a mask of the target and a mask of the distractors.

    The masks have the size of the image, with 255 for pixels inside the target or distractors and 0 outside.
    """

    image: "PIL.Image.Image"
    target: Mask
    distractors: Mask


def crop_to_model(
    scene: Scene, name: str, preset: Preprocess, resolution: Resolution | None, patch_size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "height width 3"], Regions]:
    """Returns the pixels that the model sees, and the share of each patch that each region of `REGIONS` covers.

    The masks are resized and cropped in the same way as the image, then averaged over each patch.

    Raises:
      QkjaxError: a mask differs from the image in size, a mask is empty before or after cropping, or the masks overlap.
    """
    target, distractors = scene.target, scene.distractors
    for what, mask in (("target", target), ("distractors", distractors)):
        if mask.shape != (scene.image.height, scene.image.width):
            raise QkjaxError(
                f"{name}: the mask of the {what} has {mask.shape[1]} x {mask.shape[0]} pixels: expected the size of "
                f"the image, {scene.image.width} x {scene.image.height}"
            )
        if mask.max() < 128:
            raise QkjaxError(f"{name}: the mask of the {what} is empty")
    both = ((target >= 128) & (distractors >= 128)).sum()
    if both > 0.01 * min((mask >= 128).sum() for mask in (target, distractors)):  # edges of hand-drawn masks may touch
        raise QkjaxError(f"{name}: the masks of target and distractors overlap in {both} pixels; correct the masks")
    shares = [_patch_means(_cut(mask, preset, resolution), patch_size) for mask in (target, distractors)]
    for what, share in zip(REGIONS, shares, strict=False):
        if not share.any():
            raise QkjaxError(f"{name}: in the crop that the model sees, the {what} is missing or too small")
    background = np.clip(1 - shares[0] - shares[1], 0, 1)
    regions = np.stack([*shares, background])
    return picture(scene.image, preset, resolution), (regions / regions.sum(0)).astype(np.float32)


def _cut(mask: Mask, preset: Preprocess, resolution: Resolution | None) -> Float[np.ndarray, "_ _"]:
    """Resizes and crops a mask in the same way as the image; returns values from 0 to 1.

    Resizing averages pixels, because sampling single pixels could lose small objects.
    """
    return picture(np.broadcast_to(mask[..., None], (*mask.shape, 3)), preset, resolution, "area")[..., 0] / 255


def _patch_means(mask: Float[np.ndarray, "height width"], patch_size: tuple[int, int]) -> Float[np.ndarray, "_ _"]:
    rows, columns = (n // p for n, p in zip(mask.shape, patch_size, strict=True))
    cut = mask[: rows * patch_size[0], : columns * patch_size[1]]
    return cut.reshape(rows, patch_size[0], columns, patch_size[1]).mean((1, 3))


def blank_scene(
    preset: Preprocess, resolution: Resolution | None, patch_size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "height width 3"], Regions]:
    """The pixels and regions that replace a missing scene: black pixels, and background in all patches."""
    side = side_lengths(preset, resolution)
    grid = tuple(n // p for n, p in zip(side, patch_size, strict=True))
    regions = np.concatenate([np.zeros((2, *grid)), np.ones((1, *grid))]).astype(np.float32)
    return np.zeros((*side, 3), np.uint8), regions
