"""Images and archives cost a limited amount of memory and time, whatever their files state."""

import io
import os
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
import zlib
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import qkjax
from qkjax.images import resize as resizing
from qkjax.images.memory import PIXELS, Budget
from qkjax.images.o3 import open_o3
from qkjax.images.prefetch import ahead, photograph_batches
from qkjax.images.preprocess import PRESETS, open_image, picture
from qkjax.images.rgb import to_rgb
from qkjax.images.segmented import open_objects
from qkjax.images.sources import open_images
from qkjax.passes.inputs import batches_of_photographs
from qkjax.passes.options import PassOptions, batch_size

PRESET = PRESETS["hf-clip"]
END = bytes(2 * tarfile.BLOCKSIZE)


def png(width: int, height: int) -> bytes:
    """A black image of 1 bit per pixel, which needs few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes(1 + -(-width // 8)) * height, 9))
    return b"\x89PNG\r\n\x1a\n" + head + rows + chunk(b"IEND", b"")


def refused(path, match: str, open_set=open_images) -> str:
    with pytest.raises(qkjax.QkjaxError, match=match) as caught:
        open_set(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


def unreadable(path) -> list[str]:
    images = open_images(path)
    (batch,) = photograph_batches(images, [range(len(images))], len(images), PRESET, 32)
    assert all("\n" not in reason and len(reason) < 500 for _, reason in batch.unreadable)
    return [reason for _, reason in batch.unreadable]


# Pixels


def taps_one_by_one(old: int, new: int, filter: str):
    """The first old pixel and the weights of every new pixel, by definition."""
    for low, high in pairwise(np.arange(new + 1) * old / new):
        if filter == "area":
            first = int(low)
            index = np.arange(first, min(int(np.ceil(high)), old))
            weights = np.minimum(high, index + 1) - np.maximum(low, index)
        else:
            centre = np.clip((low + high) / 2 - 0.5, 0, old - 1)
            first = min(int(centre), max(old - 2, 0))
            weights = np.array([first + 1 - centre, centre - first][:old])
        yield first, weights / weights.sum()


@pytest.mark.parametrize("filter", ["area", "bilinear"])
def test_weights_are_those_of_single_pixels_to_the_bit(filter):
    sides = (1, 2, 3, 7, 16, 224, 256, 375, 500, 1000, 6001)
    for old, new in product(sides, sides):
        taps = list(taps_one_by_one(old, new, filter))
        for part in ((0, new), (new // 3, new - new // 2)):
            expected = taps[part[0] : sum(part)]
            firsts, ends, weights = resizing._taps(old, new, part, filter)
            np.testing.assert_array_equal(firsts, [first for first, _ in expected])
            np.testing.assert_array_equal(ends, [first + len(w) for first, w in expected])
            np.testing.assert_array_equal(weights, np.concatenate([w for _, w in expected]))


def whole_resize(pixels: np.ndarray, shape: tuple[int, int], filter: str) -> np.ndarray:
    """big_vision's filters on the whole picture in float64: rows, then columns."""
    from scipy.sparse import csr_array

    for size in shape:
        flat = np.ascontiguousarray(pixels, np.float64).reshape(len(pixels), -1)
        taps = list(taps_one_by_one(len(flat), size, filter))
        columns = np.concatenate([first + np.arange(len(weights)) for first, weights in taps])
        starts = np.cumsum([0] + [len(weights) for _, weights in taps])
        weights = csr_array((np.concatenate([w for _, w in taps]), columns, starts), shape=(size, len(flat)))
        pixels = (weights @ flat).reshape(size, *pixels.shape[1:]).swapaxes(0, 1)
    return (pixels + 1e-5).astype(np.uint8)


@pytest.fixture(params=[(1, 1), (40, 7), (1 << 12, 64), (1 << 16, 512)], ids=str)
def tile(request, monkeypatch):
    """Sizes of tiles, from single pixels to those in use."""
    monkeypatch.setattr(resizing, "TILE", request.param[0])
    monkeypatch.setattr(resizing, "SIDE", request.param[1])
    resizing._split.cache_clear()
    yield request.param
    resizing._split.cache_clear()


