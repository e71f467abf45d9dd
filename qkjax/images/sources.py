"""Sets of images: a folder, a zip, a webdataset's tar, listed once and then read one by one in any order."""

import hashlib
import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.images.preprocess import open_image
from qkjax.images.sets import ImageSet

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
MAX_BYTES = 1 << 28  # of one image in an archive: a small archive may unpack to any size
OPEN_ARCHIVES = 64  # zips kept open, since listing one again for each of its images would take longer

Listed = tuple[str, int, Callable[[], "PIL.Image.Image"]]  # name, bytes, reader


def image_set(name: str, found: list[Listed]) -> ImageSet:
    """A set of images in the given order; bytes in their names that are not text become question marks."""
    found = [(item.encode(errors="replace").decode(), *rest) for item, *rest in found]
    listed = "\n".join(f"{item}\0{size}" for item, size, _ in found)
    readers = [reader for *_, reader in found]
    return ImageSet(
        name,
        tuple(item for item, *_ in found),
        lambda index: readers[index](),
        hashlib.sha256(listed.encode()).hexdigest(),
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


def files_in(folder: Path) -> Iterator[Path]:
    """The files of a folder and of all folders in it and linked from it, but hidden ones."""

    def stop(error: OSError) -> None:
        raise error

    seen = set()  # links may lead in circles
    for root, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        real = os.path.realpath(root)
        # Sorted, so that of two links to one folder it is always the same that counts.
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        for name in [] if real in seen else files:
            path = Path(root, name)
            # A link to nothing is an image that cannot be read; a pipe or a device is not an image.
            if not name.startswith(".") and (path.is_file() or not path.exists()):
                yield path
        seen.add(real)


def size_of(path: Path) -> int:
    """Bytes of a file; 0 of a link to nothing."""
    return path.stat().st_size if path.exists() else 0


def digest_of(files: Sequence[tuple[str | Path, ...]], more: object = ()) -> str:
    """A digest of names, of the contents of their files (which may change at equal size), and of `more`."""

    def held(path: Path) -> bytes:
        try:
            return hashlib.sha256(path.read_bytes()).digest()
        except OSError:
            return b"none"  # who reads the image says what is wrong with it

    digest = hashlib.sha256(repr([more, [str(name) for name, *_ in files]]).encode(errors="replace"))
    with ThreadPoolExecutor() as pool:
        for found in pool.map(held, [path for _, *paths in files for path in paths]):
            digest.update(found)
    return digest.hexdigest()


def refuse_turned(path: Path, name: str) -> None:
    """Masks do not say whether they are meant for an image as it lies in its file, or upright as its EXIF says.

    Raises:
      QkjaxError: the two differ.
    """
    from PIL import ExifTags, Image

    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
    except Exception:  # who reads the image says what is wrong with it
        return
    if turned:
        raise QkjaxError(f"{name}: its EXIF orientation turns it, and masks have none; save it upright")


def _in_folder(folder: Path) -> Iterator[Listed]:
    for path in files_in(folder):
        yield from _of_file(path, path.relative_to(folder).as_posix())


def _of_file(path: Path, name: str) -> Iterator[Listed]:
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
        yield name, size_of(path), partial(open_image, path, name)


@lru_cache(maxsize=OPEN_ARCHIVES)
def _zip(path: Path, changed: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _in_zip(path: Path, name: str) -> Iterator[Listed]:
    changed = path.stat().st_mtime_ns
    try:
        listed = _zip(path, changed).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise QkjaxError(f"cannot list the zip file {path} ({error}); copy or make it again") from error
    for info in listed:
        if _is_image(info.filename):
            member = f"{name}/{info.filename}"
            yield (
                member,
                info.file_size,
                partial(_read_member, partial(_in_open_zip, path, changed, info), member, info.file_size),
            )


def _in_open_zip(path: Path, changed: int, info: zipfile.ZipInfo):
    if info.flag_bits & 1:
        raise ValueError("it is encrypted")
    return _zip(path, changed).open(info)


def _in_tar(path: Path, name: str) -> Iterator[Listed]:
    """Only the headers are read. The file is opened again for each image, since webdatasets have many files."""
    try:
        with tarfile.open(path, "r:") as archive:
            members = [(m.name, m.offset_data, m.size) for m in archive if m.isreg() and not m.issparse()]
    except (tarfile.TarError, ValueError) as error:
        raise QkjaxError(f"cannot list the tar file {path} ({error}); copy or make it again") from error
    for member, offset, size in members:
        if _is_image(member):
            full = f"{name}/{member}"
            yield full, size, partial(_read_member, partial(_at, path, offset), full, size)


def _at(path: Path, offset: int):
    file = open(path, "rb")  # noqa: SIM115 (closed by the caller)
    file.seek(offset)
    return file


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.rsplit("/", 1)[-1].startswith(".")


def _read_member(open_member: Callable, name: str, size: int) -> "PIL.Image.Image":
    try:
        if size > MAX_BYTES:
            raise ValueError(f"unpacked it has {size / 2**20:.0f} MiB, and {MAX_BYTES >> 20} are allowed")
        with open_member() as file:
            data = file.read(size)
    except Exception as error:  # zipfile raises whatever the compressed bytes lead it to
        raise QkjaxError(f"cannot read image {name}: {error}; make the archive again") from error
    return open_image(BytesIO(data), name)
