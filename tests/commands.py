"""Commands run in the process of the test, which is faster than a process for each."""

from typing import NamedTuple

from qkjax.cli import run_command


class Done(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


def command(monkeypatch, capsys, *words) -> Done:
    """Runs `qkjax WORDS` in this process, which also draws the figures if they are few: other processes would draw the
    same files (tests/test_figures.py), and take longer to start.
    """
    monkeypatch.setattr("sys.argv", ["qkjax", *map(str, words)])
    monkeypatch.setattr("qkjax.figures.many.FEW", 8)
    capsys.readouterr()
    code = 0
    try:
        run_command()
    except SystemExit as stop:
        code = int(stop.code or 0)
    return Done(code, *capsys.readouterr())
