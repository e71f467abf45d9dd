"""Augments training images by shifts, crops and RandAugment, with numpy and Pillow on the host."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

Values = Float[np.ndarray, "height width channels"]
Pixels = UInt8[np.ndarray, "height width 3"]

AREA, ASPECT, TRIES = (0.05, 1.0), (0.75, 1.33), 100
"""Settings of random crops: the range of the crop's area as a share of the image, the range of width / height, and the
number of attempts."""
GRAY, LEVELS = 128, 10
CUTOUT, TRANSLATE = 40 / 224, 100 / 224
"""Half the side of the cutout square, and the length of the translation, both at full strength. They are shares of the
image's side: big_vision's values in pixels divided by big_vision's resolution of 224."""


def shift_image(image: Values, down: int, right: int) -> Values:
    """Shifts an image down and to the right by the given numbers of pixels. New pixels are -1, the darkest value."""
    height, width, _ = image.shape
    result = np.full_like(image, -1.0)
    rows, columns = ((max(n, 0), min(n, 0)) for n in (down, right))
    result[rows[0] : height + rows[1], columns[0] : width + columns[1]] = image[
        -rows[1] : height - rows[0], -columns[1] : width - columns[0]
    ]
    return result


def inception_crop(image: "PIL.Image.Image", side: int, rng: np.random.Generator) -> "PIL.Image.Image":
    """Crops a random box with 5 to 100% of the image's area, and resizes the crop to a square of `side` pixels.

    As in big_vision, the method is that of Szegedy et al. 2015, but resizing is antialiased here.
    """
    from PIL import Image

    width, height = image.size
    box = (0, 0, width, height)
    for _ in range(TRIES):
        area, aspect = rng.uniform(*AREA) * width * height, rng.uniform(*ASPECT)
        wide, high = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(rng.integers(width - wide + 1)), int(rng.integers(height - high + 1))
            box = (left, top, left + wide, top + high)
            break
    return image.resize((side, side), Image.Resampling.BILINEAR, box=box)


def rand_augment(image: "PIL.Image.Image", layers: int, level: float, rng: np.random.Generator) -> "PIL.Image.Image":
    """Applies `layers` distortions, drawn at random from 16 kinds, one after the other (Cubuk et al. 2020, section 3).

    The strengths for levels 0 to 10 are those of big_vision. Two operations are Pillow's, and differ from those of
    big_vision. In big_vision, solarize inverts every pixel at level 10 because of an overflow, and contrast uses a
    constant instead of the image's mean grey.
    """
    for _ in range(layers):
        image = _DISTORTIONS[int(rng.integers(len(_DISTORTIONS)))](image, level / LEVELS, rng)
    return image


def _sign(rng: np.random.Generator) -> float:
    return 1.0 if rng.random() < 0.5 else -1.0


def _affine(image: "PIL.Image.Image", *coefficients: int | float) -> "PIL.Image.Image":
    from PIL import Image

    return image.transform(image.size, Image.Transform.AFFINE, coefficients, fillcolor=(GRAY,) * 3)


def _enhance(name: str) -> Callable:
    def distort(image, strength, rng):
        from PIL import ImageEnhance

        return getattr(ImageEnhance, name)(image).enhance(1.8 * strength + 0.1)

    return distort


def _operation(name: str, *arguments: Callable[[float], int]) -> Callable:
    def distort(image, strength, rng):
        from PIL import ImageOps

        return getattr(ImageOps, name)(image, *(argument(strength) for argument in arguments))

    return distort


def _solarize_add(image, strength, rng):
    """Brightens the pixels whose values are below 128."""
    return image.point([min(i + int(110 * strength), 255) if i < 128 else i for i in range(256)] * 3)


def _cutout(image, strength, rng):
    width, height = image.size
    half = int(CUTOUT * strength * width)
    x, y = int(rng.integers(width)), int(rng.integers(height))
    image = image.copy()
    image.paste((GRAY,) * 3, (max(x - half, 0), max(y - half, 0), min(x + half, width), min(y + half, height)))
    return image


_DISTORTIONS: tuple[Callable, ...] = (
    _operation("autocontrast"),
    _operation("equalize"),
    _operation("invert"),
    _operation("posterize", lambda strength: max(int(4 * strength), 1)),
    _operation("solarize", lambda strength: int(256 * strength)),
    _solarize_add,
    *(_enhance(name) for name in ("Color", "Contrast", "Brightness", "Sharpness")),
    lambda image, strength, rng: image.rotate(_sign(rng) * 30 * strength, fillcolor=(GRAY,) * 3),
    lambda image, strength, rng: _affine(image, 1, _sign(rng) * 0.3 * strength, 0, 0, 1, 0),
    lambda image, strength, rng: _affine(image, 1, 0, 0, _sign(rng) * 0.3 * strength, 1, 0),
    lambda image, strength, rng: _affine(image, 1, 0, _sign(rng) * TRANSLATE * strength * image.width, 0, 1, 0),
    lambda image, strength, rng: _affine(image, 1, 0, 0, 0, 1, _sign(rng) * TRANSLATE * strength * image.height),
    _cutout,
)


def mixup_weight(concentration: float, rng: np.random.Generator) -> np.float32:
    """Draws the weight a of mixup (Zhang et al. 2018) from Beta(concentration, concentration), once per batch.

    As in big_vision, max(a, 1 - a) replaces a. The training step computes a x + (1 - a) x' for each image x and the
    previous image x' of the batch.
    """
    weight = rng.beta(concentration, concentration)
    return np.float32(max(weight, 1 - weight))
