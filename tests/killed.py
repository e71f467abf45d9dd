"""Kills training at random moments, and compares where it ends: python killed.py {train,sweep} FOLDER KILLS.

Each attempt is a fork of this process, which has imported everything and started no threads; so a kill costs little.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import grain
import jax
import numpy as np
import orbax.checkpoint
import sklearn.datasets

from qkjax.train.config import TrainConfig
from qkjax.train.run import train
from qkjax.train.sweep import sweep

assert grain and sklearn.datasets and orbax.checkpoint
CONFIG = TrainConfig(width=16, depth=1, heads=1, mlp_dim=16, steps=45, warmup=0, every=3, batch=8)
KINDS = {"train": lambda folder: train(CONFIG, folder), "sweep": lambda folder: sweep(CONFIG, ("free",), 1, folder)}


def start(kind: str, folder: Path) -> int:
    """The process that trains in a folder."""
    if (child := os.fork()) > 0:
        return child
    try:
        jax.config.update("jax_compilation_cache_dir", str(folder.parent / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        KINDS[kind](folder)
        code = 0
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(locals().get("code", 1))


def ended(folder: Path) -> dict[str, bytes]:
    """The model of the run, bit for bit, its metrics, and the names of all files except orbax's."""
    own = next(folder.rglob("model.npz")).parent
    with np.load(own / "model.npz") as file:
        arrays = {name: file[name].tobytes() for name in file}
    steps = {path.relative_to(folder).as_posix(): b"" for path in folder.rglob("checkpoints/*")}
    names = {p.relative_to(folder).as_posix(): b"" for p in folder.rglob("*") if "checkpoints" not in p.parts}
    return arrays | steps | names | {"metrics": (own / "metrics.jsonl").read_bytes()}


def main(kind: str, home: Path, kills: int) -> None:
    """Trains once without and many times with kills."""
    began, rng = time.monotonic(), random.Random(0)
    for _ in range(2):  # the second one is compiled
        shutil.rmtree(home / "whole", ignore_errors=True)
        began = time.monotonic()
        assert os.waitpid(start(kind, home / "whole"), 0)[1] == 0
    duration, codes = time.monotonic() - began, []
    while len(codes) < kills or codes[-1] != 0:
        child = start(kind, home / "killed")
        if len(codes) < kills:
            time.sleep(rng.uniform(0, duration))
            os.kill(child, rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        assert codes[-1] in (0, 130, -signal.SIGKILL, -signal.SIGTERM), codes
        if codes[-1] == 0:
            whole, killed = (ended(home / name) for name in ("whole", "killed"))
            assert killed == whole, sorted(name for name in whole | killed if whole.get(name) != killed.get(name))
            shutil.rmtree(home / "killed")
    print(f"{len(codes)} processes, {len(codes) - codes.count(0)} killed, {duration:.1f} s for a whole run")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
