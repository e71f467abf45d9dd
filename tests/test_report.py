"""The report: what is in its files, against plain passes; how it is written, and what stops it."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hosts import CODE, run_hosts
from PIL import Image
from test_cli import assert_one_clear_line, run
from test_maps import BEIT, SEEN, perturbed, small_photograph
from test_scan import make_images

import qkjax
from conftest import DATA, UNCACHED
from qkjax.analyses.top_images.pages import ScanOptions, write_top_images
from qkjax.images.preprocess import PRESETS, normalise, preprocess
from qkjax.images.sources import open_images
from qkjax.passes.partial_file import interrupted_settings
from qkjax.report.attended import attended
from qkjax.report.job import ReportOptions, report
from qkjax.report.pack import COARSE, FINE, quantised, script
from qkjax.report.page import OURS
from qkjax.report.pictures import SIDES, small_pictures
from qkjax.results.store import read_result, write_dataset
from qkjax.runtime.files import atomic_folder
from qkjax.vit.model import forward
from qkjax.vit.tree import query_key_kernels
from qkjax.weights.load import origin

MODEL, IMAGES = DATA / "a.npz", 14
DTYPES = {"int8": "<i1", "int16": "<i2", "int32": "<i4", "float32": "<f4"}


def unpacked(path: Path) -> dict:
    """What a script of a report holds, read as the format says."""
    key, what, text, end = path.read_bytes().decode("ascii").split("\n")
    assert key.startswith("qkjax.take(") and not end
    what = json.loads(what.removesuffix(","))
    text = re.sub(r"\\(.)", lambda m: {"n": "\n", "r": "\r"}.get(m[1], m[1]), text[1:-3], flags=re.DOTALL)
    bits = "".join(f"{ord(character):07b}" for character in text)
    data = zlib.decompress(bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits) - 7, 8)))
    found = {"key": json.loads(key.removeprefix("qkjax.take(").removesuffix(",")), **what["facts"]}
    for name, dtype, shape in what["arrays"]:
        count = int(np.prod(shape))
        found[name] = np.frombuffer(data, DTYPES[dtype], count).reshape(shape)
        data = data[count * np.dtype(DTYPES[dtype]).itemsize :]
    assert not data
    return found


def write_preference(folder: Path, name: str = "preference", of: str | None = None) -> None:
    """A result of another command, as it lies in a folder of results, of the model that was scanned or another."""
    with xr.open_dataset(folder / "top_images" / "top_images.nc") as top:
        parameters = of or json.loads(top.attrs["settings"])["parameters"]
    (folder / name).mkdir()
    (folder / name / f"{name}.csv").write_text("layer,own\n0,0.123456\n1,0.5\n")
    data = xr.Dataset(attrs={"settings": json.dumps({"parameters": parameters})})
    data.to_netcdf(folder / name / f"{name}.nc", engine="h5netcdf")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder in which a report was made of a small model and 14 images, one of them broken."""
    folder = tmp_path_factory.mktemp("report")
    make_images(folder / "images", IMAGES)
    (folder / "images" / "0000.png").write_bytes(b"broken")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        report((str(MODEL),), Path("images"), None, ReportOptions(top=3, modes=5), {})
    return folder


def test_scripts_hold_what_they_were_given(tmp_path):
    arrays = {
        "a": np.arange(6, dtype=np.int16).reshape(2, 3),
        "b": np.float32([0.1, np.nan]),
        "c": np.zeros(0, "i1"),
    }
    (tmp_path / "x.js").write_text(script("m0/x", {"name": 'a "name"</script>', "n": [1, 2]}, arrays))
    found = unpacked(tmp_path / "x.js")
    assert (found["key"], found["name"], found["n"]) == ("m0/x", 'a "name"</script>', [1, 2])
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("levels", [COARSE, FINE])
def test_numbers_and_steps_are_right_to_half_a_step(levels):
    values = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)
    values[2] = 0
    numbers, steps = (np.asarray(x) for x in quantised(values, (1,), levels))
    assert abs(numbers.astype(int)).max() == levels
    assert (abs(numbers * steps[:, None] - values) <= 0.5001 * steps[:, None]).all()
    assert (numbers[2] == 0).all()


