"""Ctrl-C in long loops."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def held() -> Iterator[Callable[[], None]]:
    """Within the block the first Ctrl-C is held back until the function it gives is called, which raises
    KeyboardInterrupt then; a second one raises at once.

    Raised anywhere it would tear apart what belongs together, and Python drops it where it is raised in a
    callback of a library.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield lambda: None
        return
    pressed = []
    before = signal.getsignal(signal.SIGINT) or signal.default_int_handler

    def note(*_) -> None:
        pressed.append(True)
        signal.signal(signal.SIGINT, before)

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)
