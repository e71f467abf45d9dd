"""Downloads from a local server that misbehaves in every way it can."""

import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import ClassVar
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from serving import local_servers

import qkjax
from qkjax.images.preprocess import PRESETS
from qkjax.weights import catalogue
from qkjax.weights.catalogue import lookup
from qkjax.weights.download import http, hub, partial_file
from qkjax.weights.download.check import check_urls
from qkjax.weights.download.fetch import fetch
from qkjax.weights.download.http import download


def npz(seed: int) -> bytes:
    """An npz file of 300,000 bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(zipfile.ZipInfo("x.npy"), np.random.default_rng(seed).bytes(299_892))
    return buffer.getvalue()


BODY, OTHER = npz(0), npz(1)


class Server(BaseHTTPRequestHandler):
    """Serves `body` with an ETag and ranges; `faults` are taken one a request, then all is well."""

    protocol_version = "HTTP/1.1"
    body, tag, ranges, md5, faults, log = BODY, '"one"', True, "", [], []

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.log.append((self.command, self.path, self.headers.get("Range")))
        fault = self.faults.pop(0) if self.faults else ""
        if fault.isdecimal():
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif fault == "redirect" or self.path.startswith("/old/"):
            self.send_response(302)
            self.send_header("Location", self.path.replace("/old/", "/new/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send_file(fault)

    def send_file(self, fault: str):
        if fault == "changed":
            type(self).body, type(self).tag = OTHER, '"two"'
        body, wanted = self.body, self.headers.get("Range")
        start = 0
        if wanted and self.ranges and self.headers.get("If-Range") == self.tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        length = len(body) - start + (1000 if fault == "long" else -1000 if fault == "short" else 0)
        if fault != "no length":
            self.send_header("Content-Length", str(length))
        if self.tag:
            self.send_header("ETag", self.tag)
        if self.md5:
            self.send_header("x-goog-hash", "crc32c=AAAAAA==")
            self.send_header("x-goog-hash", f"md5={self.md5}")
        self.end_headers()
        if self.command == "GET":
            rest = body[start:]
            if fault in ("cut", "stall"):
                rest = rest[: len(rest) // 2]
            self.wfile.write(rest)
            self.wfile.flush()
            if fault == "stall":
                time.sleep(1.5)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def serve(monkeypatch):
    """Starts servers; gives the address and the handler class, whose `log` lists the requests."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with local_servers() as run:

        def start(*faults: str, **settings):
            handler = type("Handler", (Server,), {"faults": list(faults), "log": [], **settings})
            return run(handler), handler

        yield start


def get(url: str, path, **settings):
    return download(f"{url}/x.npz", path, **{"stall": 0.4, "attempts": 3, "pause": 0.01, **settings})


def test_whole_file(serve, tmp_path):
    url, handler = serve()
    path = get(url, tmp_path / "deep" / "x.npz")
    assert path.read_bytes() == BODY
    assert list(path.parent.iterdir()) == [path]
    get("http://127.0.0.1:9", path)  # it is there: nothing is asked
    assert len(handler.log) == 1


@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_resumed_where_it_was_cut_off(fault, serve, tmp_path):
    url, handler = serve(fault)
    assert get(url, tmp_path / "x.npz").read_bytes() == BODY
    assert [x[2] for x in handler.log] == [None, None, "bytes=150000-"]
    assert os.listdir(tmp_path) == ["x.npz"]