@pytest.mark.parametrize("filter", ["area", "bilinear"])
@pytest.mark.parametrize("old", [(1, 1), (1, 40), (33, 2), (37, 50), (90, 130)])
def test_tiles_give_the_same_bits_as_the_whole_picture(tile, old, filter):
    pixels = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
    for new in ((1, 1), (2, 3), (7, 24), (50, 37), (24, 130)):
        expected = whole_resize(pixels, new, filter)
        for image in (pixels, Image.fromarray(pixels)):
            np.testing.assert_array_equal(resizing.resize(image, new, filter, (0, 0, *new)), expected)
        top, left, height, width = new[0] // 3, new[1] // 4, -(-new[0] // 2), -(-new[1] // 2)
        part = resizing.resize(Image.fromarray(pixels), new, filter, (top, left, height, width))
        np.testing.assert_array_equal(part, expected[top : top + height, left : left + width])


@pytest.mark.parametrize("filter", ["area", "bilinear"])
def test_pictures_larger_than_a_tile(filter):
    pixels = np.random.default_rng(1).integers(0, 256, (700, 1100, 3), dtype=np.uint8)
    for new in ((256, 402), (3, 2), (600, 900)):
        resized = resizing.resize(Image.fromarray(pixels), new, filter, (0, 0, *new))
        np.testing.assert_array_equal(resized, whole_resize(pixels, new, filter))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "I;16", "I"])
@pytest.mark.parametrize("clear", [False, True])
def test_bands_convert_to_the_same_bits(mode, clear, monkeypatch):
    rng = np.random.default_rng(2)
    if mode.startswith("I"):
        image = Image.fromarray(rng.integers(0, 65536, (31, 17)).astype(np.uint16 if mode == "I;16" else np.int32))
    else:
        image = Image.fromarray(rng.integers(0, 256, (31, 17, 4), dtype=np.uint8), "RGBA")
        image = image.convert({"La": "LA", "PA": "P"}.get(mode, mode) if mode != "RGBa" else "RGBA")
        image = image.convert(mode) if mode in ("La", "RGBa", "PA") else image
    if clear and mode in ("L", "P", "RGB", "I;16"):
        image.info["transparency"] = (1, 2, 3) if mode == "RGB" else 7
    whole = np.asarray(to_rgb(image, "x"))
    monkeypatch.setattr("qkjax.images.rgb.BAND", 50)
    np.testing.assert_array_equal(np.asarray(to_rgb(image, "x")), whole)


