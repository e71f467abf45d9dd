"""Sets of images: what is found, in which order, and what odd files become."""

import io
import os
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qkjax import QkjaxError
from qkjax.images.default_set import photographs
from qkjax.images.prefetch import photograph_batches
from qkjax.images.preprocess import PRESETS, picture
from qkjax.images.sources import open_images

PRESET = PRESETS["hf-vit"]


def pixels(seed: int, size=(24, 36)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).save(file, "PNG")
    return file.getvalue()


def add_to_tar(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def tree(tmp_path) -> Path:
    """ImageNet's layout, a nested folder, a zip, a webdataset of two shards, and what is no image."""
    root = tmp_path / "images"
    for name, seed in {"n01/val_2.JPEG": 0, "n01/val_1.JPEG": 1, "n02/deep/er/x.png": 2, "flat.webp": 3}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(seed)).save(root / name, **({"lossless": True} if name.endswith("webp") else {}))
    for name in ("notes.txt", ".hidden.png", ".git/x.png", "n01/._val_1.JPEG"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"no image")
    with zipfile.ZipFile(root / "more.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b/one.png", png(4))
        archive.writestr("a.png", png(5))
        archive.writestr("__MACOSX/b/._one.png", b"no image")
        archive.writestr("labels.json", "{}")
    for shard in range(2):
        with tarfile.open(root / f"shard-{shard}.tar", "w") as archive:
            for key in range(2):
                add_to_tar(archive, f"{key:04d}.png", png(6 + 2 * shard + key))
                add_to_tar(archive, f"{key:04d}.cls", b"3")
    return root


def test_folders_and_archives_in_one_fixed_order(tree):
    (tree / "n02" / "round").symlink_to(tree)  # a circle
    images = open_images(tree)
    assert images.names == (
        "flat.webp", "more.zip/a.png", "more.zip/b/one.png", "n01/val_1.JPEG", "n01/val_2.JPEG", "n02/deep/er/x.png",
        "shard-0.tar/0000.png", "shard-0.tar/0001.png", "shard-1.tar/0000.png", "shard-1.tar/0001.png",
    )  # fmt: skip
    for index, seed in {0: 3, 1: 5, 2: 4, 5: 2, 6: 6, 9: 9}.items():
        np.testing.assert_array_equal(np.asarray(images.read(index)), pixels(seed))
    assert open_images(tree).fingerprint == images.fingerprint
    (tree / "flat.webp").unlink()
    assert open_images(tree).fingerprint != images.fingerprint


