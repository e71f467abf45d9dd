"""The scan: the right images, whatever is interrupted, killed, unreadable or shared among devices and hosts."""

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import xarray as xr
from PIL import Image
from test_cli import interrupt
from test_top import plain_score

import qkjax
from conftest import DATA, UNCACHED
from qkjax.activations.scores import SCORES
from qkjax.analyses.top_images import scan
from qkjax.analyses.top_images.scan import ScanOptions, scan_images
from qkjax.images.preprocess import preprocess
from qkjax.images.sources import open_images
from qkjax.passes.inputs import photograph_grid, resolution_of
from qkjax.vit.model import forward

MODEL = DATA / "a.npz"
ALL = tuple(SCORES)


def make_images(folder: Path, count: int, seed: int = 0) -> None:
    """Smooth random pictures, of different sizes, so that some are enlarged and some reduced."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(count):
        small = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
        size = (30 + int(rng.integers(20)), 30 + int(rng.integers(20)))
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(folder / f"{i:04d}.png")


@pytest.fixture(scope="module")
def small():
    checkpoint = qkjax.load(MODEL)
    return checkpoint, qkjax.decompose(checkpoint)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "images"
    make_images(path, 21)
    (path / "0007.png").write_bytes(b"broken")
    (path / "0020.png").write_bytes(b"")
    return path


def plain_scan(checkpoint, modes, images, stream: str, resolution) -> dict[str, np.ndarray]:
    """Scores (images, layers, heads, modes, signs) by a straight loop over layer, head, mode and image."""
    u, v = (np.asarray(x, np.float64) for x in (modes.u, modes.v))
    layers, heads, _, rank = u.shape
    scores = {name: np.full((len(images), layers, heads, rank, 2), np.nan) for name in ALL}
    model, special = qkjax.ViT(checkpoint.config), checkpoint.config.prefix_tokens
    for index in range(len(images)):
        try:
            pixels = preprocess(images.read(index), checkpoint.preprocess, resolution)
        except qkjax.QkjaxError:
            continue
        tokens = forward(model, checkpoint.params, pixels[None], (stream,))[1][stream]
        for layer in range(layers):
            y = np.asarray(tokens[layer, 0], np.float64)[special:]
            for head in range(heads):
                for mode in range(rank):
                    query, key = y @ u[layer, head, :, mode], y @ v[layer, head, :, mode]
                    for name in ALL:
                        pair = [plain_score(name, sign * query, sign * key) for sign in (1, -1)]
                        scores[name][index, layer, head, mode] = pair
    return scores


@pytest.mark.parametrize(("stream", "resolution", "batch"), [("norm", None, 4), ("residual", (24, 40), 8)])
def test_top_images_are_those_of_a_plain_loop(small, folder, tmp_path, stream, resolution, batch):
    """Each score, each sign. Images may change places only where their scores are equal in float32."""
    checkpoint, modes = small
    images = open_images(folder)
    options = ScanOptions(ALL, 5, stream, batch, resolution)
    found = scan_images(checkpoint, modes, images, options, tmp_path / "partial.npz")
    wanted = plain_scan(checkpoint, modes, images, stream, resolution)
    assert [i for i, _ in found.unreadable] == [7, 20]
    assert found.top.score.shape == (7, 4, 4, 16, 2, 5)
    for s, name in enumerate(ALL):
        best = -np.sort(-np.nan_to_num(wanted[name], nan=-np.inf), axis=0)[:5]
        scale = np.nanmax(abs(wanted[name]))
        np.testing.assert_allclose(found.top.score[s], np.moveaxis(best, 0, -1), atol=3e-6 * scale)
        of_found = np.take_along_axis(wanted[name], np.moveaxis(found.top.image[s], -1, 0), 0)
        np.testing.assert_allclose(np.moveaxis(of_found, 0, -1), found.top.score[s], atol=3e-6 * scale)


def test_a_checkpoint_for_other_shapes_sees_them(folder):
    """A learned grid of 2 x 8 patches of 8 pixels is for pictures of 16 x 64, unless another is asked for."""
    checkpoint = qkjax.load(MODEL, grid=(2, 8))
    assert resolution_of(checkpoint, None) == (16, 64)
    assert photograph_grid(checkpoint, None) == (2, 8)
    assert photograph_grid(checkpoint, (24, 24)) == (3, 3)
    modes = qkjax.decompose(checkpoint)
    key_direction = qkjax.bias_terms(qkjax.query_key(checkpoint.params)).key_direction
    found = qkjax.dissect(checkpoint, modes, key_direction, open_images(folder).read(0), qkjax.ImageOptions())
    assert found.picture.shape == (16, 64, 3)
    assert found.maps.query.shape == (4, 1, 2, 8, 4, 16)


def test_more_images_wanted_than_there_are(small, tmp_path):
    checkpoint, modes = small
    make_images(tmp_path / "few", 3)
    found = scan_images(checkpoint, modes, open_images(tmp_path / "few"), ScanOptions(top=5), tmp_path / "p.npz")
    assert found.top.image.shape[-1] == 3
    assert sorted(found.top.image[0, 0, 0, 0, 0]) == [0, 1, 2]


def test_bfloat16_finds_about_the_same(small, folder, tmp_path):
    checkpoint, modes = small
    images = open_images(folder)
    exact, rough = (
        scan_images(checkpoint, modes, images, ScanOptions(top=3, dtype=dtype), tmp_path / f"{dtype}.npz").top
        for dtype in ("float32", "bfloat16")
    )
    assert (exact.image[..., 0] == rough.image[..., 0]).mean() > 0.9
    np.testing.assert_allclose(exact.score, rough.score, atol=0.05 * abs(exact.score).max())


def test_the_bar_says_how_idle_the_device_is(small, folder, tmp_path, capsys):
    """A set whose images come slowly leaves it idle."""
    images = open_images(folder)

    def slow(index: int) -> Image.Image:
        time.sleep(0.2)
        return images.read(index)

    scan_images(*small, images, ScanOptions(batch=4), tmp_path / "warm.npz")  # compiles
    capsys.readouterr()
    scan_images(*small, replace(images, read=slow), ScanOptions(batch=4), tmp_path / "p.npz")
    assert int(re.findall(r"device idle (\d+)%", capsys.readouterr().err)[-1]) > 50


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (ScanOptions(("products",)), "no score 'products'; there are product, query_max"),
        (ScanOptions(top=0), "whole numbers from 1 up"),
        (ScanOptions(resolution=(4, 32)), "smaller than a patch"),
        (ScanOptions(resolution=(-32, 32)), "smaller than a patch"),
    ],
)
def test_options_that_cannot_be(small, folder, tmp_path, options, says):
    with pytest.raises(qkjax.QkjaxError, match=says):
        scan_images(*small, open_images(folder), options, tmp_path / "p.npz")


def test_unfinished_scan_of_other_settings_is_kept(small, folder, tmp_path):
    """And a damaged one is told of; neither is thrown away, nor mixed with what is scanned now."""
    images, path = open_images(folder), tmp_path / "p.npz"
    scan_images(*small, images, ScanOptions(top=4), path)
    before = path.read_bytes()
    with pytest.raises(qkjax.QkjaxError, match=r"other settings \(top\): repeat those, or remove .*p\.npz to begin"):
        scan_images(*small, images, ScanOptions(top=5), path)
    assert path.read_bytes() == before
    path.write_bytes(before[: len(before) // 2])
    with pytest.raises(qkjax.QkjaxError, match=r"p\.npz, of an unfinished scan, cannot be read .*remove"):
        scan_images(*small, images, ScanOptions(top=4), path)


def test_interrupt_between_a_batch_and_its_account_counts_none_twice(small, folder, tmp_path, monkeypatch):
    """Raised where it would tear a batch from the number of batches done; then gone on with."""
    options, images = ScanOptions(ALL, 5, batch=4), open_images(folder)
    whole = scan_images(*small, images, options, tmp_path / "whole.npz")
    calls = iter(range(100))

    def press(bar, n):
        if next(calls) == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("qkjax.passes.partial.tqdm.update", press)
        scan_images(*small, images, options, tmp_path / "torn.npz")
    assert int(np.load(tmp_path / "torn.npz")["done"]) == 3
    again = scan_images(*small, images, options, tmp_path / "torn.npz")
    np.testing.assert_array_equal(again.top.image, whole.top.image)
    np.testing.assert_array_equal(again.top.score, whole.top.score)
    assert again.unreadable == whole.unreadable
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_step_that_fails_spoils_nothing_that_was_saved(small, folder, tmp_path, monkeypatch):
    """A step gives the old tops' memory to the new ones: where it fails, neither is there any more."""
    options, images = ScanOptions(top=5, batch=4), open_images(folder)
    whole = scan_images(*small, images, options, tmp_path / "whole.npz")
    taken, step = [], scan._step

    def fails_at_last(model, params, modes, scaling, top, *rest, **more):
        found = jax.block_until_ready(step(model, params, modes, scaling, top, *rest, **more))
        taken.append(top.score.is_deleted())
        if len(taken) == 4:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return found

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        patch.setattr("qkjax.analyses.top_images.scan._step", fails_at_last)
        patch.setattr("qkjax.passes.partial.SAVE_SECONDS", 0)
        scan_images(*small, images, options, tmp_path / "failed.npz")
    assert taken == [True] * 4
    assert int(np.load(tmp_path / "failed.npz")["done"]) == 3
    again = scan_images(*small, images, options, tmp_path / "failed.npz")
    np.testing.assert_array_equal(again.top.image, whole.top.image)
    np.testing.assert_array_equal(again.top.score, whole.top.score)