PEAK = """
import sys
from qkjax.images.prefetch import photograph_batches
from qkjax.images.preprocess import PRESETS, picture
from qkjax.images.sources import open_images
from PIL import Image
status = lambda what: int(next(x for x in open("/proc/self/status") if x.startswith(what)).split()[1]) // 1024
images, preset = open_images(sys.argv[1]), PRESETS[sys.argv[2]]
picture(Image.new("L", (300, 300)), preset)
before = status("VmRSS")
batches = list(photograph_batches(images, [range(len(images))], len(images), preset, None))
assert not batches[0].unreadable, batches[0].unreadable
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to measure memory")
@pytest.mark.parametrize("preset", ["hf-clip", "bigvision-small-crop", "flexivit-i1k"])
def test_memory_of_one_image_is_eight_bytes_per_pixel(preset, tmp_path):
    side = 6000
    Image.new("RGB", (side, side), (9, 99, 199)).save(tmp_path / "x.jpg")
    done = subprocess.run([sys.executable, "-c", PEAK, tmp_path, preset], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 9 * side**2 / 2**20


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to measure memory")
def test_memory_of_many_threads_is_returned(tmp_path):
    """24 images of 25 million pixels, at most two at the same time: 400 MB, however many threads prepare them."""
    for index in range(24):
        Image.new("RGB", (5000, 5000), (9, index, 199)).save(tmp_path / f"{index}.jpg")
    limits = "from qkjax.images import memory, prefetch\n"
    limits += "prefetch.cores, memory.PIXELS.total = lambda: 16, 50_000_000\n"
    command = [sys.executable, "-c", limits + PEAK, tmp_path, "hf-clip"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 800


def test_budget_is_shared_by_any_number_of_threads():
    budget, most, lock = Budget(100), [0], threading.Lock()

    def work(amount: int):
        for _ in range(20):
            with budget.shared():
                budget.take(amount)
                with lock:
                    most[0] = max(most[0], budget.taken)
                time.sleep(0.0005)

    threads = [threading.Thread(target=work, args=(20 + number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert 0 < most[0] <= 100
    assert budget.taken == 0
    with budget.shared():
        budget.take(500)  # more than all of it, and nobody else has any
        budget.take(500)
    assert budget.taken == 0
    budget.take(500)
    assert budget.taken == 0, "outside of `shared` nothing is counted"


def test_images_that_are_prepared_share_the_budget(tmp_path, monkeypatch):
    """However many CPUs there are; also when images cannot be used."""
    monkeypatch.setattr("qkjax.images.prefetch.cores", lambda: 32)
    monkeypatch.setattr(PIXELS, "total", 2500)
    for index in range(40):
        Image.new("L", (40, 25)).save(tmp_path / f"{index}.png")
    images, most = open_images(tmp_path), [0]

    def prepare(index: int) -> int:
        images.read(index)
        most[0] = max(most[0], PIXELS.taken)
        time.sleep(0.001)
        return index

    assert [results for _, results in ahead(prepare, [range(20), range(20, 40)])] == [[*range(20)], [*range(20, 40)]]
    assert 1000 <= most[0] <= 2500
    assert PIXELS.taken == 0


def test_too_many_pixels(tmp_path, monkeypatch):
    """Are stated together with the way to raise the limit, and are not decoded."""
    (tmp_path / "a.png").write_bytes(png(9000, 10_000))
    (tmp_path / "b.png").write_bytes(png(20_000, 20_000))  # Pillow itself refuses it
    (tmp_path / "c.png").write_bytes(png(1, 1 << 18))
    first, second, third = unreadable(tmp_path)
    assert "10000 pixels exceed Pillow's limit of 89478485 pixels (set QKJAX_MAX_PIXELS to raise this limit)" in first
    assert "limit of 178956970 pixels" in second
    assert "(set QKJAX_MAX_PIXELS to raise this limit)" in second
    assert "1 x 262144 pixels exceed the limit of 131072 pixels per side" in third
    monkeypatch.setenv("QKJAX_MAX_PIXELS", "1000")
    Image.new("L", (40, 30)).save(tmp_path / "d.png")
    assert "40 x 30 pixels exceed the limit of 1000 pixels (set QKJAX_MAX_PIXELS" in unreadable(tmp_path / "d.png")[0]
    for text in ("many", "-5", "0", "1e9", "9" * 5000):
        monkeypatch.setenv("QKJAX_MAX_PIXELS", text)
        assert "expected a whole number of at least 1" in unreadable(tmp_path / "d.png")[0]


def test_limit_of_pixels_can_be_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    monkeypatch.setenv("QKJAX_MAX_PIXELS", "")
    Image.new("L", (40, 30)).save(tmp_path / "a.png")  # more than twice the limit of Pillow
    assert len(unreadable(tmp_path)) == 1
    monkeypatch.setenv("QKJAX_MAX_PIXELS", "1200")
    assert unreadable(tmp_path) == []


@pytest.mark.parametrize("name", ["QKJAX_MAX_SIDE"])
def test_limit_that_is_not_a_number(name, tmp_path):
    (tmp_path / "x.npz").write_bytes(b"x")
    command = [sys.executable, "-m", "qkjax", "analyze", "x.npz"]
    environment = {**os.environ, name: "many", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"qkjax: error: {name}='many': expected a whole number of at least 1; change this variable\n"


def test_strips_are_not_enlarged_before_they_are_cropped():
    """10 x 15,000 pixels become 256 x 384,000, of which a square is seen."""
    strip = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 15_000, 3), dtype=np.uint8))
    start = time.monotonic()
    assert picture(strip, PRESETS["bigvision-small-crop"]).shape == (224, 224, 3)
    assert time.monotonic() - start < 2
    for shape in ((1, 60_000), (200_000, 4)):
        with pytest.raises(qkjax.QkjaxError, match="too elongated"):
            picture(np.zeros((*shape, 3), np.uint8), PRESET)
    with pytest.raises(qkjax.QkjaxError, match="too elongated"):
        picture(np.zeros((120_000, 1, 3), np.uint8), PRESETS["squash"], 2048)


def test_progressive_jpeg_of_many_scans(tmp_path):
    """Each may take as long as an image, and needs a few bytes."""
    file = io.BytesIO()
    Image.new("L", (64, 64)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    (tmp_path / "a.jpg").write_bytes(data)
    last = data.rindex(b"\xff\xda")
    tables = data.rindex(b"\xff\xc4", 0, last)
    (tmp_path / "b.jpg").write_bytes(data[:-2] + data[tables:-2] * 101 + b"\xff\xd9")
    assert unreadable(tmp_path / "a.jpg") == []
    (reason,) = unreadable(tmp_path / "b.jpg")
    assert "it has more than 100 scans" in reason


def test_postscript_is_not_run(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    assert "it is a PostScript program" in unreadable(tmp_path)[0]


# Masks


@pytest.fixture
def o3(tmp_path) -> Path:
    for part in ("images", "targ_labels", "dist_labels"):
        (tmp_path / part).mkdir()
        Image.new("RGB", (40, 30)).save(tmp_path / part / "a.png")
    return tmp_path


def test_mask_of_more_pixels_than_its_image(o3):
    (o3 / "dist_labels/a.png").write_bytes(png(3000, 3000))
    with pytest.raises(qkjax.QkjaxError, match="3000 x 3000 pixels are more than the 1200 pixels of its image"):
        open_o3(o3).read(0)
    (o3 / "targ_labels").rename(o3 / "masks")
    (o3 / "masks/a.png").write_bytes(png(3000, 3000))
    with pytest.raises(qkjax.QkjaxError, match=r"mask a\.png: 3000 x 3000 pixels are more than the 1200"):
        open_objects(o3).read(0)


@pytest.mark.parametrize("color", [5, (1, 2, 3), (1, 2, 3, 4)])
def test_numbers_of_objects(color, o3, monkeypatch):
    """In bands of a few rows."""
    monkeypatch.setattr("qkjax.images.segmented.BAND", 100)
    (o3 / "targ_labels").rename(o3 / "masks")
    mode = "L" if isinstance(color, int) else "RGB" if len(color) == 3 else "RGBA"
    image = Image.new(mode, (40, 30))
    image.paste(color, (10, 5, 20, 25))
    image.save(o3 / "masks/a.png")
    labels = open_objects(o3).read(0).labels
    expected = np.zeros((30, 40), int)
    expected[5:25, 10:20] = color if isinstance(color, int) else 0x010203
    np.testing.assert_array_equal(labels, expected)


# Pipes, sockets, devices


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_pipes_sockets_and_devices_are_not_opened(tmp_path):
    for name in ("a.png", "b.zip", "c.tar"):
        os.mkfifo(tmp_path / name)
        refused(tmp_path / name, "is neither a file nor a folder: pass a folder")
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.relpath(tmp_path / "d.png"))
    server.close()
    (tmp_path / "e.png").symlink_to("/dev/zero")
    refused(tmp_path / "e.png", "is neither a file nor a folder")
    refused("/dev/zero", "is neither a file nor a folder")
    (tmp_path / "f.png").write_bytes(png(8, 8))
    images = open_images(tmp_path)
    assert images.names == ("f.png",)
    assert images.notes == ("skipped pipes, sockets or devices: 5, such as a.png",)
    with pytest.raises(qkjax.QkjaxError, match=r"a\.png: it is not a file, but a folder, pipe or device"):
        open_image(tmp_path / "a.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
@pytest.mark.parametrize("part", ["images", "targ_labels", "dist_labels"])
def test_pipes_among_masks(part, o3):
    (o3 / part / "a.png").unlink()
    os.mkfifo(o3 / part / "a.png")
    with pytest.raises(qkjax.QkjaxError, match="it is not a file, but a folder, pipe or device"):
        open_o3(o3).read(0)
    (o3 / "targ_labels").rename(o3 / "masks")
    if part != "dist_labels":
        refused(o3, "has no image with a mask", open_objects)


# Tar files


def header(name="a.png", size=0, kind=tarfile.REGTYPE, stated: bytes | None = None) -> bytes:
    """A header of a tar file; `stated` replaces the field of the size."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if stated is not None:
        block[124:136], block[148:156] = stated, b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % tarfile.BLOCKSIZE)


