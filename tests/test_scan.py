"""The scan: the right images, whatever is interrupted, killed, unreadable or shared among devices and hosts."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import commands
import jax
import numpy as np
import pytest
import xarray as xr
from hosts import run_hosts
from PIL import Image
from test_cli import assert_one_clear_line, interrupt
from test_top import plain_score

import qkjax
from conftest import DATA, UNCACHED
from qkjax.activations.scores import SCORES
from qkjax.analyses.top_images import compute
from qkjax.analyses.top_images import sheets as top_images_sheets
from qkjax.analyses.top_images.sheets import mode_maps, sheet_rows
from qkjax.analyses.top_images.tables import LABELS, has_maps, images_of_mode, maps_of_mode
from qkjax.images.preprocess import preprocess
from qkjax.images.sources import open_images
from qkjax.interaction.mode_name import ModeName
from qkjax.passes import engine
from qkjax.passes.inputs import photograph_grid, resolution_of
from qkjax.passes.options import PassOptions
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
    return qkjax.load(MODEL)


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


@pytest.mark.gpu
@pytest.mark.parametrize(("stream", "resolution", "batch"), [("norm", None, 4), ("residual", (24, 40), 8)])
def test_top_images_are_those_of_a_plain_loop(small, folder, tmp_path, stream, resolution, batch):
    """Each score, each sign. Images may change places only where their scores are equal in float32."""
    images = open_images(folder)
    options = PassOptions(batch=batch, resolution=resolution)
    result = qkjax.top_images(
        small, images, top=5, scores=ALL, stream=stream, options=options, partial=tmp_path / "partial.npz"
    )
    wanted = plain_scan(small, qkjax.decompose(small), images, stream, resolution)
    assert list(result.unreadable.values) == [images.names[i] for i in (7, 20)]
    value, image_index = result["value"].values, result.image_index.values
    assert value.shape == (7, 4, 4, 16, 2, 5)
    for s, name in enumerate(ALL):
        best = -np.sort(-np.nan_to_num(wanted[name], nan=-np.inf), axis=0)[:5]
        scale = np.nanmax(abs(wanted[name]))
        np.testing.assert_allclose(value[s], np.moveaxis(best, 0, -1), atol=3e-6 * scale)
        of_result = np.take_along_axis(wanted[name], np.moveaxis(image_index[s], -1, 0), 0)
        np.testing.assert_allclose(np.moveaxis(of_result, 0, -1), value[s], atol=3e-6 * scale)


@pytest.mark.gpu
@pytest.mark.parametrize(("stream", "resolution"), [("norm", None), ("residual", (24, 40))])
def test_stored_maps_are_those_of_a_second_pass(small, folder, stream, resolution):
    """Within rounding in float32: the two passes sum products in different orders (1.4e-6 apart with jax 0.8)."""
    images, options = open_images(folder), PassOptions(batch=4, resolution=resolution)
    result = qkjax.top_images(small, images, top=3, scores=("key_max", "product"), stream=stream, options=options)
    shape = small.config.depth, small.config.heads, compute.MAPPED
    names = [ModeName(*mode, sign) for mode in np.ndindex(shape) for sign in (1, -1)]
    wanted_images = {name: images_of_mode(result, name) for name in names}
    modes_by_image = {i: [n for n in names if i in dict(wanted_images[n])] for i in range(len(images))}
    wanted = mode_maps(small, qkjax.decompose(small), images, modes_by_image, stream, options)
    assert result.query_map.shape == (*shape, 2, 3, *photograph_grid(small, resolution))
    scale = max(abs(maps).max() for pair in wanted.values() for maps in pair)
    for name in names:
        assert has_maps(result, name)
        for (index, _), maps in zip(wanted_images[name], maps_of_mode(result, name), strict=True):
            np.testing.assert_allclose(maps, wanted[index, name], atol=2e-6 * scale)


def test_number_of_modes_with_maps(small, folder):
    """As many as requested; by default 5, and fewer if they would take more memory than allowed. The rest of the result
    is the same to the bit."""
    images = open_images(folder)
    none, two, all_modes = (qkjax.top_images(small, images, top=2, maps=maps) for maps in (0, 2, 99))
    assert set(none.data_vars) == set(LABELS) - {"query_map", "key_map"}
    assert (two.sizes["mapped_mode"], all_modes.sizes["mapped_mode"]) == (2, 16)
    for name in none.variables:
        np.testing.assert_array_equal(none[name].values, all_modes[name].values)
    np.testing.assert_array_equal(two.query_map, all_modes.query_map[:, :, :2])
    assert not has_maps(two, ModeName(0, 0, 2)) and not has_maps(none, ModeName(0, 0, 0))
    vit_l = 24, 16, 64
    assert compute.mapped_modes(None, vit_l, 9, (37, 37)) == 5, "361 MB at 518 pixels"
    assert compute.mapped_modes(None, vit_l, 150, (16, 16)) == 2
    assert compute.mapped_modes(None, vit_l, 1000, (16, 16)) == 0


def test_maps_of_another_score_are_not_drawn(small, folder):
    """The maps are those of the first score; sheets of another one come from a second pass."""
    result = qkjax.top_images(small, open_images(folder), top=2, scores=("product", "key_max"))
    assert has_maps(result, ModeName(0, 0, 0))
    assert not has_maps(result.isel(score=[1]), ModeName(0, 0, 0))


def test_sheets_take_a_second_pass_only_for_modes_without_maps(small, folder, monkeypatch):
    """And show the same, whether maps are stored or not."""
    images = open_images(folder)
    result = qkjax.top_images(small, images, top=2, options=PassOptions(batch=4))
    earlier = result.drop_dims(("mapped_mode", "row", "column"))
    modes = ["L1 H2 M0", "L3 H0 M4-"]
    (stored, computed) = (sheet_rows(small, images, data, modes) for data in (result, earlier))
    for ours, wanted in zip(stored, computed, strict=True):
        assert ours.label == wanted.label
        for tile, expected in zip(ours.tiles, wanted.tiles, strict=True):
            np.testing.assert_array_equal(tile.picture, expected.picture)
            np.testing.assert_allclose(tile.query_map, expected.query_map, atol=1e-5)
            np.testing.assert_allclose(tile.key_map, expected.key_map, atol=1e-5)
            assert tile.caption == expected.caption
    passes = []
    monkeypatch.setattr(top_images_sheets, "mode_maps", lambda *a: passes.append(a[3]) or mode_maps(*a))
    sheet_rows(small, images, result, modes)
    assert not passes
    sheet_rows(small, images, result, [*modes, "L1 H2 M5"])
    (modes_by_image,) = passes
    assert {name.mode for names in modes_by_image.values() for name in names} == {5}


def test_the_dataset_describes_itself(small, folder):
    """Every variable has a name, a unit and a sentence, every dimension of the scan its labels, and the summary
    states the counts and the highest score."""
    result = qkjax.top_images(small, open_images(folder), top=2, options=PassOptions(batch=4))
    assert set(result.data_vars) == set(LABELS)
    for name, variable in result.data_vars.items():
        assert {"long_name", "units", "description"} <= set(variable.attrs), name
        assert variable.attrs["description"].endswith("."), name
    assert list(result.image.values) == list(open_images(folder).names)
    assert list(result.sign.values) == [1, -1] and list(result.score.values) == ["product"]
    best = result["value"].isel(score=0, place=0)
    layer, head, mode, sign = (int(i) for i in np.unravel_index(best.values.argmax(), best.shape))
    image = result.image.values[int(result.image_index.values[0, layer, head, mode, sign, 0])]
    text = result.attrs["summary"]
    assert "19 images were scanned for 256 modes" in text
    assert f"{float(best.max()):.3g}, of mode L{layer} H{head} M{mode}{'+-'[sign]} on {image}" in text


def test_a_checkpoint_for_other_shapes_sees_them(folder):
    """A learned grid of 2 x 8 patches of 8 pixels is for pictures of 16 x 64, unless another is asked for."""
    checkpoint = qkjax.load(MODEL, grid=(2, 8))
    assert resolution_of(checkpoint, None) == (16, 64)
    assert photograph_grid(checkpoint, None) == (2, 8)
    assert photograph_grid(checkpoint, (24, 24)) == (3, 3)
    photograph = open_images(folder).read(0)
    settings = json.loads(qkjax.attribute_logits(checkpoint, photograph).attrs["settings"])
    assert json.loads(settings["resolution"])[:2] == [16, 64]
    assert qkjax.query_key_maps(checkpoint, photograph).query.shape == (4, 1, 2, 8, 4, 16)


def test_more_images_requested_than_there_are(small, tmp_path):
    make_images(tmp_path / "few", 3)
    result = qkjax.top_images(small, open_images(tmp_path / "few"), top=5)
    assert result.sizes["place"] == 3
    assert sorted(result.image_index.values[0, 0, 0, 0, 0]) == [0, 1, 2]


@pytest.mark.gpu
def test_bfloat16_finds_about_the_same(small, folder):
    images = open_images(folder)
    exact, rough = (
        qkjax.top_images(small, images, top=3, options=PassOptions(dtype=dtype)) for dtype in ("float32", "bfloat16")
    )
    assert (exact.image_index[..., 0] == rough.image_index[..., 0]).mean() > 0.9
    exact, rough = exact["value"].values, rough["value"].values
    np.testing.assert_allclose(exact, rough, atol=0.05 * abs(exact).max())


def test_the_bar_says_how_idle_the_device_is(small, folder, capsys):
    """A set whose images come slowly leaves it idle."""
    images = open_images(folder)

    def slow(index: int) -> Image.Image:
        time.sleep(0.2)
        return images.read(index)

    qkjax.top_images(small, images, options=PassOptions(batch=4))  # compiles
    capsys.readouterr()
    qkjax.top_images(small, replace(images, read=slow), options=PassOptions(batch=4))
    assert int(re.findall(r"device idle (\d+)%", capsys.readouterr().err)[-1]) > 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"scores": ("products",)},
            r"^scores='products': unknown score \(nearest: 'product'\); expected one of product, query_max",
        ),
        ({"scores": ()}, r"^scores=\(\): expected one or more scores among product, query_max"),
        ({"maps": -1}, "^maps=-1: expected a whole number of at least 0$"),
        ({"top": 0}, "^top=0: expected a whole number of at least 1$"),
        ({"options": PassOptions(batch=-1)}, "^batch=-1: expected a whole number of at least 1$"),
        ({"options": PassOptions(resolution=(4, 32))}, "expected at least one patch"),
        ({"options": PassOptions(resolution=(-32, 32))}, "expected at least one patch"),
    ],
)
def test_impossible_arguments(small, folder, tmp_path, arguments, message):
    """Refused before any work; the command line says the same of its options."""
    with pytest.raises(qkjax.QkjaxError, match=message):
        qkjax.top_images(small, open_images(folder), partial=tmp_path / "p.npz", **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--top", "0"), "--top 0: expected a whole number of at least 1"),
        (("--score", "products"), "--score 'products': unknown score (nearest: 'product')"),
        (("--sheet-modes", "0"), "--sheet-modes 0: expected a whole number of at least 1"),
    ],
)
def test_impossible_options(folder, tmp_path, option, message):
    arguments = command(folder, tmp_path / "out", *option)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=100, check=False)
    assert_one_clear_line(done, message)
    assert not (tmp_path / "out").exists()


def test_interrupted_scan_of_other_settings_is_kept(small, folder, tmp_path):
    """And a damaged one is reported; neither is removed, nor mixed with what is scanned now."""
    images, path = open_images(folder), tmp_path / "p.npz"
    qkjax.top_images(small, images, top=4, partial=path)
    before = path.read_bytes()
    with pytest.raises(
        qkjax.QkjaxError, match=r"different settings \(top\): run again .*, or remove .*p\.npz to start"
    ):
        qkjax.top_images(small, images, top=5, partial=path)
    assert path.read_bytes() == before
    path.write_bytes(before[: len(before) // 2])
    with pytest.raises(qkjax.QkjaxError, match=r"cannot read the interrupted pass .*p\.npz .*remove .*p\.npz to start"):
        qkjax.top_images(small, images, top=4, partial=path)
    assert path.read_bytes() == before[: len(before) // 2]


def test_partial_file_has_the_documented_arrays(small, folder, tmp_path):
    path = tmp_path / "p.npz"
    result = qkjax.top_images(small, open_images(folder), top=4, options=PassOptions(batch=4), partial=path)
    with np.load(path) as file:
        assert int(file["done"]) == 6
        np.testing.assert_array_equal(file["state0"], result["value"].values)
        np.testing.assert_array_equal(file["state1"], result.image_index.values)
        maps = np.stack([result.query_map.values, result.key_map.values], axis=-3)
        np.testing.assert_array_equal(file["state2"], maps.reshape(file["state2"].shape))
        assert [index for index, _ in json.loads(str(file["unreadable"]))] == [7, 20]


def assert_equal(result: xr.Dataset, expected: xr.Dataset) -> None:
    for name in ("value", "image_index", "query_map", "key_map", "unreadable", "reason"):
        np.testing.assert_array_equal(result[name].values, expected[name].values)


def test_interrupt_between_a_batch_and_its_account_counts_none_twice(small, folder, tmp_path, monkeypatch):
    """Raised where it would tear a batch from the number of batches done; then resumed."""
    arguments = {"top": 5, "scores": ALL, "options": PassOptions(batch=4)}
    images, partial = open_images(folder), tmp_path / "torn.npz"
    whole = qkjax.top_images(small, images, **arguments)
    calls = iter(range(100))

    def press(bar, n):
        if next(calls) == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine.tqdm, "update", press)
        qkjax.top_images(small, images, **arguments, partial=partial)
    assert int(np.load(partial)["done"]) == 3
    assert_equal(qkjax.top_images(small, images, **arguments, partial=partial), whole)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_step_that_fails_spoils_nothing_that_was_saved(small, folder, tmp_path, monkeypatch):
    """A step gives the old tops' memory to the new ones: where it fails, neither is there any more."""
    arguments = {"top": 5, "options": PassOptions(batch=4)}
    images, partial = open_images(folder), tmp_path / "failed.npz"
    whole = qkjax.top_images(small, images, **arguments)
    taken, step = [], compute._step

    def fails_at_last(model, params, modes, scaling, state, *rest, **more):
        result = jax.block_until_ready(step(model, params, modes, scaling, state, *rest, **more))
        taken.append(all(x.is_deleted() for x in jax.tree.leaves(state)))
        if len(taken) == 4:
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return result

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        patch.setattr(compute, "_step", fails_at_last)
        patch.setattr(engine, "SAVE_SECONDS", 0)
        qkjax.top_images(small, images, **arguments, partial=partial)
    assert taken == [True] * 4
    assert int(np.load(partial)["done"]) == 3
    assert_equal(qkjax.top_images(small, images, **arguments, partial=partial), whole)


