"""The engine of all passes, with a step of plain numpy: whatever is interrupted or damaged, the result is the same or
one clear error."""

import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hosts import run_hosts

import qkjax
from qkjax.images.sets import Batch
from qkjax.passes import engine
from qkjax.passes.engine import PassResult, batch_groups, run_pass
from qkjax.runtime import hosts

COUNT, SIZE = 23, 4
BROKEN = (3, 4, 17)
GROUPS = batch_groups(COUNT, SIZE)
BATCHES = len(GROUPS)
SETTINGS = {"a": "1"}


class State(NamedTuple):
    total: np.ndarray
    seen: np.ndarray


def blank() -> State:
    return State(np.zeros((2, 3), np.float32), np.zeros(COUNT, np.int8))


def batches(groups: Sequence[Sequence[int]]) -> Iterator[Batch]:
    """Pixels that depend on the index alone."""
    for group in groups:
        index = np.full(SIZE, -1, np.int32)
        index[: len(group)] = [-1 if i in BROKEN else i for i in group]
        pixels = np.stack([np.random.default_rng(i + 1).integers(0, 256, (2, 2, 3), np.uint8) for i in index])
        yield Batch(pixels, None, index, tuple((i, f"broken {i}") for i in group if i in BROKEN))


def step(state: State, batch: Batch) -> tuple[State, dict[str, np.ndarray]]:
    """Sums whose last bits depend on the order; rows for the images that can be read, and one for the batch."""
    readable = batch.index[batch.index >= 0]
    values = np.float32(batch.pixels[batch.index >= 0].mean((1, 2))) / 7
    total = state.total * np.float32(1.01) + values.sum(0, dtype=np.float32)
    seen = state.seen.copy()
    seen[readable] += 1
    return State(total, seen), {"image": readable, "value": values, "mean": values.mean(0, keepdims=True)}


def merge(states: list[State]) -> State:
    return State(*(np.sum(parts, axis=0, dtype=parts[0].dtype) for parts in zip(*states, strict=True)))


def whole_pass(path: Path | None = None, step: Callable = step, settings=SETTINGS, state=None) -> PassResult:
    return run_pass(step, state or blank(), GROUPS, batches, path, settings, merge=merge)


def assert_equal(result: PassResult, expected: PassResult) -> None:
    """To the bit, in types too."""
    pairs = [*zip(result.state, expected.state, strict=True)]
    assert list(result.rows) == list(expected.rows)
    pairs += [(result.rows[name], expected.rows[name]) for name in expected.rows]
    for array, other in pairs:
        assert (array.dtype, array.shape) == (other.dtype, other.shape)
        assert array.tobytes() == other.tobytes()
    assert result.unreadable == expected.unreadable


@pytest.fixture(scope="module")
def whole() -> PassResult:
    return whole_pass()


def test_whole_pass(whole):
    """Each image once, in order, and those that cannot be read once in the list."""
    readable = [i for i in range(COUNT) if i not in BROKEN]
    np.testing.assert_array_equal(whole.state.seen, np.isin(range(COUNT), readable))
    np.testing.assert_array_equal(whole.rows["image"], readable)
    assert whole.rows["value"].shape == (len(readable), 3)
    assert whole.rows["mean"].shape == (BATCHES, 3)
    assert whole.unreadable == tuple((i, f"broken {i}") for i in BROKEN)


def stops(kind: str, at: int) -> Callable:
    """The step, which fails in batch `at`, or during which Ctrl-C is pressed."""
    calls = iter(range(100))

    def stopping(state, batch):
        number = next(calls)
        if number == at and kind == "exception":
            raise RuntimeError("out of memory")
        if number == at:
            signal.raise_signal(signal.SIGINT)
        return step(state, batch)

    return stopping


