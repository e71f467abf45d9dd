"""Compiles every program of qkjax for an H100 or a TPU v5e without the device, and tabulates what the compilers report.

    # Python 3.12 or newer
    pip install -e ".[train]" "jax[tpu]==0.11.2"
    python benchmarks/ahead_of_time.py v5e --out v5e.jsonl
    pip install -e ".[train]" jax==0.11.2 jax-cuda13-plugin==0.11.2 jax-cuda13-pjrt==0.11.2 nvidia-cuda-nvcc nvidia-nvvm
    python benchmarks/ahead_of_time.py h100 --out h100.jsonl
    python benchmarks/ahead_of_time.py table v5e.jsonl h100.jsonl      # the table in docs/accelerators.md

Compiling shows which programs do not compile, which library functions they call, and how much memory they need. It
does not show speed: autotuning is off for the H100, because it needs the device. It takes about half an hour on two CPU
cores, so it is run by hand or weekly, not in CI.
"""

import json
import os
import re
import sys
import time
import traceback
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Literal

Target = Literal["h100", "v5e"]

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""The target of XLA's GPU compiler: the properties that NVIDIA documents for an H100 SXM."""

LOOPS = re.compile(r"\b(infeed|outfeed|send|recv|while|sort|all-gather|all-reduce)\(")
CALLS = re.compile(r'custom_call_target="([^"]+)"')
FACTORISATIONS = {
    "h100": re.compile(r"(?:cusolver|cublas\$)_?(potrf|geqrf|orgqr|syevd|gesvdj|gesvd|triangularSolve)"),
    "v5e": re.compile(r"(Cholesky|Eigh|Qr|Svd)"),
}
"""Custom calls of library functions that factorise matrices or solve triangular systems."""


def prepare(target: Target) -> None:
    """Sets the environment that the compilers read; must run before jax is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    if target == "v5e":
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"
        os.environ["TPU_ACCELERATOR_TYPE"] = "v5litepod-4"
        os.environ["TPU_WORKER_HOSTNAMES"], os.environ["TPU_WORKER_ID"] = "localhost", "0"
        return
    toolkits = [Path(p) / "nvidia/cu13" for p in sys.path if (Path(p) / "nvidia/cu13/bin").is_dir()]
    if not toolkits:
        sys.exit("no nvidia/cu13 in this environment: expected the compilers of CUDA 13, pip install nvidia-cuda-nvcc")
    os.environ["PATH"] = f"{toolkits[0] / 'bin'}:{os.environ['PATH']}"
    flags = f"--xla_gpu_cuda_data_dir={toolkits[0]} --xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    os.environ["XLA_FLAGS"] = f"{flags} {os.environ.get('XLA_FLAGS', '')}"


def devices(target: Target) -> list:
    """The devices of a topology that is not there."""
    from jax.experimental import topologies

    if target == "v5e":
        return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    description = topologies.get_topology_desc(
        platform="cuda", topology_name="h100", target_config=H100, topology="1x1x1"
    )
    return description.devices


def compiled(make, device) -> dict:
    """Compiles one program for a device; returns what the compiler reports."""
    import jax
    from jax.sharding import SingleDeviceSharding

    place = SingleDeviceSharding(device)

    def on_device(leaf):
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        return leaf

    function, arguments = make()
    start = time.perf_counter()
    program = function.lower(*jax.tree.map(on_device, arguments)).compile()
    seconds = time.perf_counter() - start
    memory, text = program.memory_analysis(), program.as_text()
    costs = program.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, list) else costs
    return {
        "compile_seconds": round(seconds, 1),
        "gflop": round(costs.get("flops", 0) / 1e9, 1),
        "gb_accessed": round(costs.get("bytes accessed", 0) / 1e9, 2),
        "temporary_gb": round(memory.temp_size_in_bytes / 1e9, 3),
        "argument_gb": round(memory.argument_size_in_bytes / 1e9, 3),
        "output_gb": round(memory.output_size_in_bytes / 1e9, 3),
        "loops": dict(Counter(LOOPS.findall(text))),
        "calls": dict(Counter(CALLS.findall(text))),
    }


def main(target: Target, names: list[str], out: Path) -> int:
    """Compiles all programs whose name contains one of `names`; returns the number of failures."""
    prepare(target)
    import jax

    found = devices(target)
    jax.default_backend = lambda: {"h100": "gpu", "v5e": "tpu"}[target]  # qkjax chooses the accelerator's methods
    from accelerator_programs import PROGRAMS

    failures = 0
    with out.open("a") as rows:
        for name, make in PROGRAMS.items():
            if names and not any(part in name for part in names):
                continue
            row = {"target": target, "program": name, "jax": jax.__version__, "date": str(date.today())}
            try:
                row |= compiled(make, found[0])
            except Exception as error:
                failures += 1
                row |= {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
                traceback.print_exc(limit=-3)
            rows.write(json.dumps(row) + "\n")
            rows.flush()
            print(json.dumps(row), flush=True)
    return failures


def table(paths: list[Path]) -> str:
    """A markdown table with one row per program, from the rows of one or more targets; later rows replace earlier."""
    rows = {}
    for line in (line for path in paths for line in path.read_text().splitlines()):
        row = json.loads(line)
        rows[row["program"], row["target"]] = row
    targets = list(dict.fromkeys(target for _, target in rows))
    head = [f"{t}: {what}" for t in targets for what in ("temporary memory, GB", "library calls")]
    lines = [f"| program | {' | '.join(head)} |", "|---" * (len(head) + 1) + "|"]
    for program in dict.fromkeys(program for program, _ in rows):
        cells = [cell for target in targets for cell in _cells(rows.get((program, target)))]
        lines.append(f"| {program} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cells(row: dict | None) -> tuple[str, str]:
    if row is None:
        return "not compiled", ""
    if "failed" in row:
        return f"**fails**: {row['failed'][:80]}", ""
    matches = [(FACTORISATIONS[row["target"]].search(name), count) for name, count in row["calls"].items()]
    counts = Counter()
    for match, count in matches:
        if match:
            counts[match[1]] += count
    return f"{row['temporary_gb']:.2f}", ", ".join(f"{name} {n}" for name, n in sorted(counts.items())) or "none"


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["table"] and words[1:]:
        print(table([Path(word) for word in words[1:]]))
    elif words[:1] and words[0] in ("h100", "v5e"):
        at = words.index("--out") if "--out" in words else len(words)
        sys.exit(min(main(words[0], words[1:at], Path([*words[at + 1 :], f"{words[0]}.jsonl"][0])), 1))
    else:
        sys.exit("expected h100, v5e or table: python benchmarks/ahead_of_time.py h100 [NAME...] [--out FILE]")