def command(images: Path, out: Path, *more: str, save_seconds: float = 20) -> list[str]:
    code = f"import qkjax.passes.engine as e; e.SAVE_SECONDS = {save_seconds}; from qkjax.cli import main; main()"
    sheet = ["--layer", "0", "--head", "0", "--sheet-modes", "1"]
    options = ["--images", images, "--out", out, "--batch", "4", *sheet, *more]
    return [sys.executable, "-c", code, "top-images", MODEL, *options]


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
    partial = out / "top_images.partial.npz"
    return int(np.load(partial)["done"]) if partial.exists() else 0


@pytest.mark.slow
@pytest.mark.gpu
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
    same = ours.image_index == wanted.image_index
    assert same.mean() > 0.99
    same = same[0, :, :, : ours.sizes["mapped_mode"]].values[..., None, None]
    for name in ("query_map", "key_map"):
        np.testing.assert_allclose(*(np.where(same, x[name], 0) for x in (ours, wanted)), rtol=1e-5, atol=1e-5)
    assert list(ours.unreadable.values) == list(wanted.unreadable.values) == ["0007.png", "0020.png"]
    assert json.loads(ours.attrs["settings"]).keys() == json.loads(wanted.attrs["settings"]).keys()


@pytest.mark.slow
def test_several_devices_find_what_one_does(folder, tmp_path):
    run(folder, tmp_path / "one")
    run(folder, tmp_path / "four", XLA_FLAGS="--xla_force_host_platform_device_count=4")
    assert_same(tmp_path / "four", tmp_path / "one")