@pytest.mark.parametrize("at", range(BATCHES))
@pytest.mark.parametrize("kind", ["exception", "interrupt"])
@pytest.mark.parametrize("save_seconds", [-1, 1000])
def test_stopped_at_any_batch_it_resumes_to_the_same_bits(tmp_path, monkeypatch, whole, kind, at, save_seconds):
    """With a save after every batch, and with none but that of Ctrl-C. A batch that failed is not counted, one during
    which Ctrl-C was pressed is."""
    monkeypatch.setattr(engine, "SAVE_SECONDS", save_seconds)
    path = tmp_path / "p.npz"
    with pytest.raises(KeyboardInterrupt if kind == "interrupt" else RuntimeError):
        whole_pass(path, stops(kind, at))
    saved = at + 1 if kind == "interrupt" else at if save_seconds < 0 else 0
    assert (int(np.load(path)["done"]) if path.exists() else 0) == saved
    batches_left = []

    def counted(state, batch):
        batches_left.append(batch)
        return step(state, batch)

    assert_equal(whole_pass(path, counted), whole)
    assert len(batches_left) == BATCHES - saved
    assert_equal(whole_pass(path, counted), whole)
    assert len(batches_left) == BATCHES - saved, "a pass that is complete does nothing"


def test_stopped_at_every_batch_in_turn(tmp_path, whole):
    """Six times Ctrl-C, one batch each; unreadable images are listed once all the same."""
    path = tmp_path / "p.npz"
    for done in range(1, BATCHES + 1):
        with pytest.raises(KeyboardInterrupt):
            whole_pass(path, stops("interrupt", 0))
        with np.load(path) as file:
            assert int(file["done"]) == done
            listed = [index for index, _ in json.loads(str(file["unreadable"]))]
        assert listed == [i for group in GROUPS[:done] for i in group if i in BROKEN]
    assert_equal(whole_pass(path), whole)


def test_second_ctrl_c_stops_at_once_and_spoils_nothing(tmp_path, whole):
    path = tmp_path / "p.npz"

    def twice(state, batch):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("it went on")

    with pytest.raises(KeyboardInterrupt):
        whole_pass(path, twice)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_equal(whole_pass(path), whole)


def test_without_a_path_nothing_is_written(tmp_path, monkeypatch, whole):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "SAVE_SECONDS", -1)
    monkeypatch.setattr("qkjax.passes.partial_file.atomic_path", lambda path: pytest.fail(f"writes {path}"))
    assert_equal(whole_pass(), whole)
    with pytest.raises(KeyboardInterrupt):
        whole_pass(None, stops("interrupt", 2))
    assert not list(tmp_path.iterdir())


def test_pass_without_rows_or_without_state(tmp_path, monkeypatch):
    """Analyses have one or the other."""
    monkeypatch.setattr(engine, "SAVE_SECONDS", -1)
    for i, part in enumerate((lambda state, rows: (state, {}), lambda state, rows: ((), rows))):
        path, initial = tmp_path / f"{i}.npz", (blank(), ())[i]

        def partly(state, batch, part=part):
            return part(*step(state or blank(), batch))

        expected = run_pass(partly, initial, GROUPS, batches, None, SETTINGS)
        failing = stops("exception", 3)

        def stopping(state, batch, part=part, failing=failing):
            return part(*failing(state or blank(), batch))

        with pytest.raises(RuntimeError):
            run_pass(stopping, initial, GROUPS, batches, path, SETTINGS)
        assert_equal(run_pass(partly, initial, GROUPS, batches, path, SETTINGS), expected)


def test_set_without_images():
    result = run_pass(step, blank(), [], batches, None, SETTINGS)
    assert_equal(result, PassResult(blank(), {}, ()))


def drop(*names: str) -> Callable[[dict], dict]:
    return lambda arrays: {name: array for name, array in arrays.items() if name not in names}


def change(name: str, to: Callable) -> Callable[[dict], dict]:
    return lambda arrays: {**arrays, name: np.asarray(to(arrays[name]))}


