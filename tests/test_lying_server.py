"""Downloads from servers that lie: each lie ends in the right file or in one line, and never in a wrong file."""

import base64
import gzip
import hashlib
import io
import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from serving import local_servers
from test_download import SHA, SMALL, Large, hub_run, hub_server, names_in  # noqa: F401

import qkjax
from qkjax.weights import catalogue
from qkjax.weights.catalogue import lookup
from qkjax.weights.download import http
from qkjax.weights.download.check import check_urls
from qkjax.weights.download.crc32c import BLOCK, Crc32c
from qkjax.weights.download.fetch import fetch
from qkjax.weights.download.http import download
from qkjax.weights.download.record import record_path

NAME, FILE = "vit-l16-sam-i1k", "gs/vit_models/sam/ViT-L_16.npz"


def npz(seed: int = 0, size: int = 100_000) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.frombuffer(np.random.default_rng(seed).bytes(size), np.uint8))
    return buffer.getvalue()


def safetensors(size: int = 1000) -> bytes:
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


BODY, OTHER = npz(0), npz(1)
PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"
OK = {"Content-Length": str(len(BODY)), "ETag": '"one"'}


class Answer:
    """An answer with these headers and this body; `after` is done when the body was sent."""

    def __init__(self, status=200, body=BODY, after=None, **headers):
        self.status, self.body, self.after = status, body, after
        self.headers = {k.replace("_", "-"): v for k, v in headers.items() if v is not None}
        if "Content_Length" not in headers:
            self.headers["Content-Length"] = str(len(body))


class Handler(BaseHTTPRequestHandler):
    """Gives the answers of `script` in turn, and then the last one again; an answer may depend on the request."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.log.append((self.path, dict(self.headers)))
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        answer = answer(self) if callable(answer) else answer
        self.close_connection = True
        if answer is None:
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            if self.command == "GET":
                self.wfile.write(answer.body)
            if answer.after:
                answer.after(self)
        except OSError:
            pass  # the client has seen enough

    def do_HEAD(self):
        self.do_GET()

    def do_CONNECT(self):
        """A proxy of encrypted connections: bytes go back and forth."""
        self.log.append((self.path, dict(self.headers)))
        host, _, port = self.path.partition(":")
        self.send_response(200)
        self.end_headers()
        with socket.create_connection((host, int(port))) as other:
            ends = {self.connection: other, other: self.connection}
            while ready := select.select(list(ends), [], [], 5)[0]:
                data = ready[0].recv(1 << 16)
                if not data:
                    break
                ends[ready[0]].sendall(data)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def certificate(tmp_path_factory, monkeypatch):
    """A certificate of 127.0.0.1 that Python trusts."""
    if not shutil.which("openssl"):
        pytest.skip("needs the program openssl")
    folder = tmp_path_factory.mktemp("certificate")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", "key",
               "-out", "cert", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "cert"))
    return folder


@pytest.fixture
def serve(monkeypatch):
    """Starts servers of answers; gives the address and the list of requests."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with local_servers() as run:

        def start(*script, folder: Path | None = None) -> tuple[str, list]:
            log = []
            return run(type("H", (Handler,), {"script": list(script), "log": log}), folder), log

        yield start


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    monkeypatch.setenv("QKJAX_CHECKPOINTS", str(tmp_path / "ckpt"))
    return tmp_path / "ckpt"


def get(url: str, path: Path, **settings) -> Path:
    return download(f"{url}/{path.name}", path, **{"stall": 0.4, "attempts": 2, "pause": 0.01, **settings})


def refused(call, *parts: str) -> str:
    """The error, which is one short line with these parts."""
    with pytest.raises(qkjax.QkjaxError) as caught:
        call()
    text = str(caught.value)
    assert len(text) < 500
    assert text.isprintable()
    for part in parts:
        assert part in text
    return text


# Redirects ----------------------------------------------------------------------------------------


def to(url: str, body: bytes = b"") -> Answer:
    return Answer(302, body, Location=url)


