"""Commands in processes of their own: slow enough to be killed, or sharing one job as several hosts do."""

import os
import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

CODE = """
import sys, time
from qkjax.passes import engine
if "--slow" in sys.argv:  # saves after every batch, and leaves time to be killed
    sys.argv.remove("--slow")
    from qkjax.passes import progress
    write = progress.write_partial
    engine.SAVE_SECONDS = 0
    progress.write_partial = lambda *arguments: (write(*arguments), time.sleep(0.2))
from qkjax.cli import main
main()
"""
"""The command line, for `python -c`."""


def small_pictures(folder: Path, count: int) -> Path:
    """Writes small pictures to a folder, one of which cannot be read; returns the folder."""
    rng = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(folder / f"{index:02d}.png")
    (folder / "05.png").write_bytes(b"no picture")
    return folder


def run_hosts(*commands: Sequence, timeout: float = 300, **environment: str) -> list[subprocess.CompletedProcess]:
    """One process for each command, on the CPU, with its exit code and output; they join each other if their commands
    have `--distributed`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(len(commands)), "JAX_PLATFORMS": "cpu"}
    env = os.environ | shared | environment

    def run(index: int) -> subprocess.CompletedProcess:
        words = [*map(str, commands[index])]
        env_of_one = env | {"JAX_PROCESS_ID": str(index)}
        return subprocess.run(words, env=env_of_one, capture_output=True, text=True, check=False, timeout=timeout)

    with ThreadPoolExecutor(len(commands)) as pool:  # at once: none waits for another whose pipe is full
        return list(pool.map(run, range(len(commands))))
