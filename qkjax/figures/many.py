"""Draws and saves many figures, in several processes at the same time."""

import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO

from matplotlib.figure import Figure

from qkjax.cores import cores
from qkjax.figures.style import FORMATS, save

FEW = 2
"""Largest number of figures that this process alone draws faster than several processes, which must first start."""
START = "import sys; sys.path[:] = {path!r}; from qkjax.figures.many import serve; serve()"

Job = tuple[Path, tuple]


def save_all(
    jobs: Iterable[Job],
    count: int,
    draw: Callable[..., Figure],
    formats: Sequence[str] = tuple(FORMATS),
    workers: int | None = None,
) -> Iterator[Path]:
    """Draws and saves figures in separate processes; yields the path of each file, in order, once it is written.

    The number of jobs in memory is at most twice the number of processes. The processes import the module of `draw`,
    but not the main script. The function therefore also works in notebooks, and in scripts without `if __name__ ==
    "__main__"`. If there are at most two figures, or other processes cannot import `draw`, this process draws all
    figures itself. The worker processes end when the iterator is closed, when the user presses Ctrl-C, or when this
    process dies, and leave no partly written file.

    Args:
      jobs: pairs of a path without a file extension and the arguments of `draw`. Jobs are read from the iterable when
        they are needed.
      count: largest number of jobs. The processes start before the first job is read.
      draw: a function at the top level of a module. This module should import only a few modules, as `sheets` does.
      formats: file extensions, as in the keys of `FORMATS`.
      workers: number of processes; by default, one process per usable core.

    Raises:
      QkjaxError: a file cannot be written.

    Example:
      >>> import numpy as np
      >>> from qkjax.figures.sheets import SheetRow, Tile, top_images_sheet
      >>> tile = Tile(np.zeros((28, 28, 3), np.uint8), np.eye(2), np.eye(2), "3.1")
      >>> jobs = [(Path("sheets") / "L0_H0", ("my model", [SheetRow("L0 H0 M0", [tile])]))]
      >>> [path.as_posix() for path in save_all(jobs, 1, top_images_sheet, (".png",))]
      ['sheets/L0_H0.png']
    """
    workers = min(workers or cores(), count)
    if count <= FEW or workers < 2 or not _importable(draw):
        for stem, arguments in jobs:
            yield from save(draw(*arguments), stem, formats)
        return
    with _processes(workers) as run:
        yield from chain.from_iterable(run((draw, arguments, stem, formats) for stem, arguments in jobs))


def drawn(figure: Figure) -> Figure:
    """Returns the figure unchanged. With this function as `draw`, `save_all` only saves figures already drawn."""
    return figure


def _importable(draw: Callable) -> bool:
    """Whether another process can import the function from its module."""
    if not sys.executable or getattr(draw, "__module__", "__main__") == "__main__":
        return False
    try:
        pickle.dumps(draw)
    except (pickle.PicklingError, AttributeError, TypeError):
        return False
    return True


@contextmanager
def _processes(count: int) -> Iterator[Callable[[Iterable[tuple]], Iterator[list[Path]]]]:
    """Starts `count` processes; yields a function that runs tasks in these processes and returns results in order.

    The processes end when the block ends.
    """
    free: SimpleQueue[subprocess.Popen] = SimpleQueue()
    processes = [_start() for _ in range(count)]
    for process in processes:
        free.put(process)

    def one(task: tuple) -> list[Path] | None:
        process = free.get()
        try:
            return _ask(process, task)
        finally:
            free.put(process)

    def run(tasks: Iterable[tuple]) -> Iterator[list[Path]]:
        waiting: deque[tuple[tuple, Future]] = deque()

        def first() -> list[Path]:
            task, answer = waiting.popleft()
            return answer.result() or _do(*task)  # done here if the process died, for example of lack of memory

        for task in tasks:
            waiting.append((task, threads.submit(one, task)))
            if len(waiting) == 2 * count:
                yield first()
        while waiting:
            yield first()

    threads = ThreadPoolExecutor(count)
    try:
        yield run
    finally:
        for process in processes:
            process.terminate()
        threads.shutdown(cancel_futures=True)
        for process in processes:
            _end(process)


def _start() -> subprocess.Popen:
    """Starts a process that performs tasks.

    The process gets its own session, so that Ctrl-C reaches only the parent process, which then ends the worker.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", START.format(path=sys.path)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, start_new_session=True)


def _end(process: subprocess.Popen) -> None:
    with suppress(OSError):
        process.stdin.close()
    process.stdout.close()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ask(process: subprocess.Popen, task: tuple) -> list[Path] | None:
    """Sends a task to a process; returns the paths of the files that it wrote, or None if the process has died."""
    try:
        pickle.dump(task, process.stdin, pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
        answer = pickle.load(process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError):
        return None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _do(draw: Callable[..., Figure], arguments: tuple, stem: Path, formats: Sequence[str]) -> list[Path]:
    return save(draw(*arguments), stem, formats)


def serve() -> None:
    """Performs tasks from standard input, one after the other, until standard input is closed.

    For each task, the function writes the answer to standard output: the list of paths, or the error.
    """
    import signal

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # removes temporary files, unlike the default handler
    tasks: BinaryIO = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # text that libraries print must not be mixed with the answers
    while True:
        try:
            task = pickle.load(tasks)
        except EOFError:
            return
        try:
            answer = _do(*task)
        except Exception as error:
            answer = _sendable(error)
        try:
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()
        except BrokenPipeError:
            os._exit(1)  # the parent process has ended


def _sendable(error: Exception) -> Exception:
    """Returns the error itself, or a RuntimeError with the same message if the error cannot be pickled."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