def test_maps_are_those_of_a_plain_pass(site):
    """Every mode, sign and image, in float64 from the tokens; and the site holds what maps.nc does."""
    checkpoint = qkjax.load(MODEL)
    modes = qkjax.decompose(checkpoint)
    images = open_images(site / "images")
    with (
        xr.open_dataset(site / "results/a/top_images/maps.nc") as maps,
        xr.open_dataset(site / "results/a/top_images/top_images.nc") as top,
    ):
        assert dict(maps.sizes) == {"layer": 4, "head": 4, "mode": 5, "sign": 2, "place": 3, "row": 4, "column": 4,
                                    "missing": 0}  # fmt: skip
        index = top.image_index.values[0, :, :, :5, :, :3]
        tokens = {}
        for image in np.unique(index):
            assert image != 0, "it cannot be read"
            pixels = preprocess(images.read(int(image)), checkpoint.preprocess)
            seen = forward(qkjax.ViT(checkpoint.config), checkpoint.params, pixels[None], ("norm",))[1]["norm"]
            tokens[image] = np.asarray(seen[:, 0, checkpoint.config.prefix_tokens :], np.float64)
        for at in np.ndindex(index.shape):
            layer, head, mode = at[:3]
            for name, directions in (("query", modes.u), ("key", modes.v)):
                wanted = tokens[index[at]][layer] @ np.asarray(directions, np.float64)[layer, head, :, mode]
                step = float(maps[f"{name}_step"].values[at])
                found = maps[f"{name}_map"].values[at].ravel() * step
                assert abs(found - wanted).max() <= 0.5 * step + 1e-5 * abs(wanted).max()
        for layer, head in np.ndindex(4, 4):
            packed = unpacked(site / f"results/a/report/data/m0/L{layer:02d}_H{head:02d}.js")
            np.testing.assert_array_equal(
                packed["query_map"].reshape(5, 2, 3, 4, 4), maps.query_map.values[layer, head]
            )
            np.testing.assert_array_equal(packed["key_step"], maps.key_step.values[layer, head])
            np.testing.assert_array_equal(packed["image_index"], index[layer, head])
            np.testing.assert_array_equal(packed["value"], top["value"].values[0, layer, head, :5, :, :3])


def attention_of(terms, layer: int, head: int) -> np.ndarray:
    """(tokens, keys), put together as the page does."""
    query = terms.query[layer, head] * (terms.query_step[layer, head] * terms.key_step[layer, head]).astype(np.float64)
    logits = query @ terms.key[layer, head].T + terms.bias[layer, head]
    if terms.other.size:
        logits = logits + terms.other[layer, head] * float(terms.other_step[layer, head])
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


@pytest.mark.parametrize("kind", ["default", "beit"])
def test_terms_give_back_the_attention(kind, request):
    """Of the real model, whose key biases are large, and with relative position biases: to a thousandth."""
    if kind == "default":
        checkpoint, modes = request.getfixturevalue("default"), request.getfixturevalue("default_modes")
        config, params, images = checkpoint.config, checkpoint.params, request.getfixturevalue("photograph")
    else:
        config, params, images = BEIT, perturbed(BEIT, 1), small_photograph()
        preset = PRESETS["hf-vit"]
        checkpoint = qkjax.Checkpoint("beit", config, params, "", preset)
        modes = qkjax.decompose(*query_key_kernels(params))
    preset = checkpoint.preprocess
    pixels = np.rint((images[0] * np.reshape(preset.std, (1, 1, 3)) + np.reshape(preset.mean, (1, 1, 3))) * 255)
    pixels = pixels.clip(0, 255).astype(np.uint8)
    seen = normalise(pixels, preset)[None]
    wanted = np.asarray(forward(qkjax.ViT(config), params, seen, SEEN)[1]["attention"])[:, 0]
    direction = qkjax.bias_terms(qkjax.query_key(params)).key_direction
    terms = attended(checkpoint, modes, direction, pixels)
    for layer, head in np.ndindex(config.depth, config.heads):
        np.testing.assert_allclose(attention_of(terms, layer, head), wanted[layer, head], atol=1e-3)
    left = 1 - terms.share.sum(-1) - terms.bias_share
    assert abs(left).max() < 1e-3 if kind == "default" else abs(left).max() > 1e-2, "relative positions have a share"