def record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n".encode()
    length = next(n for n in range(len(body), len(body) + 9) if len(str(n)) + len(body) == n)
    return str(length).encode() + body


def pax(*records: bytes, kind=tarfile.XHDTYPE) -> bytes:
    data = b"".join(records)
    return header("pax", len(data), kind) + padded(data)


IMAGE = png(8, 8)
MEMBER = header("a.png", len(IMAGE)) + padded(IMAGE)
LONG = header("././@LongLink", 1, tarfile.GNUTYPE_LONGNAME) + padded(b"a")
BAD_TARS = {
    "chain of pax headers": pax() * 5000 + MEMBER,
    "chain of long names": LONG * 5000 + MEMBER,
    "chain of global headers": pax(kind=tarfile.XGLTYPE) * 5000 + MEMBER,
    "mixed chain": (pax() + LONG) * 2500 + MEMBER,
    "negative size": header(stated=b"\xff" + (-512).to_bytes(11, "big", signed=True)) + MEMBER,
    "negative size of a folder": header("d", 0, tarfile.DIRTYPE, b"\xff" * 12) + MEMBER,
    "negative size of a pax header": header("p", 0, tarfile.XHDTYPE, b"\xff" * 12) + MEMBER,
    "enormous size": header(stated=b"\x80" + (1 << 80).to_bytes(11, "big")) + MEMBER,
    "size beyond the end": header(size=1 << 32) + MEMBER,
    "enormous pax header": header("p", 6 << 30, tarfile.XHDTYPE) + MEMBER,
    "enormous long name": header("././@LongLink", 6 << 30, tarfile.GNUTYPE_LONGNAME) + MEMBER,
    "negative size in pax": pax(record("size", "-1024")) + MEMBER,
    "long number in pax": pax(record("size", "9" * 9000)) + MEMBER,
    "no number in pax": pax(record("size", "x")) + MEMBER,
    "record of no bytes": pax(b"0 path=b\n") + MEMBER,
    "record beyond its header": pax(b"999 path=b\n") + MEMBER,
    "digits only": pax(b"1" * 200_000) + MEMBER,
    "nothing after a pax header": pax(record("path", "b.png")),
    "damaged header": MEMBER + b"x" * 512,
    "sparse headers without end": header("s", 0, tarfile.GNUTYPE_SPARSE)[:482] + b"\1" * 30,
}


