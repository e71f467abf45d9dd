"""Same object or another, mode by mode: against plain loops, on hand-made maps, and from published layouts of files."""

import struct
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from commands import command
from PIL import Image

import qkjax
from qkjax.activations.largest_object import chosen_objects
from qkjax.analyses.objects import compute
from qkjax.images.preprocess import PRESETS, Preprocess, normalise, picture, source_pixels
from qkjax.images.segmented import crop_objects, mosaics, open_objects
from qkjax.vit.model import forward
from qkjax.vit.tree import query_key_kernels
from qkjax.weights.checkpoint import write_checkpoint

SIDE = 32
PRESET = Preprocess("squash", "pil-bilinear", SIDE, SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SMALL = qkjax.ViTConfig(
    width=24, depth=2, heads=2, head_dim=6, mlp_dim=48, patch_size=(8, 8), grid=(4, 4), pool="tok", class_token=True
)


def test_the_object_with_the_largest_projection_per_area():
    """Three objects and an empty place: one small and bright, one large, one dark; by both signs."""
    objects = np.zeros((4, 6), np.float32)
    objects[0, 0], objects[1, 1:4], objects[2, 4:] = 1, 1, [1, 0.5]
    values = np.array([[5, -1], [3, 2], [3, 2], [3, 2], [-4, 1], [-4, 1]], np.float32)
    found = chosen_objects(jnp.asarray(values), jnp.asarray(objects))
    np.testing.assert_array_equal(found, [[0, 2], [1, 0]])


def test_labels_are_cut_as_pictures_are():
    """A picture whose colours are its labels: the nearest pixel is what the resized picture shows, but at edges."""
    rng = np.random.default_rng(0)
    for name in ("hf-dinov2", "bigvision-small-crop", "squash", "hf-clip"):
        labels = np.kron(rng.integers(0, 2, (5, 8)), np.ones((60, 60), int))  # blocks far larger than a pixel
        seen = picture(np.repeat((255 * labels[..., None]).astype(np.uint8), 3, axis=2), PRESETS[name])[..., 0]
        rows, columns = source_pixels(labels.shape, PRESETS[name])
        assert (np.abs(255.0 * labels[rows[:, None], columns] - seen) > 128).mean() < 0.003, name


@pytest.mark.gpu
def test_a_pass_is_a_plain_loop(tmp_path, monkeypatch, capsys):
    """Top images, and whether their objects are the same, mode by mode in float64; the command's table."""
    rng = np.random.default_rng(0)
    tree = qkjax.ViT(SMALL).init(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3)))["params"]
    params = jax.tree.map(lambda x: np.asarray(x + 0.3 * rng.standard_normal(x.shape), np.float32), tree)
    write_checkpoint(tmp_path / "small.npz", SMALL, params, PRESET)

    def run(*words):
        done = command(monkeypatch, capsys, "objects", *words, "--count", 5, "--top", 3, "--batch", 2)
        assert done.code == 0, done.err

    run(small := tmp_path / "small.npz", "--out", tmp_path / "out")
    data = xr.load_dataset(tmp_path / "out" / "objects.nc")
    modes = qkjax.decompose(*query_key_kernels(params))
    images = mosaics(5, 0)
    scores, same, objects = [], [], []
    for index in range(5):
        pixels, masks = crop_objects(images.read(index), "", PRESET, None, (8, 8))
        _, out = forward(qkjax.ViT(SMALL), params, normalise(pixels, PRESET)[None], capture=("norm",))
        y = np.asarray(out["norm"], np.float64)[:, 0, 1:]
        masks = masks[masks.sum(1) > 0]
        objects.append(len(masks))
        maps = [np.einsum("lpd,lhdr->lphr", y, np.asarray(w, np.float64)) for w in (modes.u, modes.v)]
        signed = [np.stack([m, -m], axis=-1) for m in maps]
        scores.append(signed[0].max(1) * signed[1].max(1))
        best = [np.einsum("op,lphrs->olhrs", masks / masks.sum(1, keepdims=True), m).argmax(0) for m in signed]
        same.append(best[0] == best[1])
    order = np.argsort(-np.array(scores), axis=0)[:3]
    np.testing.assert_array_equal(data.image_index, np.moveaxis(order, 0, -1))
    np.testing.assert_array_equal(data.same, np.moveaxis(np.take_along_axis(np.array(same), order, 0), 0, -1))
    np.testing.assert_array_equal(data.objects, objects)
    table = (tmp_path / "out" / "objects.csv").read_text().splitlines()
    row = dict(zip(table[0].split(","), map(float, table[1].split(",")), strict=True))
    s, found, chances = np.float64(modes.s[0]), [], []
    for head, mode in np.ndindex(2, 6):
        sign = np.array(scores)[:, 0, head, mode].max(0).argmax()
        images_of = order[:, 0, head, mode, sign]
        chances.append(s[head, mode] / s[head].sum() * np.mean([1 / objects[i] for i in images_of]))
        found.append(s[head, mode] / s[head].sum() * data.same.values[0, head, mode, sign].mean())
    assert row["same"] == pytest.approx(sum(found) / 2, abs=1e-6)
    assert row["chance"] == pytest.approx(sum(chances) / 2, abs=1e-6)
    rates = np.array(found) / (s / s.sum(-1, keepdims=True)).ravel()
    assert row["by_strength"] == pytest.approx(np.dot(s.ravel() / s.sum(), rates), abs=1e-6)
    assert row["plain"] == pytest.approx(np.mean(rates), abs=1e-6)
    assert row["same_low"] <= row["same"] <= row["same_high"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "objects.nc", "objects.csv", "same_object.png", "same_object.pdf",
    }  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(compute, "run_pass", None)  # what is there is not measured again
        run(small, "--out", tmp_path / "out")
    xr.testing.assert_identical(xr.load_dataset(tmp_path / "out" / "objects.nc"), data)
    (tmp_path / "other.npz").write_bytes((tmp_path / "small.npz").read_bytes())
    run(small, tmp_path / "other.npz", "--out", tmp_path / "two")
    np.testing.assert_array_equal(xr.load_dataset(tmp_path / "two" / "other" / "objects.nc").same, data.same)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        "small", "other", "same_object.png", "same_object.pdf",
    }  # fmt: skip


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def test_ade20k_in_its_layouts_and_folders_of_ones_own(tmp_path):
    """Parts of equal values are one object; palettes and colours are labels, not pictures."""
    rng = np.random.default_rng(0)
    photograph = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    classes = np.zeros((64, 64), np.uint8)
    classes[:32], classes[32:, :32] = 1, 2
    instances = np.stack([classes, np.kron([[1, 2], [1, 0]], np.ones((32, 32))), 0 * classes], -1).astype(np.uint8)
    for layout, (image, mask, array, objects) in {
        "classes": ("images/validation/a.jpg", "annotations/validation/a.png", classes, 2),
        "instances": ("images/validation/a.jpg", "annotations_instance/validation/a.png", instances, 3),
        "own": ("images/a.jpg", "masks/a.png", classes, 2),
        "full": ("validation/street/a.jpg", "validation/street/a_seg.png", instances, 3),
    }.items():
        write(tmp_path / layout / image, photograph)
        write(tmp_path / layout / mask, array)
        images = open_objects(tmp_path / layout)
        assert len(images) == 1
        _, masks = crop_objects(images.read(0), "a", PRESET, None, (8, 8))
        assert (masks.sum(1) > 0).sum() == objects, layout
        assert masks.sum() == pytest.approx(12), "a quarter is none"
    Image.merge("LA", [Image.fromarray(classes), Image.new("L", (64, 64), 255)]).save(tmp_path / "own/masks/a.png")
    assert np.unique(open_objects(tmp_path / "own").read(0)[1]).tolist() == [0, 1, 2], "black is none"
    palette = Image.fromarray(classes).convert("P")
    palette.putpalette([0, 0, 0] * 256)  # all black to the eye
    palette.save(tmp_path / "own" / "masks" / "a.png")
    _, labels = open_objects(tmp_path / "own").read(0)
    assert np.unique(labels).tolist() == [0, 1, 2]
    write(tmp_path / "own" / "masks" / "a.png", classes[:40])
    with pytest.raises(
        qkjax.QkjaxError, match="a: the mask has 64 x 40 pixels: expected the size of the image, 64 x 64"
    ):
        crop_objects(open_objects(tmp_path / "own").read(0), "a", PRESET, None, (8, 8))
    write(tmp_path / "own" / "masks" / "a.png", 0 * classes + 1)
    with pytest.raises(qkjax.QkjaxError, match="in the crop that the model sees, is 1: expected"):
        crop_objects(open_objects(tmp_path / "own").read(0), "a", PRESET, None, (8, 8))
    write(tmp_path / "own" / "masks" / "b.jpg", classes)
    write(tmp_path / "own" / "images" / "b.jpg", photograph)
    write(tmp_path / "own" / "images" / "c.jpg", photograph)
    more = open_objects(tmp_path / "own")
    assert (more.names, more.left_out) == (("a", "b"), (("c", "no mask has the name of this image"),))
    with pytest.raises(qkjax.QkjaxError, match="JPEG changes pixel values"):
        more.read(1)
    (tmp_path / "own" / "masks" / "a.png").write_bytes(b"no image")
    with pytest.raises(qkjax.QkjaxError, match=r"cannot read the mask a\.png"):
        open_objects(tmp_path / "own").read(0)
    for path, says in {"none": "there is no folder", "own/images": "has no image with a mask: expected"}.items():
        with pytest.raises(qkjax.QkjaxError, match=says):
            open_objects(tmp_path / path)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("16 bits", "16 bits, of which only 8"), ("float", "mode F"), ("CMYK", "mode CMYK"), ("JPEG", "JPEG")],
)
def test_masks_whose_values_cannot_be_read_exactly(kind, words, tmp_path):
    """Pillow reads them as other numbers, so that two objects would become one."""
    write(tmp_path / "images" / "a.png", np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "masks").mkdir()
    if kind == "16 bits":
        (tmp_path / "masks" / "a.png").write_bytes(png_of_16_bits(np.full((32, 32, 3), 257, ">u2")))
    elif kind == "float":
        Image.fromarray(np.full((32, 32), 1.2, np.float32)).save(tmp_path / "masks" / "a.tif")
    else:
        suffix, mode = {"CMYK": ("tif", "CMYK"), "JPEG": ("jpg", "L")}[kind]
        Image.new(mode, (32, 32)).save(tmp_path / "masks" / f"a.{suffix}")
    with pytest.raises(qkjax.QkjaxError, match=words):
        open_objects(tmp_path).read(0)


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """A PNG file with 16 bits per channel, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_two_files_of_one_name(tmp_path):
    for name in ("images/a.png", "images/a.jpg", "masks/a.png"):
        write(tmp_path / name, np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(qkjax.QkjaxError, match=r"images contains a\.(jpg|png) and a\.(jpg|png): expected one of them"):
        open_objects(tmp_path)