def test_small_pictures_keep_to_their_room(tmp_path):
    make_images(tmp_path / "some", 6)
    images = open_images(tmp_path / "some")

    def read(index):
        if index == 2:
            raise qkjax.QkjaxError("broken")
        return np.asarray(images.read(index).resize((300, 200)))

    fine = dict(small_pictures(images, range(6), read, 1e6))
    assert sorted(fine) == [0, 1, 3, 4, 5]
    sizes = set()
    for data in fine.values():
        with Image.open(BytesIO(data)) as opened:
            sizes.add(opened.size)
    assert sizes == {(SIDES[0], round(SIDES[0] * 2 / 3))}
    room = sum(map(len, fine.values())) / 3
    coarse = dict(small_pictures(images, range(6), read, room))
    assert room / 4 < sum(map(len, coarse.values())) <= room


def without_maps(path: Path) -> None:
    """Removes the maps from a result of the scan, as in results of version 0.1, so that they take a pass."""
    write_dataset(read_result(path).drop_dims("mapped_mode"), path)


def test_a_stopped_report_goes_on_to_the_same_bits(site, tmp_path, monkeypatch):
    """Interrupted between two batches of maps, twice; nothing half-written is left where the site will be.

    Up to rounding, the maps of this pass are those of the site, which are from the scan.
    """
    monkeypatch.chdir(tmp_path)
    shutil.copytree(site / "images", "images")
    results = tmp_path / "results" / "a" / "top_images"
    results.mkdir(parents=True)
    (results / "top_images.nc").write_bytes((site / "results/a/top_images/top_images.nc").read_bytes())
    without_maps(results / "top_images.nc")
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("qkjax.passes.engine.tqdm.update", lambda *_: signal.raise_signal(signal.SIGINT))
            report((str(MODEL),), Path("images"), None, ReportOptions(3, 5), {})
        assert not (tmp_path / "results/a/report").exists()
    assert {p.name for p in results.iterdir()} == {"top_images.nc", "maps.partial.npz"}
    report((str(MODEL),), Path("images"), None, ReportOptions(3, 5), {})
    files = [results / "maps.nc", *(path for path in (tmp_path / "results/a/report").rglob("*") if path.is_file())]
    resumed = {path: path.read_bytes() for path in files}
    (results / "maps.nc").unlink()
    report((str(MODEL),), Path("images"), None, ReportOptions(3, 5), {})
    assert resumed == {path: path.read_bytes() for path in files}
    with xr.open_dataset(results / "maps.nc") as ours, xr.open_dataset(site / "results/a/top_images/maps.nc") as whole:
        for name in ("query", "key"):  # products with fewer modes are rounded differently
            np.testing.assert_allclose(ours[f"{name}_step"], whole[f"{name}_step"], rtol=1e-5)
            assert abs(ours[f"{name}_map"].values.astype(int) - whole[f"{name}_map"].values).max() <= 1
    assert {p.name for p in (tmp_path / "results/a").iterdir()} == {"top_images", "report"}


def scan_in_small_batches(site: Path, folder: Path) -> Path:
    """Into a folder the images and a scan of them in batches of two, which the maps' pass takes over; returns the
    folder of the scan."""
    shutil.copytree(site / "images", folder / "images")
    scan = ScanOptions(top=3, options=qkjax.PassOptions(batch=2))
    results = folder / "results/a/top_images"
    write_top_images(qkjax.load(MODEL), open_images(folder / "images"), scan, results, {})
    without_maps(results / "top_images.nc")
    return results


def never(*_, **__):
    raise AssertionError("a second pass")