DAMAGED = {
    **{f"no {name}": drop(name) for name in ("done", "state0", "state1", "rows/value", "batch/value", "settings",
                                             "unreadable", "layout")},
    "no rows": drop(*(f"{kind}/{name}" for kind in ("rows", "batch") for name in ("image", "value", "mean"))),
    "no values": drop("rows/value", "batch/value"),
    "an array more": lambda arrays: {**arrays, "state2": np.zeros(3)},
    "state of another shape": change("state0", lambda x: x[:1]),
    "state of another type": change("state0", np.float64),
    "rows of another shape": change("rows/value", lambda x: x[:, :2]),
    "rows of another type": change("rows/value", np.float64),
    "fewer rows": change("rows/value", lambda x: x[:-1]),
    "fewer batch numbers": change("batch/value", lambda x: x[:-1]),
    "batch numbers in two dimensions": change("batch/value", lambda x: x[:, None]),
    "batch numbers that are text": change("batch/value", lambda x: x.astype(str)),
    "done is text": change("done", lambda x: "three"),
    "done is a list": change("done", lambda x: [3, 3]),
    "settings are no JSON": change("settings", lambda x: "{"),
    "settings are a list": change("settings", lambda x: "[]"),
    "settings are a number": change("settings", lambda x: "3"),
    "unreadable is a number": change("unreadable", lambda x: "3"),
    "unreadable has no reasons": change("unreadable", lambda x: "[[3]]"),
    "a batch more than there is": change("done", lambda x: BATCHES + 1),
    "less than no batch": change("done", lambda x: -1),
    "batch numbers beyond those done": change("batch/value", lambda x: x + 1),
    "an unreadable image beyond those done": change("unreadable", lambda x: json.dumps([[COUNT - 1, "broken"]])),
}  # fmt: skip


@pytest.fixture
def interrupted(tmp_path) -> Path:
    """The file of a pass that was interrupted after three batches."""
    path = tmp_path / "p.npz"
    with pytest.raises(KeyboardInterrupt):
        whole_pass(path, stops("interrupt", 2))
    return path


def assert_refused(path: Path) -> None:
    """In one line that names the file to remove; the file stays as it is, and no batch is computed."""
    before = path.read_bytes()
    with pytest.raises(qkjax.QkjaxError) as error:
        whole_pass(path, lambda *_: pytest.fail("it resumed"))
    text = str(error.value)
    assert "\n" not in text
    assert f"remove {path} to start again" in text or (
        f"{path} (" in text and text.endswith("remove this file to start again, or pass fresh=True")
    )
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_progress_is_refused(interrupted, damage):
    with np.load(interrupted) as file:
        arrays = dict(file)
    with open(interrupted, "wb") as file:
        np.savez(file, **DAMAGED[damage](arrays))
    assert_refused(interrupted)


@pytest.mark.parametrize("data", [b"", b"garbage", b"PK\x03\x04 garbage", b"\x93NUMPY garbage"])
def test_garbage_is_refused(interrupted, data):
    interrupted.write_bytes(data)
    assert_refused(interrupted)


def test_damaged_bytes_are_refused(interrupted, whole):
    """Cut anywhere, or with a byte that differs, in any of 60 places: refused, or, where the byte does not count, the
    same result."""
    data = interrupted.read_bytes()
    for at in range(0, len(data), len(data) // 60):
        interrupted.write_bytes(data[:at])
        assert_refused(interrupted)
        interrupted.write_bytes(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])
        try:
            result = whole_pass(interrupted)
        except qkjax.QkjaxError as error:
            assert "to start again" in str(error)
        else:
            assert_equal(result, whole)


def test_object_arrays_are_not_unpickled(interrupted):
    with np.load(interrupted) as file:
        arrays = dict(file)
    with open(interrupted, "wb") as file:
        np.savez(file, **{**arrays, "state0": np.array([print], object)})
    assert_refused(interrupted)


