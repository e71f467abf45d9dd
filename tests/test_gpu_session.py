"""The benchmark for a device that is available for minutes, with tiny shapes on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu import session  # noqa: E402
from benchmarks.gpu.journal import Journal  # noqa: E402
from benchmarks.gpu.rows import ROWS  # noqa: E402
from benchmarks.gpu.table import by_device, floor_ms, markdown, ratios, with_table  # noqa: E402

NOT_ON_A_CPU = {
    "product, TF32x3",
    "svd POLAR of cores ViT-H",
    "svd JACOBI of cores ViT-H",
    "eigh JACOBI of the Gram matrices of cores ViT-H",
}
"""Rows that jax does not run on a CPU; they must be reported as failed."""


def run(folder: Path, *words: str) -> list[dict]:
    command = [sys.executable, "-m", "benchmarks", "gpu", "--tiny", "--seconds", "280", "--out", folder, *words]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True)
    return Journal(folder / "rows.jsonl").lines()


def test_rows_are_kept_and_only_missing_rows_are_measured_again(tmp_path):
    some = ["--only", "product, bf16", "product, TF32x3", "copy", "decompose ViT-S"]
    lines = run(tmp_path, *some)
    names = [line["row"] for line in lines if "ms" in line]
    assert names == ["product, bf16", "copy", "decompose ViT-S", "decompose ViT-S, condition 1e4"]
    failed = [line["row"] for line in lines if "failed" in line]
    assert failed == ["product, TF32x3"]
    assert all(line["error"] < 1e-5 for line in lines if line["row"].startswith("decompose") and "ms" in line)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"row": "cut o')  # a process that died while it wrote
    again = run(tmp_path, *some, "host to device")[len(lines) :]
    assert [line["row"] for line in again if "ms" in line] == ["host to device"]
    assert again[0]["row"] == "session"
    rows = by_device(lines)["cpu, tiny"]
    assert "product, TF32x3: failed" in markdown(rows)
    assert "top-images of JPEG files, ViT-S float32: not run" in markdown(rows)


@pytest.mark.slow
def test_every_row_runs(tmp_path):
    """Rows whose library is not installed are left out by name."""
    rows = by_device(run(tmp_path))["cpu, tiny"]
    failed = {name for name, line in rows.items() if "failed" in line}
    left_out = {name: line["left_out"] for name, line in rows.items() if "left_out" in line}
    assert failed == NOT_ON_A_CPU
    assert all(reason.endswith("is not installed") for reason in left_out.values()), left_out
    assert set(rows) == {row.name for row in ROWS} | {"session"}


def test_a_process_that_dies_costs_one_row(tmp_path, monkeypatch):
    journal, rows, processes = Journal(tmp_path / "rows.jsonl"), list(ROWS[:3]), []

    def watched(rows, library, tiny, ends, journal, before):
        processes.append([row.name for row in rows])
        for row in rows:
            journal.write(row.name, started=True)
            if row.name == ROWS[1].name:
                return "its process ended with code -11"
            journal.write(row.name, device="d", ms=1.0)
        return None

    monkeypatch.setattr(session, "_watched", watched)
    session._run(rows, "jax", False, session.time.time() + 100, journal)
    first, second, third = (row.name for row in rows)
    assert processes == [[first, second, third], [third]]
    assert journal.measured("d") == {first, third}
    assert [line["failed"] for line in journal.lines() if "failed" in line] == ["its process ended with code -11"]


def test_rows_that_do_not_fit_are_named(tmp_path):
    journal = Journal(tmp_path / "rows.jsonl")
    session._run(list(ROWS[:2]), "jax", False, session.time.time() - 1, journal)
    assert [(line["row"], line["left_out"]) for line in journal.lines()] == [
        (row.name, "no time was left") for row in ROWS[:2]
    ]


def test_floors_and_ratios_by_hand():
    lines = [
        {"row": "session", "device": "d"},
        {"row": "product, bf16", "device": "d", "ms": 1.0, "tflops": 500.0},
        {"row": "copy", "device": "d", "ms": 1.0, "gb_s": 2000.0},
        {"row": "scan ViT-S bfloat16 batch 64", "device": "d", "ms": 8.0, "flop": 1e12, "bytes": 2e9, "unit": "bf16"},
        {"row": "forward ViT-S bfloat16 batch 64", "device": "d", "ms": 6.0},
        {"row": "scan ViT-S bfloat16 batch 64", "device": "d", "failed": "later"},
    ]
    rows = by_device(lines)["d"]
    scan = rows["scan ViT-S bfloat16 batch 64"]
    assert floor_ms(scan, rows) == (2.0, "bf16")  # 1 TFLOP at 500 TFLOP/s; 2 GB at 2 TB/s take 1 ms
    assert floor_ms({**scan, "bytes": 8e9}, rows) == (4.0, "bytes")
    assert "| scan ViT-S bfloat16 batch 64 | 8 | forward ViT-S bfloat16 batch 64 | 6 | 0.75 |" in ratios(rows)
    assert "| scan ViT-S bfloat16 batch 64 | 8 |  | 2 (bf16) | 4 |" in markdown(rows)


def test_table_in_the_docs_is_added_and_replaced():
    page = "# A\n\n## Measured on a GPU\n\nText.\n\n## Next\n"
    first = with_table(page, "H100", "one")
    assert first == "# A\n\n## Measured on a GPU\n\nText.\n\n<!-- gpu: H100 -->\none\n<!-- end -->\n\n## Next\n"
    assert with_table(first, "H100", "two") == first.replace("one", "two")
    with pytest.raises(ValueError, match="no section"):
        with_table("# A", "H100", "one")


def test_names_are_unique_and_lines_are_plain_json(tmp_path):
    assert len({row.name for row in ROWS}) == len(ROWS)
    journal = Journal(tmp_path / "rows.jsonl")
    journal.write("a", ms=1 / 3)
    assert json.loads((tmp_path / "rows.jsonl").read_text())["ms"] == 0.3333
