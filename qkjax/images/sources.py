"""Makes image sets from folders, zip files and tar files (webdatasets).

The images of a set are listed once, and can then be read in any order.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from qkjax.errors import QkjaxError
from qkjax.images.archives import Listed, images_in_tar, images_in_zip
from qkjax.images.decode import opened
from qkjax.images.fingerprint import digest_of, part_of_file
from qkjax.images.preprocess import HEIF, open_image
from qkjax.images.remote import images_in_store, url_of
from qkjax.images.sets import ImageSet

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"),
    *(".jp2", ".avif", *HEIF),
)
MOST_ENDINGS = 6  # largest number of file name extensions that a note lists


class _Findings:
    """Findings of a search for images: the number of other files, by file extension, and notes on archives."""

    def __init__(self):
        self.other_files, self.archives, self.pipes = Counter(), [], []

    def is_image(self, name: str) -> bool:
        """Whether a file name has the suffix of an image. Other files are counted unless they are hidden."""
        file = name.rsplit("/", 1)[-1].lower()
        if file.startswith("."):
            return False
        if not file.endswith(SUFFIXES):
            self.other_files[PurePosixPath(file).suffix] += 1
        return file.endswith(SUFFIXES)

    def notes(self) -> tuple[str, ...]:
        """Returns sentences about files that are not images, and about archives."""
        total = sum(self.other_files.values())
        counts = sorted(self.other_files.items(), key=lambda item: (-item[1], item[0]))
        listed = [f"{count} {ending or 'without an extension'}" for ending, count in counts[:MOST_ENDINGS]]
        listed += [f"{total - sum(count for _, count in counts[:MOST_ENDINGS])} others"] * (len(counts) > MOST_ENDINGS)
        files = "1 file without" if total == 1 else f"{total} files without"
        skipped = f"skipped {files} the extension of an image: {', '.join(listed)}"
        pipes = [
            f"skipped pipes, sockets or devices: {len(self.pipes)}, such as {path.name}" for path in self.pipes[:1]
        ]
        return (*([skipped] if total else []), *pipes, *self.archives)


def image_set(name: str, images: Sequence[Listed], fingerprint: str, notes: tuple[str, ...] = ()) -> ImageSet:
    """Makes an image set in the given order. Bytes in image names that are not text become escape sequences."""
    names = tuple(as_text(image.name) for image in images)
    readers = [image.read for image in images]
    return ImageSet(name, names, lambda index: readers[index](), fingerprint, notes=notes)


def as_text(name: str) -> str:
    """The name of a file, in which escape sequences such as \\udcff replace bytes that are not text.

    Different names stay different, because the names of folders are classes.
    """
    return name.encode(errors="backslashreplace").decode()


def open_images(path: str | Path) -> ImageSet:
    """Opens a folder, an archive (.zip or .tar), an image file or a URL such as `s3://bucket/folder` as an image set.

    The function searches a folder, its subfolders, and the archives in them. The images may be flat or nested, in
    ImageNet's layout, or in a webdataset. The function recognises images by their suffix, and sorts them by name. The
    function does not read any image, so some images may later turn out to be unreadable. The `notes` of the set state
    how many files do not have the suffix of an image. The function reads images on object stores through fsspec (`pip
    install 'qkjax[remote]'`), with the credentials that the store's own tools find.

    Raises:
      QkjaxError: the path does not exist or contains no image, or an archive is truncated or cannot be listed.
    """
    url, path = url_of(path), Path(path)
    if url is None and not path.exists():
        raise QkjaxError(f"{path} does not exist: pass a folder, a .zip or .tar of images, or an image")
    if url is None and not (path.is_dir() or path.is_file()):
        raise QkjaxError(f"{path} is neither a file nor a folder: pass a folder, a .zip or .tar of images, or an image")
    findings = _Findings()
    try:
        if url is not None:
            listed = images_in_store(url, findings.is_image, findings.archives.append)
        else:
            listed = _in_folder(path, findings) if path.is_dir() else _of_file(path, path.name, findings)
        images = sorted(listed, key=lambda item: item.name)
        fingerprint = digest_of([(as_text(image.name), [image.part]) for image in images])
    except OSError as error:
        raise QkjaxError(f"cannot list the images of {url or path}: {error.strerror or error}") from error
    if not images:
        notes = "".join(f"; {note}" for note in findings.notes())
        raise QkjaxError(
            f"no image in {url or path}: expected files that end in {', '.join(SUFFIXES)}, or such files in .zip or "
            f".tar archives{notes}"
        )
    images = image_set(url or path.resolve().name, images, fingerprint, findings.notes())
    return images if url else replace(images, is_current=unreplaced(path))


def unreplaced(path: Path) -> Callable[[], bool]:
    """A function that returns whether no file at a path, or in a folder, has been replaced since this call.

    Files are the same if their sizes and modification times are. Files that have been removed do not count: a pass
    lists them as unreadable.
    """
    before = {file: _stamp(file) for file in ([path] if path.is_file() else files_in(path))}
    return lambda: all(_stamp(file) in (None, stamp) for file, stamp in before.items())


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def files_in(folder: Path, skipped: Callable[[Path], None] = lambda path: None) -> Iterator[Path]:
    """Yields the files in a folder and in all its subfolders. Links are followed; hidden files and folders are skipped.

    The function passes pipes, sockets and devices to `skipped`. A broken link counts as a file that cannot be read.
    """

    def stop(error: OSError) -> None:
        raise error

    visited = set()  # because links may form cycles
    for root, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        real = os.path.realpath(root)
        # Sorted, so that if two links lead to the same folder, the same link is always followed.
        folders[:] = [] if real in visited else sorted(name for name in folders if not name.startswith("."))
        for name in [] if real in visited else files:
            path = Path(root, name)
            if name.startswith("."):
                continue
            if path.is_file() or not path.exists():
                yield path
            else:
                skipped(path)
        visited.add(real)


def refuse_exif_rotation(path: Path, name: str) -> None:
    """Rejects an image that has a mask if its EXIF orientation rotates the image.

    Masks have no orientation, so they could fit either the stored pixels or the rotated image.

    Raises:
      QkjaxError: the EXIF orientation rotates the image.
    """
    from PIL import ExifTags

    try:
        with opened(path) as image:
            rotated = image.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
    except Exception:  # the error is reported when the image is read
        return
    if rotated:
        raise QkjaxError(
            f"{name}: the EXIF orientation rotates the image, but masks have no orientation; save the image upright"
        )


def _in_folder(folder: Path, findings: _Findings) -> Iterator[Listed]:
    for path in files_in(folder, findings.pipes.append):
        yield from _of_file(path, path.relative_to(folder).as_posix(), findings)


def _of_file(path: Path, name: str, findings: _Findings) -> Iterator[Listed]:
    """Yields the image if a file is an image, all images if it is an archive, and nothing if it is any other file."""
    lower = path.name.lower()
    if lower.endswith(".zip"):
        yield from images_in_zip(path, name, findings.is_image)
    elif lower.endswith(".tar"):
        yield from images_in_tar(path, name, findings.is_image, findings.archives.append)
    elif lower.endswith((".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")):
        raise QkjaxError(
            f"{path} is compressed as a whole, so single images cannot be read from it: unpack the archive, or "
            "convert it to an uncompressed .tar"
        )
    elif findings.is_image(name):
        part = part_of_file(path)
        yield Listed(name, part.size, partial(open_image, path, name), part)
