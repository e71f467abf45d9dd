"""The command line: composes the rooms of the package, computes nothing itself."""

import os
import signal
import sys

# LAPACK is called from XLA's threads and ours, with which OpenBLAS's only fight. It looks when numpy is first imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import tyro
from tyro.conf import FlagCreatePairsOff

from qkjax.cli.analysis import analyze, compare, image, modes
from qkjax.cli.behaviour import ablate, objects, preference
from qkjax.cli.checkpoints import export, fetch, models
from qkjax.cli.report import report
from qkjax.cli.training import training_commands
from qkjax.errors import QkjaxError

# Only light modules are imported above: `qkjax --help` must answer at once.


def main() -> None:
    """Entry point of the `qkjax` command: exit code 0, 2 for bad input, 130 when interrupted."""
    try:
        commands = {
            "analyze": analyze,
            "compare": compare,
            "image": image,
            "modes": modes,
            "preference": preference,
            "objects": objects,
            "ablate": ablate,
            "report": report,
            **training_commands(sys.argv[1:]),
            "models": models,
            "fetch": fetch,
            "export": export,
        }
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="qkjax",
            description="Dissects the query-key interaction of vision transformers.",
            config=(FlagCreatePairsOff,),
        )
        sys.stdout.flush()
    except QkjaxError as error:
        print(f"qkjax: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one was enough
        print("qkjax: interrupted; what was finished is kept", file=sys.stderr, flush=True)
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


def _is_out_of_memory(error: Exception) -> bool:
    """Of jax's errors by name, since jax is not imported where nothing is computed."""
    from_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    signs = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "allocat", "YNNPACK")
    return isinstance(error, MemoryError) or (from_jax and any(sign in str(error) for sign in signs))


def _drop_output() -> None:
    """What is still to be written to standard output cannot be; without this Python would try again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
