"""Training survives what happens to its folder: full disks, damaged files, killed processes, a second process."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import qkjax
from conftest import UNCACHED
from qkjax.runtime.environment import environment
from qkjax.runtime.lock import LOCK, exclusive
from qkjax.train import environments
from qkjax.train.config import TrainConfig
from qkjax.train.environments import record_environment
from qkjax.train.run import train
from qkjax.train.sweep import sweep

TINY = TrainConfig(width=16, depth=1, heads=1, mlp_dim=16, steps=9, warmup=0, every=3, batch=8, learning_rate=1e-3)
OPTIONS = ["--width", "16", "--depth", "1", "--heads", "1", "--mlp-dim", "16", "--warmup", "0", "--batch", "8"]
FILES = {"model.npz", "metrics.jsonl", "config.json", "checkpoints", "data.txt", "task.json", "environment.json"}
SWEEP_FILES = {f"{stem}{suffix}" for stem in ("accuracy", "curves", "cosines") for suffix in (".png", ".pdf")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(TINY, folder)
    return folder


@pytest.fixture
def run(whole, tmp_path) -> Path:
    """A copy of the run, without its model."""
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "model.npz").unlink()
    return folder


def model(folder: Path) -> dict[str, bytes]:
    """The arrays of a model, bit for bit; the zip around them states the time."""
    with np.load(folder / "model.npz") as file:
        return {name: file[name].tobytes() for name in file}


def inside(step: Path) -> list[Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def alter(path: Path) -> None:
    """One bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = {
    **{
        f"all {change.__name__}": lambda step, change=change: [change(p) for p in inside(step) if p.stat().st_size]
        for change in (halve, alter, empty)
    },
    **{
        f"data {change.__name__}": lambda step, change=change: [change(p) for p in step.rglob("d/*")]
        for change in (halve, alter, empty, Path.unlink, into_folder)
    },
    **{
        f"{name} {change.__name__}": lambda step, name=name, change=change: [change(p) for p in step.rglob(name)]
        for name in ("manifest.ocdbt", "metrics/metrics", "_CHECKPOINT_METADATA", "_METADATA", "digests.json")
        for change in (alter, empty, Path.unlink)
    },
    "default gone": lambda step: shutil.rmtree(step / "default"),
    "folder empty": lambda step: (shutil.rmtree(step), step.mkdir()),
    "a file in its place": lambda step: (shutil.rmtree(step), step.write_text("")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_last_checkpoint_is_said_and_the_one_before_used(damage, whole, run, caplog, capfd):
    DAMAGE[damage](run / "checkpoints" / "9")
    train(TINY, run)
    assert model(run) == model(whole)
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert {path.name for path in (run / "checkpoints").iterdir()} == {
        path.name for path in (whole / "checkpoints").iterdir()
    }
    assert "checkpoints/9 is damaged (" in caplog.text
    assert "was removed; the run resumes from step 6" in caplog.text
    assert "Traceback" not in capfd.readouterr().err


def test_the_one_before_exists_even_if_the_last_is_the_best(whole):
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert {"6", "9"} <= {path.name for path in (whole / "checkpoints").iterdir()}, lines


def test_without_a_usable_checkpoint_one_line_says_what_to_remove(whole, run):
    for step in (run / "checkpoints").iterdir():
        alter(next(iter(sorted(step.rglob("d/*")))))
    before = inside(run)
    with pytest.raises(qkjax.QkjaxError, match=r"9 is damaged \(.* has changed\), .*: remove .*/checkpoints to train"):
        train(TINY, run)
    assert inside(run) == before, "nothing is removed"
    shutil.rmtree(run / "checkpoints")
    train(TINY, run)
    assert model(run) == model(whole)


@pytest.mark.parametrize("damage", [lambda step: None, lambda step: [empty(p) for p in step.rglob("d/*")]])
def test_checkpoints_of_version_0_1_have_no_digests(damage, whole, run):
    for file in run.rglob("digests.json"):
        file.unlink()
    damage(run / "checkpoints" / "9")
    try:
        train(TINY, run)
    except qkjax.QkjaxError as error:
        assert "/checkpoints/9 (" in str(error) and "remove it to resume from step 6" in str(error)
        shutil.rmtree(run / "checkpoints" / "9")
        train(TINY, run)
    assert model(run) == model(whole)


def test_a_cut_last_line_of_metrics_is_computed_again(whole, run, caplog):
    path = run / "metrics.jsonl"
    text = path.read_bytes()
    for cut in (text[:-20], text[: text.rstrip().rindex(b"\n") + 1], text[:-60] + bytes(60), text.rstrip()):
        path.write_bytes(cut)
        (run / "model.npz").unlink(missing_ok=True)
        train(TINY, run)
        assert path.read_bytes() == text and model(run) == model(whole)
    assert "metrics.jsonl has lost its last line, which is restored from the checkpoint" in caplog.text


def edited(**values):
    def edit(lines: list[str]) -> None:
        lines[1] = json.dumps(json.loads(lines[1]) | values)

    return edit


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda lines: lines.insert(1, "{"), r"metrics.jsonl is not a valid file of metrics \(line 2: "),
        (lambda lines: lines.insert(1, "[" * 100_000), "line 2: it is nested too deeply"),
        (lambda lines: lines.pop(0), "line 1: step=6: expected 3"),
        (lambda lines: lines.append(lines[-1]), "line 4: step=9: expected no such line"),
        (edited(accuracy=1.5), "accuracy=1.5: expected from 0 to 1"),
        (edited(accuracy=True), "accuracy=True: expected from 0 to 1"),
        (edited(loss=float("nan")), "loss=nan: expected a finite number"),
        (edited(validation_loss="1"), "validation_loss=1: expected a finite number"),
        (edited(weighted_cosine=[0.1, 0.2]), "expected 1 numbers from -1 to 1"),
        (edited(weighted_cosine=None), "expected 1 numbers from -1 to 1"),
        (edited(step="6"), "step=6: expected 6"),
        (lambda lines: lines.__setitem__(1, "[1]"), "expected a JSON object"),
        (lambda lines: lines.__setitem__(1, "{}"), "step is missing"),
        (lambda lines: lines.clear(), "has only 0 of the 3 lines up to step 9"),
    ],
)
def test_other_damaged_lines_of_metrics_are_one_line(edit, says, run):
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    edit(lines)
    path.write_text("".join(line + "\n" for line in lines))
    with pytest.raises(qkjax.QkjaxError, match=says) as caught:
        train(TINY, run)
    assert str(run) in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", b"", "config.json is not a valid configuration of a run"),
        ("config.json", b"\xff", "config.json is not a valid configuration of a run"),
        ("config.json", b"[" * 100_000, "config.json is not a valid configuration of a run .*nested"),
        ("config.json", b'{"layers": 3}', "config.json is not a valid configuration of a run .unknown setting"),
        ("config.json", b'{"width": "16"}', "config.json is not a valid configuration of a run .width='16'"),
        ("config.json", b'{"steps": 0}', "config.json is not a valid configuration of a run .steps=0"),
        ("config.json", None, "config.json is missing: restore this file"),
        ("data.txt", b"\xff", "if only data.txt has changed, remove that"),
    ],
)
def test_other_damaged_files_are_one_line(name, content, says, run):
    (run / name).unlink()
    if content is not None:
        (run / name).write_bytes(content)
    with pytest.raises(qkjax.QkjaxError, match=says) as caught:
        train(TINY, run)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "not a valid description"), ('{"classes": 0}', "held_out|classes=0"), ("[]", "expected a JSON object")],
)
def test_damaged_facts_are_one_line(text, says, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    (folder / "task.json").write_text(text)
    with pytest.raises(
        qkjax.QkjaxError, match=f"task.json is not a valid description of a task .*({says})?.*remove this file"
    ):
        train(TINY, folder)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "task.json", "data.txt"])
