"""Bounds the memory of all images that threads prepare at the same time, however many threads there are."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Budget:
    """An amount that threads share.

    A thread takes its part within `shared`, and waits until enough is left. A part that exceeds the budget waits until
    no other part is taken. A thread that already has a part takes more without waiting, so that threads cannot wait
    for each other in a circle; this is for masks, which are at most as large as their image.
    """

    def __init__(self, total: int):
        self.total, self.taken = total, 0
        self._changed, self._own = threading.Condition(), threading.local()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """The parts that this thread takes within this context are returned at its end."""
        self._own.part = 0
        try:
            yield
        finally:
            with self._changed:
                self.taken -= self._own.part
                self._own.part = None
                self._changed.notify_all()

    def take(self, amount: int) -> None:
        """Takes a part of the budget; does nothing outside of `shared`, where only one image is prepared."""
        own = getattr(self._own, "part", None)
        if own is None:
            return
        with self._changed:
            if not own:
                self._changed.wait_for(lambda: not self.taken or self.taken + amount <= self.total)
            self.taken += amount
            self._own.part = own + amount


PIXELS = Budget(1 << 28)
"""Pixels of all images in preparation; at about 8 bytes per pixel, they take 2 GiB."""
UNPACKED = Budget(1 << 29)
"""Bytes of all files that are unpacked from archives and not yet decoded."""
ENLARGED = threading.Lock()
"""Held while an image is resized to far more pixels than it has, which needs extra memory."""