def test_one_archive_and_one_file(tree):
    assert open_images(tree / "more.zip").names == ("more.zip/a.png", "more.zip/b/one.png")
    assert len(open_images(tree / "shard-0.tar")) == 2
    assert open_images(str(tree / "flat.webp")).names == ("flat.webp",)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("x.zip", b"PK no zip", "cannot list the zip file .*x.zip"),
        ("x.tar", b"x" * 2000, "cannot list the tar file .*x.tar"),
        ("x.tar.gz", b"", "is compressed as a whole, so single images cannot be read from it: unpack"),
        ("x.txt", b"", "no image in"),
    ],
)
def test_a_set_that_cannot_be_listed(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(QkjaxError, match=says):
        open_images(tmp_path)
    with pytest.raises(QkjaxError, match=r"nowhere does not exist: pass a folder, a \.zip or \.tar"):
        open_images(tmp_path / "nowhere")


def save_odd_files(folder: Path) -> None:
    """All the kinds that occur in the wild; each readable one shows the left half black, the right white."""
    half = np.zeros((40, 60), np.uint8)
    half[:, 30:] = 255
    rgb = Image.fromarray(half).convert("RGB")
    rgb.save(folder / "rgb.png")
    Image.fromarray(half).save(folder / "gray.jpg", quality=95)
    rgb.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    rgb.convert("P").save(folder / "palette.gif")
    Image.fromarray(half.astype(np.uint16) * 257).save(folder / "sixteen.png")
    Image.fromarray(half > 0).save(folder / "one_bit.tif")
    Image.fromarray(np.dstack([half] * 3 + [np.full_like(half, 255)])).save(folder / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    rgb.transpose(Image.Transpose.ROTATE_90).save(folder / "rotated.jpg", exif=exif, quality=95)
    whole = (folder / "gray.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "lies.png").write_bytes(b"this is text")


def test_odd_files_are_read_or_listed(tmp_path):
    save_odd_files(tmp_path)
    images = open_images(tmp_path)
    found = list(photograph_batches(images, [range(0, 6), range(6, len(images))], 6, PRESET, (20, 30)))
    read = {images.names[i]: p for b in found for i, p in zip(b.index, b.pixels, strict=True) if i >= 0}
    assert set(read) == {f"{x}" for x in ("rgb.png", "gray.jpg", "cmyk.jpg", "palette.gif", "sixteen.png",
                                          "one_bit.tif", "alpha.png", "rotated.jpg")}  # fmt: skip
    for name, seen in read.items():
        assert seen.shape == (20, 30, 3)
        assert seen[:, :13].max() < 30, name
        assert seen[:, 17:].min() > 225, name
    reasons = {images.names[i]: reason for b in found for i, reason in b.unreadable}
    assert set(reasons) == {"cut.jpg", "empty.png", "lies.png"}
    for name, reason in reasons.items():
        assert reason.startswith(f"cannot read image {name}: ")
        assert str(tmp_path) not in reason


def test_broken_members_of_archives_are_listed_with_their_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", png(0))
        archive.writestr("b.png", b"nothing")
    data = bytearray((tmp_path / "x.zip").read_bytes())
    at = data.index(b"a.png") + 40
    data[at : at + 8] = b"\xff" * 8  # within the compressed bytes
    (tmp_path / "x.zip").write_bytes(data)
    with tarfile.open(tmp_path / "y.tar", "w") as archive:
        add_to_tar(archive, "c.png", png(1)[:40])
    images = open_images(tmp_path)
    (batch,) = photograph_batches(images, [range(3)], 3, PRESET, (8, 8))
    assert [images.names[i] for i, _ in batch.unreadable] == ["x.zip/a.png", "x.zip/b.png", "y.tar/c.png"]
    assert all(f"cannot read image {images.names[i]}: " in reason for i, reason in batch.unreadable)
    assert not any("object at 0x" in reason for _, reason in batch.unreadable), "an address differs from run to run"


def test_what_no_archive_should_hold(tmp_path, monkeypatch):
    """Members too large to unpack, and encrypted ones; each is named with the reason."""
    monkeypatch.setattr("qkjax.images.archives.MAX_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.png", bytes(2 << 20))
        archive.writestr("secret.png", png(0))
    data = bytearray((tmp_path / "x.zip").read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag of an encrypted member
        data[data.rindex(mark) + at] |= 1
    (tmp_path / "x.zip").write_bytes(data)
    (batch,) = photograph_batches(open_images(tmp_path), [range(2)], 2, PRESET, (8, 8))
    reasons = [reason for _, reason in batch.unreadable]
    assert "cannot read image x.zip/bomb.png: the unpacked size is 2 MiB, but the limit is 1 MiB" in reasons[0]
    assert "cannot read image x.zip/secret.png: the archive entry is encrypted" in reasons[1]


def test_more_archives_than_may_be_open(tmp_path):
    for i in range(90):
        with zipfile.ZipFile(tmp_path / f"{i:03d}.zip", "w") as archive:
            archive.writestr("a.png", png(i))
    before = len(os.listdir("/proc/self/fd"))
    images = open_images(tmp_path)
    for index in (0, 89, 0):
        np.testing.assert_array_equal(np.asarray(images.read(index)), pixels(index))
    assert len(os.listdir("/proc/self/fd")) - before <= 64


def test_links_to_nothing_and_pipes(tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "good.png").write_bytes(png(0))
    images = open_images(tmp_path)
    assert images.names == ("gone.png", "good.png")
    (batch,) = photograph_batches(images, [range(2)], 2, PRESET, (8, 8))
    assert [i for i, _ in batch.unreadable] == [0]
    assert "cannot read image gone.png: " in batch.unreadable[0][1]


def test_names_that_are_no_text(tmp_path):
    """Can be written into tables, and their reasons have no folder in them."""
    for name in (b"bad\xff.png", b"worse\xfe.png"):
        (tmp_path / os.fsdecode(name)).write_bytes(png(0) if name[0] == ord("b") else b"nothing")
    images = open_images(tmp_path)
    assert images.names == (r"bad\udcff.png", r"worse\udcfe.png")
    (batch,) = photograph_batches(images, [range(2)], 2, PRESET, (8, 8))
    ((index, reason),) = batch.unreadable
    assert index == 1
    reason.encode()
    assert str(tmp_path) not in reason


def test_pictures_beyond_pillows_limit_are_refused_by_all_threads_alike(tmp_path, monkeypatch):
    """And the process's warning filters are the same afterwards, but for one on Pillow's own."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for i in range(40):
        (tmp_path / f"{i:02d}.png").write_bytes(png(i))
    made = list(photograph_batches(open_images(tmp_path), [range(20), range(20, 40)], 20, PRESET, (8, 8)))
    assert sum(len(b.unreadable) for b in made) == 40
    assert all("36 x 24 pixels exceed Pillow's limit" in reason for b in made for _, reason in b.unreadable)
    assert not any(f[0] == "ignore" and f[3] is None and f[2] is Warning for f in warnings.filters)


def test_batches_are_in_order_and_all_of_one_size(tree):
    images = open_images(tree)
    made = list(photograph_batches(images, [range(0, 4), range(4, 8), range(8, 10)], 4, PRESET, (16, 24)))
    assert [b.pixels.shape for b in made] == [(4, 16, 24, 3)] * 3
    assert [list(b.index) for b in made] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, -1, -1]]
    for b in made:
        for i, seen in zip(b.index, b.pixels, strict=True):
            wanted = picture(images.read(int(i)), PRESET, (16, 24)) if i >= 0 else np.zeros((16, 24, 3))
            np.testing.assert_array_equal(seen, wanted)


def test_batches_can_be_left_early(tree):
    """And nothing is decoded any more: its threads end."""
    import threading

    before = threading.active_count()
    made = photograph_batches(open_images(tree), [[i] for i in range(10)], 1, PRESET, (16, 16))
    next(made)
    made.close()
    assert threading.active_count() == before


def test_default_photographs():
    whole, cropped = photographs(crops=False), photographs()
    assert len(whole) == 15
    assert len(cropped) > 200
    assert len(set(cropped.names)) == len(cropped)
    sizes = {name: cropped.read(i).size for i, name in enumerate(cropped.names) if name.startswith("chelsea")}
    assert sizes["chelsea"] == (451, 300)
    assert sizes["chelsea 1/3 row 2 column 3"] == (100, 100)
    at = cropped.names.index("astronaut 1/2 row 0 column 1")
    np.testing.assert_array_equal(cropped.read(at), np.asarray(whole.read(0))[:256, 256:])


def tar_of(*names: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for seed, name in enumerate(names):
            add_to_tar(archive, name, png(seed))
    return file.getvalue()


def test_tar_files_that_are_cut_off(tmp_path):
    """Within a header or a file they are refused; tarfile takes a header that it cannot read for the end."""
    whole = tar_of("0.png", "1.png", "2.png")
    path = tmp_path / "x.tar"
    path.write_bytes(whole)
    with tarfile.open(path) as archive:
        starts = [member.offset for member in archive] + [archive.offset]
    for start in starts[1:-1]:
        damaged = whole[:start] + b"\xff" * 512 + whole[start + 512 :]
        for data in (whole[: start + 1], whole[: start + 511], damaged):
            path.write_bytes(data)
            with pytest.raises(QkjaxError, match=rf"x\.tar \(its header at byte {start} is cut off or damaged\)"):
                open_images(tmp_path)
        path.write_bytes(whole[: start + 700])
        with pytest.raises(QkjaxError, match="cannot list the tar file"):
            open_images(tmp_path)
    for count, start in enumerate(starts[1:], 1):
        path.write_bytes(whole[:start])
        images = open_images(tmp_path)
        assert (len(images), images.notes) == (
            count,
            ("x.tar has no end mark, so files after the last complete file may be missing",),
        )
    for cut in (starts[-1] + 100, starts[-1] + 512, len(whole)):
        path.write_bytes(whole[:cut])
        assert (len(open_images(path)), open_images(path).notes) == (3, ())


def test_files_that_are_passed_over_are_counted(tree):
    """By their endings, also in archives; hidden files and folders are not."""
    (note,) = open_images(tree).notes
    assert note == "skipped 6 files without the extension of an image: 4 .cls, 1 .json, 1 .txt"
    (tree / "scan").write_bytes(png(0))
    for index in range(7):
        (tree / f"x.{index}").write_bytes(b"")
    (note,) = open_images(tree).notes
    assert note.endswith("image: 4 .cls, 1 without an extension, 1 .0, 1 .1, 1 .2, 1 .3, 5 others")
    assert open_images(tree / "flat.webp").notes == ()
    with pytest.raises(QkjaxError, match=r"no image in .*; skipped 1 file without the extension .*: 1 \.txt"):
        open_images(tree / "notes.txt")


def test_notes_on_a_set_are_printed(tree, capsys):
    from qkjax.analyses.outcome import print_notes

    print_notes(open_images(tree))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("note: images: skipped 6 files")


def test_more_endings_of_images(tmp_path):
    """A .jfif file is a JPEG; AVIF is part of Pillow since 11.3."""
    from PIL import features

    Image.fromarray(pixels(0)).save(tmp_path / "a.jfif", "JPEG", quality=95)
    Image.fromarray(pixels(0)).save(tmp_path / "b.APNG", "PNG")
    if features.check("avif"):
        Image.fromarray(pixels(0)).save(tmp_path / "c.avif", quality=95)
    images = open_images(tmp_path)
    assert images.names == ("a.jfif", "b.APNG", "c.avif")[: len(images)]
    assert images.notes == ()
    for index in range(len(images)):
        assert images.read(index).size == (36, 24)


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path):
    """Whatever its ending, upright; from an archive too."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    smooth = np.asarray(Image.fromarray(pixels(0, (3, 4))).resize((96, 64), Image.Resampling.BICUBIC))
    pillow_heif.from_pillow(Image.fromarray(smooth)).save(tmp_path / "a.heic", quality=95)
    data = (tmp_path / "a.heic").read_bytes()
    (tmp_path / "b.jpg").write_bytes(data)
    with zipfile.ZipFile(tmp_path / "c.zip", "w") as archive:
        archive.writestr("d.HEIF", data)
    images = open_images(tmp_path)
    assert images.names == ("a.heic", "b.jpg", "c.zip/d.HEIF")
    for index in range(3):
        seen = np.asarray(images.read(index)).astype(int)
        assert seen.shape == smooth.shape
        assert np.abs(seen - smooth).mean() < 4


def test_heic_without_pillow_heif_is_listed_with_the_remedy(tmp_path, monkeypatch):
    import sys

    from qkjax.images.decode import register_heif

    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr("qkjax.images.preprocess.register_heif", register_heif.__wrapped__)
    monkeypatch.setattr(Image, "OPEN", {k: v for k, v in Image.OPEN.items() if k not in ("HEIF", "HEIC")})
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    (batch,) = photograph_batches(open_images(tmp_path), [range(1)], 1, PRESET, (8, 8))
    ((_, reason),) = batch.unreadable
    assert "cannot read image a.heic: " in reason
    assert reason.endswith("HEIC files need the package pillow-heif: pip install 'qkjax[photographs]'")
