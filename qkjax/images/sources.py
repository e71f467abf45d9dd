"""Image sets from folders, zip files and tar files (webdatasets).

The images of a set are listed once, and can then be read in any order.
"""

import hashlib
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path, PurePosixPath

from qkjax.errors import QkjaxError
from qkjax.images.preprocess import HEIF, open_image
from qkjax.images.sets import ImageSet

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".jp2", ".avif", *HEIF),
)
MAX_BYTES = 1 << 28  # limit for one image in an archive, since a small archive may unpack to any size
MOST_ENDINGS = 6  # largest number of file name endings that a note lists
OPEN_ARCHIVES = 64  # number of zip files that stay open; opening a zip file again for each image would be slow

Listed = tuple[str, int, Callable[[], "PIL.Image.Image"]]  # name, bytes, reader


class _Findings:
    """Findings of a search for images: counts of files that are not images, by ending, and sentences on archives."""

    def __init__(self):
        self.other_files, self.archives = Counter(), []

    def is_image(self, name: str) -> bool:
        """Whether a file name has the suffix of an image. Files that are neither images nor hidden are counted."""
        file = name.rsplit("/", 1)[-1].lower()
        if file.startswith("."):
            return False
        if not file.endswith(SUFFIXES):
            self.other_files[PurePosixPath(file).suffix] += 1
        return file.endswith(SUFFIXES)

    def notes(self) -> tuple[str, ...]:
        """One sentence about files that are not images, if there are any, and the sentences about archives."""
        total = sum(self.other_files.values())
        counts = sorted(self.other_files.items(), key=lambda item: (-item[1], item[0]))
        listed = [f"{count} {ending or 'without an ending'}" for ending, count in counts[:MOST_ENDINGS]]
        listed += [f"{total - sum(count for _, count in counts[:MOST_ENDINGS])} others"] * (len(counts) > MOST_ENDINGS)
        files = "1 file whose ending is" if total == 1 else f"{total} files whose endings are"
        skipped = f"skipped {files} not that of an image: {', '.join(listed)}"
        return (*([skipped] if total else []), *self.archives)


def image_set(name: str, images: list[Listed], notes: tuple[str, ...] = ()) -> ImageSet:
    """An image set in the given order. Bytes in image names that are not text become question marks."""
    images = [(item.encode(errors="replace").decode(), *rest) for item, *rest in images]
    names_and_sizes = "\n".join(f"{item}\0{size}" for item, size, _ in images)
    readers = [reader for *_, reader in images]
    return ImageSet(
        name,
        tuple(item for item, *_ in images),
        lambda index: readers[index](),
        hashlib.sha256(names_and_sizes.encode()).hexdigest(),
        notes=notes,
    )


def open_images(path: str | Path) -> ImageSet:
    """Opens a folder, an archive (.zip or .tar) or an image file as an image set.

    A folder is searched together with its subfolders and archives, as flat or nested folders, the layout of ImageNet
    or a webdataset. Images are recognised by their suffix and sorted by name. No image is read yet, so some may turn
    out to be unreadable. The `notes` of the set state how many files do not have the suffix of an image.

    Raises:
      QkjaxError: the path does not exist or contains no image, or an archive is truncated or cannot be listed.
    """
    path = Path(path)
    if not path.exists():
        raise QkjaxError(f"there is no {path}: pass a folder, a .zip or .tar of images, or an image")
    findings = _Findings()
    try:
        listed = _in_folder(path, findings) if path.is_dir() else _of_file(path, path.name, findings)
        images = sorted(listed, key=lambda item: item[0])
    except OSError as error:
        raise QkjaxError(f"cannot list the images of {path}: {error.strerror or error}") from error
    if not images:
        notes = "".join(f"; {note}" for note in findings.notes())
        raise QkjaxError(
            f"no image in {path}: looked for files ending in {', '.join(SUFFIXES)}, also in .zip and .tar "
            f"archives{notes}"
        )
    return image_set(path.resolve().name, images, findings.notes())


def files_in(folder: Path) -> Iterator[Path]:
    """Yields the files of a folder and of all its subfolders. Links are followed; hidden files and folders are not."""

    def stop(error: OSError) -> None:
        raise error

    visited = set()  # links may form cycles
    for root, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        real = os.path.realpath(root)
        # Sorted, so that if two links lead to the same folder, always the same link is followed.
        folders[:] = [] if real in visited else sorted(name for name in folders if not name.startswith("."))
        for name in [] if real in visited else files:
            path = Path(root, name)
            # A broken link counts as an unreadable image; a pipe or a device is not an image.
            if not name.startswith(".") and (path.is_file() or not path.exists()):
                yield path
        visited.add(real)


def size_of(path: Path) -> int:
    """Size of a file in bytes; 0 for a broken link."""
    return path.stat().st_size if path.exists() else 0


