"""Lists and reads images on object stores through fsspec: `s3://`, `gs://`, `hf://` and fsspec's other protocols."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import sha256
from io import BytesIO
from pathlib import Path

from qkjax.errors import QkjaxError, first_line
from qkjax.images.archives import MAX_BYTES, Listed
from qkjax.images.fingerprint import Part
from qkjax.images.memory import UNPACKED
from qkjax.images.preprocess import open_image

VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "oid", "LastModified", "mtime")
"""Fields by which stores state that a file has changed, the most reliable first."""


def url_of(path: str | Path) -> str | None:
    """The URL that a path stands for, or None for a path in a file system.

    The class `Path` removes one of the two slashes of a URL; this function restores it. A path that exists is not a
    URL.
    """
    match = re.fullmatch(r"([a-z][a-z0-9+.]+):/{1,2}([^/].*)", str(path))
    return f"{match[1]}://{match[2]}" if match and not Path(path).exists() else None


def file_system(url: str) -> tuple["fsspec.AbstractFileSystem", str]:
    """The file system of a URL, and the path in it.

    Raises:
      QkjaxError: fsspec or the package for the protocol is not installed, or the protocol is unknown.
    """
    try:
        import fsspec

        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise QkjaxError(f"cannot open {url}: {error}; install it with pip install 'qkjax[remote]'") from error
    except ValueError as error:
        raise QkjaxError(f"cannot open {url}: {error}; pass a URL such as s3://bucket/folder, or a path") from error


def images_in_store(url: str, is_image: Callable[[str], bool], note: Callable[[str], None]) -> Iterator[Listed]:
    """Yields the images below a URL, or the image at a URL. Archives are not searched; a note states their number.

    Raises:
      QkjaxError: the store cannot be reached, or has nothing at the URL.
    """
    system, root = file_system(url)
    try:
        files = system.find(root, detail=True)
    except Exception as error:  # every store has errors of its own
        raise QkjaxError(
            f"cannot list {url}: {first_line(error)[:200]}; check the address and your credentials"
        ) from error
    if not files:
        raise QkjaxError(f"there is nothing at {url}: pass the URL of a folder of images, or of an image")
    archives = 0
    for path, info in files.items():
        name = path.removeprefix(root).lstrip("/") or path.rsplit("/", 1)[-1]
        if any(part.startswith(".") for part in name.split("/")):
            continue
        archives += name.lower().endswith((".zip", ".tar"))
        if is_image(name):
            size = int(info.get("size") or 0)
            version = next((str(info[key]) for key in VERSIONS if info.get(key)), "")
            text = f"{size} {version}"
            part = Part(0, text, text.encode) if version else Part(size, text, partial(_digest, system, path))
            yield Listed(name, size, partial(_read, system, path, name, size), part)
    if archives:
        note(f"archives on object stores are not searched: {archives} skipped; unpack them, or download them")


def _digest(system, path: str) -> bytes:
    """SHA-256 of a file, for object stores that report no version of a file."""
    return sha256(system.cat_file(path)).digest()


def _read(system, path: str, name: str, size: int) -> "PIL.Image.Image":
    try:
        if size > MAX_BYTES:
            raise ValueError(f"the size is {size / 2**20:.0f} MiB, but the limit is {MAX_BYTES >> 20} MiB")
        UNPACKED.take(size)
        data = system.cat_file(path)
    except Exception as error:  # every store has errors of its own
        raise QkjaxError(
            f"cannot read image {name}: {first_line(error)[:200]}; run the command again to retry"
        ) from error
    return open_image(BytesIO(data), name)