def test_resumed_by_a_later_call(serve, tmp_path):
    url, handler = serve("cut", "503", "503")
    with pytest.raises(qkjax.QkjaxError, match=r"the server answered 503 .*; try again, and the download will resume"):
        get(url, tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()
    assert get(url, tmp_path / "x.npz").read_bytes() == BODY
    assert handler.log[-1][2] == "bytes=150000-"


def test_server_that_knows_no_ranges(serve, tmp_path):
    url, handler = serve("cut", ranges=False)
    assert get(url, tmp_path / "x.npz").read_bytes() == BODY
    assert handler.log[-1][2] == "bytes=150000-"


@pytest.mark.parametrize("tag", ["", 'W/"weak"'])
def test_without_a_strong_tag_nothing_is_resumed(tag, serve, tmp_path):
    url, handler = serve("cut", tag=tag)
    assert get(url, tmp_path / "x.npz").read_bytes() == BODY
    assert [x[2] for x in handler.log] == [None, None]
    assert os.listdir(tmp_path) == ["x.npz"]


@pytest.mark.parametrize("faults", [("cut", "changed"), ("cut", "", "changed")])
def test_two_versions_are_never_glued(faults, serve, tmp_path):
    """The file changes between two attempts, or between the two requests of one."""
    url, _ = serve(*faults)
    assert get(url, tmp_path / "x.npz").read_bytes() == OTHER
    assert os.listdir(tmp_path) == ["x.npz"]


def test_server_that_lost_what_it_had(serve, tmp_path):
    url, _ = serve("cut", "", "416")
    assert get(url, tmp_path / "x.npz").read_bytes() == BODY


def test_length_that_is_too_long(serve, tmp_path):
    url, _ = serve("long", "long", "long", "long", "long", "long")
    with pytest.raises(qkjax.QkjaxError, match=r"cannot download .*(1000 bytes before the end of the file|changed)"):
        get(url, tmp_path / "x.npz")
    assert not (tmp_path / "x.npz").exists()


def test_length_that_is_too_short_is_seen_by_the_checksum(serve, tmp_path):
    url, _ = serve("short")
    with pytest.raises(qkjax.QkjaxError, match=r"x\.npz has sha256 .* expected .*; try again"):
        get(url, tmp_path / "x.npz", sha256=hashlib.sha256(BODY).hexdigest())
    assert os.listdir(tmp_path) == [], "what is wrong is not kept"


def test_no_length(serve, tmp_path):
    url, _ = serve("no length")
    with pytest.raises(qkjax.QkjaxError, match="does not state the length"):
        get(url, tmp_path / "x.npz")


@pytest.mark.parametrize("body", [BODY, OTHER])
def test_checksum_of_google_storage(body, serve, tmp_path):
    url, _ = serve(md5=base64.b64encode(hashlib.md5(BODY).digest()).decode(), body=body)
    if body == BODY:
        assert get(url, tmp_path / "x.npz").read_bytes() == BODY
    else:
        with pytest.raises(qkjax.QkjaxError, match="has md5 "):
            get(url, tmp_path / "x.npz")
        assert os.listdir(tmp_path) == []


def test_redirects_are_followed(serve, tmp_path):
    url, handler = serve("", "cut")
    assert download(f"{url}/old/x.npz", tmp_path / "x.npz", stall=0.4, pause=0.01).read_bytes() == BODY
    assert [x[1] for x in handler.log if x[2]] == ["/old/x.npz", "/new/x.npz"]


def test_endless_redirect(serve, tmp_path):
    url, _ = serve(*["redirect"] * 50)
    with pytest.raises(qkjax.QkjaxError, match="the server answered 302"):
        get(url, tmp_path / "x.npz")


@pytest.mark.parametrize("code", ["403", "404", "410"])
def test_refusal_is_not_repeated(code, serve, tmp_path):
    url, handler = serve(code)
    with pytest.raises(qkjax.QkjaxError, match=f"cannot download {url}/x.npz: the server answered {code}"):
        get(url, tmp_path / "x.npz")
    assert len(handler.log) == 1


def test_passing_errors_are_waited_out(serve, tmp_path):
    url, _ = serve("500", "429")
    assert get(url, tmp_path / "x.npz").read_bytes() == BODY


def test_no_connection(tmp_path):
    with pytest.raises(qkjax.QkjaxError, match=r"cannot download http://127.0.0.1:9/x.npz: Connection refused"):
        get("http://127.0.0.1:9", tmp_path / "x.npz")
    with pytest.raises(qkjax.QkjaxError, match="expected an address that begins with http"):
        get("file:///etc", tmp_path / "x.npz")


def test_attempts_that_bring_much_are_not_counted(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(http, "CHUNK", 10_000)
    url, _ = serve("cut", "", "cut", "", "cut", "", "cut")
    assert get(url, tmp_path / "x.npz", attempts=2).read_bytes() == BODY


@pytest.mark.parametrize("settings", [{"tag": ""}, {"ranges": False}])
def test_attempts_that_bring_the_same_again_are_counted(settings, serve, tmp_path, monkeypatch):
    monkeypatch.setattr(http, "CHUNK", 10_000)
    url, handler = serve(*["cut"] * 50, **settings)
    with pytest.raises(qkjax.QkjaxError, match=r"the connection ended \d+ bytes before the end of the file; try again"):
        get(url, tmp_path / "x.npz")
    assert len(handler.log) < 10


def test_disk_without_room(serve, tmp_path, monkeypatch):
    url, _ = serve()
    usage = partial_file.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(partial_file.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(
        qkjax.QkjaxError, match=r"has 0\.0 MB of free space, but the download needs 0\.3 MB: free some space"
    ):
        get(url, tmp_path / "x.npz")


def test_folder_that_cannot_be_written(serve, tmp_path):
    url, _ = serve()
    (tmp_path / "file").write_text("")
    with pytest.raises(qkjax.QkjaxError, match=r"cannot write to .*QKJAX_CHECKPOINTS"):
        get(url, tmp_path / "file" / "x.npz")


def test_many_at_once(serve, tmp_path):
    """Eight writers, some of them cut off, and one whole file."""
    url, _ = serve("cut", "", "cut", "500", "cut", "", "", "cut", "stall")
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(get(url, tmp_path / "x.npz", attempts=20))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 8
    assert (tmp_path / "x.npz").read_bytes() == BODY
    assert os.listdir(tmp_path) == ["x.npz"]


def test_fetch_from_a_mirror_of_google_storage(serve, tmp_path, monkeypatch, capsys):
    url, handler = serve()
    monkeypatch.setenv("QKJAX_CHECKPOINTS", str(tmp_path))
    monkeypatch.setenv("QKJAX_GS_URL", f"{url}/mirror/")
    path = fetch("vit-l16-i21k-i1k-384")
    assert path == fetch("vit-l16-i21k-i1k-384")
    assert path == tmp_path / "gs/vit_models/imagenet21k+imagenet2012/ViT-L_16.npz"
    assert path.read_bytes() == BODY
    assert handler.log == [("GET", "/mirror/vit_models/imagenet21k%2Bimagenet2012/ViT-L_16.npz", None)]
    with pytest.raises(qkjax.QkjaxError, match=r"states \d+ bytes, but the catalogue states about 347498086"):
        fetch("vit-b16-i21k-i1k-384")
    assert "fetching vit-b16-i21k-i1k-384 (347 MB)" in capsys.readouterr().err
    with pytest.raises(qkjax.QkjaxError, match="uvim-color-stage1 cannot be loaded: it is UViM stage I"):
        fetch("uvim-color-stage1")


def test_check_urls(serve, monkeypatch):
    url, handler = serve("404")
    monkeypatch.setenv("QKJAX_GS_URL", url)
    monkeypatch.setenv("HF_ENDPOINT", url)
    names = ["vit-b16-i21k", "dinov2-vits14-focus"]
    assert check_urls(names) == [("vit-b16-i21k", "the server answered 404 Not Found")]
    assert check_urls(names) == []
    assert [x[0] for x in handler.log] == ["HEAD", "HEAD"]


def test_two_models_of_one_pytorch_file(serve, tmp_path, monkeypatch):
    """Meta's file with I-JEPA's encoders and predictor: one download, each part converted once to npz."""
    torch = pytest.importorskip("torch", reason="needs the parity extra: pip install -e '.[parity]'")
    from test_families import ijepa_state

    torch.save(ijepa_state(torch), tmp_path / "x.pth.tar")
    url, handler = serve(body=(tmp_path / "x.pth.tar").read_bytes())
    monkeypatch.setenv("QKJAX_CHECKPOINTS", str(tmp_path / "ckpt"))
    known = catalogue.entries()
    for name, sub, heads in (("tiny-encoder", "encoder", 4), ("tiny-predictor", "predictor", 2)):
        there = known["ijepa-vith14-1k-predictor"]
        entry = replace(there, name=name, url=f"{url}/x.pth.tar", sub=sub, heads=heads)
        monkeypatch.setitem(known, name, entry)
        monkeypatch.setitem(lookup._index(), name, entry)
    encoder, predictor = qkjax.load("tiny-encoder"), qkjax.load("tiny-predictor")
    assert (encoder.config.width, encoder.config.heads) == (48, 4)
    assert (predictor.config.width, predictor.config.heads, predictor.config.channels) == (24, 2, 48)
    assert predictor.preprocess == encoder.preprocess == PRESETS["hf-ijepa"]
    assert [x[0] for x in handler.log] == ["GET"]
    again = qkjax.load(f"{catalogue.path_of('tiny-predictor')}:predictor", heads=2)
    catalogue.path_of("tiny-predictor").unlink()
    monkeypatch.setitem(sys.modules, "torch", None)
    kept = qkjax.load("tiny-predictor")
    assert kept.config == again.config
    np.testing.assert_array_equal(kept.params["pos_embedding"], again.params["pos_embedding"])


def test_file_that_only_a_person_can_get(tmp_path, monkeypatch):
    """SimMIM is on Google Drive: the error says what to do, and the file is read once it exists."""
    torch = pytest.importorskip("torch", reason="needs the parity extra: pip install -e '.[parity]'")
    from test_families import timm_state

    monkeypatch.setenv("QKJAX_CHECKPOINTS", str(tmp_path))
    name, path = "simmim-vitb16-pretrain", tmp_path / "simmim-vitb16-pretrain.pth"
    advice = f"open {catalogue.entry(name).url}, save the file as {path}, then try again"
    for get_it in (fetch, qkjax.load):
        with pytest.raises(qkjax.QkjaxError, match=re.escape(advice)):
            get_it(name)
    state = {f"encoder.{n}": torch.tensor(v) for n, v in timm_state(width=192).items() if not n.startswith("head")}
    torch.save({"model": state}, path)
    assert fetch(name) == path
    checkpoint = qkjax.load(name)
    assert (checkpoint.name, checkpoint.config.width, checkpoint.config.heads) == (name, 192, 12)
    assert checkpoint.preprocess == PRESETS["simmim"]


# A hub in miniature ------------------------------------------------------------------------------

SHA = "0123456789abcdef0123456789abcdef01234567"
PULL = "1123456789abcdef0123456789abcdef01234567"
REVISIONS = {"main": SHA, "refs/pr/1": PULL, SHA: SHA, PULL: PULL}


class Large(bytes):
    """A file that the hub keeps apart from git, and lists with its SHA-256."""

    def lfs(self) -> dict:
        return {"lfs": {"oid": hashlib.sha256(self).hexdigest(), "size": len(self), "pointerSize": 130}}


class Gated(Large):
    """A file that the hub sends only with the token of an account that has accepted the licence."""

    def refusal(self, authorization: str | None) -> tuple[int, str, str] | None:
        gated = ("GatedRepo", "Access to model is restricted.")
        invalid = (401, "", "Invalid credentials in Authorization header")
        return {None: (401, *gated), "Bearer new": (403, *gated), "Bearer wrong": invalid}.get(authorization)


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of a hub; `repos` maps (repository, commit) to file name -> content."""

    protocol_version = "HTTP/1.1"
    repos: ClassVar[dict] = {}

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        for (repo, commit), files in self.repos.items():
            names = [r for r, c in REVISIONS.items() if c == commit]
            for name in names:
                if path in (f"api/models/{repo}/revision/{name}", *([f"api/models/{repo}"] if name == "main" else [])):
                    siblings = [{"rfilename": f} for f in files]
                    return self.answer(json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode(), commit)
                if path == f"api/models/{repo}/tree/{name}":
                    tree = [
                        {
                            "type": "file",
                            "path": f,
                            "size": len(c),
                            "oid": hashlib.sha1(b"blob %d\0" % len(c) + c).hexdigest(),
                        }
                        | (c.lfs() if isinstance(c, Large) else {})
                        for f, c in files.items()
                    ]
                    return self.answer(json.dumps(tree).encode(), commit)
                for file, content in files.items():
                    if path == f"{repo}/resolve/{name}/{file}":
                        refusal = content.refusal(self.headers["Authorization"]) if isinstance(content, Gated) else None
                        return self.refuse(*refusal) if refusal else self.answer(content, commit)
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def refuse(self, status: int, code: str, message: str):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer(self, content: bytes, commit: str):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        digest = hashlib.sha256 if isinstance(content, Large) else hashlib.sha1
        self.send_header("ETag", f'"{digest(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub_server():
    """Starts hubs in miniature; gives their address."""
    with local_servers() as run:
        yield lambda repos: run(type("Handler", (Hub,), {"repos": repos}))


@pytest.fixture
def hub_run(tmp_path, hub_server):
    """Runs `fetch` in a process of its own, since huggingface_hub reads its settings when it is imported."""
    pytest.importorskip("huggingface_hub", reason="needs the hf extra")

    def run(name: str, repos: dict, **environment) -> subprocess.CompletedProcess:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        env = kept | {
            "HF_ENDPOINT": hub_server(repos),
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "QKJAX_CHECKPOINTS": str(tmp_path / "ckpt"),
            "no_proxy": "127.0.0.1",
            **environment,
        }
        command = [sys.executable, "-m", "qkjax", "fetch", name]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=120)

    return run


@pytest.mark.parametrize(
    ("main", "pull", "problem"),
    [
        ({"config.json": b"{}", "model.safetensors": b""}, {}, ""),
        ({"config.json": b"{}", "model.safetensors.index.json": b"{}"}, {}, ""),
        ({"config.json": b"{}", "pytorch_model.bin": b""}, {}, ""),
        ({"config.json": b"{}"}, {"model.safetensors": b""}, ""),
        (
            {"config.json": b"{}"},
            {},
            "none of model.safetensors, ",
        ),
        ({"model.safetensors": b""}, {}, "config.json: the server answered 404"),
    ],
)
def test_check_urls_of_the_hub(main, pull, problem, hub_server, monkeypatch):
    """config.json and weights in one form, at the entry's revision or where its safetensors are."""
    repo = "google/vit-large-patch32-384"
    monkeypatch.setenv("HF_ENDPOINT", hub_server({(repo, SHA): main, (repo, PULL): pull}))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    found = check_urls(["vit-large-patch32-384"])
    assert len(found) == bool(problem)
    assert not problem or found[0][1].startswith(problem)


def names_in(done: subprocess.CompletedProcess) -> set[str]:
    assert done.returncode == 0, done.stderr
    return set(os.listdir(done.stdout.strip()))


SMALL = {"config.json": b"{}", "preprocessor_config.json": b"{}", "README.md": b"no", "tf_model.h5": b"no"}
NESTED = {"processor_config.json": b"{}"}
SAFE, PICKLE = {"model.safetensors": b"safe"}, {"pytorch_model.bin": b"pickle"}


def test_hub_safetensors_before_pickle_then_offline(hub_run):
    repos = {("facebook/dinov2-small", SHA): SMALL | NESTED | SAFE | PICKLE}
    done = hub_run("dinov2-small", repos)
    assert names_in(done) == {"config.json", "preprocessor_config.json", "processor_config.json", "model.safetensors"}
    again = hub_run("facebook/dinov2-small", {}, HF_HUB_OFFLINE="1")
    assert again.stdout == done.stdout


def test_hub_safetensors_of_a_pull_request_before_pickle(hub_run):
    repo = "google/vit-large-patch32-384"
    repos = {(repo, SHA): SMALL | PICKLE, (repo, PULL): SMALL | PICKLE | SAFE}
    done = hub_run("vit-large-patch32-384", repos)
    assert names_in(done) == {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert done.stdout.strip().endswith(PULL)


def test_hub_pickle_where_there_is_nothing_else(hub_run):
    done = hub_run("dino-vitb16", {("facebook/dino-vitb16", SHA): SMALL | PICKLE})
    assert names_in(done) == {"config.json", "preprocessor_config.json", "pytorch_model.bin"}


@pytest.mark.parametrize(
    ("files", "environment", "part"),
    [
        (None, {}, "no public repository"),
        (SMALL | SAFE, {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
        (SMALL, {}, "contains none of model.safetensors, "),
        (SAFE, {}, "has no config.json"),
    ],
)
def test_hub_errors_are_one_line(hub_run, files, environment, part):
    done = hub_run("dinov2-small", {("facebook/dinov2-small", SHA): files} if files else {}, **environment)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = (x for x in done.stderr.splitlines() if x.startswith("qkjax: error: "))
    assert part in line


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({}, "gated: accept the licence on {page}, then put a token .* in HF_TOKEN, or run `hf auth login`"),
        ({"HF_TOKEN": "new"}, "gated: accept the licence on {page}"),
        ({"HF_TOKEN": "wrong"}, "does not know the token in HF_TOKEN"),
        ({"HF_TOKEN": "right"}, ""),
    ],
)
def test_gated_repository(hub_run, environment, part):
    """A repository of DINOv3, whose licence the user must accept on its page."""
    repo = "facebook/dinov3-vits16-pretrain-lvd1689m"
    done = hub_run("dinov3-vits16", {(repo, SHA): {"config.json": Gated(b"{}"), "model.safetensors": Gated(b"x")}},
                   **environment)  # fmt: skip
    if not part:
        assert names_in(done) == {"config.json", "model.safetensors"}
        return
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = (x for x in done.stderr.splitlines() if x.startswith("qkjax: error: "))
    assert re.search(part.format(page=rf"http://127\.0\.0\.1:\d+/{repo}"), line)


def test_without_huggingface_hub(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(qkjax.QkjaxError, match=r"pip install 'qkjax\[hf\]'"):
        hub.fetch_repository(tmp_path, "facebook/dinov2-small", ("main",))