def command(images: Path, out: Path, *more: str, save_seconds: float = 20) -> list[str]:
    code = f"import sys, qkjax.passes.partial as s; s.SAVE_SECONDS = {save_seconds}; from qkjax.cli import main; main()"
    sheet = ["--layer", "0", "--head", "0", "--sheet-modes", "1"]
    return [sys.executable, "-c", code, "modes", MODEL, "--images", images, "--out", out, "--batch", "4", *sheet, *more]


def run(*arguments, **environment) -> subprocess.CompletedProcess:
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=200, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done


@contextmanager
def scanning(images: Path, out: Path) -> Iterator[subprocess.Popen]:
    """A process that has come to the scan, and saves after every batch."""
    made, env = command(images, out, save_seconds=0), os.environ | UNCACHED
    with subprocess.Popen(made, stderr=subprocess.PIPE, text=True, env=env) as process:
        for line in process.stderr:
            if "scanning" in line:
                break
        else:
            raise AssertionError(f"it ended with {process.wait()} before it scanned")
        yield process
        process.kill()


def batches_done(out: Path) -> int:
    partial = out / "scan.partial.npz"
    return int(np.load(partial)["done"]) if partial.exists() else 0


def test_stopped_six_times_the_result_is_the_same_to_the_byte(tmp_path):
    """Five times killed and once interrupted, at random moments; and what is finished is not done again.

    But for the first, the moments lie shortly after it has gone on, however long a machine takes to come so far.
    """
    images, out = tmp_path / "images", tmp_path / "stopped"
    make_images(images, 3000)
    (images / "0003.png").write_bytes(b"broken")
    run(images, tmp_path / "whole")
    seed = int(time.time())
    print("seed of the moments:", seed)
    seconds = random.Random(seed)
    reached = [0]
    for i in range(6):
        with scanning(images, out) as process:
            while i and batches_done(out) <= reached[-1] and process.poll() is None:
                time.sleep(0.005)
            time.sleep(seconds.uniform(0, 0.2))
            interrupt(process) if i == 3 else process.kill()
            _, said = process.communicate(timeout=60)
            if process.returncode == 0:  # it was done before its moment came
                break
            assert process.returncode == (130 if i == 3 else -signal.SIGKILL), said
            assert i != 3 or "qkjax: interrupted" in said
        reached.append(batches_done(out))
        if (out / "top_images.nc").exists():
            break
    print("batches done at each stop:", reached)
    assert reached == sorted(reached), "it goes on from where it was"
    assert any(0 < n < 750 for n in reached), "at least one stop fell within the scan"
    run(images, out)
    assert (tmp_path / "whole" / "top_images.nc").read_bytes() == (out / "top_images.nc").read_bytes()
    assert {p.name for p in out.iterdir()} == {"top_images.nc", "unreadable.csv", "sheets.csv", "sheets"}
    again = run(images, out)
    assert "scanning" not in again.stderr
    assert "wrote sheets.csv and 1 sheets" in again.stderr