@pytest.mark.parametrize("what", BAD_TARS)
def test_tar_files_that_state_nonsense(what, tmp_path):
    (tmp_path / "x.tar").write_bytes(BAD_TARS[what] + END)
    start = time.monotonic()
    refused(tmp_path, r"cannot list the tar file .*x\.tar \(.*\); copy or create the file again")
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_extension_of_holes(kind, tmp_path):
    """6 GB that take no space on the disk."""
    with open(tmp_path / "x.tar", "wb") as file:
        file.write(header("p", 6 << 30, kind))
        file.truncate(7 << 30)
    refused(tmp_path, "has 6442450944 bytes, expected at most 1048576")


def test_tar_files_as_tarfile_lists_them(tmp_path):
    """Of all formats, with long names, links, folders and sparse files, which are skipped."""
    names = ["a.png", "b/" * 60 + "c.png", "é" * 80 + ".png", "x" * 300 + ".png"]
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "x.tar", "w", format=form, pax_headers={"comment": "x"}) as archive:
            for name in names[: 2 if form == tarfile.USTAR_FORMAT else 4]:
                info = tarfile.TarInfo(name)
                info.size, info.pax_headers = len(IMAGE), {"mtime": "1.5", "LIBARCHIVE.xattr.x": "y"}
                archive.addfile(info, io.BytesIO(IMAGE))
            for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
                info = tarfile.TarInfo(f"{kind.decode()}.png")
                info.type, info.linkname = kind, "l" * (90 if form == tarfile.USTAR_FORMAT else 200)
                archive.addfile(info)
        with tarfile.open(tmp_path / "x.tar") as archive:
            expected = sorted(f"x.tar/{member.name}" for member in archive if member.isreg())
        images = open_images(tmp_path)
        assert [*images.names] == expected
        assert all(images.read(index).size == (8, 8) for index in range(len(images)))
        assert images.notes == ("x.tar has links, devices or sparse files, which are skipped: 3, such as 2.png",)
    sparse = pax(record("GNU.sparse.major", "1"), record("GNU.sparse.name", "s.png")) + MEMBER
    old = header("s.png", 0, tarfile.GNUTYPE_SPARSE)
    (tmp_path / "x.tar").write_bytes(sparse + old + pax(record("path", "e.png")) + MEMBER + END)
    assert open_images(tmp_path).names == ("x.tar/e.png",)


