"""Converts Pillow images of any mode to RGB. Transparent pixels are blended with white."""

import numpy as np

from qkjax.errors import QkjaxError

BAND = 1 << 20  # number of pixels converted at the same time; each pixel is converted independently


def to_rgb(image: "PIL.Image.Image", name: str) -> "PIL.Image.Image":
    """Converts an image to RGB. Transparent pixels are blended with white, and 16-bit grey is scaled to 8 bits.

    An image that is already in RGB is returned unchanged.

    Args:
      image: a Pillow image of any mode.
      name: name of the image in error messages.

    Raises:
      QkjaxError: the range of the pixel values is unknown (floats or 32-bit integers), or Pillow cannot convert the
        mode.
    """
    from PIL import Image

    if image.mode == "F":
        raise QkjaxError(f"{name} has float pixels of unknown range; save the image with 8 or 16 bits")
    try:
        clear = image.has_transparency_data
        if image.mode == "RGB" and not clear:
            return image
        converted, rows = Image.new("RGB", image.size), max(1, BAND // max(1, image.width))
        for top in range(0, image.height, rows):
            band = image.crop((0, top, image.width, min(top + rows, image.height)))
            band = _deep_gray(band, name) if image.mode.startswith("I") else _blended(band, clear)
            converted.paste(band, (0, top))
        return converted
    except (ValueError, TypeError) as error:
        reason = f"cannot convert {name} from mode {image.mode} to RGB ({error})"
        raise QkjaxError(f"{reason}; save the image as RGB or grey") from error


def scale_transparency(image: "PIL.Image.Image") -> None:
    """For a PNG with 2, 4 or 48 bits per pixel, scales the transparent colour in the same way as the pixels.

    Pillow scales the pixels of such a PNG to 8 bits, but not the transparent colour. For 48-bit colours, Pillow drops
    the lower half of the bits. All colours that have the same upper half as the transparent colour therefore become
    transparent, too.
    """
    clear, layout = image.info.get("transparency"), str(image.tile[0][3]) if getattr(image, "tile", None) else ""
    if layout in ("L;2", "L;4") and isinstance(clear, int):
        image.info["transparency"] = clear * (85 if layout == "L;2" else 17)
    if layout == "RGB;16B" and isinstance(clear, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in clear)


def _deep_gray(image: "PIL.Image.Image", name: str) -> "PIL.Image.Image":
    """Converts a 16-bit grey image to RGB.

    A PNG file may declare one grey value as transparent. Pillow reports this value, but does not apply it.
    """
    from PIL import Image

    gray = np.asarray(image).astype(np.int64)
    if gray.min() < 0 or gray.max() > 65535:
        raise QkjaxError(f"{name} has 32-bit pixels of unknown range; save the image with 8 or 16 bits")
    clear = image.info.get("transparency")
    scaled = np.where(gray == clear, 255, (gray + 128) // 257) if isinstance(clear, int) else (gray + 128) // 257
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")  # 257 = 65535 / 255; rounds to the nearest value


def _blended(image: "PIL.Image.Image", clear: bool) -> "PIL.Image.Image":
    from PIL import Image

    if image.mode in ("La", "RGBa"):  # modes whose colours are already multiplied by the opacity
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if clear:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
