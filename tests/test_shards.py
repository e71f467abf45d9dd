"""Shares of a pass that do not talk to each other: the last one to finish writes the bits of one process."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from commands import command
from hosts import small_pictures
from test_engine import GROUPS, SETTINGS, assert_equal, batches, blank, merge, step, stops, whole_pass

import qkjax
from conftest import DATA
from qkjax.errors import ShardFinished
from qkjax.passes.engine import run_pass

COUNT = 3


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return small_pictures(tmp_path_factory.mktemp("pictures"), 13)


def words(name: str, pictures: Path) -> list:
    return [name, DATA / "a.npz", "--batch", 4] + {
        "top-images": ["--images", pictures, "--top", 3, "--layer", 0, "--head", 0],
        "preference": ["--count", 13],
        "objects": ["--count", 13, "--top", 3],
        "sinks": ["--images", pictures],
        "ablate": ["--images", pictures, "--select", "cosine>0", "cosine<0 layers=0", "--controls", 1, "--queries", 4],
    }[name]  # fmt: skip


def result_of(folder: Path) -> xr.Dataset:
    (file,) = folder.glob("*.nc")
    return xr.load_dataset(file)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["top-images", "preference", "objects", "sinks", "ablate"])
def test_the_last_share_writes_the_bits_of_one_process(name, pictures, tmp_path, monkeypatch, capsys):
    done = command(monkeypatch, capsys, *words(name, pictures), "--out", tmp_path / "whole")
    assert done.code == 0, done.err
    out = tmp_path / "shares"
    for number, index in enumerate((2, 0, 1)):
        done = command(monkeypatch, capsys, *words(name, pictures), "--out", out, "--shard", f"{index}/{COUNT}")
        assert done.code == 0, done.err
        if number < 2:
            others = {0: "shares 0, 1 are", 1: "share 1 is"}[number]
            assert f"share {index}/3 is finished and saved in " in done.err
            assert f"{others} not: the last share to finish writes the result" in done.err
            assert not list(out.glob("*.nc"))
    shares, whole = result_of(out), result_of(tmp_path / "whole")
    assert set(shares.variables) == set(whole.variables)
    for variable in whole.variables:
        np.testing.assert_array_equal(shares[variable].values, whole[variable].values, err_msg=variable)
    assert shares.attrs["settings"] == whole.attrs["settings"]
    assert {p.relative_to(out) for p in out.rglob("*")} == {
        p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*")
    }, "no progress and no lock is left"


def shard_of(index: int, path: Path, step=step, settings=SETTINGS, count: int = COUNT):
    return run_pass(step, blank(), GROUPS, batches, path, settings, merge=merge, shard=(index, count))


def test_a_share_that_was_stopped_goes_on_and_a_finished_one_merges_again(tmp_path):
    path = tmp_path / "p.npz"
    with pytest.raises(KeyboardInterrupt):
        shard_of(1, path, stops("interrupt", 0))
    for index, missing in ((0, [1, 2]), (2, [1]), (0, [1])):
        with pytest.raises(ShardFinished) as finished:
            shard_of(index, path)
        assert finished.value.missing == missing
    whole, counted = whole_pass(), []

    def one(state, batch):
        counted.append(batch)
        return step(state, batch)

    result = shard_of(1, path, one)
    assert len(counted) == len(GROUPS[1::COUNT]) - 1
    for name, rows in whole.rows.items():
        np.testing.assert_array_equal(result.rows[name], rows)
    assert result.unreadable == whole.unreadable
    np.testing.assert_array_equal(result.state.seen, whole.state.seen)
    assert_equal(shard_of(2, path, stops("exception", 0)), result)


def test_more_shares_than_batches(tmp_path):
    count = len(GROUPS) + 2
    for index in range(count - 1):
        with pytest.raises(ShardFinished):
            shard_of(index, tmp_path / "p.npz", count=count)
    result = shard_of(count - 1, tmp_path / "p.npz", count=count)
    np.testing.assert_array_equal(result.rows["image"], whole_pass().rows["image"])


def test_shares_with_different_settings_are_not_merged(tmp_path):
    with pytest.raises(ShardFinished):
        shard_of(0, tmp_path / "p.npz", count=2)
    with pytest.raises(
        qkjax.QkjaxError, match=r"p-0-of-2\.npz contains an interrupted pass with different settings \(a\)"
    ):
        shard_of(1, tmp_path / "p.npz", settings={"a": "2"}, count=2)


def test_shares_that_cannot_be(tmp_path, monkeypatch, capsys):
    with pytest.raises(qkjax.QkjaxError, match="there is no file for its result"):
        shard_of(0, None)
    with pytest.raises(qkjax.QkjaxError, match="shard=3/3: expected the index of a share"):
        qkjax.PassOptions(shard=(3, 3))
    for text, message in (
        ("2", "--shard '2'"),
        ("a/b", "--shard 'a/b'"),
        ("4/2", "--shard 4/2"),
        ("-1/2", "--shard '-1/2'"),
    ):
        done = command(monkeypatch, capsys, "preference", DATA / "a.npz", "--out", tmp_path / "out", f"--shard={text}")
        assert done.code == 2, text
        assert message in done.err
        assert not (tmp_path / "out").exists()