def test_no_hop_from_https_to_http(serve, certificate, tmp_path):
    """https, http, https ends encrypted, and was not."""
    last, _ = serve(Answer(), folder=certificate)
    plain, seen = serve(to(f"{last}/x.npz"))
    first, _ = serve(to(f"{plain}/x.npz"), folder=certificate)
    before, _ = serve(to(f"{first}/x.npz"))
    for start in (first, before):
        refused(lambda start=start: get(start, tmp_path / "x.npz"), f"redirects to {plain}/x.npz", "not encrypted")
    assert not seen, "the plain server is not even asked"
    assert os.listdir(tmp_path) == []
    allowed, _ = serve(to(f"{last}/x.npz"))
    assert get(allowed, tmp_path / "x.npz").read_bytes() == BODY


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x.npz", "http://[", "//", "http://\x1b[31m"])
def test_redirect_to_nowhere(target, serve, tmp_path):
    url, _ = serve(to(target))
    refused(lambda: get(url, tmp_path / "x.npz"), "cannot download")
    assert os.listdir(tmp_path) == []


def test_endless_redirects(serve, tmp_path):
    url, log = serve(lambda request: to(f"{request.path}a"))
    refused(lambda: get(url, tmp_path / "x.npz"), "the server answered 302")
    assert len(log) < 30


def endless(request) -> None:
    for _ in range(2000):
        request.wfile.write(bytes(1 << 16))
        time.sleep(0.001)


def test_redirect_with_an_endless_body(serve, tmp_path):
    url, _ = serve(
        Answer(302, Location="/y.npz", Content_Length=None, after=lambda r: (time.sleep(0.2), endless(r))), Answer()
    )
    start = time.monotonic()
    assert get(url, tmp_path / "x.npz").read_bytes() == BODY
    assert time.monotonic() - start < 2


# Bodies -------------------------------------------------------------------------------------------


def test_body_that_never_ends(serve, tmp_path):
    """Not a byte more than promised is read."""
    url, _ = serve(Answer(after=endless))
    assert get(url, tmp_path / "x.npz").read_bytes() == BODY


@pytest.mark.parametrize("length", [None, "0", "-5", "9" * 5000, "1e6", "12, 12"])
def test_length_that_is_none(length, serve, tmp_path):
    url, _ = serve(Answer(Content_Length=length))
    refused(lambda: get(url, tmp_path / "x.npz"), "cannot download")
    assert os.listdir(tmp_path) == []


def test_length_that_is_too_short(serve, tmp_path):
    """Nobody states a digest, and the file looks whole: its end is missing."""
    url, _ = serve(Answer(Content_Length=str(len(BODY) - 1000)))
    refused(lambda: get(url, tmp_path / "x.npz"), "end of the zip file is missing")
    assert os.listdir(tmp_path) == []


def test_length_that_is_too_long(serve, tmp_path):
    url, _ = serve(Answer(Content_Length=str(len(BODY) + 1000)))
    refused(lambda: get(url, tmp_path / "x.npz"), "the connection ended 1000 bytes before the end")
    assert not (tmp_path / "x.npz").exists()


def test_length_that_no_disk_has(serve, tmp_path):
    url, _ = serve(Answer(Content_Length="9" * 18))
    refused(lambda: get(url, tmp_path / "x.npz"), "free space")


def test_compressed_body(serve, tmp_path):
    url, log = serve(Answer(body=gzip.compress(BODY), Content_Encoding="gzip"))
    refused(lambda: get(url, tmp_path / "x.npz"), "compressed the file ('gzip')")
    assert log[0][1]["Accept-Encoding"] == "identity"
    url, _ = serve(Answer(body=gzip.compress(BODY)))
    refused(lambda: get(url, tmp_path / "x.npz"), "not a complete checkpoint")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["x.npz", "x.pth", "x.pth.tar", "x.bin", "x.safetensors", "x.onnx"])
@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "TEXT/HTML", "application/octet-stream", None])
def test_login_page(name, kind, serve, tmp_path):
    url, _ = serve(Answer(body=PAGE, Content_Type=kind))
    refused(lambda: get(url, tmp_path / name), "page" if kind and "/h" in kind.lower() else "not a complete checkpoint")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["x.npz", "x.pth", "x.safetensors"])
