"""Handles Ctrl-C in long loops."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], None]]:
    """Defers the first Ctrl-C within the block until the yielded function is called.

    After the first Ctrl-C, the next call of the yielded function raises KeyboardInterrupt. A second Ctrl-C raises
    KeyboardInterrupt at once.

    An interrupt at an arbitrary point could make state and results inconsistent, and Python ignores interrupts inside
    the callbacks of some libraries.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield lambda: None
        return
    signals = []
    previous = signal.getsignal(signal.SIGINT) or signal.default_int_handler

    def record(*_) -> None:
        signals.append(True)
        signal.signal(signal.SIGINT, previous)

    def check() -> None:
        if signals:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, record)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, previous)
