"""The command line: reads options, calls an analysis, hands its result to the writer; computes nothing itself."""

import os
import signal
import sys
import warnings

# LAPACK is called from XLA's threads and ours, with which OpenBLAS's only compete. numpy reads this on import.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import tyro
from tyro.conf import FlagCreatePairsOff

from qkjax.cli.ablation import ablate
from qkjax.cli.analysis import analyze, compare
from qkjax.cli.behaviour import objects, preference
from qkjax.cli.checkpoints import export, fetch, models
from qkjax.cli.options import in_options
from qkjax.cli.pictures import image, top_images
from qkjax.cli.plain_help import with_plain_help
from qkjax.cli.report import report
from qkjax.cli.training import training_commands
from qkjax.errors import AssumptionWarning, QkjaxError, nearest

# Only light modules are imported above: `qkjax --help` must answer at once.

COMMANDS = {
    "analyze": analyze,
    "compare": compare,
    "image": image,
    "top-images": top_images,
    "preference": preference,
    "objects": objects,
    "ablate": ablate,
    "report": report,
    "models": models,
    "fetch": fetch,
    "export": export,
}
ALIASES = {"modes": "top-images"}


def main() -> None:
    """Entry point of the `qkjax` command: exit code 0, 2 for bad input, 130 when interrupted."""
    warnings.showwarning = _show_warning
    try:
        _run(sys.argv[1:])
        sys.stdout.flush()
    except QkjaxError as error:
        print(f"qkjax: error: {in_options(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one is enough
        print("qkjax: interrupted; finished work is kept", file=sys.stderr, flush=True)
        os._exit(130)  # an orderly exit would pull Python away from under XLA's running threads, which crashes
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        _drop_output()
    except OSError as error:
        print(f"qkjax: error: {error}", file=sys.stderr)
        _drop_output()
        sys.exit(2)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        print("qkjax: error: this does not fit in memory: give a smaller --resolution or --batch", file=sys.stderr)
        sys.exit(2)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Prints what was assumed of a checkpoint as a note, and other warnings in a line."""
    kind = "note" if issubclass(category, AssumptionWarning) else category.__name__
    print(f"{kind}: {message}", file=sys.stderr)


def _run(arguments: list[str]) -> None:
    """Runs a command.

    Raises:
      QkjaxError: an unknown command, or what the command raises.
    """
    if arguments[:1] == ["--version"]:
        from importlib.metadata import version

        print(f"qkjax {version('qkjax')}")
        return
    command, *options = arguments or ["--help"]
    command = ALIASES.get(command, command)
    training = training_commands([command, *options])
    if not command.startswith("-") and command not in {**COMMANDS, **training}:
        names = [*COMMANDS, *training]
        raise QkjaxError(f"unknown command {command!r}{nearest(command, names)}; the commands are {', '.join(names)}")
    tyro.extras.subcommand_cli_from_dict(
        {name: with_plain_help(function) for name, function in {**COMMANDS, **training}.items()},
        args=[command, *options],
        prog="qkjax",
        description="Analyses the query-key interaction of vision transformers.",
        config=(FlagCreatePairsOff,),
    )


def _is_out_of_memory(error: Exception) -> bool:
    """Whether jax ran out of memory; told by names, since jax is not imported when nothing is computed."""
    from_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    signs = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "allocat", "YNNPACK")
    return isinstance(error, MemoryError) or (from_jax and any(sign in str(error) for sign in signs))


def _drop_output() -> None:
    """Discards what is still to be written to standard output; without this Python would try again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