@pytest.mark.parametrize(
    "body", [b'{"error": "quota"}', b"<?xml version='1.0'?><Error/>", b"\n", b"PK", bytes(99), BODY[9:]]
)
def test_error_message_as_a_file(name, body, serve, tmp_path):
    url, _ = serve(Answer(body=body))
    refused(lambda: get(url, tmp_path / name), f"{name} is not a complete checkpoint")
    assert os.listdir(tmp_path) == []


def pickled() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", b"x" * 50)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "body"),
    [("x.npz", BODY), ("x.pth", pickled()), ("x.pth.tar", b"\x80\x02}q\x00."), ("x.safetensors", safetensors())],
)
def test_whole_files_of_every_kind(name, body, serve, tmp_path):
    url, _ = serve(Answer(body=body))
    assert get(url, tmp_path / name).read_bytes() == body


@pytest.mark.parametrize(
    "body", [safetensors()[:-1], safetensors() + b"x", b"\xff" * 7 + b"\x7f{", b"\x05\0\0\0\0\0\0\0{[]}}"]
)
def test_safetensors_of_another_length(body, serve, tmp_path):
    url, _ = serve(Answer(body=body))
    refused(lambda: get(url, tmp_path / "x.safetensors"), "not a complete checkpoint")
    assert os.listdir(tmp_path) == []


def test_name_in_the_headers_is_ignored(serve, tmp_path):
    url, _ = serve(Answer(Content_Disposition='attachment; filename="../../evil.npz"'))
    assert get(url, tmp_path / "deep" / "x.npz").read_bytes() == BODY
    assert os.listdir(tmp_path) == ["deep"]
    assert os.listdir(tmp_path / "deep") == ["x.npz"]


# Ranges -------------------------------------------------------------------------------------------


def half(request=None) -> Answer:
    return Answer(body=BODY[:50_000], **{"Content_Length": str(len(BODY)), "ETag": '"one"'})


def part(start: int, stated: str, tag: str = '"one"', length: int | None = None) -> Answer:
    return Answer(206, BODY[start:], Content_Range=stated, ETag=tag)


def test_part_of_a_file_that_nobody_asked_for(serve, tmp_path):
    url, _ = serve(Answer(206, BODY, Content_Range=f"bytes 0-{len(BODY) - 1}/{2 * len(BODY)}", ETag='"one"'))
    refused(lambda: get(url, tmp_path / "x.npz"), "answered 206 to a request for the whole file")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "wrong",
    [
        part(40_000, f"bytes 40000-{len(BODY) - 1}/{len(BODY)}"),
        part(50_000, f"bytes 50000-{len(BODY)}/{len(BODY) + 1}"),
        part(50_000, "bytes */*"),
        part(50_000, f"bytes 50000-{len(BODY) - 1}/{len(BODY)}", '"two"'),
        Answer(206, BODY[50_000:], ETag='"one"'),
        Answer(206, BODY[50_000:], Content_Range=f"bytes 50000-{len(BODY) - 1}/{len(BODY)}"),
    ],
)
def test_wrong_range(wrong, serve, tmp_path):
    """A part that is not the requested one is not used."""
    url, log = serve(half(), half(), wrong, half(), part(50_000, f"bytes 50000-{len(BODY) - 1}/{len(BODY)}"))
    assert get(url, tmp_path / "x.npz", attempts=4).read_bytes() == BODY
    assert [x[1].get("If-Range") for x in log if "Range" in x[1]] == ['"one"', '"one"']


def test_whole_file_instead_of_a_range(serve, tmp_path):
    url, log = serve(half(), Answer(ETag='"one"'))
    assert get(url, tmp_path / "x.npz").read_bytes() == BODY
    assert log[-1][1]["Range"] == "bytes=50000-"


def test_changed_content_under_the_same_tag(serve, tmp_path):
    """The two halves are of two files: the digest tells, and the next call starts from zero."""
    stated = f"bytes 50000-{len(BODY) - 1}/{len(BODY)}"
    rest = Answer(206, OTHER[50_000:], ETag='"one"', Content_Range=stated)
    url, _ = serve(half(), half(), rest, Answer(body=OTHER, ETag='"one"'))
    digest = hashlib.sha256(OTHER).hexdigest()
    refused(lambda: get(url, tmp_path / "x.npz", sha256=digest), "sha256")
    assert os.listdir(tmp_path) == []
    assert get(url, tmp_path / "x.npz", sha256=digest).read_bytes() == OTHER


