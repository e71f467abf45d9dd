"""Interrupts every command that writes files, and runs it twice at once: the result is that of an uninterrupted run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.interruptions import COMMANDS, KINDS

from conftest import UNCACHED
from qkjax.cli import COMMANDS as OF_THE_CLI
from qkjax.cli.training import training_commands

TIMES = int(os.environ.get("QKJAX_KILLS") or 1)
"""Interruptions of each kind."""


def run(*options: str) -> str:
    command = [sys.executable, "-m", "tests.fuzz.interruptions", *options]
    root = Path(__file__).parents[1]
    done = subprocess.run(
        command, cwd=root, env=os.environ | UNCACHED, capture_output=True, text=True, timeout=280, check=False
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return done.stdout


def test_every_command_that_writes_is_interrupted():
    assert {*COMMANDS, "models"} == {*OF_THE_CLI, *training_commands([])}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and mounts file systems")
@pytest.mark.parametrize("name", COMMANDS)
def test_interruptions(name):
    run("--commands", name, "--times", str(TIMES * len(KINDS)))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("name", COMMANDS)
def test_two_processes_at_once(name):
    run("--commands", name, "--times", "0", "--pairs", str(TIMES))