# Zip files


def zipped(path: Path, name="a.png", data=IMAGE, kind=zipfile.ZIP_DEFLATED) -> bytearray:
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr(name, data)
    return bytearray(path.read_bytes())


def test_zip_files_that_state_nonsense(tmp_path):
    data = zipped(tmp_path / "x.zip")
    end, entry = data.rindex(b"PK\5\6"), data.rindex(b"PK\1\2")
    changes = {
        (end + 12, "its .*|it states a directory of 4026531840 bytes"): 0xF0000000,
        (entry + 20, "its entries overlap"): 0x7FFFFFFF,
    }
    for (place, match), value in changes.items():
        changed = bytearray(data)
        changed[place : place + 4] = struct.pack("<L", value)
        (tmp_path / "x.zip").write_bytes(changed)
        refused(tmp_path, rf"cannot list the zip file .*x\.zip \({match}")
    for place, match in {
        end + 16: "cannot read image",
        entry + 24: "the unpacked size is 4096 MiB",
        entry + 42: "cannot read image",
    }.items():
        changed = bytearray(data)
        changed[place : place + 4] = struct.pack("<L", 0xFFFFFFF0)
        (tmp_path / "x.zip").write_bytes(changed)
        try:
            (reason,) = unreadable(tmp_path)
        except qkjax.QkjaxError as error:
            reason = str(error)
        assert match in reason or "cannot list" in reason


def test_directory_of_holes(tmp_path):
    end = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1 << 20, 1 << 20, 5 << 30, 1 << 29)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 6 << 30, 1)
    with open(tmp_path / "x.zip", "wb") as file:
        file.seek(6 << 30)
        file.write(
            end + locator + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *[(1 << 16) - 1] * 2, *[(1 << 32) - 1] * 2, 0)
        )
    refused(tmp_path, "it states a directory of 5368709120 bytes, and the limit is 268435456")


def test_entries_that_overlap(tmp_path):
    """One compressed stream under many names unpacks to any size."""
    data = zipped(tmp_path / "x.zip", data=bytes(1_000_000))
    entry, end = data.rindex(b"PK\1\2"), data.rindex(b"PK\5\6")
    changed = data[:entry] + data[entry:end] * 100 + data[end:]
    at = changed.rindex(b"PK\5\6")
    changed[at + 8 : at + 16] = struct.pack("<HHL", 100, 100, 100 * (end - entry))
    (tmp_path / "x.zip").write_bytes(changed)
    refused(tmp_path, "its entries overlap")


def test_entries_that_unpack_to_any_size_at_once(tmp_path):
    zipped(tmp_path / "x.zip", data=bytes(100 << 20), kind=zipfile.ZIP_BZIP2)
    assert (tmp_path / "x.zip").stat().st_size < 1000
    assert "is compressed with bzip2, expected deflate or no compression" in unreadable(tmp_path)[0]


def test_entries_of_the_same_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for side in (8, 16):
            archive.writestr("a.png", png(side, side))
    images = open_images(tmp_path)
    assert [images.read(index).size for index in range(len(images))] == [(8, 8), (16, 16)]


# Batches


def test_batch_is_not_larger_than_the_set(default, tmp_path):
    """A batch of 40,000 images of 224 x 224 pixels would take 6 GB."""
    for index in range(4):
        (tmp_path / f"{index}.png").write_bytes(png(8, 8))
    images = open_images(tmp_path)
    (batch,) = batches_of_photographs(default, images, PassOptions(batch=40_000))([range(4)])
    assert len(batch.pixels) == batch_size(None) == batch_size(40_000, 4)
    assert batch_size(40_000, 100) == 100
    assert batch_size(16, 100) == 16
    assert batch_size(1, 100) == 1
    assert batch_size(40_000) == 40_000