def test_state_of_another_program_is_refused(interrupted):
    """The file is as it was written, and the pass has changed."""
    for state in (
        State(np.zeros((2, 3), np.float64), blank().seen),
        State(np.zeros((3, 3), np.float32), blank().seen),
        (*blank(), np.zeros(2)),
        blank()[:1],
    ):
        with pytest.raises(qkjax.QkjaxError, match=r"p\.npz .*remove this file to start again"):
            whole_pass(interrupted, state=state)


def test_other_settings_are_refused(interrupted):
    with pytest.raises(
        qkjax.QkjaxError,
        match=r"different settings \(a\): run again with the same .*, or remove .*p\.npz to start again",
    ):
        whole_pass(interrupted, settings={"a": "2"})


def test_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(qkjax.QkjaxError, match="cannot write"):
        whole_pass(tmp_path / "file" / "p.npz")


ARRAYS = {
    "text": np.array(["", "a"]),
    "none": np.zeros((0, 3), np.int8),
    "scalar": np.array(2.5),
    "file": np.array(True),
    "big": np.arange(1000, dtype=np.float64).reshape(10, 100),
}


def test_gather_arrays_in_one_process():
    (part,) = hosts.gather_arrays(ARRAYS)
    assert list(part) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert (part[name].dtype, part[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(part[name], array)
    assert hosts.gather_arrays({}) == [{}]


HOST = """
import sys
sys.path.insert(0, {tests!r})
import os
os.chdir({folder!r})
import numpy as np
from qkjax.runtime import hosts
hosts.join()
import jax
import test_engine
process = jax.process_index()
own = {{"own": np.arange(3 * process, dtype=np.int16), f"only{{process}}": np.full((2, process), 0.1)}}
parts = hosts.gather_arrays(own)
assert len(parts) == jax.process_count()
for i, part in enumerate(parts):
    assert list(part) == ["own", f"only{{i}}"]
    assert part["own"].dtype == np.int16 and part["own"].tolist() == list(range(3 * i))
    np.testing.assert_array_equal(part[f"only{{i}}"], np.full((2, i), 0.1))
assert [list(part) for part in hosts.gather_arrays({{}} if process else own)][1:] == [[]] * (jax.process_count() - 1)
test_engine.save_pass(process)
"""


def host(folder: Path) -> list[str]:
    """A process that runs `save_pass` in a folder, after it has checked `gather_arrays`."""
    return [sys.executable, "-c", HOST.format(tests=str(Path(__file__).parent), folder=str(folder))]


def save_pass(process: int) -> None:
    """One of several processes: the whole pass, into a file for each process."""
    engine.SAVE_SECONDS = -1
    result = whole_pass(Path(f"partial{process}.npz"))
    values = {**result.state._asdict(), **result.rows, "unreadable": np.array(json.dumps(result.unreadable))}
    np.savez(f"host{process}.npz", **values)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, BATCHES + 1])
def test_hosts_share_a_pass(tmp_path, whole, count):
    """Each has the whole result: rows in order as from one process, to the bit. One host may have no batch at all."""
    for done in run_hosts(*[host(tmp_path)] * count):
        assert done.returncode == 0, done.stderr
    shares = [run_pass(step, blank(), GROUPS[i::count], batches, None, SETTINGS).state for i in range(count)]
    for i in range(count):
        with np.load(tmp_path / f"host{i}.npz") as file:
            for name, rows in whole.rows.items():
                assert file[name].dtype == rows.dtype
                np.testing.assert_array_equal(file[name], rows)
            for name, array in merge(shares)._asdict().items():
                np.testing.assert_array_equal(file[name], array)
            assert json.loads(str(file["unreadable"])) == [list(item) for item in whole.unreadable]
    with pytest.raises(qkjax.QkjaxError, match=r"different settings \(process\)"):
        whole_pass(tmp_path / "partial0.npz")
