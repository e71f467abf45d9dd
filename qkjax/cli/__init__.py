"""The command line, which reads options, calls an analysis, and passes the result to a writer."""

import _thread
import os
import signal
import sys
import threading
import warnings
from contextlib import redirect_stderr, redirect_stdout

# XLA's threads and our own threads call LAPACK, and OpenBLAS's threads would compete with both. numpy reads this
# variable when it is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from qkjax.cli.ablation import ablate
from qkjax.cli.analysis import analyze, compare, composition
from qkjax.cli.behaviour import objects, preference
from qkjax.cli.checkpoints import export, fetch, models
from qkjax.cli.options import in_options
from qkjax.cli.parse import parse
from qkjax.cli.pictures import image, top_images
from qkjax.cli.remote_out import local_out
from qkjax.cli.report import report
from qkjax.cli.sinks import sinks
from qkjax.cli.tokens import tokens
from qkjax.cli.training import training_commands
from qkjax.errors import AssumptionWarning, QkjaxError, ShardFinished, nearest
from qkjax.runtime.compilation_cache import use_compilation_cache
from qkjax.runtime.visible import VisibleStream, visible

# Only light modules are imported above, so that `qkjax --help` is fast.

COMMANDS = {
    "analyze": analyze,
    "composition": composition,
    "compare": compare,
    "image": image,
    "top-images": top_images,
    "preference": preference,
    "objects": objects,
    "sinks": sinks,
    "tokens": tokens,
    "ablate": ablate,
    "report": report,
    "models": models,
    "fetch": fetch,
    "export": export,
}
ALIASES = {"modes": "top-images"}


def main() -> None:
    """Entry point of the `qkjax` command. Exit codes: 0 for success, 2 for invalid input, 130 for an interrupt.

    After an error, the process ends at once if a library has left threads for which Python would wait. Orbax's threads,
    for example, wait for ten minutes if a checkpoint cannot be written.
    """
    try:
        run_command()
    except SystemExit as stop:
        if stop.code == 2 and _threads_left():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(2)
        raise


def _threads_left() -> bool:
    """Whether another thread runs for which Python would wait at exit."""
    others = set(threading.enumerate()) - {threading.main_thread()}
    return any(not thread.daemon for thread in others)


def run_command() -> None:
    """Runs the command in `sys.argv`, and prints an error on one line.

    Raises:
      SystemExit: the command failed, or has printed its help.
    """
    _open_closed_streams()
    with redirect_stdout(VisibleStream(sys.stdout)), redirect_stderr(VisibleStream(sys.stderr)):
        _main()


def _open_closed_streams() -> None:
    """Connects each standard stream that the caller has closed, as `>&-` does, to the null device.

    Otherwise, the next file that is opened would get the number of the stream, and output would go to this file.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 (open until the process ends)
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _main() -> None:
    warnings.showwarning = _show_warning
    sys.unraisablehook = _pass_interrupt_on
    try:
        _run(sys.argv[1:])
        sys.stdout.flush()
    except QkjaxError as error:
        print(f"qkjax: error: {visible(in_options(str(error)))}", file=sys.stderr)
        sys.exit(2)
    except ShardFinished as finished:
        print(visible(str(finished)), file=sys.stderr)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # ignore further interrupts
        print("qkjax: interrupted; finished work is saved", file=sys.stderr, flush=True)
        os._exit(130)  # a normal exit would finalise Python while XLA's threads run, which crashes
    except BrokenPipeError:  # the reader of the output, such as `head`, has exited
        _drop_output()
    except OSError as error:
        print(f"qkjax: error: {visible(str(error))}", file=sys.stderr)
        _drop_output()
        sys.exit(2)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        print("qkjax: error: out of memory: pass a smaller --resolution or --batch", file=sys.stderr)
        sys.exit(2)


def _pass_interrupt_on(unraisable) -> None:
    """If an interrupt was raised inside a garbage-collector callback (JAX has one), raises this interrupt again.

    Without this hook, Python would print the exception and continue. A timer raises the interrupt, because this hook
    itself cannot raise exceptions.
    """
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        threading.Timer(0.01, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(unraisable)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    """Prints a warning on one line. A warning that qkjax assumed a value for a checkpoint is printed as a note."""
    kind = "note" if issubclass(category, AssumptionWarning) else category.__name__
    print(f"{kind}: {visible(str(message))}", file=sys.stderr)


def _run(arguments: list[str]) -> None:
    """Runs the command given by the command-line arguments.

    Raises:
      QkjaxError: the command is unknown, or the command itself raises QkjaxError.
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
    if not {"-h", "--help"} & {command, *options}:
        use_compilation_cache()
    with local_out(options) as local_options:
        parse({**COMMANDS, **training}, [command, *local_options])()


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an exception means that memory ran out.

    Exceptions of JAX are recognised by the name of their type, since JAX may not be imported yet.
    """
    from_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    signs = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "allocat", "YNNPACK")
    return isinstance(error, MemoryError) or (from_jax and any(sign in str(error) for sign in signs))


def _drop_output() -> None:
    """Discards the remaining standard output, which Python would otherwise try to write at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
