"""Angles of rotary positions, for the patch grid of an image."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from qkjax.errors import QkjaxError
from qkjax.interaction.rotary.rotation import Rotation, axial_angles
from qkjax.vit.config import ViTConfig
from qkjax.vit.rotary_config import Rotary
from qkjax.vit.windows import check_windows, has_several_windows, is_global


def _coordinates(rotary: Rotary, size: int, reference: int | float | None) -> Float[np.ndarray, "size"]:
    """Coordinates of the patches along one axis with `size` patches."""
    index = np.arange(size)
    if rotary.coordinates == "centred":
        return 2 * np.pi * (2 * (index + 0.5 + rotary.offset) / size - 1)
    return (index + rotary.offset) * (1 if reference is None else reference / size)


def patch_rotation(config: ViTConfig, grid: tuple[int, int]) -> Rotation | None:
    """The rotation of the patches of a grid, row by row; None if the model has no rotary positions.

    In a model with windows, a layer that attends within windows counts patches from the corner of the window. A global
    layer counts them from the corner of the image, in units in which the width of the image is that of a window. For a
    grid of several windows, the angles therefore have the leading axes (layers, 1).

    Raises:
      QkjaxError: the head dimension is not a multiple of 4, so the planes do not divide between rows and columns; or
        the grid does not consist of whole windows.

    Example:
      >>> from qkjax.vit.config import ViTConfig
      >>> from qkjax.vit.rotary_config import Rotary
      >>> from qkjax.vit.rotary import patch_rotation
      >>> rotary = Rotary(100.0, "centred", pairs="half")
      >>> sizes = {"width": 24, "depth": 2, "heads": 2, "head_dim": 12, "mlp_dim": 48, "patch_size": (8, 8)}
      >>> patch_rotation(ViTConfig(**sizes, posemb="none", rotary=rotary), (4, 5)).angles.shape
      (20, 6)
    """
    rotary = config.rotary
    if rotary is None:
        return None
    if config.head_dim % 4:
        raise QkjaxError(f"head_dim is {config.head_dim}: rotary positions expect a multiple of 4 (two axes of planes)")
    if not has_several_windows(config, grid):
        reference = rotary.reference or (None, None)
        axes = (_coordinates(rotary, *axis) for axis in zip(grid, reference, strict=True))
        return Rotation(_angles(config, *axes), rotary.pairs, tuple(grid))
    check_windows(config, grid, f"grid={tuple(grid)}")
    size = config.window
    within = _angles(config, *(_coordinates(rotary, size, None)[np.arange(n) % size] for n in grid))
    across = _angles(config, *(_coordinates(rotary, n, size * n / grid[1]) for n in grid))
    angles = np.stack([across if is_global(config, layer) else within for layer in range(config.depth)])
    return Rotation(angles[:, None], rotary.pairs, tuple(grid), (size, size))


def _angles(config: ViTConfig, rows: np.ndarray, columns: np.ndarray) -> Float[np.ndarray, "places planes"]:
    """The angles of all places of a grid with the given coordinates."""
    count = config.head_dim // 4
    angles = axial_angles(rows, columns, config.rotary.temperature ** -(np.arange(count) / count))
    return np.roll(angles, count, axis=-1) if config.rotary.first == "columns" else angles


def layer_rotation(config: ViTConfig, rotation: Rotation | None, layer: int) -> Rotation | None:
    """The rotation of one layer, whose angles have no leading axes. Its window is None if the layer is global."""
    if rotation is None or rotation.window is None:
        return rotation
    return Rotation(rotation.angles[layer, 0], *rotation[1:3], None if is_global(config, layer) else rotation.window)


def with_class_angles(rotation: Rotation, own: Float[Array | np.ndarray, "1 planes"]) -> Rotation:
    """Adds the class token, which precedes the patches and is rotated by its own angles, to a rotation of patches."""
    own = jnp.asarray(own, jnp.promote_types(own.dtype, jnp.float32))
    return rotation._replace(angles=jnp.concatenate([own, jnp.asarray(rotation.angles, own.dtype)]))


def token_angles(
    config: ViTConfig, params: Mapping, grid: tuple[int, int]
) -> Float[np.ndarray, "tokens planes"] | Float[np.ndarray, "layers tokens planes"]:
    """The angles of all tokens of an image: special tokens, which are not rotated, and then the patches, row by row.

    For a grid of several windows, the angles have a leading axis for the layers.

    MLCD rotates its class token by learned angles.

    Args:
      config: the architecture of a model with rotary positions.
      params: its parameter tree.
      grid: rows and columns of patches.
    """
    rotation = patch_rotation(config, grid)
    if rotation.window is not None:  # models with windows have no special tokens
        return rotation.angles[:, 0]
    if config.rotary.class_angles:
        rotation = with_class_angles(rotation, np.asarray(params["class_angles"]))
    angles = np.asarray(rotation.angles)
    return np.pad(angles, ((config.prefix_tokens + grid[0] * grid[1] - len(angles), 0), (0, 0)))