def interrupted(run) -> None:
    """Runs a pass and interrupts it after its first batch."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("qkjax.passes.engine.tqdm.update", lambda *_: signal.raise_signal(signal.SIGINT))
        run()


def test_a_report_takes_one_pass_over_the_images(site, tmp_path, monkeypatch):
    """Also of all modes, though top_images.nc has maps of 5; to the bit, the maps are those of a pass of their own."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(site / "images", "images")
    results, options = Path("results/a/top_images"), ReportOptions(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qkjax.report.map_tiles.run_pass", never)
        report((str(MODEL),), Path("images"), None, options, {})
    from_scan = (results / "maps.nc").read_bytes()
    assert read_result(results / "maps.nc").sizes["mode"] == 16
    usual = site / "results/a/top_images/top_images.nc"
    assert (results / "top_images.nc").read_bytes() == usual.read_bytes(), "the same maps are stored as always"
    (results / "maps.nc").unlink()
    report((str(MODEL),), Path("images"), None, options, {})
    assert (results / "maps.nc").read_bytes() == from_scan


@pytest.mark.parametrize("first", ["report", "top-images"])
def test_an_interrupted_scan_is_continued_by_either_command(first, site, tmp_path, monkeypatch):
    """Though a report scans with maps of more modes."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(site / "images", "images")
    images, results = open_images("images"), Path("results/a/top_images")
    scan = lambda: write_top_images(qkjax.load(MODEL), images, ScanOptions(top=9), results, origin(MODEL, {}))
    page = lambda: report((str(MODEL),), Path("images"), None, ReportOptions(3, 8), {})
    interrupted(page if first == "report" else scan)
    (partial,) = results.glob("*partial*")
    assert interrupted_settings(partial)["maps"] == ("8" if first == "report" else "5")
    scan() if first == "report" else page()
    with xr.open_dataset(results / "top_images.nc") as top:
        assert top.sizes["mapped_mode"] == 5
    assert (results / "top_images.nc").read_bytes() == (site / "results/a/top_images/top_images.nc").read_bytes()
    assert (results / "maps.nc").exists() == (first == "top-images")


def test_maps_that_would_take_too_much_memory_take_a_second_pass(site, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(site / "images", "images")
    monkeypatch.setattr("qkjax.analyses.top_images.compute.MAP_BYTES", 7 * 4 * 4 * 2 * 9 * 2 * 16 * 4)
    report((str(MODEL),), Path("images"), None, ReportOptions(3, 7), {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qkjax.report.map_tiles.run_pass", never)
        with pytest.raises(AssertionError, match="a second pass"):
            report((str(MODEL),), Path("images"), None, ReportOptions(3, 8), {}, fresh=True)


REPORT = [sys.executable, "-c", CODE, "report", MODEL, "--images", "images", "--top", "3", "--modes", "5"]


def batches_done(results: Path) -> int:
    partial = results / "maps.partial.npz"
    return int(np.load(partial)["done"]) if partial.exists() else 0


@pytest.mark.slow
def test_a_killed_report_resumes_to_the_same_bits(site, tmp_path):
    """Three times, at random moments of the pass that computes maps."""
    seed = int(time.time())
    print("seed of the moments:", seed)
    seconds, reached = random.Random(seed), [0]
    whole, killed = (scan_in_small_batches(site, tmp_path / name) for name in ("whole", "killed"))
    done = subprocess.run([*map(str, REPORT)], cwd=tmp_path / "whole", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    command, pipes = [*map(str, REPORT), "--slow"], {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    for _ in range(3):
        with subprocess.Popen(command, cwd=tmp_path / "killed", env=os.environ | UNCACHED, **pipes) as process:
            while process.poll() is None and batches_done(killed) <= reached[-1]:
                time.sleep(0.01)
            time.sleep(seconds.uniform(0, 0.2))
            process.kill()
            _, err = process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL, err
        reached.append(batches_done(killed))
        assert not (tmp_path / "killed/results/a/report").exists()
    assert 3 <= reached[-1] < 7 and reached == sorted(reached), reached
    done = subprocess.run([*map(str, REPORT)], cwd=tmp_path / "killed", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (killed / "maps.nc").read_bytes() == (whole / "maps.nc").read_bytes()
    assert not list(killed.rglob("*partial*"))
    with xr.open_dataset(killed / "maps.nc") as small, xr.open_dataset(site / "results/a/top_images/maps.nc") as usual:
        assert small.query_map.shape == usual.query_map.shape and small.query_map.values.any()


@pytest.mark.slow
def test_two_hosts_write_the_report_of_one(site, tmp_path, monkeypatch):
    """Scan and maps to the bit, and the same files for the page; one of the two writes and prints."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(site / "images", "images")
    first, second = run_hosts(*[[*REPORT, "--distributed"]] * 2)
    for done in (first, second):
        assert done.returncode == 0, done.stderr
    assert (first.stdout.strip(), second.stdout) == ("results/a/report/index.html", "")
    for name in ("top_images.nc", "maps.nc"):
        with (
            xr.open_dataset(tmp_path / "results/a/top_images" / name) as two,
            xr.open_dataset(site / "results/a/top_images" / name) as one,
        ):
            xr.testing.assert_identical(two, one)
            for variable in one.variables:
                assert two[variable].dtype == one[variable].dtype
    two, one = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()}
                for f in (tmp_path / "results/a/report", site / "results/a/report"))  # fmt: skip
    assert two == one
    assert not list((tmp_path / "results").rglob("*partial*"))
    again = run_hosts(*[[*REPORT, "--distributed"]] * 2)  # the first host reads both results, the other gets them
    assert [done.returncode for done in again] == [0, 0], again[0].stderr + again[1].stderr
    assert "scanning" not in again[1].stderr and "maps of" not in again[1].stderr


