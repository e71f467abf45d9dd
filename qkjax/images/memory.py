"""Limits the total memory of all images that threads prepare at the same time, for any number of threads."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """A budget, such as an amount of memory, that several threads share.

    Within `shared`, a thread takes a part of the budget, and waits until enough is left. A thread that needs more than
    the whole budget waits until no other thread has a part. A thread that already has a part takes more without
    waiting, so that threads cannot wait for each other in a circle. Such further parts are for masks, which are at most
    as large as their image.
    """

    def __init__(self, total: int):
        self.total, self.taken = total, 0
        self._changed, self._own = threading.Condition(), threading.local()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """A context that, at its end, returns all parts that the thread has taken within it."""
        self._own.part = 0
        try:
            yield
        finally:
            with self._changed:
                self.taken -= self._own.part
                self._own.part = None
                self._changed.notify_all()

    def take(self, amount: int) -> None:
        """Takes a part of the budget. Outside of `shared`, only one image is prepared, and the method does nothing."""
        own = getattr(self._own, "part", None)
        if own is None:
            return
        with self._changed:
            if not own:
                self._changed.wait_for(lambda: not self.taken or self.taken + amount <= self.total)
            self.taken += amount
            self._own.part = own + amount


PIXELS = Budget(1 << 28)
"""Largest number of pixels of all images in preparation. At about 8 bytes per pixel, they take 2 GiB."""
UNPACKED = Budget(1 << 29)
"""Largest number of bytes of all files that have been unpacked from archives but not yet decoded."""
ENLARGED = threading.Lock()
"""Lock that a thread holds while it resizes an image to far more pixels than the image has, which needs extra
memory."""