def digest_of(files: Sequence[tuple[str | Path, ...]], more: object = ()) -> str:
    """A digest of file names, file contents and `more`.

    The contents are included because a file may change while its size stays the same.
    """

    def content_digest(path: Path) -> bytes:
        try:
            return hashlib.sha256(path.read_bytes()).digest()
        except OSError:
            return b"none"  # reading the image will report the error

    digest = hashlib.sha256(repr([more, [str(name) for name, *_ in files]]).encode(errors="replace"))
    with ThreadPoolExecutor() as pool:
        for part in pool.map(content_digest, [path for _, *paths in files for path in paths]):
            digest.update(part)
    return digest.hexdigest()


def refuse_exif_rotation(path: Path, name: str) -> None:
    """Refuses an image whose EXIF orientation rotates it.

    Masks have no orientation, so the masks could fit either the stored pixels or the rotated image.

    Raises:
      QkjaxError: the EXIF orientation rotates the image.
    """
    from PIL import ExifTags, Image

    try:
        with Image.open(path) as image:
            rotated = image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
    except Exception:  # reading the image will report the error
        return
    if rotated:
        raise QkjaxError(
            f"{name}: the EXIF orientation rotates the image, and masks have no orientation; save the image upright"
        )


def _in_folder(folder: Path, findings: _Findings) -> Iterator[Listed]:
    for path in files_in(folder):
        yield from _of_file(path, path.relative_to(folder).as_posix(), findings)


def _of_file(path: Path, name: str, findings: _Findings) -> Iterator[Listed]:
    """Yields the images of a file: an image file itself, or the images in an archive; nothing for any other file."""
    lower = path.name.lower()
    if lower.endswith(".zip"):
        yield from _in_zip(path, name, findings)
    elif lower.endswith(".tar"):
        yield from _in_tar(path, name, findings)
    elif lower.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise QkjaxError(
            f"{path} is compressed as a whole, so its images cannot be read one by one: unpack the archive, or convert "
            "it to an uncompressed .tar"
        )
    elif findings.is_image(name):
        yield name, size_of(path), partial(open_image, path, name)


@lru_cache(maxsize=OPEN_ARCHIVES)
def _zip(path: Path, changed: int) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _in_zip(path: Path, name: str, findings: _Findings) -> Iterator[Listed]:
    changed = path.stat().st_mtime_ns
    try:
        listed = _zip(path, changed).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise QkjaxError(f"cannot list the zip file {path} ({error}); copy or create the file again") from error
    for info in listed:
        if not info.is_dir() and findings.is_image(info.filename):
            member = f"{name}/{info.filename}"
            yield (
                member,
                info.file_size,
                partial(_read_member, partial(_in_open_zip, path, changed, info), member, info.file_size),
            )


def _in_open_zip(path: Path, changed: int, info: zipfile.ZipInfo):
    if info.flag_bits & 1:
        raise ValueError("the archive entry is encrypted")
    return _zip(path, changed).open(info)


def _in_tar(path: Path, name: str, findings: _Findings) -> Iterator[Listed]:
    """Yields the images of a tar file; only the headers in the file are read.

    The tar file is opened again for each image, since a webdataset has too many tar files to keep all of them open.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            members = [(m.name, m.offset_data, m.size) for m in archive if m.isreg() and not m.issparse()]
            end = archive.offset
    except (tarfile.TarError, ValueError) as error:
        raise QkjaxError(f"cannot list the tar file {path} ({error}); copy or create the file again") from error
    with _at(path, end) as file:
        block = file.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):  # tarfile takes an unreadable header for the end of the archive
        reason = f"its header at byte {end} is cut off or damaged"
        raise QkjaxError(f"cannot list the tar file {path} ({reason}); copy or create the file again")
    if not block:
        findings.archives.append(f"{name} has no end mark, so files after the last complete file may be missing")
    for member, offset, size in members:
        if findings.is_image(member):
            full = f"{name}/{member}"
            yield full, size, partial(_read_member, partial(_at, path, offset), full, size)


def _at(path: Path, offset: int):
    file = open(path, "rb")  # noqa: SIM115 (closed by the caller)
    file.seek(offset)
    return file


def _read_member(open_member: Callable, name: str, size: int) -> "PIL.Image.Image":
    try:
        if size > MAX_BYTES:
            raise ValueError(f"the unpacked size is {size / 2**20:.0f} MiB, but the limit is {MAX_BYTES >> 20} MiB")
        with open_member() as file:
            data = file.read(size)
    except Exception as error:  # zipfile raises errors of many types for damaged data
        raise QkjaxError(f"cannot read image {name}: {error}; create the archive again") from error
    return open_image(BytesIO(data), name)
