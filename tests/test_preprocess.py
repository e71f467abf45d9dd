"""Preprocessing against other implementations on real photographs, and odd image files."""

import json
import subprocess
import sys
import warnings
from dataclasses import asdict, replace

import numpy as np
import pytest
from PIL import Image
from skimage import data, transform

from conftest import NEEDS
from qkjax import QkjaxError
from qkjax.images.preprocess import PRESETS, Preprocess, normalise, open_image, pair, picture, preprocess
from qkjax.weights import preprocessing
from qkjax.weights.families import timm
from qkjax.weights.families.image_processor import from_processor_config, stated_by_processor

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
PHOTOGRAPHS = {
    "chelsea": data.chelsea,  # 300 x 451
    "coffee": data.coffee,  # 400 x 600
    "astronaut": data.astronaut,  # 512 x 512
    "portrait": lambda: np.ascontiguousarray(np.rot90(data.coffee())[:, 37:]),  # 600 x 363
    "small": lambda: data.chelsea()[100:201, 120:270],  # is enlarged
}
# preset, class of transformers, what the hub's file says that the class does not
PROCESSORS = [
    ("hf-vit", "ViT", {}),
    ("hf-ijepa", "ViT", {}),
    ("hf-mae", "ViT", IMAGENET),
    ("hf-dino", "Bit", {"size": {"shortest_edge": 256}, **IMAGENET}),
    ("hf-dinov2", "Bit", {"size": {"shortest_edge": 256}, **IMAGENET}),
    ("simmim", "Bit", {"size": {"shortest_edge": 256}, **IMAGENET}),
    ("hf-clip", "CLIP", {}),
    ("hf-deit", "DeiT", IMAGENET),
    ("hf-siglip", "Siglip", {}),
]


def processor(kind: str, **config):
    """The one of transformers that works with Pillow: its name ends in Pil from version 5 on."""
    pytest.importorskip("torch", reason=NEEDS)
    transformers = pytest.importorskip("transformers", reason=NEEDS)
    name = f"{kind}ImageProcessor"
    return (getattr(transformers, f"{name}Pil", None) or getattr(transformers, name))(**config)


def scaled(config: dict, resolution: int) -> dict:
    """The same configuration for another resolution than 224."""
    scale = lambda side: round(side * resolution / 224)
    resized = {
        k: {n: scale(s) for n, s in dict(config[k]).items() if s} for k in ("size", "crop_size") if config.get(k)
    }
    return config | resized


@pytest.mark.parametrize("resolution", [224, 384])
@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
@pytest.mark.parametrize(("preset", "kind", "config"), PROCESSORS, ids=[p for p, *_ in PROCESSORS])
def test_agrees_with_transformers(preset, kind, config, photograph, resolution):
    """To one grey level a pixel, and what the model takes accordingly."""
    image, preset = PHOTOGRAPHS[photograph](), PRESETS[preset]
    theirs = processor(kind, **config)
    theirs = processor(kind, **scaled(theirs.to_dict(), resolution))
    (wanted,) = theirs(Image.fromarray(image), return_tensors="np")["pixel_values"]
    wanted = np.asarray(wanted).transpose(1, 2, 0)
    seen = preprocess(image, preset, resolution)
    assert seen.shape == wanted.shape == (resolution, resolution, 3)
    assert seen.dtype == np.float32
    level = 1 / 255 / np.array(preset.std)
    assert np.all(np.abs(seen - wanted) <= 1.001 * level)
    assert np.abs(seen - wanted).mean() < 1e-3  # in fact they are equal: both resize with Pillow


@pytest.mark.parametrize(("preset", "kind", "config"), PROCESSORS, ids=[p for p, *_ in PROCESSORS])
def test_reads_the_files_of_transformers(preset, kind, config):
    assert from_processor_config(processor(kind, **config).to_dict()) == PRESETS[preset]


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        # old files of the hub
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 2, **IMAGENET}, "hf-mae"),
        ({"feature_extractor_type": "DeiTFeatureExtractor", "size": 256, "crop_size": 224, **IMAGENET}, "hf-deit"),
        ({"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224, "resample": 3}, "hf-clip"),
        # no class, everything said
        ({"size": {"height": 224, "width": 224}, "resample": 2, "image_mean": 0.5, "image_std": 0.5}, "hf-vit"),
        # new ones, with nulls; 1/127.5 less 1 written as a mean
        ({"image_processor_type": "ViTImageProcessorFast", "crop_size": None, "do_pad": None}, "hf-vit"),
        (
            {"image_processor_type": "ViTImageProcessor", "rescale_factor": 1 / 127.5, "image_mean": 1, "image_std": 1},
            "hf-vit",
        ),
    ],
)
def test_processor_configs(config, wanted):
    assert from_processor_config(config) == PRESETS[wanted]