def test_a_pipe_in_place_of_a_file_blocks_nothing(name, run):
    (run / name).unlink()
    os.mkfifo(run / name)
    with pytest.raises(qkjax.QkjaxError, match=f"{name} is a pipe"):
        train(TINY, run)


def test_a_damaged_model_is_exported_again(whole, tmp_path, caplog):
    folder = shutil.copytree(whole, tmp_path / "run")
    halve(folder / "model.npz")
    train(TINY, folder)
    assert model(folder) == model(whole)
    assert "model.npz is damaged and is exported again from the last checkpoint" in caplog.text


def leave(folder: Path, names: list[str]) -> None:
    for name in names:
        path = folder / name
        path.mkdir(parents=True) if "orbax" in name else path.write_text("")


def test_what_killed_processes_left_is_removed_and_nothing_else(whole, run):
    names = [LOCK, ".model-abcd_123.npz", ".metrics-00000000.jsonl", ".config-abcdefgh.json", ".data-abcdefgh.txt"]
    others = {".model-mine.npz", ".notes-abcdefgh.txt", "model-abcdefgh.npz", ".metrics-ABCDEFGH.jsonl"}
    names += ["checkpoints/12.orbax-checkpoint-tmp", "checkpoints/12.orbax-checkpoint-tmp-17"]
    leave(run, [*names, *others])
    train(TINY, run)
    assert {path.name for path in run.iterdir()} == FILES | others
    assert all(path.name.isdecimal() for path in (run / "checkpoints").iterdir())
    leave(run, names)
    train(TINY, run)
    assert {path.name for path in run.iterdir()} == FILES | others, "of a finished run too"
    assert all(path.name.isdecimal() for path in (run / "checkpoints").iterdir())


def test_what_a_killed_sweep_left_is_removed(tmp_path):
    others = {".accuracy-mine.png", ".plot-abcdefgh.png"}
    tmp_path.mkdir(exist_ok=True)
    leave(tmp_path, [".accuracy-abcdefgh.png", ".sweep-abcdefgh.nc", ".curves-abcdefgh.pdf", LOCK, *others])
    sweep(TINY, ("free",), 1, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"free", "sweep.nc", "sweep.csv", *SWEEP_FILES, *others}


