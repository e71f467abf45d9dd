"""Sets of images: a folder, a zip, a webdataset's tar, found once and then read one by one in any order."""

import hashlib
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.preprocess import open_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
MAX_BYTES = 1 << 30  # of one image file: an archive's member may claim any size

Found = tuple[str, int, Callable[[], "PIL.Image.Image"]]  # name, bytes, reader


@dataclass(frozen=True)
class ImageSet:
    """Images in a fixed order.

    Attributes:
      name: of the set.
      names: of the images: paths relative to the set, with `/`; "shard.tar/0001.jpg" within an archive.
      read: gives the image of an index in RGB, upright. Raises QkjaxError where it cannot be read.
        May be called from several threads.
      fingerprint: changes with the names, the order and the files' sizes.
    """

    name: str
    names: tuple[str, ...]
    read: Callable[[int], "PIL.Image.Image"]
    fingerprint: str

    def __len__(self) -> int:
        return len(self.names)


def image_set(name: str, found: list[Found]) -> ImageSet:
    """A set of images in the order given."""
    listed = "\n".join(f"{item}\0{size}" for item, size, _ in found)
    readers = [reader for *_, reader in found]
    return ImageSet(
        name,
        tuple(item for item, *_ in found),
        lambda index: readers[index](),
        hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest(),
    )


def open_images(path: str | Path) -> ImageSet:
    """The images of a folder with all folders and archives in it, of one archive, or of one file.

    Found by the endings of their names, sorted by name. ImageNet's layout, flat and nested folders and
    webdatasets all are this. Whether they can be read shows only when they are.

    Raises:
      QkjaxError: nothing there, no image in it, or an archive that cannot be listed.
    """
    path = Path(path)
    if not path.exists():
        raise QkjaxError(f"there is no {path}: give a folder, a .zip or .tar of images, or an image")
    try:
        found = sorted(_in_folder(path) if path.is_dir() else _of_file(path, path.name), key=lambda item: item[0])
    except OSError as error:
        raise QkjaxError(f"cannot list the images of {path}: {error.strerror or error}") from error
    if not found:
        raise QkjaxError(f"no image in {path}: looked for {', '.join(SUFFIXES)}, also in .zip and .tar archives")
    return image_set(path.resolve().name, found)


def _in_folder(folder: Path) -> Iterator[Found]:
    seen = set()  # links may lead in circles
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        folders[:] = [] if real in seen else [name for name in folders if not name.startswith(".")]
        if real not in seen:
            for name in files:
                path = Path(root, name)
                if not name.startswith(".") and path.is_file():
                    yield from _of_file(path, path.relative_to(folder).as_posix())
        seen.add(real)


def _of_file(path: Path, name: str) -> Iterator[Found]:
    """A file's images: none, itself, or those of the archive that it is."""
    lower = path.name.lower()
    if lower.endswith(".zip"):
        yield from _in_zip(path, name)
    elif lower.endswith(".tar"):
        yield from _in_tar(path, name)
    elif lower.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise QkjaxError(
            f"{path} is compressed, and images in it cannot be read one by one: unpack it, or make it a .tar"
        )
    elif lower.endswith(SUFFIXES):
        yield name, path.stat().st_size, partial(open_image, path, name)


def _in_zip(path: Path, name: str) -> Iterator[Found]:
    try:
        archive = zipfile.ZipFile(path)  # stays open: to list it again for each image would take longer
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise QkjaxError(f"{path} is no zip that can be listed ({error}); copy or make it again") from error
    for info in archive.infolist():
        if _is_image(info.filename):
            member = f"{name}/{info.filename}"
            yield member, info.file_size, partial(_read_member, partial(archive.open, info), member)


def _in_tar(path: Path, name: str) -> Iterator[Found]:
    """Only the headers are read; a file is opened anew for each image, since webdatasets have many."""
    try:
        with tarfile.open(path, "r:") as archive:
            members = [(m.name, m.offset_data, m.size) for m in archive if m.isreg() and not m.issparse()]
    except (tarfile.TarError, ValueError) as error:
        raise QkjaxError(f"{path} is no tar that can be listed ({error}); copy or make it again") from error
    for member, offset, size in members:
        if _is_image(member):
            full = f"{name}/{member}"
            yield full, size, partial(_read_member, partial(_at, path, offset), full, size)


def _at(path: Path, offset: int):
    file = open(path, "rb")  # noqa: SIM115 (closed by who asks for it)
    file.seek(offset)
    return file


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.rsplit("/", 1)[-1].startswith(".")


def _read_member(open_member: Callable, name: str, size: int = MAX_BYTES) -> "PIL.Image.Image":
    try:
        with open_member() as file:
            data = file.read(min(size, MAX_BYTES))
    except Exception as error:  # zipfile raises whatever the compressed bytes lead it to
        raise QkjaxError(f"cannot read image {name}: {error}; make the archive again") from error
    return open_image(BytesIO(data), name)
