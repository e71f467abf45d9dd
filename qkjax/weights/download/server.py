"""Sends requests to servers that are not trusted: checks every redirect, and sets a deadline for every response."""

import base64
import re
import socket
import threading
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from email.message import Message
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from qkjax.errors import QkjaxError
from qkjax.weights.catalogue.hub_cache import is_offline
from qkjax.weights.download.partial_file import TryAgainError

# Ask for no compression, because the length of a compressed body differs from the length of the file.
HEADERS = {"User-Agent": "qkjax", "Accept-Encoding": "identity"}
TEMPORARY = (408, 416, 425, 429, 500, 502, 503, 504)  # status codes after which another attempt may succeed
PAGES = ("text/html", "application/xhtml+xml")
MOST_DIGITS = 18  # largest number of digits of a length in bytes
_SIZES = {"md5": 16, "crc32c": 4}
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')


class _Deadline:
    """A connection that closes if the header of the response is not complete in time, even if some bytes arrive."""

    def getresponse(self) -> HTTPResponse:
        late, connection = threading.Event(), self.sock

        def close() -> None:
            late.set()
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # ssl's own shutdown is not thread-safe

        timer = threading.Timer(self.timeout, close)
        timer.daemon = True
        timer.start()
        try:
            return super().getresponse()
        except (OSError, HTTPException, ValueError) as error:
            raise TimeoutError if late.is_set() else error from error
        finally:
            timer.cancel()


class _Plain(_Deadline, HTTPConnection):
    pass


class _Encrypted(_Deadline, HTTPSConnection):
    pass


class _PlainHandler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_Plain, request)


class _EncryptedHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self.do_open(_Encrypted, request)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, except redirects from https to http. `passed` collects the headers of all redirects."""

    def __init__(self, url: str):
        self.url, self.passed = url, []

    def http_error_302(
        self, request: urllib.request.Request, body: HTTPResponse, code: int, reason: str, headers: Message
    ) -> HTTPResponse | None:
        body.close()  # urllib would read the body to its end, which may never come
        return super().http_error_302(request, body, code, reason, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self, request: urllib.request.Request, body: HTTPResponse, code: int, reason: str, headers: Message, url: str
    ) -> urllib.request.Request | None:
        if urlsplit(url).scheme not in ("https", urlsplit(request.full_url).scheme):
            raise QkjaxError(f"cannot download {self.url}: it redirects to {url[:200]}, which is not encrypted")
        self.passed.append(headers)
        return super().redirect_request(request, body, code, reason, headers, url)


def open_url(
    url: str, stall: float, headers: Mapping[str, str] | None = None, method: str = "GET"
) -> tuple[HTTPResponse, list[Message]]:
    """Opens a URL; returns the response and the headers of all redirects. Proxies are taken from the environment.

    Raises:
      TryAgainError: the server or the connection failed for a reason that may be temporary.
      QkjaxError: the server refuses the request or redirects from https to http, or HF_HUB_OFFLINE is set.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise QkjaxError(f"cannot download {url}: expected an address that begins with http:// or https://")
    if is_offline():
        raise QkjaxError(
            f"cannot download {url}: HF_HUB_OFFLINE is set, and the file is not on disk; unset HF_HUB_OFFLINE to "
            "download the file"
        )
    redirects = _Redirects(url)
    request = urllib.request.Request(url, headers=HEADERS | dict(headers or {}), method=method)
    opener = urllib.request.build_opener(redirects, _PlainHandler, _EncryptedHandler)
    try:
        response = opener.open(request, timeout=stall)
    except HTTPError as error:
        error.close()
        known = error.code in {status.value for status in HTTPStatus}
        problem = f"the server answered {error.code} {HTTPStatus(error.code).phrase if known else ''}".strip()
        if error.code in TEMPORARY:
            raise TryAgainError(problem, code=error.code) from error
        raise QkjaxError(f"cannot download {url}: {problem}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise TryAgainError(reason(error)) from error
    return response, redirects.passed


def stated_length(response: HTTPResponse, url: str, passed: list[Message]) -> int:
    """The length of the file that the server states.

    Raises:
      QkjaxError: the server states no length, or the body of the response is not the complete, unmodified file.
    """
    text = response.headers.get("Content-Length") or ""
    linked = [headers["X-Linked-Size"] for headers in (*passed, response.headers) if headers.get("X-Linked-Size")]
    problem = _not_a_file(response)
    if not problem and (not text.isdecimal() or len(text) > MOST_DIGITS or int(text) == 0):
        problem = "the server does not state the length of the file, so it cannot be verified"
    if not problem and any(size != text for size in linked):
        problem = f"the server sends {text} bytes, but the hub states {linked[0][:30]}; try again"
    if problem:
        raise QkjaxError(f"cannot download {url}: {problem}")
    return int(text)


def _not_a_file(response: HTTPResponse) -> str:
    """Describes the problem if the body of a response is not the file itself; otherwise ""."""
    if response.status != HTTPStatus.OK:
        return f"the server answered {response.status} to a request for the whole file"
    if response.headers.get_content_type() in PAGES:
        return (
            "the server sent a web page instead of the file; open the address in a browser, because it may need a login"
        )
    encoding = (response.headers.get("Content-Encoding") or "identity").strip().lower()
    if encoding not in ("identity", ""):
        return f"the server compressed the file ({encoding[:30]!r}) although this was not requested"
    return ""


def reason(error: Exception) -> str:
    """Describes, in a few words, why a connection failed."""
    inner = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
    if isinstance(inner, TimeoutError):
        return "the server did not respond in time"
    text = getattr(inner, "strerror", None) or str(inner) or type(inner).__name__
    return "".join(c if c.isprintable() else " " for c in text)[:200]


def strong_tag(response: HTTPResponse) -> str:
    """The ETag of a response, or "" if it is missing or weak (two versions may have the same weak ETag)."""
    tag = response.headers.get("ETag") or ""
    return "" if tag.startswith("W/") else tag


def stated_digests(response: HTTPResponse, passed: list[Message]) -> dict[str, str]:
    """The hashes that the server states, in hexadecimal, by algorithm.

    Google's storage sends MD5 or CRC-32C. The Hugging Face hub sends a SHA-256 with the redirect to the file.
    """
    digests = {}
    for part in ",".join(response.headers.get_all("x-goog-hash") or []).split(","):
        kind, _, value = part.strip().partition("=")
        with suppress(ValueError):  # the value is not base64 and is treated as missing
            digest = base64.b64decode(value)
            if len(digest) == _SIZES.get(kind):
                digests[kind] = digest.hex()
    for headers in (*passed, response.headers):
        tag = headers.get("X-Linked-Etag") or (headers.get("X-Repo-Commit") and headers.get("ETag")) or ""
        if match := _SHA256.fullmatch(tag):
            digests["sha256"] = match[1]
    return digests