def results(out: Path) -> xr.Dataset:
    with xr.open_dataset(out / "top_images.nc") as data:
        return data.load()


def assert_same(ours: Path, wanted: Path) -> None:
    """The same images with scores that differ by rounding: shapes of products differ, so their sums do."""
    ours, wanted = results(ours), results(wanted)
    np.testing.assert_allclose(ours.value, wanted.value, rtol=1e-5, atol=1e-4)
    assert (ours.image_index == wanted.image_index).mean() > 0.99
    assert list(ours.unreadable.values) == list(wanted.unreadable.values) == ["0007.png", "0020.png"]
    assert json.loads(ours.attrs["settings"]).keys() == json.loads(wanted.attrs["settings"]).keys()


def test_several_devices_find_what_one_does(folder, tmp_path):
    run(folder, tmp_path / "one")
    run(folder, tmp_path / "four", XLA_FLAGS="--xla_force_host_platform_device_count=4")
    assert_same(tmp_path / "four", tmp_path / "one")


def run_two_hosts(first: Path, second: Path, out: Path) -> list[tuple[int, str]]:
    """Exit code and what was said by two processes with images of their own each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    processes = [
        subprocess.Popen(
            command(images, out, "--distributed"),
            env=environment | {"JAX_PROCESS_ID": str(i)}, stderr=subprocess.PIPE, text=True,
        )
        for i, images in enumerate((first, second))
    ]  # fmt: skip
    said = [process.communicate(timeout=200)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def test_several_hosts_find_what_one_does(folder, tmp_path):
    assert [code for code, _ in run_two_hosts(folder, folder, tmp_path / "two")] == [0, 0]
    run(folder, tmp_path / "one")
    assert_same(tmp_path / "two", tmp_path / "one")
    assert not list((tmp_path / "two").glob("scan.partial*"))


def test_hosts_that_see_different_images_say_so(folder, tmp_path):
    """Their indices would mean different images: a result would be nonsense."""
    shutil.copytree(folder, tmp_path / "images")
    (tmp_path / "images" / "0004.png").unlink()
    for code, said in run_two_hosts(folder, tmp_path / "images", tmp_path / "out"):
        assert code == 2
        assert "qkjax: error: the processes differ in images: give all of them the same command" in said
    assert not (tmp_path / "out" / "top_images.nc").exists()


def test_host_without_the_others_says_what_to_set(folder, tmp_path):
    done = subprocess.run(
        command(folder, tmp_path, "--distributed"), capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 2
    assert "set JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID for each" in done.stderr