def run_two_hosts(first: Path, second: Path, out: Path) -> list[subprocess.CompletedProcess]:
    """Two processes with images of their own each."""
    return run_hosts(*(command(images, out, "--distributed") for images in (first, second)))


@pytest.mark.slow
def test_several_hosts_find_what_one_does(folder, tmp_path):
    """To the bit: batches are the same, and so is the program that each host runs."""
    for done in run_two_hosts(folder, folder, tmp_path / "two"):
        assert done.returncode == 0, done.stderr
    run(folder, tmp_path / "one")
    assert_same(tmp_path / "two", tmp_path / "one")
    two, one = results(tmp_path / "two"), results(tmp_path / "one")
    xr.testing.assert_identical(two.drop_attrs(), one.drop_attrs())
    assert two.attrs["settings"] == one.attrs["settings"] and two.attrs["summary"] == one.attrs["summary"]
    assert not list((tmp_path / "two").glob("top_images.partial*"))


@pytest.mark.slow
def test_hosts_that_see_different_images_say_so(folder, tmp_path):
    """Their indices would mean different images: a result would be nonsense."""
    shutil.copytree(folder, tmp_path / "images")
    (tmp_path / "images" / "0004.png").unlink()
    for done in run_two_hosts(folder, tmp_path / "images", tmp_path / "out"):
        assert done.returncode == 2
        assert "qkjax: error: the processes differ in images: start all of them with the same command" in done.stderr
    assert not (tmp_path / "out" / "top_images.nc").exists()


