"""Processes on this machine that share one job, as several hosts would."""

import os
import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor


def run_hosts(*commands: Sequence, **options) -> list[tuple[int, str]]:
    """Exit code and standard error of one process for each command, on the CPU; they join each other if their command
    has `--distributed`.

    Args:
      options: of `subprocess.Popen`, such as `cwd`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(len(commands)), "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [*map(str, command)], env=os.environ | shared | {"JAX_PROCESS_ID": str(i)}, stderr=subprocess.PIPE,
            text=True, **options,
        )
        for i, command in enumerate(commands)
    ]  # fmt: skip
    try:
        with ThreadPoolExecutor() as pool:  # at once: a process whose pipe is full would wait, and the others for it
            errors = list(pool.map(lambda process: process.communicate(timeout=200)[1], processes))
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, errors, strict=True)]
