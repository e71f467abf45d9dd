"""Tables from the rows of `python -m benchmarks gpu`: one file per device for benchmarks/results, and its summary.

    python -m benchmarks.gpu.table gpu-results/rows.jsonl                    # writes benchmarks/results/DATE-DEVICE.md
    python -m benchmarks.gpu.table gpu-results/rows.jsonl --docs docs/accelerators.md    # and the docs' table

The docs have a table between the lines `<!-- gpu: DEVICE -->` and `<!-- end -->`, which is replaced, or added at the
end of the section "Measured on a GPU".
"""

import re
from pathlib import Path

import tyro
from tyro.conf import Positional

from benchmarks.gpu.journal import FAILED, LEFT_OUT, STARTED, Journal
from benchmarks.gpu.rows import ROWS

RATES = {"bf16": "product, bf16", "float32 highest": "product, float32 highest"}
"""The row with the rate of each unit."""
HEADING = "## Measured on a GPU"
OTHER = {
    "tflops": "{:.4g} TFLOP/s",
    "gb_s": "{:.4g} GB/s",
    "error": "error {:.1e}",
    "ms_from_host": "{:.4g} ms from the host",
    "one_thread_img_s": "{:.4g} images/s in one thread",
    "cores": "{} cores",
}
"""Further values of a row, and how they are written."""


def by_device(lines: list[dict]) -> dict[str, dict[str, dict]]:
    """Device -> name -> the last line of each row; a measurement is not replaced by a later failure."""
    result: dict[str, dict[str, dict]] = {}
    device = ""
    for line in (line for line in lines if STARTED not in line):
        device = line.get("device", device)
        rows = result.setdefault(device, {})
        missing = FAILED in line or LEFT_OUT in line
        if not missing or line["row"] not in rows or FAILED in rows[line["row"]] or LEFT_OUT in rows[line["row"]]:
            rows[line["row"]] = line
    return result


def floor_ms(line: dict, rows: dict[str, dict]) -> tuple[float, str] | None:
    """The least time that the device's measured limits allow, and the limit that determines it; None if not known."""
    if "flop" not in line:
        return None
    limits = {}
    if "tflops" in (rate := rows.get(RATES[line["unit"]], {})):
        limits[line["unit"]] = 1e3 * line["flop"] / (rate["tflops"] * 1e12)
    if "gb_s" in (copy := rows.get("copy", {})):
        limits["bytes"] = 1e3 * line["bytes"] / (copy["gb_s"] * 1e9)
    name = max(limits, key=limits.get, default=None)
    return None if name is None else (limits[name], name)


def markdown(rows: dict[str, dict]) -> str:
    """All rows of a device in the order of the benchmark, then the rows without a measurement."""
    lines = [
        "| row | ms | images/s | floor, ms (limit) | times the floor | compiles in, s | other |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in (rows[row.name] for row in ROWS if row.name in rows):
        if "ms" not in line and "img_s" not in line:
            continue
        floor = floor_ms(line, rows)
        cells = [_number(line, "ms"), _number(line, "img_s")]
        cells += [f"{floor[0]:.3g} ({floor[1]})", f"{line['ms'] / floor[0]:.3g}"] if floor else ["", ""]
        lines.append(f"| {line['row']} | {' | '.join(cells)} | {_number(line, 'compile_s')} | {_other(line)} |")
    missing = [
        f"- {row.name}: {_reason(rows.get(row.name, {}))}" for row in ROWS if _is_missing(rows.get(row.name, {}))
    ]
    return "\n".join([*lines, *(["", "Rows without a measurement:", "", *missing] if missing else [])])


def ratios(rows: dict[str, dict]) -> str:
    """The comparisons that the project aims at; a comparison is left out if one of its rows is missing."""
    pairs = [
        *((f"scan ViT-{m} bfloat16 batch 64", f"timm compiled forward ViT-{m} bfloat16 batch 64") for m in "SL"),
        ("scan ViT-S bfloat16 batch 256", "timm compiled forward ViT-S bfloat16 batch 256"),
        ("scan ViT-S bfloat16 batch 64", "forward ViT-S bfloat16 batch 64"),
        ("scan ViT-L bfloat16 batch 64", "forward ViT-L bfloat16 batch 64"),
        *(("decompose ViT-H", row.name) for row in ROWS if row.name.endswith("cores ViT-H") or "Factored" in row.name),
        ("decompose ViT-H", "thin products ViT-H"),
        ("train step free batch 256", "plain loop batch 256"),
    ]
    lines = ["| qkjax | ms | compared with | ms | times as fast |", "|---|---|---|---|---|"]
    for ours, peer in pairs:
        a, b = (rows.get(name, {}).get("ms") for name in (ours, peer))
        if a and b:
            lines.append(f"| {ours} | {a:.4g} | {peer} | {b:.4g} | {b / a:.3g} |")
    return "\n".join(lines)


def _number(line: dict, key: str) -> str:
    return f"{line[key]:.4g}" if key in line else ""


def _other(line: dict) -> str:
    return ", ".join(text.format(line[key]) for key, text in OTHER.items() if key in line)


def _is_missing(line: dict) -> bool:
    return "ms" not in line and "img_s" not in line


def _reason(line: dict) -> str:
    if FAILED in line:
        return f"failed, {line[FAILED]}"
    return f"left out, {line[LEFT_OUT]}" if LEFT_OUT in line else "not run"


def with_table(text: str, device: str, table: str) -> str:
    """The docs with the table of a device replaced or added.

    Raises:
      ValueError: the docs have no section for it.
    """
    block = f"<!-- gpu: {device} -->\n{table}\n<!-- end -->"
    before = re.compile(rf"<!-- gpu: {re.escape(device)} -->.*?<!-- end -->", re.S)
    if before.search(text):
        return before.sub(lambda _: block, text)
    if HEADING not in text:
        raise ValueError(f"the docs have no section {HEADING!r}: expected one, add it")
    start = text.index(HEADING)
    end = text.find("\n## ", start + 1)
    end = len(text) if end < 0 else end
    return f"{text[:end].rstrip()}\n\n{block}\n{text[end:]}"


def main(path: Positional[Path], out: Path = Path("benchmarks/results"), docs: Path | None = None) -> None:
    """Writes the tables of every device in the rows.

    Args:
      path: rows.jsonl.
      out: folder of the tables.
      docs: page whose table is updated.
    """
    for device, rows in by_device(Journal(path).lines()).items():
        session = rows.get("session", {})
        date = session.get("time", "")[:10]
        head = f"{date}, {device}, {session.get('cores', '?')} CPU cores\n{session.get('versions', '')}"
        text = f"{head}\n\n{ratios(rows)}\n\n{markdown(rows)}\n"
        out.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        file = out / f"{date}-{name}-session.md"
        file.write_text(text)
        print(f"{text}\nwrote {file}")
        if docs is not None:
            docs.write_text(with_table(docs.read_text(), device, f"{head}\n\n{ratios(rows)}"))
            print(f"wrote {docs}")


if __name__ == "__main__":
    tyro.cli(main)
