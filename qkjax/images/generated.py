"""Generates scenes with one odd object (the target) among identical distractors, and exact masks of both.

The scenes are psychophysical patterns similar to the P3 data set, or are composed of pieces of photographs. A scene is
generated when it is read, and depends only on the seed and on its index.
"""

import colorsys
from collections.abc import Callable
from functools import cache, partial
from typing import Literal

import numpy as np
from jaxtyping import Float

from qkjax.images.default_set import photographs
from qkjax.images.scenes import Scene
from qkjax.images.sets import ImageSet

SIDE, CELLS, FINE = 448, 4, 2
"""Side of an image in pixels; number of objects per row of the jittered grid; number of subpixels along each side of a
pixel when masks are sampled."""
KINDS = ("colour", "orientation", "size")
JITTER, EDGE = 0.06, 0.1
"""Largest shift of an object, as a share of its grid cell; margin of the grid, as a share of the image side. The margin
is needed because the preprocessing of models crops images to the centre."""

Plane = Float[np.ndarray, "height width"]


def patterns(count: int, seed: int, kind: Literal["patterns", "pasted"] = "patterns") -> ImageSet[Scene]:
    """An image set of `count` generated scenes.

    Args:
      count: number of scenes.
      seed: random seed.
      kind: "patterns" or "pasted". Scenes of "patterns" show bars on a faint texture. One bar differs from the other
        bars in colour, orientation or size; the scenes cycle through these three properties. Scenes of "pasted" show
        round pieces cut from one photograph and a single piece cut from a second photograph. The background is a
        blurred third photograph.
    """
    generate = {"patterns": _pattern, "pasted": _pasted}[kind]
    names = tuple(f"{index:05d} {KINDS[index % 3]}" if kind == "patterns" else f"{index:05d}" for index in range(count))
    sources = photographs(crops=False).fingerprint if kind == "pasted" else ""
    return ImageSet(
        f"{kind}, seed {seed}", names, partial(_generated, generate, seed), f"{kind} {count} {seed} {sources}"
    )


def _generated(generate, seed: int, index: int) -> Scene:
    return generate(np.random.default_rng([seed, index]), index)


def _pattern(rng: np.random.Generator, index: int) -> Scene:
    """Generates a scene of identical bars, except for one odd bar.

    The odd bar differs from all other bars in exactly one property: hue, orientation or size. A different hue differs
    by at least a sixth of the colour circle, and a different orientation by at least 30 degrees. For a different size,
    length and width are multiplied by the same factor, which is from 0.55 to 0.7 or from 1.3 to 1.4.
    """
    kind, cells = KINDS[index % 3], CELLS * CELLS
    odd = np.arange(cells) == rng.integers(cells)
    hue, angle = rng.random() + np.zeros(cells), rng.random() * np.pi + np.zeros(cells)
    length = rng.uniform(0.3, 0.36) + np.zeros(cells)  # half the length of a bar, in cells
    width = rng.uniform(0.4, 0.55) * length
    if kind == "colour":
        hue[odd] += rng.uniform(1 / 6, 5 / 6)
    elif kind == "orientation":
        angle[odd] += rng.uniform(np.pi / 6, 5 * np.pi / 6)
    else:
        factor = rng.choice([rng.uniform(0.55, 0.7), rng.uniform(1.3, 1.4)])
        length[odd], width[odd] = length[odd] * factor, width[odd] * factor
    pitch = SIDE * (1 - 2 * EDGE) / CELLS
    middle = SIDE * EDGE + pitch * (np.arange(CELLS) + 0.5)
    down, right = (x.ravel() + rng.uniform(-JITTER, JITTER, cells) * pitch for x in np.meshgrid(middle, middle))
    image = _texture(rng)
    masks = [np.zeros((SIDE, SIDE)) for _ in range(2)]
    value = rng.uniform(0.75, 1.0)
    for cell in range(cells):
        bar = partial(_bar, length[cell] * pitch, width[cell] * pitch, angle[cell])
        box, cover = _cover(down[cell], right[cell], int(length[cell] * pitch) + 3, bar)
        colour = np.array(colorsys.hsv_to_rgb(hue[cell] % 1, 0.85, value))
        image[box] += cover[..., None] * (colour - image[box])
        masks[int(not odd[cell])][box] += cover
    return _scene(image, masks)


