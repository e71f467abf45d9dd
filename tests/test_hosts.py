"""Passes that are killed and resumed, or shared by two processes, give the same bits as one uninterrupted process."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hosts import CODE, run_hosts, small_pictures

from conftest import DATA, UNCACHED
from qkjax.runtime.lock import exclusive_here

ANALYSES = ("preference", "objects", "ablate")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return small_pictures(tmp_path_factory.mktemp("pictures"), 21)


def words_of(name: str, pictures: Path, out: Path) -> list[str]:
    """A command with 21 or 22 images in batches of 4, of which the last one is not full."""
    options = {
        "preference": ("--count", 22),
        "objects": ("--count", 21, "--top", 3),
        "tokens": ("--images", pictures),
        "ablate": ("--images", pictures, "--select", "cosine>0", "--controls", 1, "--queries", 4),
    }[name]
    words = (name, DATA / "a.npz", *options, "--batch", 4, "--out", out)
    return [sys.executable, "-c", CODE, *map(str, words)]


def start(words: list[str], *more: str, **environment: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*words, *more], env=os.environ | environment, **pipes)


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """The result of one uninterrupted process, by the analysis; computed when first needed."""
    base, results = tmp_path_factory.mktemp("whole"), {}

    def result(name: str) -> xr.Dataset:
        if name not in results:
            with start(words_of(name, pictures, base / name)) as process:
                _, err = process.communicate(timeout=300)
            assert process.returncode == 0, err
            results[name] = result_of(base / name)
        return results[name]

    return result


def result_of(folder: Path) -> xr.Dataset:
    (file,) = folder.glob("*.nc")
    return xr.load_dataset(file)


def assert_equal_to_the_bit(first: xr.Dataset, second: xr.Dataset) -> None:
    assert set(first.variables) == set(second.variables)
    for name in second.variables:
        assert first[name].dtype == second[name].dtype, name
        np.testing.assert_array_equal(first[name].values, second[name].values, err_msg=name)
    assert first.attrs["settings"] == second.attrs["settings"]
    assert first.attrs["summary"] == second.attrs["summary"]


@pytest.mark.parametrize("name", (*ANALYSES, "tokens"))
def test_a_killed_pass_resumes_to_the_same_bits(name, pictures, whole, tmp_path):
    seed = int(time.time())
    print("seed of the moments:", seed)
    seconds, out, done = random.Random(seed), tmp_path / "out", 0
    for _ in range(2):
        with start(words_of(name, pictures, out), "--slow", **UNCACHED) as process:
            while process.poll() is None and batches_done(out) <= done:
                time.sleep(0.02)
            time.sleep(seconds.uniform(0, 0.5))
            process.kill()
            _, err = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, err
        done = batches_done(out)
    assert done >= 2, "the second process resumed where the first one was killed"
    with start(words_of(name, pictures, out)) as process:
        _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert_equal_to_the_bit(result_of(out), whole(name))
    assert not list(out.rglob("*.partial*"))


def batches_done(out: Path) -> int:
    """Batches of passes that are saved; finished ablations count as ten."""
    partial = [int(np.load(path)["done"]) for path in out.rglob("[!.]*.partial.npz")]
    finished = [path for path in out.glob("done/[!.]*.npz") if ".partial" not in path.name]
    return sum(partial) + 10 * max(len(finished) - 1, 0)  # the original model is not resumed


def test_tokens_of_two_hosts_are_those_of_one(pictures, whole, tmp_path):
    """Up to the last bits: the moments of the hosts are sums in another order."""
    done = run_hosts(*[[*words_of("tokens", pictures, tmp_path / "out"), "--distributed"]] * 2)
    assert [one.returncode for one in done] == [0, 0], done[0].stderr + done[1].stderr
    result, wanted = result_of(tmp_path / "out"), whole("tokens")
    assert result.image.values.tolist() == wanted.image.values.tolist()
    for name in ("map_correlation", "logit_parts", "position_share", "query_share"):
        scale = float(np.abs(wanted[name]).max())
        np.testing.assert_allclose(result[name], wanted[name], atol=1e-6 * scale, err_msg=name)
    assert not list((tmp_path / "out").rglob("*.partial*"))


@pytest.mark.parametrize("name", ANALYSES)
def test_two_hosts_give_the_bits_of_one(name, pictures, whole, tmp_path):
    first, second = run_hosts(*[[*words_of(name, pictures, tmp_path / "out"), "--distributed", "--json"]] * 2)
    for done in (first, second):
        assert done.returncode == 0, done.stderr
    assert json.loads(first.stdout)["rows"]
    assert second.stdout == "", "the second host prints no result"
    assert_equal_to_the_bit(result_of(tmp_path / "out"), whole(name))
    assert not list((tmp_path / "out").rglob("*.partial*"))


@pytest.mark.parametrize("reason", ["locked", "other settings"])
def test_first_host_that_must_stop_stops_the_others(reason, pictures, tmp_path):
    """A folder that another process has locked, or that has a result of other settings."""
    words = [*words_of("objects", pictures, tmp_path / "out"), "--distributed"]
    if reason == "locked":
        with exclusive_here(tmp_path / "out"):
            both = run_hosts(words, words, timeout=100)
        says = "another process is using"
    else:
        with start(words_of("objects", pictures, tmp_path / "out"), "--dtype", "bfloat16") as process:
            process.communicate(timeout=300)
        both = run_hosts(words, words, timeout=100)
        says = "has different settings (dtype"
    for done in both:
        assert done.returncode == 2, done.stderr
        assert says in done.stderr