def test_a_picture_that_is_not_square_is_cut_from_the_smallest_that_covers_it():
    """Of 400 x 600 (height x width): 224 x 448 is 8/9 wide with margins 8/7, so the width decides."""
    preset = PRESETS["hf-dinov2"]
    image = data.coffee()
    wide = picture(image, preset, (224, 448))
    assert wide.shape == (224, 448, 3)
    whole = np.asarray(Image.fromarray(image).resize((512, 341), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(wide, whole[58:282, 32:480])
    squashed = picture(image, PRESETS["squash"], (112, 224))
    assert squashed.shape == (112, 224, 3)
    np.testing.assert_array_equal(picture(image, preset, (224, 224)), picture(image, preset))


def test_processor_config_without_resizing_only_cuts():
    kind = {"image_processor_type": "CLIPImageProcessor"}
    read = from_processor_config({**kind, "do_resize": False, "do_normalize": False, "crop_size": 64})
    assert (read.resize, read.crop, read.mean, read.std) == ("none", 64, (0, 0, 0), (1, 1, 1))
    np.testing.assert_array_equal(picture(data.astronaut(), read), data.astronaut()[224:288, 224:288])
    with pytest.raises(QkjaxError, match="cannot crop 64 x 64 pixels from 50 x 40"):
        picture(np.zeros((40, 50, 3), np.uint8), read)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"image_processor_type": "Siglip2ImageProcessor"}, "has the unknown class Siglip2ImageProcessor"),
        ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, "do_pad=true"),
        ({"image_processor_type": "ViTImageProcessor", "resample": 6}, "resample=6"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 9}}, "size={'longest_edge': 9}"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"height": 9, "width": 0}}, "'width': 0"),
        ({"image_processor_type": "ViTImageProcessor", "size": {"shortest_edge": 9}}, "no fixed size"),
        ({"image_processor_type": "ViTImageProcessor", "do_resize": False}, "no fixed size"),
        ({"image_processor_type": "ViTImageProcessor", "do_center_crop": True}, "crop_size=None"),
        ({"image_processor_type": "CLIPImageProcessor", "crop_size": 500}, "pad images"),
        ({"image_processor_type": "ViTImageProcessor", "image_mean": [1, 2]}, "no usable image_mean"),
        ({"image_processor_type": "ViTImageProcessor", "rescale_factor": 0}, "rescale_factor"),
        ({"size": 224, "resample": 2}, "no usable image_mean"),
        ({}, "size=None"),
    ],
)
def test_processor_configs_that_are_not_understood(config, says):
    with pytest.raises(QkjaxError, match=r"preprocessor_config\.json") as caught:
        from_processor_config(config)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def area_by_hand(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The integral over every new pixel, one overlap with an old pixel at a time."""
    out = np.zeros((height, width, 3))
    down, across = image.shape[0] / height, image.shape[1] / width
    overlap = lambda i, scale, j: max(0.0, min((i + 1) * scale, j + 1) - max(i * scale, j))
    for y, x in np.ndindex(height, width):
        for row in range(int(y * down), min(int((y + 1) * down) + 1, image.shape[0])):
            for column in range(int(x * across), min(int((x + 1) * across) + 1, image.shape[1])):
                out[y, x] += overlap(y, down, row) * overlap(x, across, column) * image[row, column]
    return out / (down * across)


def tf_preset(filter: str) -> Preprocess:
    return Preprocess("squash", filter, 8, 8, (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("shape", [(41, 23), (24, 64), (5, 7), (8, 8), (3, 1)])
def test_area_is_the_integral(shape):
    """Reduced, enlarged, and one of each; both truncated."""
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    difference = picture(image, tf_preset("area")) - area_by_hand(image, 8, 8)
    assert difference.min() > -1
    assert difference.max() < 2e-5


def test_area_is_the_local_mean_for_whole_factors():
    image = data.astronaut()
    wanted = transform.downscale_local_mean(image, (4, 4, 1))
    np.testing.assert_array_equal(picture(image, tf_preset("area"), 128), wanted.astype(np.uint8))


@pytest.mark.parametrize("shape", [(41, 23), (5, 7), (8, 8), (3, 1), (1, 2)])
def test_bilinear_is_torchs(shape):
    torch = pytest.importorskip("torch", reason=NEEDS)
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    tensor = torch.tensor(image.transpose(2, 0, 1)[None], dtype=torch.float64)
    wanted = torch.nn.functional.interpolate(tensor, (8, 8), mode="bilinear", align_corners=False, antialias=False)
    difference = picture(image, tf_preset("bilinear")) - wanted[0].permute(1, 2, 0).numpy()
    assert difference.min() > -1
    assert difference.max() < 2e-5


def test_agrees_with_tensorflow():
    """Red of random pixels (11, 7), as big_vision's operations gave it with TensorFlow 2.21.

    The long side of the first is 7.86 pixels, which big_vision rounds to 8 and transformers would cut to 7.
    """
    image = np.random.default_rng(0).integers(0, 256, (11, 7, 3)).astype(np.uint8)
    cropped = [[105, 129, 118, 180], [175, 88, 99, 97], [162, 137, 209, 137], [153, 123, 145, 140]]
    squashed = [[166, 35, 209, 85], [136, 99, 90, 134], [138, 202, 153, 124], [181, 222, 121, 214]]
    # resize_small(5)|central_crop(4), resize(4)
    small_crop = Preprocess("small side", "area", 5, 4, (0.5,) * 3, (0.5,) * 3)
    np.testing.assert_array_equal(picture(image, small_crop)[..., 0], cropped)
    np.testing.assert_array_equal(picture(image, PRESETS["squash"], 4)[..., 0], squashed)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_keeps_flat_colour_and_its_own_size(name):
    """White stays white, whatever rounding does to it, at the own resolution and at others."""
    preset, image = PRESETS[name], np.full((411, 577, 3), 255, np.uint8)
    assert picture(image, preset).shape == (preset.crop, preset.crop, 3)
    for resolution in (160, 518):
        seen = picture(image, preset, resolution)
        assert seen.shape == (resolution, resolution, 3)
        assert np.all(seen == 255)
    assert np.all(picture(np.zeros_like(image), preset) == 0)


def test_range_of_google_is_minus_one_to_one():
    ends = normalise(np.array([[[0, 127, 255]]], np.uint8), PRESETS["squash"])
    np.testing.assert_allclose(ends, [[[-1, 127 / 127.5 - 1, 1]]], rtol=1e-6)


@pytest.mark.parametrize("array", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((0, 8, 3), np.uint8)])
def test_arrays_that_are_no_picture(array):
    with pytest.raises(QkjaxError, match="uint8 of shape"):
        picture(array, PRESETS["squash"])


def test_a_strip_is_no_memory_bomb():
    with pytest.raises(QkjaxError, match="too elongated"):
        picture(np.zeros((1, 60_000, 3), np.uint8), PRESETS["hf-clip"])
    with pytest.raises(QkjaxError, match="cannot crop 0 x 0 pixels"):
        picture(np.zeros((9, 9, 3), np.uint8), PRESETS["hf-clip"], 0)


# Files


def ramp(top: int, dtype: type) -> np.ndarray:
    """(32, 48), from 0 to `top` along the columns."""
    return np.broadcast_to(np.linspace(0, top, 48).round().astype(dtype), (32, 48))


GRAY = np.repeat(ramp(255, np.uint8)[..., None], 3, axis=2)


def saved(tmp_path, image: Image.Image, name: str, **options) -> np.ndarray:
    image.save(tmp_path / name, **options)
    opened = open_image(tmp_path / name)
    assert opened.mode == "RGB"
    np.testing.assert_array_equal(picture(opened, PRESETS["squash"]), picture(np.asarray(opened), PRESETS["squash"]))
    return np.asarray(opened)


def test_gray_of_8_and_16_bits(tmp_path):
    np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(ramp(255, np.uint8)), "gray.png"), GRAY)
    nearest = np.repeat(np.round(ramp(65535, np.uint16) / 257)[..., None], 3, axis=2)
    for name, dtype in (("deep.png", np.uint16), ("deep.tif", np.uint16), ("wide.tif", np.int32)):
        np.testing.assert_array_equal(saved(tmp_path, Image.fromarray(ramp(65535, dtype)), name), nearest)
    black_and_white = saved(tmp_path, Image.fromarray(GRAY).convert("1"), "1.png")
    assert set(np.unique(black_and_white)) == {0, 255}


def test_pixels_of_unknown_range(tmp_path):
    for pixels in (ramp(1, np.float32), ramp(-1, np.int32), ramp(2**20, np.int32)):
        path = tmp_path / "odd.tif"
        Image.fromarray(pixels).save(path)
        with pytest.raises(QkjaxError, match=r"odd\.tif has .* unknown range"):
            open_image(path)


def test_palette_and_cmyk(tmp_path):
    image = Image.fromarray(data.chelsea())
    palette = image.quantize(64)
    np.testing.assert_array_equal(saved(tmp_path, palette, "palette.png"), np.asarray(palette.convert("RGB")))
    cmyk = saved(tmp_path, image.convert("CMYK"), "cmyk.jpg", quality=95)
    assert np.abs(cmyk.astype(int) - data.chelsea()).mean() < 4
    cmyk = saved(tmp_path, image.convert("CMYK"), "cmyk.tif")
    assert np.abs(cmyk.astype(int) - data.chelsea()).max() <= 1


def test_transparent_is_white(tmp_path):
    """As transformers shows it, half transparent too; also of a palette and of gray."""
    alpha = np.dstack([np.zeros((4, 3, 3), np.uint8), np.repeat([[0, 128, 255]], 4, axis=0).astype(np.uint8)])
    image = Image.fromarray(alpha)
    wanted = np.repeat(np.array([255, 127, 0], np.uint8)[None, :, None], 3, axis=2).repeat(4, axis=0)
    np.testing.assert_array_equal(saved(tmp_path, image, "rgba.png"), wanted)
    np.testing.assert_array_equal(saved(tmp_path, image.convert("LA"), "la.png"), wanted)
    opaque_or_not = Image.fromarray(np.repeat(np.array([[0, 1]], np.uint8), 4, axis=0)).convert("P")
    opaque_or_not.putpalette([9, 9, 9, 200, 100, 0])
    for transparency in (0, bytes([0, 255])):
        shown = saved(tmp_path, opaque_or_not, "palette.png", transparency=transparency)
        np.testing.assert_array_equal(shown[0], [[255, 255, 255], [200, 100, 0]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """Whichever way the camera was held, the picture is upright."""
    turns = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_90",
             7: "TRANSVERSE", 8: "ROTATE_270"}  # fmt: skip
    image = Image.fromarray(data.chelsea()[:64, 100:200])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image.transpose(Image.Transpose[turns[orientation]]) if orientation > 1 else image
    np.testing.assert_array_equal(saved(tmp_path, stored, "turned.png", exif=exif), np.asarray(image))


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (40, 200)]
    assert np.all(saved(tmp_path, frames[0], "moving.gif", save_all=True, append_images=frames[1:]) == 40)


def broken_files(folder):
    good = folder / "good.png"
    Image.fromarray(data.chelsea()).save(good)
    content = good.read_bytes()
    photograph = folder / "good.jpg"
    Image.fromarray(data.chelsea()).save(photograph)
    cases = {
        "cut.png": content[: len(content) // 2],
        "cut.jpg": photograph.read_bytes()[:5000],
        "flipped.png": content[:2000] + b"\0" * 50 + content[2050:],
        "header.png": content[:20],
        "empty.png": b"",
        "text.jpg": b"not a picture",
    }
    for name, bytes_ in cases.items():
        (folder / name).write_bytes(bytes_)
    return [folder / name for name in cases] + [folder / "missing.png", folder]


def test_broken_files_are_one_line(tmp_path):
    for path in broken_files(tmp_path):
        with pytest.raises(QkjaxError) as caught:
            open_image(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_decompression_bombs(tmp_path, monkeypatch):
    """Refused between Pillow's limit, where it warns, and twice that, where it raises; filters are as before,
    but for the one that silences Pillow."""
    path = tmp_path / "bomb.png"
    Image.new("L", (100, 100)).save(path)
    filters = [f for f in warnings.filters if not _is_pillows(f)]
    for limit in (6000, 3000):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(QkjaxError, match=r"bomb\.png.*(exceed Pillow's limit|exceeds limit)"):
            open_image(path)
    assert [f for f in warnings.filters if not _is_pillows(f)] == filters


def _is_pillows(filter) -> bool:
    return getattr(filter[3], "pattern", filter[3]) == r"PIL\."


def test_importing_stays_light():
    """Pillow is loaded when a picture is, not before."""
    code = "import sys, qkjax.images.preprocess; sys.exit('PIL.Image' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def png_bytes(depth: int, colour: int, row: bytes, transparent: tuple[int, ...]) -> bytes:
    """A PNG of two pixels with a tRNS chunk; Pillow cannot write all depths."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, depth, colour, 0, 0, 0))
    clear = chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + clear + pixels + chunk(b"IEND", b"")


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_value_of_a_gray_png_is_white(tmp_path, depth):
    """At every depth; other values stay. The first pixel has the transparent value, the second is black or white."""
    top = 2**depth - 1
    for clear in {0, 1, top // 3, top}:
        other = 0 if clear else top
        row = (clear << depth | other) << max(0, 8 - 2 * depth)
        path = tmp_path / "x.png"
        path.write_bytes(png_bytes(depth, 0, row.to_bytes(max(1, depth // 4), "big"), (clear,)))
        np.testing.assert_array_equal(np.asarray(open_image(path))[0], [[255] * 3, [255 if other else 0] * 3])


@pytest.mark.parametrize(("depth", "unit"), [(8, 1), (16, 257)])
def test_the_transparent_colour_of_an_rgb_png_is_white(tmp_path, depth, unit):
    colours = [9 * unit, 8 * unit, 7 * unit, 9 * unit, 8 * unit, 6 * unit]
    row = b"".join(value.to_bytes(depth // 8, "big") for value in colours)
    (tmp_path / "x.png").write_bytes(png_bytes(depth, 2, row, tuple(colours[:3])))
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "x.png"))[0], [[255, 255, 255], [9, 8, 6]])


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_modes_with_opacity_are_blended_with_white(mode):
    """La and RGBa hold colours that are already multiplied by the opacity."""
    half = Image.new("RGBA", (1, 1), (100, 100, 100, 128))
    image = half.convert("RGBA" if mode == "RGBa" else "LA")
    image = image.convert(mode) if mode in ("La", "RGBa") else image
    if mode == "PA":
        image = Image.new("PA", (1, 1), (100, 128))
        image.putpalette([value for value in range(256) for _ in range(3)])
    seen = picture(image, Preprocess("none", "area", 1, 1, (0.5,) * 3, (0.5,) * 3))
    assert np.abs(seen.astype(int) - (255 - 155 * 128 / 255)).max() <= 1.5


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV", "I", "I;16", "I;16B", "I;16L"])
def test_every_other_mode_of_pillow_is_read(mode):
    assert picture(Image.new(mode, (2, 1)), PRESETS["squash"]).shape == (224, 224, 3)


def test_a_mode_that_pillow_cannot_convert_is_one_line(monkeypatch):
    def convert(self, mode):
        raise ValueError("conversion not supported")

    monkeypatch.setattr(Image.Image, "convert", convert)
    with pytest.raises(QkjaxError, match=r"cannot convert the image from mode LAB to RGB \(conversion not supported\)"):
        picture(Image.new("LAB", (2, 1)), PRESETS["squash"])


# Parts that are followed, and parts that are not


def assert_equal_to_transformers(kind: str, **config) -> None:
    """The file of a processor is read whole, and its pixels of photographs are equal."""
    theirs = processor(kind, **config)
    preset = from_processor_config(theirs.to_dict())
    for photograph in PHOTOGRAPHS.values():
        (wanted,) = theirs(Image.fromarray(photograph()), return_tensors="np")["pixel_values"]
        found = preprocess(photograph(), preset)
        np.testing.assert_allclose(found, np.asarray(wanted).transpose(1, 2, 0), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "kind", ["Beit", "Bit", "Blip", "ChineseCLIP", "CLIP", "DeiT", "Flava", "MobileNetV1", "OwlViT", "Pvt", "Segformer",
             "ViT"],
)  # fmt: skip
def test_defaults_of_a_class_are_those_of_transformers(kind):
    assert_equal_to_transformers(kind)
    assert from_processor_config({"image_processor_type": f"{kind}ImageProcessor"}) == from_processor_config(
        processor(kind).to_dict()
    )


@pytest.mark.parametrize("resample", range(6))
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("ViT", {"size": {"height": 256, "width": 128}}),
        (
            "Beit",
            {"size": {"height": 90, "width": 200}, "do_center_crop": True, "crop_size": {"height": 80, "width": 81}},
        ),
        ("CLIP", {"size": {"shortest_edge": 201}, "crop_size": {"height": 97, "width": 200}}),
    ],
    ids=["squash", "squash and crop", "smaller side and crop"],
)
def test_every_filter_and_sizes_that_are_not_square(kind, config, resample):
    assert_equal_to_transformers(
        kind, **config, resample=resample, image_mean=[0.7, 0.5, 0.6], image_std=[0.2, 0.3, 0.25]
    )


@pytest.mark.parametrize(
    ("size", "crop_mode", "share"),
    [
        ((256, 128), "center", 0.875),
        ((128, 256), "squash", 0.8),
        ((90, 200), "center", 1.0),
        ((224, 224), "center", 0.9),
    ],
)
@pytest.mark.parametrize("filter", ["lanczos", "bicubic", "nearest"])
def test_agrees_with_timm(size, crop_mode, share, filter):
    """Up to one pixel of the crop: torchvision rounds half of an odd margin, and we round it down."""
    create_transform = pytest.importorskip("timm.data", reason=NEEDS).create_transform
    scale = {"mean": [0.7, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}
    config = {"input_size": [3, *size], "crop_pct": share, "crop_mode": crop_mode, "interpolation": filter, **scale}
    preset = Preprocess(**timm.preprocess_of(config).fields)
    theirs = create_transform(**config | {"input_size": (3, *size)})
    for photograph in PHOTOGRAPHS.values():
        image = photograph()
        wanted = theirs(Image.fromarray(image)).numpy().transpose(1, 2, 0)
        whole = preprocess(image, replace(preset, crop=preset.resize_to))  # the resized image is larger
        resized = [x for x in theirs.transforms if "Crop" not in type(x).__name__]
        uncropped = Image.fromarray(image)
        for transform_ in resized:
            uncropped = transform_(uncropped)
        shape = tuple(uncropped.shape[1:])
        found = preprocess(image, replace(preset, resize="squash", resize_to=shape, crop=shape))
        np.testing.assert_allclose(found, uncropped.numpy().transpose(1, 2, 0), atol=1e-6, rtol=0)
        assert whole.shape[:2] == pair(preset.resize_to)
        found = preprocess(image, preset)
        assert found.shape == wanted.shape == (*size, 3)
        if all((a - b) % 2 == 0 for a, b in zip(shape, size, strict=True)):
            np.testing.assert_allclose(found, wanted, atol=1e-6, rtol=0)


KNOWN = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


@pytest.mark.parametrize(
    ("config", "missing", "clauses"),
    [
        ({"image_processor_type": "Own", "size": 99, "resample": 1}, set(), ["has the unknown class Own"]),
        ({"image_processor_type": "ViTImageProcessor", "do_pad": True, "do_thumbnail": True}, set(),
         ["has do_pad=true", "has do_thumbnail=true"]),
        ({"image_processor_type": "ViTImageProcessor", "resample": 9}, {"filter"}, ["has resample=9"]),
        ({"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 9}}, {"resize", "resize_to", "crop"},
         ["has size={'longest_edge': 9}"]),
        ({"image_processor_type": "CLIPImageProcessor", "size": {"longest_edge": 9}}, {"resize", "resize_to"},
         ["has size={'longest_edge': 9}"]),
        ({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 240, "longest_edge": 900}}, set(),
         ["of which qkjax uses only shortest_edge"]),
        ({"image_processor_type": "CLIPImageProcessor", "crop_size": 500}, set(), ["which would pad images"]),
        ({"size": 224}, {"filter"}, ["has resample=None"]),
        ({"image_processor_type": "Siglip2ImageProcessor", "patch_size": 16, "resample": 2},
         {"resize", "resize_to", "crop"}, ["has the unknown class", "has size=None"]),
    ],
)  # fmt: skip
def test_what_is_known_is_kept(config, missing, clauses):
    """Mean and std above all; a clause names each part that is not followed."""
    _, fields, unfollowed = stated_by_processor({**config, **KNOWN})
    assert set(Preprocess.__dataclass_fields__) - set(fields) == missing
    assert (fields["mean"], fields["std"]) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert len(unfollowed) == len(clauses)
    for clause, found in zip(clauses, unfollowed, strict=True):
        assert clause in found
    if not missing:
        assert picture(data.chelsea(), Preprocess(**fields)).shape == (*pair(fields["crop"]), 3)


def test_a_scale_of_another_type():
    _, fields, (clause,) = stated_by_processor({"image_processor_type": "ViTImageProcessor", "image_mean": "a"})
    assert clause == "has no usable image_mean, image_std and rescale_factor"
    assert fields == {"resize": "squash", "resize_to": 224, "crop": 224, "filter": "pil-bilinear"}


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("odd", "says"),
    [
        ({"image_std": [0, 1, 1]}, "std=(0.0, 1.0, 1.0): expected three numbers from 1e-06"),
        ({"image_std": [NAN] * 3}, "std=(nan, nan, nan)"),
        ({"image_std": [INFINITE] * 3}, "std=(inf"),
        ({"image_std": [-1, 1, 1]}, "std=(-1.0"),
        ({"image_mean": [NAN] * 3}, "mean=(nan"),
        ({"image_mean": [10**400, 1, 1]}, "impossible values of"),
        ({"rescale_factor": 0}, "impossible values of"),
        ({"rescale_factor": NAN}, "mean=(nan"),
        ({"size": {"height": 10**12, "width": 8}}, "4096 pixels (set QKJAX_MAX_SIDE"),
        ({"size": {"shortest_edge": 5000}, "do_center_crop": True, "crop_size": 8}, "more than 4096 pixels"),
    ],
)
def test_values_that_no_image_has(odd, says):
    with pytest.raises(QkjaxError, match=r"^preprocessor_config\.json has") as caught:
        from_processor_config({"image_processor_type": "ViTImageProcessor", **odd})
    assert says in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("field", "value"),
    [("std", [10**400, 1, 1]), ("std", [1e-320] * 3), ("mean", "123"), ("mean", [NAN] * 3), ("mean", [True, 1, 1]),
     ("resize_to", 33.3), ("resize_to", 10**30), ("resize_to", INFINITE), ("crop", -5), ("crop", [8, 8, 8]),
     ("crop", 64), ("resize", "stretch"), ("filter", "sinc")],
)  # fmt: skip
def test_stored_values_that_no_image_has(field, value):
    """As an npz file of qkjax stores them."""
    stored = {
        "resize": "squash",
        "filter": "pil-bilinear",
        "resize_to": 32,
        "crop": 32,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    with pytest.raises(QkjaxError, match="its preprocessing settings are damaged") as caught:
        preprocessing.from_json(json.dumps(stored | {field: value}))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", PRESETS)
def test_a_pair_of_equal_sides_is_a_square(name):
    """Except for the rounding of the longer side, which is that of timm for a pair."""
    preset, image = PRESETS[name], data.coffee()
    pairs = replace(preset, crop=pair(preset.crop))
    for resolution in (None, 160, (224, 448)):
        np.testing.assert_array_equal(picture(image, pairs, resolution), picture(image, preset, resolution))


def test_stored_preprocessing_of_both_ages_is_read():
    """Files from before sizes could be pairs, and files with pairs."""
    old = {"resize": "small side", "filter": "pil-bicubic", "resize_to": 256, "crop": 224, "mean": [0.0] * 3}
    old |= {"std": [1.0] * 3}
    stored = preprocessing.from_json(json.dumps(old))
    assert stored == Preprocess("small side", "pil-bicubic", 256, 224, (0.0,) * 3, (1.0,) * 3)
    for sizes in ((256, (224, 128)), ((300, 200), (224, 128)), (224, 224)):
        preset = Preprocess("small side", "pil-lanczos", *sizes, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        assert preprocessing.from_json(json.dumps(asdict(preset))) == preset
    for odd in (
        {"crop": [224, 300]}, {"crop": [224]}, {"crop": 0}, {"crop": 1.5}, {"resize_to": [9, 9]}, {"resize_to": "a"},
        {"filter": "x"}, {"resize": "x"}, {"std": [1.0, 1.0, 0.0]},
    ):  # fmt: skip
        with pytest.raises(QkjaxError, match="its preprocessing"):
            preprocessing.from_json(json.dumps(old | odd))