@pytest.mark.slow
def test_host_without_the_others_says_what_to_set(folder, tmp_path):
    done = subprocess.run(
        command(folder, tmp_path, "--distributed"), capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 2
    assert "set JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID for each" in done.stderr


def test_earlier_results_without_maps_are_used(folder, tmp_path):
    """They are neither refused nor computed again: the maps come from a second pass, and the sheets are the same within
    rounding."""
    run(folder, tmp_path)
    path, sheet = tmp_path / "top_images.nc", tmp_path / "sheets/L00_H00.png"
    drawn = np.asarray(Image.open(sheet)).astype(int)
    with xr.open_dataset(path) as data:
        earlier = data.load().drop_dims(("mapped_mode", "row", "column")).drop_attrs(deep=False)
        earlier.attrs = {name: value for name, value in data.attrs.items() if name != "digest"}
    earlier.to_netcdf(path, engine="h5netcdf")
    before = path.read_bytes()
    sheet.unlink()
    assert "scanning" not in run(folder, tmp_path).stderr
    assert path.read_bytes() == before
    assert abs(np.asarray(Image.open(sheet)) - drawn).max() <= 2


def test_results_in_the_folder_of_version_0_1_are_found(folder, tmp_path, monkeypatch, capsys):
    """`qkjax modes` wrote results/MODEL/modes; there is no second scan, and `modes` is still a name of the command."""
    results_folder = tmp_path / "results" / MODEL.stem
    run(folder, results_folder / "modes")
    arguments = ["--images", folder, "--layer", "0", "--head", "0", "--sheet-modes", "1"]
    arguments += ["--batch", "4"]
    monkeypatch.chdir(tmp_path)
    for name in ("modes", "top-images"):
        done = commands.command(monkeypatch, capsys, name, MODEL, *arguments)
        assert done.code == 0, done.err
        assert "scanning" not in done.err
        assert done.out.startswith("a\n")
        assert "19 images were scanned" in done.out
    assert [p.name for p in results_folder.iterdir()] == ["modes"]
    shutil.rmtree(results_folder / "modes")
    done = commands.command(monkeypatch, capsys, "modes", MODEL, *arguments)
    assert done.code == 0, done.err
    assert [p.name for p in results_folder.iterdir()] == ["top_images"]
