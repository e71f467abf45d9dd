"""Attention within windows: the patch grid is divided into squares, and a query attends only to keys of its own square.

Windows do not overlap, and begin at the top left. A grid must consist of whole windows. (Models whose code fills
incomplete windows with zeros also attend to these zeros; qkjax refuses such grids.) Letters: B images, P patches row by
row, W windows, w patches along the side of a window.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from qkjax.errors import QkjaxError
from qkjax.vit.attention import Precision, mixed_values
from qkjax.vit.config import ViTConfig

Grid = tuple[int, int]


def check_windows(config: ViTConfig, grid: Grid, name: str = "grid") -> None:
    """Checks that a grid of patches consists of whole windows, if the model has windows.

    Args:
      config: the architecture.
      grid: rows and columns of patches.
      name: the argument that set the grid, for the error message: "grid", or "resolution" with its value.

    Raises:
      QkjaxError: the grid does not consist of whole windows.
    """
    size = config.window
    if size and (grid[0] % size or grid[1] % size):
        height, width = (size * side for side in config.patch_size)
        pixels = f"{height} pixels" if height == width else f"{height} x {width} pixels"
        raise QkjaxError(
            f"{name}: {grid[0]} x {grid[1]} patches are not whole windows of {size} x {size} patches, within which the "
            f"model attends; pass multiples of {size} patches ({pixels})"
        )


def described_windows(config: ViTConfig) -> str:
    """Describes the windows of a model in words.

    Example:
      >>> sizes = {"width": 24, "depth": 4, "heads": 2, "head_dim": 12, "mlp_dim": 48, "patch_size": (8, 8)}
      >>> described_windows(ViTConfig(**sizes, window=4, global_layers=(1, 3)))
      'attention within windows of 4 x 4 patches, except in layers 1 and 3'
    """
    within = f"attention within windows of {config.window} x {config.window} patches"
    if not config.global_layers:
        return within
    *others, last = map(str, config.global_layers)
    layers = f"layers {', '.join(others)} and {last}" if others else f"layer {last}"
    return f"{within}, except in {layers}"


def has_several_windows(config: ViTConfig, grid: Grid) -> bool:
    """Whether a grid of patches contains more than one window; if not, all layers attend to the whole grid."""
    return bool(config.window) and tuple(grid) != (config.window, config.window)


def require_one_window(config: ViTConfig, grid: Grid, reason: str) -> None:
    """Checks that every query attends to all keys, for an analysis that is not defined for windows.

    Args:
      config: the architecture.
      grid: rows and columns of patches.
      reason: what the analysis does that windows do not permit.

    Raises:
      QkjaxError: the grid contains several windows.
    """
    if has_several_windows(config, grid):
        size = tuple(config.window * side for side in config.patch_size)
        raise QkjaxError(
            f"most layers attend within windows of {config.window} x {config.window} patches, but the image has "
            f"{grid[0]} x {grid[1]} patches, and {reason}: pass resolution={size}, an image of one window"
        )


def is_global(config: ViTConfig, layer: int) -> bool:
    """Whether the queries of a layer attend to all keys."""
    return not config.window or layer in config.global_layers


def window_of_patches(grid: Grid, window: Grid) -> Int[np.ndarray, "patches"]:
    """The number of the window of each patch; windows and patches are counted row by row.

    Example:
      >>> window_of_patches((2, 4), (2, 2)).tolist()
      [0, 0, 1, 1, 0, 0, 1, 1]
    """
    rows, columns = (np.arange(n) // size for n, size in zip(grid, window, strict=True))
    return (rows[:, None] * (grid[1] // window[1]) + columns[None]).ravel()


def layer_windows(config: ViTConfig, grid: Grid, layer: int) -> Int[np.ndarray, "patches"] | None:
    """The number of the window of each patch in a layer; None if its queries attend to all keys."""
    if is_global(config, layer) or not has_several_windows(config, grid):
        return None
    return window_of_patches(grid, (config.window, config.window))


def outside_windows(grid: Grid, window: Grid) -> Float[Array, "1 patches patches"]:
    """A bias for logits: 0 if query and key are in the same window, and -inf otherwise."""
    number = jnp.asarray(window_of_patches(grid, window))
    return jnp.where(number[:, None] == number[None], 0.0, -jnp.inf)[None].astype(jnp.float32)


def into_windows(
    x: Float[Array, "B P *rest"], grid: Grid, window: Grid
) -> Float[Array, "image_windows window_patches *rest"]:
    """Divides the patches of each image into windows, which become images of their own."""
    rest, (down, across) = x.shape[2:], (n // size for n, size in zip(grid, window, strict=True))
    parts = x.reshape(len(x), down, window[0], across, window[1], *rest).swapaxes(2, 3)
    return parts.reshape(len(x) * down * across, window[0] * window[1], *rest)


def from_windows(
    x: Float[Array, "image_windows window_patches *rest"], grid: Grid, window: Grid
) -> Float[Array, "B P *rest"]:
    """The inverse of `into_windows`."""
    rest, (down, across) = x.shape[2:], (n // size for n, size in zip(grid, window, strict=True))
    parts = x.reshape(len(x) // (down * across), down, across, *window, *rest).swapaxes(2, 3)
    return parts.reshape(len(parts), grid[0] * grid[1], *rest)


def mixed_in_windows(
    query: Float[Array, "B P H d"],
    key: Float[Array, "B P H d"],
    value: Float[Array, "B P H d"],
    grid: Grid,
    window: Grid,
    precision: Precision,
) -> Float[Array, "B P H d"]:
    """The values, weighted by attention within windows; see `qkjax.vit.attention.mixed_values`."""
    parts = (into_windows(x, grid, window) for x in (query, key, value))
    return from_windows(mixed_values(*parts, None, precision), grid, window)
