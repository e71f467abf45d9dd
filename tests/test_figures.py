"""Figures load little, and say what they show in plain words."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import qkjax
from qkjax import QkjaxError, figures
from qkjax.figures.sheets import SheetRow, Tile, top_images_sheet
from qkjax.figures.style import look

KERNELS = np.random.default_rng(0).standard_normal((13, 2, 2, 8, 2, 3)).astype(np.float32)


def test_sheets_need_neither_jax_nor_scipy():
    """Processes that draw sheets start in half a second because of it."""
    code = (
        "import sys, qkjax.figures.sheets, qkjax.figures.style;"
        "print([name for name in ('jax', 'flax', 'scipy', 'xarray', 'pandas') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_name_of_the_package_can_be_imported():
    for name in figures.__all__:
        assert getattr(figures, name) is not None
    assert callable(figures.overlay)
    with pytest.raises(AttributeError, match="no attribute 'overlays'"):
        figures.overlays  # noqa: B018


def sheet_jobs(folder: Path, count: int):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (28, 42, 3), dtype=np.uint8)
    for place in range(count):
        yield (
            folder / f"{place}",
            (f"sheet {place}", [SheetRow("L0 H0 M0", [Tile(picture, *rng.random((2, 2, 3)), "")])]),
        )


def test_processes_draw_the_same_files_in_order(tmp_path):
    alone = list(figures.save_all(sheet_jobs(tmp_path / "alone", 5), 5, top_images_sheet, (".png",), workers=1))
    several = list(figures.save_all(sheet_jobs(tmp_path / "several", 5), 5, top_images_sheet, (".png",), workers=2))
    assert [path.name for path in several] == [path.name for path in alone] == [f"{i}.png" for i in range(5)]
    for one, other in zip(alone, several, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_jobs_are_read_as_they_are_needed(tmp_path):
    read = []

    def jobs():
        for job in sheet_jobs(tmp_path, 50):
            read.append(job)
            yield job

    saved = figures.save_all(jobs(), 50, top_images_sheet, (".png",), workers=2)
    next(saved)
    assert len(read) <= 5
    saved.close()
    assert not list(tmp_path.glob(".*")), "no half-written file is left"


def test_an_error_of_a_process_is_raised(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QkjaxError, match="cannot write"):
        list(figures.save_all(sheet_jobs(tmp_path / "file", 5), 5, top_images_sheet, (".png",), workers=2))


def test_what_a_dead_process_leaves_is_drawn_here(tmp_path, monkeypatch):
    from qkjax.figures import many

    monkeypatch.setattr(many, "START", "import sys; sys.exit(3)")
    paths = list(figures.save_all(sheet_jobs(tmp_path, 4), 4, top_images_sheet, (".png",), workers=2))
    assert all(path.is_file() for path in paths)


SCRIPT = """
import signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells ignore it for what runs in the background
print("script runs", flush=True)
from test_figures import sheet_jobs
from qkjax.figures import save_all
from qkjax.figures.sheets import top_images_sheet
for path in save_all(sheet_jobs(Path({out!r}), {count}), {count}, top_images_sheet, (".png",), workers=2):
    print(path, flush=True)
"""


@pytest.mark.parametrize("stop", [None, signal.SIGINT, signal.SIGKILL])
def test_scripts_without_a_guard(tmp_path, stop):
    """The script runs once; when it is stopped its processes end, too."""
    text = SCRIPT.format(tests=str(Path(__file__).parent), out=str(tmp_path), count=5 if stop is None else 5000)
    (tmp_path / "script.py").write_text(text)
    environment = {**os.environ, "QKJAX_TEST_MARK": str(tmp_path)}
    command = [sys.executable, tmp_path / "script.py"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, env=environment, **streams) as process:
        first = process.stdout.readline(), process.stdout.readline()
        assert first == ("script runs\n", f"{tmp_path / '0.png'}\n")
        if stop is not None:
            process.send_signal(stop)
        rest = process.stdout.read()
    assert process.returncode == (0 if stop is None else -stop)
    assert stop is not None or rest.count(".png") == 4
    deadline = time.monotonic() + 20
    while _marked(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _marked(str(tmp_path))


def _marked(mark: str) -> list[str]:
    """Processes that were started with a mark in their environment."""
    own = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"QKJAX_TEST_MARK={mark}".encode() in path.read_bytes():
                own.append(path.parent.name)
        except OSError:  # it has just ended, or is another user's
            continue
    return own


def test_saving_leaves_the_figure_as_it_is(tmp_path):
    figure = Figure(figsize=(3, 2), layout="constrained")
    figure.subplots().set(xlabel="layer", title="a title that is wider than its axes are, and must not be cut off")
    engine, dpi = figure.get_layout_engine(), figure.dpi
    first = [path.read_bytes() for path in figures.save(figure, tmp_path / "figure")]
    assert figure.get_layout_engine() is engine
    assert figure.dpi == dpi
    assert [path.read_bytes() for path in figures.save(figure, tmp_path / "figure")] == first


def test_curves_of_many_models_look_different():
    """Up to 24 models of their own groups, and up to six groups of 24 models."""
    for looks in ([look(group) for group in range(24)], [look(i, j) for i in range(6) for j in range(24)]):
        assert len({tuple(style.values()) for style in looks}) == len(looks)
    measured = {f"model {i}": qkjax.measure(qkjax.decompose(*KERNELS[i])) for i in range(13)}
    for objectives in (None, dict.fromkeys(measured, "supervised")):
        lines = figures.cosine_by_layer(measured, objectives).axes[0].lines
        styles = {
            (x.get_color(), x.get_marker(), x.get_linestyle()) for x in lines if x.get_label().startswith("model")
        }
        assert len(styles) == 13