def test_one_process_at_a_time(tmp_path):
    with (
        exclusive(tmp_path / "sweep"),
        pytest.raises(qkjax.QkjaxError, match=r"another process is using .*sweep: wait"),
    ):
        sweep(TINY, ("free",), 1, tmp_path / "sweep")
    assert not list(tmp_path.iterdir()), "neither the lock nor the folder stays"
    with pytest.raises(qkjax.QkjaxError, match="is not a known task"):
        sweep(replace(TINY, data="mnist"), ("free",), 1, tmp_path / "sweep")
    assert not list(tmp_path.iterdir())


def command(name: str, out: Path, steps: int = 60) -> list[str]:
    more = ["--steps", str(steps), "--every", "3"]
    return [
        sys.executable,
        "-m",
        "qkjax",
        name,
        str(out),
        *(["free", "--seeds", "1"] * (name == "sweep")),
        *OPTIONS,
        *more,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "sweep"])
def test_two_processes_at_once(name, tmp_path):
    """One says why not, or both end well."""
    pair = [subprocess.Popen(command(name, tmp_path / "out"), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=200)[1] for process in pair]
    codes = [process.returncode for process in pair]
    assert sorted(codes) in ([0, 0], [0, 2]), errors
    assert all("another process is using" in error for error, code in zip(errors, codes, strict=True) if code)
    assert not list((tmp_path / "out").rglob(".*"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.getuid() != 0, reason="mounts a file system")
def test_a_full_disk_is_one_line_and_the_run_resumes_when_there_is_room(whole, tmp_path, capfd):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", disk], check=False).returncode:
        pytest.skip("cannot mount a file system")
    try:
        for size in (8, 64, 80, 96, 128, 200, 300):
            subprocess.run(["mount", "-o", f"remount,size={size}k", disk], check=True)
            with pytest.raises(qkjax.QkjaxError, match=r"cannot write .*: No space left on device; choose another"):
                train(TINY, disk / "run")
            left = [path for path in disk.rglob("*") if "tmp" in path.name or path.name.startswith(".")]
            assert not left, size
        shutil.rmtree(disk / "run")
        for size in (8, 9, 12, 16, 20):
            subprocess.run(["mount", "-o", f"remount,size={size}k", disk], check=True)
            with pytest.raises(qkjax.QkjaxError, match=r"cannot write .*: No space left on device; choose another"):
                train(replace(TINY, tensorboard=True), disk / "board")
        subprocess.run(["mount", "-o", "remount,size=40m", disk], check=True)
        train(replace(TINY, tensorboard=True), disk / "board")
        assert model(disk / "board") == model(whole)
        train(TINY, disk / "run")
        assert model(disk / "run") == model(whole)
        assert "Traceback" not in capfd.readouterr().err
    finally:
        subprocess.run(["umount", disk], check=True)


KILLS = int(os.environ.get("QKJAX_KILLS") or 4)
"""Kills of each test; a process with QKJAX_KILLS=60 tries more moments."""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "sweep"])
def test_random_kills_end_in_the_same_bits_and_leave_nothing(name, tmp_path):
    script = Path(__file__).parent / "killed.py"
    done = subprocess.run(
        [sys.executable, script, name, str(tmp_path), str(KILLS)],
        capture_output=True, text=True, timeout=290, check=False,
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "sweep"])
def test_random_kills_of_the_command(name, tmp_path):
    subprocess.run(command(name, tmp_path / "whole", 600), check=True, capture_output=True, timeout=200)
    rng = random.Random(0)
    for _ in range(KILLS):
        with subprocess.Popen(
            command(name, tmp_path / "out", 600), stderr=subprocess.DEVNULL, env=os.environ | UNCACHED
        ) as it:
            time.sleep(rng.uniform(1, 15))
            it.send_signal(rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
            it.wait(timeout=60)
    subprocess.run(command(name, tmp_path / "out", 600), check=True, capture_output=True, timeout=200)
    whole, out = (next((tmp_path / part).rglob("model.npz")).parent for part in ("whole", "out"))
    assert model(out) == model(whole)
    assert not list((tmp_path / "out").rglob(".*"))


def test_a_change_of_the_environment_is_recorded_and_reported(tmp_path, monkeypatch, caplog):
    """Neither a second process in the same environment nor a damaged file stops a run."""
    path = tmp_path / "environment.json"
    record_environment(path, 0)
    record_environment(path, 40)
    (first,) = json.loads(path.read_text())
    assert first["from_step"] == 0
    assert first["cores"] == len(os.sched_getaffinity(0))
    monkeypatch.setattr(environments, "environment", lambda: {**environment(), "cores": 64, "jax": "9.9"})
    record_environment(path, 60)
    assert [item["from_step"] for item in json.loads(path.read_text())] == [0, 60]
    assert f"cores {first['cores']} -> 64" in caplog.text
    assert "can differ from those of an uninterrupted run" in caplog.text
    record_environment(path, 0)  # a new run
    assert [item["cores"] for item in json.loads(path.read_text())] == [64]
    path.write_text("[3")
    record_environment(path, 80)
    assert "is damaged and is written again" in caplog.text
