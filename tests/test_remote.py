"""Images and results on object stores: fsspec's store in memory, and a local server with the interface of S3."""

from uuid import uuid4

import numpy as np
import pytest
import xarray as xr
from commands import command
from PIL import Image

import qkjax
from conftest import DATA
from qkjax.images.remote import url_of
from qkjax.images.sources import open_images

fsspec = pytest.importorskip("fsspec", reason="needs the remote extra: pip install -e '.[remote]'")
MODEL = DATA / "a.npz"
NAMES = ("a.png", "b/c.png", "b/d.png")


@pytest.fixture(params=["memory", "s3"])
def store(request, monkeypatch):
    """URL of an empty folder on a store, and its file system."""
    if request.param == "memory":
        system = fsspec.filesystem("memory")
        yield "memory://bucket", system
        system.rm("/bucket", recursive=True)
        return
    pytest.importorskip("s3fs", reason="needs the remote extra: pip install -e '.[remote]'")
    server = pytest.importorskip("moto.server", reason="needs moto: pip install 'moto[server]'")
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    address = "http://{}:{}".format(*running.get_host_and_port())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": address, "skip_instance_cache": True})
    system = fsspec.filesystem("s3")
    bucket = f"bucket-{uuid4()}"  # the servers of a process share their memory
    system.mkdir(bucket)
    yield f"s3://{bucket}", system
    running.stop()


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in NAMES:
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(tmp_path / "images" / name)
    (tmp_path / "images/notes.txt").write_text("text")
    return tmp_path / "images"


def upload(store, folder, name="images"):
    url, system = store
    for path in folder.rglob("*"):
        if path.is_file():
            target = f"{url}/{name}/{path.relative_to(folder).as_posix()}"
            system.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            system.put_file(str(path), target)
    return f"{url}/{name}"


def test_a_set_on_a_store_is_the_set_of_its_files(store, folder):
    local, remote = open_images(folder), open_images(upload(store, folder))
    assert remote.names == local.names == NAMES
    assert remote.notes == local.notes
    for index in range(len(NAMES)):
        np.testing.assert_array_equal(np.asarray(remote.read(index)), np.asarray(local.read(index)))


def test_a_changed_image_changes_the_fingerprint(store, folder):
    url = upload(store, folder)
    before = open_images(url).fingerprint
    assert open_images(url).fingerprint == before
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "a.png")
    upload(store, folder)
    assert open_images(url).fingerprint != before


def test_results_are_uploaded_and_a_second_run_reads_them(store, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images, (url, system) = upload(store, folder), store
    words = ["top-images", MODEL, "--images", images, "--select", "L0 H0 M0", "--batch", "2"]
    first = command(monkeypatch, capsys, *words, "--out", f"{url}/results")
    assert first.code == 0, first.err
    assert f"uploaded {len(system.find(f'{url}/results'))} files to {url}/results" in first.err
    system.get_file(f"{url}/results/top_images.nc", str(tmp_path / "stored.nc"))
    stored = xr.load_dataset(tmp_path / "stored.nc")
    expected = qkjax.top_images(qkjax.load(MODEL), open_images(folder), options=qkjax.PassOptions(batch=2))
    np.testing.assert_array_equal(stored.image_index, expected.image_index)
    np.testing.assert_array_equal(stored.score, expected.score)
    assert not list((tmp_path / "cache").rglob("*.nc"))
    again = command(monkeypatch, capsys, *words, f"--out={url}/results")
    assert again.code == 0, again.err
    assert "img/s" not in again.err  # the result is read, and no image
    for name in ("--distributed", "--shard=0/2"):
        refused = command(monkeypatch, capsys, *words, "--out", f"{url}/results", *name.split("="))
        assert refused.code == 2
        assert "cannot be combined" in refused.err


def test_errors_name_the_address(store, folder):
    url, system = store
    with pytest.raises(qkjax.QkjaxError, match=r"there is nothing at .*://bucket.*/nothing"):
        open_images(f"{url}/nothing")
    remote = open_images(upload(store, folder))
    system.rm(f"{url}/images/a.png")
    with pytest.raises(qkjax.QkjaxError, match=r"cannot read image a\.png"):
        remote.read(0)


def test_archives_on_stores_are_noted(store, folder):
    (folder / "more.zip").write_bytes(b"x")
    assert "archives on object stores are not searched: 1 skipped" in " ".join(open_images(upload(store, folder)).notes)


@pytest.mark.parametrize(
    ("path", "url"),
    [("s3://a/b", "s3://a/b"), ("s3:/a/b", "s3://a/b"), ("hf://data/a", "hf://data/a"), ("c:/a", None), ("a/b", None)],
)
def test_urls_and_paths(path, url):
    assert url_of(path) == url


def test_unknown_protocols():
    with pytest.raises(qkjax.QkjaxError, match="Protocol not known: nothing"):
        open_images("nothing://bucket")