def test_a_scan_in_the_folder_of_version_0_1_is_shown(site, tmp_path, monkeypatch):
    """`qkjax modes` wrote results/MODEL/modes: neither scanned nor mapped again, and its commands read it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(site / "images", "images")
    shutil.copytree(site / "results/a/top_images", "results/a/modes")
    before = {p.name: p.read_bytes() for p in Path("results/a/modes").iterdir()}
    for target in (str(MODEL), "results/a", "results/a/modes"):
        page = report((target,), Path("images"), Path("site"), ReportOptions(3, 5), {})
        facts = unpacked(page.parent / "data/m0/model.js")
        assert (facts["name"], facts["places"]) == ("a", 3)
        assert "--out" not in facts["commands"]["modes"], "the command finds the folder by itself"
    assert {p.name: p.read_bytes() for p in Path("results/a/modes").iterdir()} == before
    assert [p.name for p in Path("results/a").iterdir()] == ["modes"]


def test_results_are_known_by_their_folder_and_shown(site, tmp_path, monkeypatch):
    """From another folder, by the results alone, which say where their model is; with figures and tables of others."""
    folder = tmp_path / "results" / "a"
    shutil.copytree(site / "results" / "a", folder)
    write_preference(folder)
    write_preference(folder, "objects", of="another")
    Image.new("RGB", (40, 30), "teal").save(folder / "preference" / "links.png")
    monkeypatch.chdir(tmp_path)
    page = report(
        (str(folder),),
        site / "images",
        tmp_path / "out",
        ReportOptions(top=2, modes=None, look=(str(site / "images" / "0001.png"),)),
        {},
    )
    assert page == tmp_path / "out" / "index.html"
    facts = unpacked(tmp_path / "out/data/m0/model.js")
    assert (facts["name"], facts["shown"], facts["places"], facts["look"]) == ("a", 16, 2, ["0001"])
    (shown,) = facts["results"]
    assert shown["title"] == "Which tokens attend to which"
    assert shown["rows"] == [["layer", "own"], ["0", "0.123456"], ["1", "0.5"]]
    assert [f["file"] for f in shown["figures"]] == ["preference_links.png"]
    assert (tmp_path / "out/data/m0/preference_links.png").read_bytes() == (
        folder / "preference/links.png"
    ).read_bytes()
    metrics = qkjax.measure(qkjax.decompose(qkjax.load(MODEL)))
    np.testing.assert_array_equal(facts["cosine"], np.asarray(metrics.cosine))


def test_an_earlier_report_is_replaced_and_nothing_else(site, tmp_path, monkeypatch):
    monkeypatch.chdir(site)
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(qkjax.QkjaxError, match="contains files that qkjax did not write"):
        report(("results/a",), Path("images"), out, ReportOptions(3, 5), {})
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]
    (out / "thesis.tex").rename(out / "index.html")
    with pytest.raises(qkjax.QkjaxError, match="contains files that qkjax did not write"):  # a page of one's own
        report(("results/a",), Path("images"), out, ReportOptions(3, 5), {})
    (out / "index.html").unlink()
    report(("results/a",), Path("images"), out, ReportOptions(3, 5), {})
    (tmp_path / ".out-backup").mkdir()
    report(("results/a",), Path("images"), out, ReportOptions(3, 5), {})
    assert "qkjax report" in (out / "index.html").read_text()
    assert {p.name for p in tmp_path.iterdir()} == {"out", ".out-backup"}


def test_a_scan_that_kept_more_is_taken(site, tmp_path, monkeypatch):
    """With fewer images: the first of those that were kept, which are those that a scan for so few keeps."""
    monkeypatch.chdir(site)
    checkpoint, images = qkjax.load(MODEL), open_images("images")
    folder = site / "results/a/top_images"
    before = (folder / "top_images.nc").read_bytes()
    taken = write_top_images(checkpoint, images, ScanOptions(top=4), folder, {}).dataset
    assert (folder / "top_images.nc").read_bytes() == before
    few = qkjax.top_images(checkpoint, images, top=4, partial=tmp_path / "p.npz")
    np.testing.assert_array_equal(few.image_index.values, taken.image_index.values)
    np.testing.assert_array_equal(few["value"].values, taken["value"].values)
    with pytest.raises(qkjax.QkjaxError, match=r"different settings \(top\)"):
        write_top_images(checkpoint, images, ScanOptions(top=10), folder, {})


@pytest.mark.slow
def test_commands_of_a_page_can_be_run(tmp_path, monkeypatch):
    """As they stand, by a shell, whatever the files are called; `modes` reads the scan that the report made."""
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "my images", 5)
    model = tmp_path / "it's 'a' model.npz"
    model.write_bytes(MODEL.read_bytes())
    report((model.name,), Path("my images"), None, ReportOptions(2, 3), {"grid": (2, 8)})
    data = tmp_path / "results" / model.stem / "report/data/m0"
    said = unpacked(data / "model.js")["commands"]
    assert said["modes"].startswith("qkjax top-images ") and "--grid 2 8" in said["modes"]
    for command, select in (("modes", "L1 H1 M1-"), ("ablate", "layers=1 heads=1 modes=1")):
        line = said[command].replace("qkjax", f"{sys.executable} -m qkjax", 1) + f' "{select}"'
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=200)
        assert done.returncode == 0, done.stderr
        assert "scanning" not in done.stderr
    assert (tmp_path / "results" / model.stem / "top_images/chosen.png").exists()
    report((str(Path("results") / model.stem),), Path("my images"), None, ReportOptions(2, 3), {})
    facts = unpacked(data / "model.js")
    assert facts["grid"] == [2, 8], "it is remembered"
    assert [shown["title"] for shown in facts["results"]] == ["Without some modes"]
    with pytest.raises(qkjax.QkjaxError, match=r"grid=\(2, 8\) would apply to all 2 models"):
        report((model.name, str(MODEL)), Path("my images"), None, ReportOptions(2, 3), {"grid": (2, 8)})


def test_images_that_can_no_longer_be_read_are_said(site, tmp_path, monkeypatch):
    """An image that breaks between the scan and the report, without another size and time of change; in a set that is
    too large for its contents to be compared. Once the image is back, so are its maps."""
    monkeypatch.setattr("qkjax.images.fingerprint.MAX_HASHED", -1)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(site / "images", "images")
    shutil.copytree(site / "results", "results")
    modes, pages = Path("results/a/top_images"), Path("results/a/report/data/m0")
    (modes / "top_images.nc").unlink()
    report((str(MODEL),), Path("images"), None, ReportOptions(3, 5), {})
    (modes / "maps.nc").unlink()
    with xr.open_dataset(modes / "top_images.nc") as top:
        gone = int(top.image_index.values[0, 0, 0, 0, 0, 0])
    file = Path(f"images/{gone:04d}.png")
    content, times = file.read_bytes(), file.stat()
    file.write_bytes(bytes(len(content)))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    for missing in ([gone], []):
        report((str(MODEL),), Path("images"), None, ReportOptions(3, 5), {})
        assert unpacked(pages / "model.js")["gone"] == missing
        assert unpacked(pages / "names.js")["names"][str(gone)] == file.name
        assert (pages / "pictures" / f"{gone}.webp").exists() != bool(missing)
        file.write_bytes(content)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with xr.open_dataset(modes / "maps.nc") as found, xr.open_dataset(site / "results/a/top_images/maps.nc") as whole:
        xr.testing.assert_equal(found, whole)


def test_two_runs_of_one_name(site, tmp_path, monkeypatch):
    """As models, and then by what was found of them, in whichever order."""
    monkeypatch.chdir(tmp_path)
    for run_name in "xy":
        (tmp_path / run_name).mkdir()
        (tmp_path / run_name / "seed0.npz").write_bytes(MODEL.read_bytes())
    for targets in (("x/seed0.npz", "y/seed0.npz"), ("results/x-seed0", "results/y-seed0"), ("x/seed0.npz",)):
        page = report(targets, site / "images", None, ReportOptions(2, 3), {})
        assert len(list((page.parent / "data").iterdir())) == len(targets)
    assert unpacked(Path("results/report/data/m1/model.js"))["name"] == "y-seed0"
    assert sorted(p.name for p in Path("results").iterdir()) == ["report", "seed0", "x-seed0", "y-seed0"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_report_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch, failure):
    """Stopped between the two renamings, which nothing else can test."""
    out, rename = tmp_path / "out", Path.rename
    out.mkdir()
    (out / "index.html").write_text(f"old {OURS[1]}")

    def fails(self, target):
        if self.name == "new":
            raise failure
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises((qkjax.QkjaxError, KeyboardInterrupt)), atomic_folder(out, *OURS) as folder:
        (folder / "index.html").write_text("new")
    assert (out / "index.html").read_text().startswith("old")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_bad_input(site, tmp_path):
    """In one process each; an earlier report stays as it is."""
    page = (site / "results/a/report/index.html").read_bytes()
    make_images(tmp_path / "others", 3)
    for arguments, parts in (
        (
            (MODEL, "--images", tmp_path / "others"),
            ("top_images.nc", "is a result for the images 'images'", "--images"),
        ),
        (("nothing-like-this",), ("nothing-like-this",)),
        ((MODEL, "--images", "images", "--top", "0"), ("--top 0: expected a whole number of at least 1",)),
        ((MODEL, "--images", "images", "--modes", "-1"), ("--modes -1: expected a whole number of at least 1",)),
        (
            (MODEL, "--images", "images", "--out", "."),
            ("--out .: this folder is or contains the working folder and would be replaced",),
        ),
        ((MODEL, "--images", "images", "--look", "nobody.png"), ("nobody.png",)),
    ):
        assert_one_clear_line(run("report", *arguments, cwd=site), *parts)
    done = run("report", MODEL, "--images", "images", "--top", "3", "--modes", "5", cwd=site, kilobytes=20)
    assert_one_clear_line(done, "File too large", "choose another folder or free some space")
    assert (site / "results/a/report/index.html").read_bytes() == page
    assert {p.name for p in (site / "results/a").iterdir()} >= {"top_images", "report"}
    assert not list((site / "results/a").glob(".report*"))
    with xr.open_dataset(site / "results/a/top_images/top_images.nc") as data:
        moved = data.load().assign_attrs(checkpoint=str(tmp_path / "gone.npz"))
    del moved.attrs["digest"]  # as in a result of version 0.1
    (tmp_path / "run").mkdir()
    moved.to_netcdf(tmp_path / "run" / "top_images.nc", engine="h5netcdf")
    with pytest.raises(qkjax.QkjaxError, match=r"cannot load the model of .*gone\.npz.*; pass the model instead"):
        report((str(tmp_path / "run"),), site / "images", None, ReportOptions(), {})
