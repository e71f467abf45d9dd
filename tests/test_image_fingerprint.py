"""A result belongs to its images: what changes the fingerprint of a set, and what does not."""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import qkjax
from qkjax.images import fingerprint
from qkjax.images.default_set import photographs
from qkjax.images.o3 import open_o3
from qkjax.images.segmented import mosaics, open_objects
from qkjax.images.sources import open_images
from qkjax.passes.options import PassOptions, batch_size
from qkjax.passes.settings import settings_of


def picture(seed: int) -> bytes:
    """An uncompressed image, so that all have the same size in bytes."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "BMP")
    return file.getvalue()


def write_folder(folder: Path, seed: int) -> None:
    (folder / "n01").mkdir(parents=True, exist_ok=True)
    for name in ("a.bmp", "n01/b.bmp"):
        (folder / name).write_bytes(picture(seed))


def write_zip(folder: Path, seed: int, kind: int = zipfile.ZIP_STORED) -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "x.zip", "w", kind) as archive:
        archive.writestr(zipfile.ZipInfo("a.bmp"), picture(seed))


def write_tar(folder: Path, seed: int, changed: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / "x.tar", "w") as archive:
        info = tarfile.TarInfo("a.bmp")
        info.size, info.mtime = len(picture(seed)), changed
        archive.addfile(info, io.BytesIO(picture(seed)))


def write_o3(folder: Path, seed: int, part: str = "targ_labels") -> None:
    for name in ("images", "targ_labels", "dist_labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "a.bmp").write_bytes(picture(seed if name == part else 0))


def write_objects(folder: Path, seed: int) -> None:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "a.bmp").write_bytes(picture(seed if name == "masks" else 0))


SETS = {
    "folder": (write_folder, open_images),
    "zip": (write_zip, open_images),
    "tar": (write_tar, open_images),
    "O3": (write_o3, open_o3),
    "objects": (write_objects, open_objects),
}


def age(folder: Path, by: int = 10**9) -> None:
    """Files change at another time; none of them is opened."""
    for path in folder.rglob("*"):
        if path.is_file():
            stat = path.stat()
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + by))


@pytest.fixture(params=SETS)
def kind(request):
    return SETS[request.param]


@pytest.fixture(params=[False, True], ids=["small", "large"])
def large(request, monkeypatch):
    """Whether the sets are larger than what is read for a fingerprint."""
    if request.param:
        monkeypatch.setattr(fingerprint, "MAX_HASHED", 100)
    return request.param


def test_files_of_the_same_names_and_sizes(kind, large, tmp_path):
    write, open_set = kind
    write(tmp_path / "set", 1)
    before = open_set(tmp_path / "set").fingerprint
    assert open_set(tmp_path / "set").fingerprint == before
    write(tmp_path / "set", 2)
    age(tmp_path / "set")  # the clock of a file system may be too coarse to tell two writes apart
    assert open_set(tmp_path / "set").fingerprint != before


def test_copies(kind, large, tmp_path):
    """A copy is the same set; if it is large, then only with the times of its files."""
    write, open_set = kind
    write(tmp_path / "set", 1)
    before = open_set(tmp_path / "set").fingerprint
    shutil.copytree(tmp_path / "set", tmp_path / "copy/set")
    assert open_set(tmp_path / "copy/set").fingerprint == before
    age(tmp_path / "copy")
    same = not large or (open_set is open_images and write is write_zip)
    assert (open_set(tmp_path / "copy/set").fingerprint == before) == same


def test_change_of_one_nanosecond_in_a_large_set(monkeypatch, tmp_path):
    monkeypatch.setattr(fingerprint, "MAX_HASHED", 100)
    write_folder(tmp_path, 1)
    before = open_images(tmp_path).fingerprint
    age(tmp_path, by=1)
    assert open_images(tmp_path).fingerprint != before


@pytest.mark.parametrize("part", ["images", "targ_labels", "dist_labels"])
def test_every_mask_counts(part, large, tmp_path):
    write_o3(tmp_path, 1, part)
    before = open_o3(tmp_path).fingerprint
    write_o3(tmp_path, 2, part)
    age(tmp_path)
    assert open_o3(tmp_path).fingerprint != before


def test_zip_members_are_known_by_their_checksums(large, tmp_path):
    """Compressed again, they are the same images."""
    write_zip(tmp_path, 1)
    before = open_images(tmp_path).fingerprint
    write_zip(tmp_path, 1, zipfile.ZIP_DEFLATED)
    age(tmp_path)
    assert open_images(tmp_path).fingerprint == before


def test_tar_members_are_known_by_contents_or_times(large, tmp_path):
    write_tar(tmp_path, 1)
    stat = (tmp_path / "x.tar").stat()
    before = open_images(tmp_path).fingerprint
    write_tar(tmp_path, 1, changed=5)
    os.utime(tmp_path / "x.tar", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (open_images(tmp_path).fingerprint == before) == (not large)


def test_names_count(large, tmp_path):
    write_folder(tmp_path, 1)
    before = open_images(tmp_path).fingerprint
    (tmp_path / "a.bmp").rename(tmp_path / "c.bmp")
    assert open_images(tmp_path).fingerprint != before


def test_files_that_cannot_be_read_have_a_fingerprint(large, tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "a.png").write_bytes(picture(0))
    before = open_images(tmp_path).fingerprint
    (tmp_path / "nowhere").write_bytes(picture(1))
    assert open_images(tmp_path).fingerprint != before


def test_fingerprint_of_the_built_in_photographs_is_that_of_version_0_1():
    """Their results stay valid: names, and sizes of the files that come with the libraries."""
    images = photographs()
    folders = {path.name: path for package in ("skimage/data", "sklearn/datasets/images")
               for path in Path(next(iter(_packages(package)))).iterdir()}  # fmt: skip
    sizes = {path.stem: path.stat().st_size for path in folders.values() if path.suffix in (".png", ".jpg")}
    text = "\n".join(f"{name}\0{sizes[name.split(' ')[0]]}" for name in images.names)
    assert images.fingerprint == hashlib.sha256(text.encode()).hexdigest()
    whole = photographs(crops=False).fingerprint
    assert mosaics(3, 0).fingerprint == f"mosaics 3 0 {whole}"
    assert images.spread(4)[0].fingerprint == f"4 of {images.fingerprint}"


def _packages(place: str):
    from importlib.util import find_spec

    package, _, rest = place.partition("/")
    for folder in find_spec(package).submodule_search_locations:
        yield Path(folder, rest)


def test_fingerprint_of_masks_is_that_of_version_0_1(tmp_path):
    """Which covered contents already, so results of sets with masks stay valid."""
    write_o3(tmp_path, 1)
    files = [tmp_path / name / "a.bmp" for name in ("images", "targ_labels", "dist_labels")]
    digest = hashlib.sha256(repr([[], ["a.bmp"]]).encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    assert open_o3(tmp_path).fingerprint == digest.hexdigest()


def test_results_of_images_that_were_replaced_are_refused(default, tmp_path):
    """Also results of version 0.1, which knew images by names and sizes only."""
    from qkjax.analyses.top_images.compute import scan_settings, top_images
    from qkjax.results.store import read_earlier, write_dataset

    write_folder(tmp_path / "im", 1)
    options = PassOptions(batch=1)
    scan = (2, ("product",), "norm", options)
    settings = lambda: scan_settings(default, open_images(tmp_path / "im"), *scan)
    write_dataset(top_images(default, open_images(tmp_path / "im"), top=2, options=options), tmp_path / "x.nc")
    assert read_earlier(tmp_path / "x.nc", settings()) is not None
    age(tmp_path / "im")
    assert read_earlier(tmp_path / "x.nc", settings()) is not None
    write_folder(tmp_path / "im", 2)
    with pytest.raises(
        qkjax.QkjaxError,
        match=r"different settings \(images\): .*earlier versions stated only names and sizes of images",
    ):
        read_earlier(tmp_path / "x.nc", settings())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_pipes_are_not_read_for_the_fingerprint(tmp_path):
    write_o3(tmp_path, 1)
    (tmp_path / "targ_labels/a.bmp").unlink()
    os.mkfifo(tmp_path / "targ_labels/a.bmp")
    assert open_o3(tmp_path).fingerprint


def test_settings_state_the_batch_that_is_computed(default, tmp_path):
    write_folder(tmp_path, 1)
    images = open_images(tmp_path)
    assert settings_of(default, images, PassOptions(batch=40_000))["batch"] == str(batch_size(None))
    assert settings_of(default, images, PassOptions(batch=1))["batch"] == "1"


def test_large_set_is_not_read(tmp_path, monkeypatch):
    """A file of 1.1 GB, all of it holes: its contents are not read."""
    monkeypatch.setattr(fingerprint, "_content", lambda *_: pytest.fail("it was read"))
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(1100 << 20)
    assert open_images(tmp_path).fingerprint.startswith("times ")


def test_copy_with_cp(tmp_path):
    """Which does not keep the times of files."""
    write_folder(tmp_path / "im", 1)
    age(tmp_path / "im", by=-(10**12))
    subprocess.run(["cp", "-r", tmp_path / "im", tmp_path / "copy"], check=True)
    assert open_images(tmp_path / "copy").fingerprint == open_images(tmp_path / "im").fingerprint
