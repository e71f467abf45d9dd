"""Downloads one file over HTTP. Downloads resume, and a file gets its name only when it is complete and verified."""

import base64
import hashlib
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from glob import escape
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError

from qkjax.errors import QkjaxError
from qkjax.weights.download.partial_file import TryAgainError, finish, open_partial, prepare, size, writing

CHUNK = 1 << 20
# No compression: the length of a compressed body is not that of the file.
HEADERS = {"User-Agent": "qkjax", "Accept-Encoding": "identity"}
TEMPORARY = (408, 416, 425, 429, 500, 502, 503, 504)  # status codes after which another attempt may succeed


def download(
    url: str, path: Path, sha256: str = "", stall: float = 30.0, attempts: int = 5, pause: float = 1.0
) -> Path:
    """Downloads `url` to `path`; does nothing if `path` exists.

    Args:
      url: http or https.
      path: the file to write.
      sha256: hexadecimal digest of the file, "" if unknown; the MD5 that Google's storage sends is verified, too.
      stall: seconds without a byte after which an attempt fails.
      attempts: number of consecutive failures that are allowed; an attempt that received a mebibyte resets the count.
      pause: seconds before the second attempt, doubled for each further one.

    Raises:
      QkjaxError: the file does not exist, there is no connection, the download is interrupted repeatedly, the checksum
        is wrong, or the disk is full. The received part stays next to `path`, and the next call resumes from it.
    """
    failures = 0
    while not path.exists():
        try:
            _attempt(url, path, sha256, stall)
        except TryAgainError as error:
            failures = 1 if error.gained >= CHUNK else failures + 1
            if failures >= attempts and not path.exists():
                raise QkjaxError(f"cannot download {url}: {error}; try again, the download resumes") from error
            if not path.exists():
                time.sleep(min(pause * 2 ** (failures - 1), 60))
    for old in path.parent.glob(f"{escape(path.name)}.*.partial"):  # of other versions or other processes
        old.unlink(missing_ok=True)
    return path


def head(url: str, timeout: float = 30.0) -> str:
    """The problem with `url`, or "" if the server has the file."""
    try:
        with _open(url, timeout, method="HEAD"):
            return ""
    except (TryAgainError, QkjaxError) as error:
        return str(error).removeprefix(f"cannot download {url}: ")


def _attempt(url: str, path: Path, sha256: str, stall: float) -> None:
    with _open(url, stall) as response:
        length, tag, md5 = _length(response, url), _strong_tag(response), _md5(response)
        # Without a tag, two versions cannot be distinguished, so the download is never resumed.
        version = hashlib.sha256(f"{url} {tag} {length}".encode()).hexdigest()[:12] if tag else uuid.uuid4().hex
        partial = path.with_name(f"{path.name}.{version}.partial")
        have = prepare(partial, length)
        try:
            if have == 0:
                _stream(response, partial, 0, length)
            elif have < length:
                response.close()
                _resume(url, partial, have, length, tag, stall)
            with writing(partial):
                finish(partial, path, length, {"sha256": sha256, "md5": md5})
        except TryAgainError as error:
            error.gained = size(partial) - have if tag else 0
            raise
        finally:
            if not tag:
                partial.unlink(missing_ok=True)


def _resume(url: str, partial: Path, have: int, length: int, tag: str, stall: float) -> None:
    """Downloads the rest of the same version, or all of it if the server does not support ranges."""
    try:
        with _open(url, stall, {"Range": f"bytes={have}-", "If-Range": tag}) as response:
            complete = response.status != 206
            expected = str(length) if complete else f"bytes {have}-{length - 1}/{length}"
            stated = response.headers.get("Content-Length" if complete else "Content-Range")
            if stated != expected or _strong_tag(response) != tag:
                raise TryAgainError("the file changed on the server during the download")
            _stream(response, partial, 0 if complete else have, length)
    except TryAgainError as error:
        if error.code == 416:  # the server has fewer bytes than it stated: start again
            partial.unlink(missing_ok=True)
        raise


def _open(url: str, stall: float, headers: Mapping[str, str] | None = None, method: str = "GET") -> HTTPResponse:
    """An open response; follows redirects, but not from https to http."""
    if not url.startswith(("http://", "https://")):
        raise QkjaxError(f"cannot download {url}: expected an address that begins with http:// or https://")
    request = urllib.request.Request(url, headers=HEADERS | dict(headers or {}), method=method)
    try:
        response = urllib.request.urlopen(request, timeout=stall)
    except HTTPError as error:
        error.close()
        problem = f"the server answered {error.code} {error.reason}"
        if error.code in TEMPORARY:
            raise TryAgainError(problem, code=error.code) from error
        raise QkjaxError(f"cannot download {url}: {problem}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise TryAgainError(_reason(error)) from error
    if url.startswith("https:") and not response.url.startswith("https:"):
        response.close()
        raise QkjaxError(f"cannot download {url}: it redirects to {response.url}, which is not encrypted")
    return response


def _reason(error: Exception) -> str:
    inner = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
    if isinstance(inner, TimeoutError):
        return "the server did not respond in time"
    return getattr(inner, "strerror", None) or str(inner) or type(inner).__name__


def _length(response: HTTPResponse, url: str) -> int:
    text = response.headers.get("Content-Length") or ""
    if not text.isdecimal() or int(text) == 0:
        raise QkjaxError(
            f"cannot download {url}: the server does not state the length of the file, so it cannot be verified"
        )
    return int(text)


def _strong_tag(response: HTTPResponse) -> str:
    """The ETag; "" if it is missing or weak, since two versions may have the same weak tag."""
    tag = response.headers.get("ETag") or ""
    return "" if tag.startswith("W/") else tag


def _md5(response: HTTPResponse) -> str:
    """The MD5 that Google's storage sends, in hexadecimal, or ""."""
    for part in ",".join(response.headers.get_all("x-goog-hash") or []).split(","):
        kind, _, value = part.strip().partition("=")
        if kind == "md5":
            with suppress(ValueError):  # not base64: treated as missing
                return base64.b64decode(value).hex()
    return ""


def _stream(response: HTTPResponse, partial: Path, start: int, length: int) -> None:
    from tqdm import tqdm

    name = partial.name.rsplit(".", 2)[0]
    with (
        writing(partial),
        open_partial(partial, start) as file,
        tqdm(total=length, initial=start, desc=name, unit="B", unit_scale=True, disable=None) as bar,
    ):
        file.seek(start)
        for chunk in _chunks(response, length - start):
            file.write(chunk)
            bar.update(len(chunk))


def _chunks(response: HTTPResponse, length: int) -> Iterator[bytes]:
    received = 0
    while received < length:
        try:
            chunk = response.read1(min(CHUNK, length - received))
        except (OSError, HTTPException) as error:
            raise TryAgainError(_reason(error)) from error
        if not chunk:
            raise TryAgainError(f"the connection ended {length - received} bytes before the end of the file")
        received += len(chunk)
        yield chunk
