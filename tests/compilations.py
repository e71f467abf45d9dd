"""Counts the programs that XLA compiles. A program that is read from the persistent cache counts, too."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import jax

_COUNTERS: list[Counter] = []


def _listen(event: str, _: float, **details) -> None:
    if event.endswith("backend_compile_duration"):
        name = str(details.get("fun_name")).removeprefix("jit(").removesuffix(")")
        for counter in _COUNTERS:
            counter[name] += 1


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextmanager
def counted_compilations() -> Iterator[Counter]:
    """Counts the compilations within the block, by the name of the jitted function."""
    counter = Counter()
    _COUNTERS.append(counter)
    try:
        yield counter
    finally:
        _COUNTERS.remove(counter)
