"""Downloads one file over HTTP. Downloads can resume. A file gets its final name only after verification."""

import hashlib
import time
import uuid
from collections.abc import Iterator
from glob import escape
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from qkjax.errors import QkjaxError
from qkjax.weights.download.partial_file import TryAgainError, finish, open_partial, prepare, size, writing
from qkjax.weights.download.server import open_url, reason, stated_digests, stated_length, strong_tag

CHUNK = 1 << 20
MOST_DIFFERENCE = 0.1  # between the size that a server states and that of the catalogue, as a share
SLOWEST = 1000  # bytes per second; a download that is slower counts as stalled


def download(
    url: str,
    path: Path,
    sha256: str = "",
    stall: float = 30.0,
    attempts: int = 5,
    pause: float = 1.0,
    *,
    about: int = 0,
) -> Path:
    """Downloads `url` to `path`, or does nothing if `path` exists.

    Args:
      url: the address, which begins with http:// or https://.
      path: the file to write.
      sha256: expected SHA-256 of the file in hexadecimal; "" if it is unknown. If the server states a hash, that hash
        is verified too.
      stall: number of seconds after which an attempt fails if the server sends no bytes, or sends them too slowly.
      attempts: number of consecutive failed attempts that are allowed. An attempt that receives a mebibyte resets the
        count.
      pause: number of seconds before the second attempt; the pause doubles before each further attempt.
      about: approximate size of the file in bytes (see `check_size`); 0 if unknown.

    Raises:
      QkjaxError: the file does not exist, there is no connection, the download is interrupted repeatedly, the checksum
        is wrong, the file does not have the format that its suffix states, or the disk is full. The received part of
        the file stays next to `path`, and the next call resumes from there.
    """
    failures = 0
    while not path.exists():
        try:
            _attempt(url, path, sha256, stall, about)
        except TryAgainError as error:
            failures = 1 if error.gained >= CHUNK else failures + 1
            if failures >= attempts and not path.exists():
                raise QkjaxError(f"cannot download {url}: {error}; try again, and the download will resume") from error
            if not path.exists():
                time.sleep(min(pause * 2 ** (failures - 1), 60))
    for old in path.parent.glob(f"{escape(path.name)}.*.partial"):  # from other versions or processes
        old.unlink(missing_ok=True)
    return path


def head(url: str, timeout: float = 30.0) -> str:
    """Describes the problem with `url`; "" if the file is on the server."""
    try:
        with open_url(url, timeout, method="HEAD")[0]:
            return ""
    except (TryAgainError, QkjaxError) as error:
        return str(error).removeprefix(f"cannot download {url}: ")


def _attempt(url: str, path: Path, sha256: str, stall: float, about: int) -> None:
    response, passed = open_url(url, stall)
    with response:
        length, tag = stated_length(response, url, passed), strong_tag(response)
        check_size(length, about, url)
        expected = stated_digests(response, passed)
        # Without a tag, two versions cannot be distinguished, so the download is never resumed.
        version = hashlib.sha256(f"{url} {tag} {length}".encode()).hexdigest()[:12] if tag else uuid.uuid4().hex
        partial = path.with_name(f"{path.name}.{version}.partial")
        have = prepare(partial, length)
        try:
            if have == 0:
                _stream(response, partial, 0, length, stall)
            elif have < length:
                response.close()
                _resume(url, partial, have, length, tag, stall)
            with writing(partial):
                finish(partial, path, length, expected | ({"sha256": sha256} if sha256 else {}))
        except TryAgainError as error:
            error.gained = size(partial) - have if tag else 0
            raise
        finally:
            if not tag:
                partial.unlink(missing_ok=True)


def check_size(stated: int, about: int, source: str) -> None:
    """Checks the size that a server states, before anything is downloaded.

    Args:
      stated: the size in bytes.
      about: the size in the catalogue, which is approximate; 0 if unknown.
      source: the address, for the error message.

    Raises:
      QkjaxError: the sizes differ by more than `MOST_DIFFERENCE`.
    """
    if about and abs(stated - about) > MOST_DIFFERENCE * about:
        raise QkjaxError(
            f"cannot download {source}: the server states {stated} bytes, but the catalogue states about {about}; "
            "the file on the server has changed: download the right file by hand, and pass its path"
        )


def _resume(url: str, partial: Path, have: int, length: int, tag: str, stall: float) -> None:
    """Downloads the rest of the same version of a file, or the whole file if the server does not support ranges."""
    try:
        response, _ = open_url(url, stall, {"Range": f"bytes={have}-", "If-Range": tag})
        with response:
            complete = response.status != 206
            expected = str(length) if complete else f"bytes {have}-{length - 1}/{length}"
            stated = response.headers.get("Content-Length" if complete else "Content-Range")
            if stated != expected or strong_tag(response) != tag:
                raise TryAgainError("the file changed on the server during the download")
            _stream(response, partial, 0 if complete else have, length, stall)
    except TryAgainError as error:
        if error.code == 416:  # the server has fewer bytes than it stated: the download starts again
            partial.unlink(missing_ok=True)
        raise


def _stream(response: HTTPResponse, partial: Path, start: int, length: int, stall: float) -> None:
    from tqdm import tqdm

    name = partial.name.rsplit(".", 2)[0]
    with (
        writing(partial),
        open_partial(partial, start) as file,
        tqdm(total=length, initial=start, desc=name, unit="B", unit_scale=True, disable=None) as bar,
    ):
        file.seek(start)
        for chunk in _chunks(response, length - start, stall):
            file.write(chunk)
            bar.update(len(chunk))


def _chunks(response: HTTPResponse, length: int, stall: float) -> Iterator[bytes]:
    received, mark, since = 0, 0, time.monotonic()
    while received < length:
        try:
            chunk = response.read1(min(CHUNK, length - received))
        except (OSError, HTTPException) as error:
            raise TryAgainError(reason(error)) from error
        if not chunk:
            raise TryAgainError(f"the connection ended {length - received} bytes before the end of the file")
        received += len(chunk)
        yield chunk
        if time.monotonic() - since > stall:
            if received < length and received - mark < SLOWEST * stall:
                raise TryAgainError(f"the server sent fewer than {SLOWEST} bytes per second")
            mark, since = received, time.monotonic()