@pytest.mark.parametrize("seed", range(5))
def test_connection_cut_at_random_places(seed, serve, tmp_path):
    rng = np.random.default_rng(seed)

    def answer(request) -> Answer:
        start = int(request.headers.get("Range", "bytes=0-")[6:-1])
        end = len(BODY) if rng.random() < 0.2 else start + int(rng.integers(len(BODY) - start))
        headers = {"Content_Range": f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"} if start else {}
        return Answer(
            206 if start else 200, BODY[start:end], ETag='"one"', Content_Length=str(len(BODY) - start), **headers
        )

    url, _ = serve(answer)
    assert get(url, tmp_path / "x.npz", attempts=100, pause=0.0).read_bytes() == BODY
    assert os.listdir(tmp_path) == ["x.npz"]


def test_partial_file_that_is_longer_than_the_file(serve, tmp_path):
    url, _ = serve(half(), Answer(ETag='"one"'))
    refused(lambda: get(url, tmp_path / "x.npz", attempts=1), "try again, and the download will resume")
    (partial,) = tmp_path.iterdir()
    partial.write_bytes(bytes(2 * len(BODY)))
    assert get(url, tmp_path / "x.npz").read_bytes() == BODY


# Time ---------------------------------------------------------------------------------------------


def drip(text: bytes, pause: float = 0.1):
    def answer(request) -> None:
        try:
            for _ in range(100):
                request.wfile.write(text)
                request.wfile.flush()
                time.sleep(pause)
        except OSError:
            pass

    return answer


@pytest.mark.parametrize("encrypted", [False, True])
@pytest.mark.parametrize("text", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nX-A: b\r\n"])
def test_head_that_never_ends(text, encrypted, serve, tmp_path, certificate):
    """Each byte is in time, and all of them are not."""
    url, _ = serve(drip(text), folder=certificate if encrypted else None)
    start = time.monotonic()
    refused(lambda: get(url, tmp_path / "x.npz"), "cannot download")
    assert time.monotonic() - start < 4


def test_body_that_trickles(serve, tmp_path):
    url, _ = serve(Answer(body=b"", Content_Length=str(len(BODY)), after=drip(b"x")))
    refused(lambda: get(url, tmp_path / "x.npz"), "fewer than 1000 bytes per second")


@pytest.mark.parametrize("first", [None, Answer(body=b"", Content_Length="9")])
def test_server_that_hangs_up(first, serve, tmp_path):
    url, _ = serve(lambda _: first)
    refused(lambda: get(url, tmp_path / "x.npz"), "cannot download", "try again")


def test_reason_of_the_server_is_not_printed(serve, tmp_path):
    def answer(request) -> None:
        request.wfile.write(b"HTTP/1.1 404 \x1b[31mrun this command" + b"x" * 3000 + b"\r\nContent-Length: 0\r\n\r\n")

    url, _ = serve(answer)
    text = refused(lambda: get(url, tmp_path / "x.npz"), "the server answered 404 Not Found")
    assert "run this" not in text


# Digests ------------------------------------------------------------------------------------------


def slow_crc32c(data: bytes) -> str:
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return f"{state ^ 0xFFFFFFFF:08x}"


def crc32c(data: bytes, step: int = 1 << 20) -> str:
    digest = Crc32c()
    for start in range(0, len(data), step):
        digest.update(data[start : start + step])
    return digest.hexdigest()


def test_crc32c():
    assert crc32c(b"123456789") == "e3069283"  # the check value of the standard
    assert crc32c(bytes(32)) == "8a9136aa"  # RFC 3720
    data = np.random.default_rng(0).bytes(2_003)
    for size in (0, 1, 3, 4, 5, 2_003):
        assert crc32c(data[:size]) == crc32c(data[:size], 7) == slow_crc32c(data[:size])
    data = np.random.default_rng(0).bytes(2 * BLOCK + 5)
    assert crc32c(data, 4 * BLOCK) == crc32c(data, BLOCK // 3)


def goog(kind: str, data: bytes) -> str:
    digest = bytes.fromhex(crc32c(data)) if kind == "crc32c" else hashlib.md5(data).digest()
    return f"{kind}={base64.b64encode(digest).decode()}"


@pytest.mark.parametrize("kind", ["crc32c", "md5"])
def test_digests_of_google_storage(kind, serve, tmp_path):
    url, _ = serve(Answer(x_goog_hash=goog(kind, BODY)))
    assert get(url, tmp_path / "x.npz").read_bytes() == BODY
    url, _ = serve(Answer(body=OTHER, x_goog_hash=goog(kind, BODY)))
    refused(lambda: get(url, tmp_path / "y.npz"), f"has {kind} ")
    assert os.listdir(tmp_path) == ["x.npz"]


@pytest.mark.parametrize("digest", ["crc32c=!!", "crc32c=AA==", "md5=", "sha9=AAAA", "=", ","])
def test_digests_that_are_none(digest, serve, tmp_path):
    url, _ = serve(Answer(x_goog_hash=digest))
    assert get(url, tmp_path / "x.npz").read_bytes() == BODY


@pytest.mark.parametrize("body", [BODY, OTHER])
def test_digest_that_the_hub_sends_with_its_redirect(body, serve, tmp_path):
    storage, _ = serve(Answer(body=body))
    stated = {"X_Linked_Etag": f'"{hashlib.sha256(BODY).hexdigest()}"', "X_Linked_Size": str(len(BODY))}
    url, _ = serve(Answer(302, b"", Location=f"{storage}/x", **stated))
    if body == BODY:
        assert get(url, tmp_path / "x.npz").read_bytes() == BODY
    else:
        refused(lambda: get(url, tmp_path / "x.npz"), "has sha256 ")
    url, _ = serve(Answer(302, b"", Location=f"{storage}/x", X_Linked_Size="7"))
    refused(lambda: get(url, tmp_path / "y.npz"), "the hub states 7")


def test_tag_of_any_other_server_is_no_digest(serve, tmp_path):
    url, _ = serve(Answer(ETag=f'"{"0" * 64}"'))
    assert get(url, tmp_path / "x.npz").read_bytes() == BODY


# Records and sources ------------------------------------------------------------------------------


def from_mirror(url: str, monkeypatch) -> Path:
    monkeypatch.setenv("QKJAX_GS_URL", url)
    return fetch(NAME)


def test_record_of_a_download(serve, checkpoints, monkeypatch):
    url, log = serve(Answer())
    path = from_mirror(url, monkeypatch)
    record = json.loads(record_path(path).read_text())
    assert record["url"] == f"{url}/vit_models/sam/ViT-L_16.npz"
    assert (record["size"], record["sha256"]) == (len(BODY), hashlib.sha256(BODY).hexdigest())
    assert re.match(r"\d{4}-\d\d-\d\dT", record["date"])
    assert fetch(NAME) == path == checkpoints / FILE
    assert len(log) == 1


def test_other_mirror_with_the_same_file(serve, checkpoints, monkeypatch, capsys):
    first, _ = serve(Answer())
    second, log = serve(Answer())
    path = from_mirror(first, monkeypatch)
    path.with_name(f"new-{path.name}").write_bytes(OTHER)  # of a process that was killed
    assert from_mirror(second, monkeypatch) == path
    assert path.read_bytes() == BODY
    assert f"was downloaded from {first}" in capsys.readouterr().err
    assert len(log) == 1
    assert json.loads(record_path(path).read_text())["url"].startswith(second)
    assert sorted(os.listdir(path.parent)) == ["ViT-L_16.npz", "ViT-L_16.npz.source.json"]


def test_other_mirror_with_another_file(serve, checkpoints, monkeypatch):
    """Loading says so, too; the first file stays, and belongs to its own source."""
    first, _ = serve(Answer())
    second, _ = serve(Answer(body=OTHER))
    path = from_mirror(first, monkeypatch)
    monkeypatch.setenv("QKJAX_GS_URL", second)
    for call in (fetch, qkjax.load):
        refused(lambda call=call: call(NAME), f"{second}/vit_models", first, "altered or replaced", "delete")
    assert path.read_bytes() == BODY
    assert from_mirror(first, monkeypatch) == path
    path.unlink()
    monkeypatch.setenv("QKJAX_GS_URL", second)
    refused(lambda: fetch(NAME), "altered or replaced")
    record_path(path).unlink()
    assert fetch(NAME).read_bytes() == OTHER


def test_other_mirror_that_cannot_be_reached(serve, checkpoints, monkeypatch, capsys):
    first, _ = serve(Answer())
    path = from_mirror(first, monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("QKJAX_GS_URL", "http://127.0.0.1:9")
    refused(lambda: fetch(NAME), "HF_HUB_OFFLINE")
    assert first in capsys.readouterr().err
    assert path.read_bytes() == BODY


def test_file_that_was_cut_after_its_download(serve, checkpoints, monkeypatch):
    url, _ = serve(Answer())
    path = from_mirror(url, monkeypatch)
    path.write_bytes(BODY[:-5])
    refused(lambda: qkjax.load(NAME), f"expected the {len(BODY)} bytes that were downloaded", "delete")
    path.unlink()
    assert fetch(NAME).read_bytes() == BODY


@pytest.mark.parametrize("text", ["", "[]", "{", '{"url": 3, "date": 3}', "[" * 100_000])
def test_damaged_record(text, serve, checkpoints, monkeypatch):
    url, _ = serve(Answer())
    record_path(from_mirror(url, monkeypatch)).write_text(text)
    refused(lambda: fetch(NAME), "is not a valid record of a download", "delete")


def test_file_put_there_by_hand_is_used(checkpoints):
    (checkpoints / FILE).parent.mkdir(parents=True)
    (checkpoints / FILE).write_bytes(BODY)
    assert fetch(NAME) == checkpoints / FILE
    assert not (checkpoints / ".locks").exists(), "a folder that cannot be written is no obstacle"


def test_page_saved_by_hand(checkpoints):
    checkpoints.mkdir()
    (checkpoints / "simmim-vitb16-pretrain.pth").write_bytes(PAGE)
    refused(lambda: fetch("simmim-vitb16-pretrain"), "simmim-vitb16-pretrain.pth is not a complete checkpoint")


def test_converted_file_belongs_to_its_source(torch, serve, checkpoints, monkeypatch):
    """An entry with a new address is not read from what was converted of the old one."""
    from test_families import timm_state

    known = catalogue.entries()["ijepa-vith14-1k-predictor"]
    models = {}
    for width in (48, 96):
        buffer = io.BytesIO()
        torch.save({name: torch.tensor(value) for name, value in timm_state(width=width).items()}, buffer)
        url, _ = serve(Answer(body=buffer.getvalue()))
        entry = replace(known, name="tiny", url=f"{url}/x.pth", sub=None, heads=4)
        monkeypatch.setitem(catalogue.entries(), "tiny", entry)
        monkeypatch.setitem(lookup._index(), "tiny", entry)
        models[width] = qkjax.load("tiny").config.width
    assert models == {48: 48, 96: 96}


# Disks, processes, connections --------------------------------------------------------------------


class Full(io.BytesIO):
    def write(self, data):
        raise OSError(28, "No space left on device")


def test_disk_that_fills_up(serve, tmp_path, monkeypatch):
    url, _ = serve(Answer())
    monkeypatch.setattr(http, "open_partial", lambda *_: Full())
    refused(lambda: get(url, tmp_path / "x.npz"), "No space left on device", "QKJAX_CHECKPOINTS")


def test_folder_that_cannot_be_written(serve, tmp_path, monkeypatch):
    url, _ = serve(Answer())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QKJAX_CHECKPOINTS", str(tmp_path / "file"))
    refused(lambda: from_mirror(url, monkeypatch), "cannot write to", "QKJAX_CHECKPOINTS")


def test_two_processes(serve, checkpoints, monkeypatch):
    """One downloads, the other waits and finds it done."""
    url, log = serve(lambda _: (time.sleep(3), Answer())[1])
    command = [sys.executable, "-m", "qkjax", "fetch", NAME]
    env = os.environ | {"QKJAX_GS_URL": url}
    both = [subprocess.Popen(command, env=env, text=True, stdout=-1, stderr=-1) for _ in range(2)]
    outputs = [process.communicate(timeout=100) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert {output[0].strip() for output in outputs} == {str(checkpoints / FILE)}
    assert len(log) == 1
    assert sum("waiting for another process" in output[1] for output in outputs) == 1


def test_killed_process_leaves_no_lock_and_no_file(serve, checkpoints, monkeypatch):
    def hang(request):
        time.sleep(60)

    url, log = serve(Answer(body=BODY[:50_000], Content_Length=str(len(BODY)), ETag='"one"', after=hang),
                     Answer(ETag='"one"'))  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "qkjax", "fetch", NAME], env=os.environ | {"QKJAX_GS_URL": url})
    while not log or not list((checkpoints / FILE).parent.glob("*.partial")):
        time.sleep(0.05)
        assert process.poll() is None
    process.kill()
    process.wait()
    assert not (checkpoints / FILE).exists()
    assert from_mirror(url, monkeypatch).read_bytes() == BODY


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline(variable, serve, checkpoints, monkeypatch):
    url, log = serve(Answer())
    monkeypatch.setenv(variable, "true")
    refused(lambda: from_mirror(url, monkeypatch), "HF_HUB_OFFLINE is set")
    assert not log
    monkeypatch.setenv(variable, "0")
    from_mirror(url, monkeypatch)
    monkeypatch.setenv(variable, "1")
    assert fetch(NAME) == checkpoints / FILE


def test_proxies(serve, checkpoints, monkeypatch):
    """They are read for every request, and NO_PROXY is respected."""
    proxy, log = serve(Answer())
    url, direct = serve(Answer())
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("no_proxy", "")
    path = from_mirror("http://nowhere.invalid", monkeypatch)
    assert log[0][0] == "http://nowhere.invalid/vit_models/sam/ViT-L_16.npz"
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert from_mirror(url, monkeypatch) == path
    assert (len(log), len(direct)) == (1, 1)


def test_proxy_of_encrypted_connections(serve, certificate, tmp_path, monkeypatch):
    url, _ = serve(Answer(), folder=certificate)
    proxy, log = serve(Answer())
    monkeypatch.setenv("https_proxy", proxy)
    monkeypatch.setenv("no_proxy", "")
    assert get(url, tmp_path / "x.npz").read_bytes() == BODY
    assert [x[0] for x in log] == [url.removeprefix("https://")]


def test_empty_variables_are_not_set(monkeypatch, serve):
    """As of a shell script that exports a mirror only in some places."""
    from qkjax.weights.download.address import GOOGLE, HUB, address

    monkeypatch.setenv("QKJAX_GS_URL", "")
    monkeypatch.setenv("HF_ENDPOINT", "")
    assert address(catalogue.entry(NAME)).startswith(f"{GOOGLE}/vit_models")
    assert address(catalogue.entry("dinov2-small")).startswith(f"{HUB}/facebook/dinov2-small")


def test_check_of_addresses_follows_no_plain_redirect(serve, certificate, monkeypatch):
    plain, _ = serve(Answer())
    url, _ = serve(to(f"{plain}/x"), folder=certificate)
    monkeypatch.setenv("QKJAX_GS_URL", url)
    ((name, problem),) = check_urls([NAME])
    assert name == NAME
    assert "not encrypted" in problem


# The hub ------------------------------------------------------------------------------------------

REPO = ("facebook/dinov2-small", SHA)
SAFE = {"model.safetensors": b"safe"}


class Lie:
    """Its bytes differ when they are sent, and have the length that was listed."""


class SmallLie(Lie, bytes):
    pass


class LargeLie(Lie, Large):
    pass


@pytest.fixture
def lying_hub(monkeypatch):
    import test_download

    honest = test_download.Hub.answer

    def answer(self, content, commit):
        evil = Large(b"evil") if isinstance(content, Large) else b"evil"
        honest(self, evil if isinstance(content, Lie) else content, commit)

    monkeypatch.setattr(test_download.Hub, "answer", answer)


@pytest.mark.parametrize(("lie", "honest", "kind"), [(SmallLie, bytes, "git"), (LargeLie, Large, "sha256")])
def test_hub_that_sends_another_file(lie, honest, kind, hub_run, lying_hub, tmp_path):  # noqa: F811
    done = hub_run("dinov2-small", {REPO: SMALL | {"model.safetensors": lie(b"safe")}})
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = (x for x in done.stderr.splitlines() if x.startswith("qkjax: error: "))
    assert f"facebook/dinov2-small/model.safetensors has {kind} " in line
    assert not list(tmp_path.rglob("model.safetensors")), "what is wrong is not kept"
    done = hub_run("dinov2-small", {REPO: SMALL | {"model.safetensors": honest(b"safe")}})
    assert names_in(done) > {"model.safetensors"}


@pytest.mark.parametrize("status", [200, 403, 404])
def test_hub_that_sends_pages(status, hub_run, monkeypatch, tmp_path):  # noqa: F811
    import test_download

    def answer(self):
        self.send_response(status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    monkeypatch.setattr(test_download.Hub, "do_GET", answer)
    done = hub_run("dinov2-small", {})
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = (x for x in done.stderr.splitlines() if x.startswith("qkjax: error: "))
    assert len(line) < 500
    assert "cannot fetch facebook/dinov2-small from the hub" in line
    assert not list(tmp_path.rglob("config.json"))


def test_hub_record_and_another_endpoint(hub_run, tmp_path):  # noqa: F811
    """The commit is the same, so its files are, too; nothing is trusted that another endpoint lists otherwise."""
    done = hub_run("dinov2-small", {REPO: SMALL | SAFE})
    folder = Path(done.stdout.strip())
    assert names_in(done) > {"model.safetensors"}
    record = json.loads(record_path(folder).read_text())
    assert record["files"]["model.safetensors"] == {"size": 4, "sha256": hashlib.sha256(b"safe").hexdigest()}
    again = hub_run("dinov2-small", {REPO: SMALL | SAFE})
    assert again.stdout == done.stdout
    assert "was downloaded from" in again.stderr
    other = hub_run("dinov2-small", {REPO: SMALL | {"model.safetensors": b"evil"}})
    assert other.returncode == 2
    (line,) = (x for x in other.stderr.splitlines() if x.startswith("qkjax: error: "))
    assert "differs from the file that http://127.0.0.1" in line
    assert hub_run("dinov2-small", {}, HF_HUB_OFFLINE="1").stdout == done.stdout
    assert (folder / "model.safetensors").read_bytes() == b"safe"


def test_snapshot_that_was_not_verified_is_not_used(hub_run, tmp_path):  # noqa: F811
    done = hub_run("dinov2-small", {REPO: SMALL | SAFE})
    folder = Path(done.stdout.strip())
    folder.with_name(f"{folder.name}.unverified").touch()
    assert hub_run("dinov2-small", {}, HF_HUB_OFFLINE="1").returncode == 2
    assert hub_run("dinov2-small", {REPO: SMALL | SAFE}).stdout == done.stdout


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME"])
def test_cache_of_other_programs_is_used_offline(variable, hub_run, tmp_path):  # noqa: F811
    first = Path(hub_run("dinov2-small", {REPO: SMALL | SAFE}).stdout.strip())
    shared = tmp_path / "shared" / ("hub" if variable == "HF_HOME" else "")
    shutil.copytree(tmp_path / "ckpt" / "hf", shared, symlinks=True)
    empty = {"QKJAX_CHECKPOINTS": str(tmp_path / "empty"), variable: str(tmp_path / "shared")}
    done = hub_run("dinov2-small", {}, HF_HUB_OFFLINE="1", **empty)
    assert done.stdout.strip() == str(shared / first.relative_to(tmp_path / "ckpt" / "hf"))
    assert "HF_HUB_OFFLINE" not in hub_run("dinov2-small", {}, **empty).stderr


def test_size_of_the_catalogue(serve, monkeypatch, tmp_path):
    """A server that states far more or far fewer bytes than the catalogue is refused before anything is downloaded."""
    about = len(BODY)
    for size in (about // 2, 2 * about, 10**12):
        url, _ = serve(Answer(body=BODY[:10], Content_Length=str(size)))
        call = partial(download, url, tmp_path / "x.npz", about=about)
        refused(call, f"states {size} bytes", f"about {about}")
        assert not list(tmp_path.iterdir())
    url, _ = serve(Answer())
    assert download(url, tmp_path / "x.npz", about=about + about // 20).read_bytes() == BODY
