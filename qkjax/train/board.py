"""Writes the evaluations of a run for TensorBoard."""

import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax

from qkjax.errors import QkjaxError
from qkjax.runtime.files import writing
from qkjax.train.config import TrainConfig


@contextmanager
def tensorboard(folder: Path, config: TrainConfig, step: int) -> Iterator[Callable[[dict], None]]:
    """Yields a function that writes one evaluation for TensorBoard; it does nothing unless `config.tensorboard` is set.

    The file is written immediately, not in a thread as by tensorboardX's `SummaryWriter`: after an error in that
    thread, for example on a full disk, the next evaluation would wait forever.

    Args:
      folder: folder for TensorBoard's files.
      config: the run.
      step: step after which the run resumes; entries of later steps are dropped.

    Raises:
      QkjaxError: tensorboardX is not installed, or the file cannot be written.
    """
    if not config.tensorboard or jax.process_index() > 0:
        yield lambda line: None
        return
    try:
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import masked_crc32c
        from tensorboardX.summary import scalar
    except ImportError as error:
        raise QkjaxError(
            "tensorboard=True needs tensorboardX, which is not installed: pip install tensorboardX"
        ) from error

    def record(step: int, **content) -> bytes:
        """An event in TensorBoard's format: its length, a checksum, the event, a checksum."""
        event = Event(step=step, wall_time=time.time(), **content).SerializeToString()
        length = struct.pack("<Q", len(event))
        return b"".join(part + struct.pack("<I", masked_crc32c(part)) for part in (length, event))

    def write(line: dict) -> None:
        lists = {name: values for name, values in line.items() if isinstance(values, list)}
        layers = {f"{name}/layer_{layer}": value for name, own in lists.items() for layer, value in enumerate(own)}
        with writing(folder):
            for name, value in (line | layers).items():
                if name not in ("step", *lists) and value is not None:
                    file.write(record(line["step"], summary=scalar(name, value)))
            file.flush()

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files whose names contain "tfevents", in the order of their names.
        file = open(folder / f"events.out.tfevents.{time.time_ns()}", "xb")  # noqa: SIM115
    try:
        with writing(folder):
            file.write(record(0, file_version="brain.Event:2"))
            file.write(record(step + 1, session_log=SessionLog(status=SessionLog.START)))
            file.flush()
        yield write
    finally:
        with suppress(OSError):  # everything that could be written is on disk
            file.close()