def _texture(rng: np.random.Generator) -> Float[np.ndarray, "height width 3"]:
    """Generates a grey image with faint smooth noise."""
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None])
    noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((SIDE, SIDE))) * np.exp(-((frequency * 40) ** 2)))
    return np.repeat((rng.uniform(0.35, 0.6) + 0.04 * noise / noise.std())[..., None], 3, axis=2).clip(0, 1)


def _cover(down: float, right: float, reach: int, inside: Callable[[np.ndarray, np.ndarray], np.ndarray]):
    """Returns a box of pixels around a point, and, for each pixel in the box, the share of it that is inside a shape.

    `inside` takes row and column positions relative to the point, and returns whether each position is in the shape.
    """
    top, left = int(down) - reach, int(right) - reach
    positions = (np.arange(2 * reach * FINE) + 0.5) / FINE
    is_inside = inside(positions[:, None] + (top - down), positions[None] + (left - right))
    return np.s_[top : top + 2 * reach, left : left + 2 * reach], is_inside.reshape(2 * reach, FINE, -1, FINE).mean(
        (1, 3)
    )


def _bar(length: float, width: float, angle: float, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return (abs(along) <= length) & (abs(across) <= width)


@cache
def square_photographs() -> tuple[np.ndarray, ...]:
    """The default photographs, cropped to central squares, with values from 0 to 1."""
    images, arrays = photographs(crops=False), []
    for index in range(len(images)):
        image = images.read(index)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE))
        arrays.append(np.asarray(square, np.float64) / 255)
    return tuple(arrays)


@cache
def _blurred(index: int) -> Float[np.ndarray, "height width 3"]:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(square_photographs()[index], (12, 12, 0))


def _pasted(rng: np.random.Generator, _: int) -> Scene:
    """Generates a scene of eight round pieces of photographs in eight cells of a 3 x 3 grid.

    The seven distractors are copies of one piece of a photograph, each rotated by a random multiple of 90 degrees and
    mirrored at random. The target is a piece of a second photograph.
    """
    background, distractor, target = (int(i) for i in rng.choice(len(square_photographs()), 3, replace=False))
    image = _blurred(background).copy()
    cells, radius = 3, rng.uniform(32, 48)
    pitch = SIDE * (1 - 2 * EDGE) / cells
    middle = SIDE * EDGE + pitch * (np.arange(cells) + 0.5)
    down, right = (x.ravel() + rng.uniform(-0.1, 0.1, cells**2) * pitch for x in np.meshgrid(middle, middle))
    occupied = rng.permutation(cells**2)[:-1]
    half = int(np.ceil(radius)) + 1
    corners = {index: _corner(rng, square_photographs()[index], 2 * half) for index in (distractor, target)}
    masks = [np.zeros((SIDE, SIDE)) for _ in range(2)]
    for number, cell in enumerate(occupied):
        index = target if number == 0 else distractor
        top, left = corners[index]
        piece = square_photographs()[index][top : top + 2 * half, left : left + 2 * half]
        piece = np.rot90(piece, rng.integers(4))
        piece = piece[:, ::-1] if rng.random() < 0.5 else piece
        box, cover = _cover(down[cell], right[cell], half, lambda y, x: y**2 + x**2 <= radius**2)
        image[box] += cover[..., None] * (piece - image[box])
        masks[int(number > 0)][box] += cover
    return _scene(image, masks)


def _corner(rng: np.random.Generator, photograph: np.ndarray, side: int) -> np.ndarray:
    """Chooses, among eight random squares of a photograph, the one with the highest contrast; returns its corner."""
    corners = rng.integers(0, SIDE - side, (8, 2))
    return max(corners, key=lambda corner: photograph[corner[0] : corner[0] + side, corner[1] : corner[1] + side].std())


def _scene(image: Float[np.ndarray, "height width 3"], masks: list[Plane]) -> Scene:
    from PIL import Image

    pixels, *masks = (np.rint(255 * x.clip(0, 1)).astype(np.uint8) for x in (image, *masks))
    return Scene(Image.fromarray(pixels), *masks)
