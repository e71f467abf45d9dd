"""Interrupts every command that writes, at random moments and at random writes, and runs it again.

    python -m tests.fuzz.interruptions --times 50 [--commands analyze train] [--kinds SIGKILL full] [--seed N]

A command is killed at a random moment (SIGKILL, SIGTERM, SIGINT) or at a random operation on files (write), or it runs
on a disk with a random number of free bytes (full).
The next run of the same command must give the result of an uninterrupted one, to the bit, and leave no file of its
own. Every process is a fork of this one, which has imported everything and has no threads, so that a run is quick.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
KINDS = ("write", "full", *SIGNALS)
LONGEST = 240.0  # seconds; a process that takes longer hangs
RUN = ("--width", "16", "--depth", "1", "--heads", "1", "--mlp-dim", "16", "--steps", "9", "--warmup", "0")
RUN += ("--every", "3", "--batch", "8")
FETCHED = "vit-l16-sam-i1k"
COMMANDS = {
    "analyze": ("analyze", "{small}", "--out", "out"),
    "compare": ("compare", "{small}", "{other}", "--out", "out"),
    "export": ("export", "{small}", "out.npz", "--edit", "drop", "--select", "cosine>0"),
    "preference": ("preference", "{small}", "--count", "6", "--batch", "2", "--out", "out"),
    "objects": ("objects", "{small}", "--count", "6", "--batch", "2", "--out", "out"),
    "sinks": ("sinks", "{small}", "--images", "{images}", "--batch", "2", "--out", "out"),
    "composition": ("composition", "{small}", "--out", "out"),
    "tokens": ("tokens", "{small}", "--images", "{images}", "--batch", "2", "--out", "out"),
    "ablate": (
        *("ablate", "{small}", "--images", "{images}", "--batch", "2", "--out", "out"),
        *("--select", "cosine>0", "--controls", "1", "--queries", "2"),
    ),
    "top-images": ("top-images", "{small}", "--images", "{images}", "--batch", "2", "--out", "out", "--top", "2"),
    "image": ("image", "{small}", "{images}/0.png", "--out", "out"),
    "report": ("report", "{small}", "--images", "{images}", "--top", "2", "--modes", "2"),
    "train": ("train", "run", *RUN),
    "sweep": ("sweep", "runs", "free", "tied", "--seeds", "1", *RUN),
    "fetch": ("fetch", FETCHED),
}
"""Words of each command that writes. Names in braces are paths of `Inputs`."""


class Inputs(NamedTuple):
    """Paths of a small model, another one of the same architecture and a folder of images; the address of a server."""

    small: Path
    other: Path
    images: Path
    server: str


class FailureError(Exception):
    """What was wrong after an interruption."""


def make_inputs(home: Path, server: str) -> Inputs:
    """Two models of two layers, and six images, of which one cannot be read."""
    import jax
    import numpy as np
    from PIL import Image

    import qkjax
    from qkjax.images.preprocess import Preprocess
    from qkjax.weights.checkpoint import write_checkpoint

    rng = np.random.default_rng(0)
    config = qkjax.ViTConfig(
        width=16, depth=2, heads=2, head_dim=8, mlp_dim=16, patch_size=(8, 8), grid=(4, 4), pool="tok", class_token=True
    )
    preset = Preprocess("squash", "pil-bilinear", 32, 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    shapes = jax.eval_shape(lambda: qkjax.ViT(config).init(jax.random.key(0), np.zeros((1, 32, 32, 3))))["params"]
    for name in ("small", "other"):
        params = jax.tree.map(lambda x: 0.3 * rng.standard_normal(x.shape).astype(np.float32), shapes)
        write_checkpoint(home / f"{name}.npz", config, params, preset)
    (home / "images").mkdir()
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), np.uint8)).save(home / f"images/{i}.png")
    (home / "images/3.png").write_bytes(b"no picture")
    return Inputs(home / "small.npz", home / "other.npz", home / "images", server)


def import_everything() -> None:
    """Imports what the commands import, so that forks need not; starts no threads and computes nothing."""
    import importlib
    import pkgutil

    import grain
    import h5netcdf
    import matplotlib.backends.backend_agg
    import matplotlib.backends.backend_pdf
    import orbax.checkpoint
    import sklearn.datasets

    import qkjax

    assert grain and h5netcdf and matplotlib and orbax.checkpoint and sklearn.datasets
    for module in pkgutil.walk_packages(qkjax.__path__, "qkjax."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    if hasattr(os, "sched_setaffinity"):  # one process draws all figures: starting others takes longer
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def draw_quickly() -> None:
    """Replaces the drawing of figures, which takes most of the time, by files of a few bytes. They are still written
    as figures are, by `qkjax.figures.style.save`."""
    from contextlib import nullcontext

    from matplotlib.figure import Figure

    from qkjax.figures import style

    def savefig(figure: Figure, path: Path, **_) -> None:
        axes = [(axis.get_title(), axis.get_xlim(), len(axis.get_children())) for axis in figure.axes]
        path.write_text(f"{figure.get_size_inches()} {axes}\n")

    style._layout_done, Figure.savefig = nullcontext, savefig


WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "tempfile.mkstemp", "tempfile.mkdtemp"}
"""Audit events of operations that change files, besides opening files for writing."""


def count_writes(folder: Path, kill_at: int | None) -> list[int]:
    """Counts the operations on files of a folder in this process, which is killed at number `kill_at`.

    Returns:
      A list with the number of operations so far.
    """
    count, inside = [0], str(folder.resolve())

    def hook(event: str, arguments: tuple) -> None:
        is_write = event in WRITES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if not is_write or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        if os.path.abspath(os.fsdecode(arguments[0])).startswith(inside):
            count[0] += 1
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return count


def start(
    words: Sequence[str], folder: Path, home: Path, file_size: int | None = None, kill_at: int | None = None
) -> int:
    """The process that runs a command in a folder; its output goes to `home`/output.

    Args:
      words: words of the command.
      folder: working folder.
      home: folder for output and compiled programs.
      file_size: largest size in bytes of a file that the process can write; None for no limit.
      kill_at: number of the operation on files at which the process is killed.
    """
    if (child := os.fork()) > 0:
        return child
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the command begins
        os.chdir(folder)
        output = os.open(home / "output", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(output, 1), os.dup2(output, 2)
        sys.argv = ["qkjax", *words]
        writes = count_writes(folder, kill_at)
        code = run_command(home, file_size)
        (home / "writes").write_text(str(writes[0]))
    finally:
        os._exit(code)


def run_command(home: Path, file_size: int | None) -> int:
    """Runs the command line in this process; returns the exit code."""
    import resource

    import jax

    from qkjax.cli import main

    jax.config.update("jax_compilation_cache_dir", str(home / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", buffering=1) for n in (1, 2))
    try:
        if file_size is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, resource.RLIM_INFINITY))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return 130
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    return 0


def ended(child: int) -> int:
    """Waits for a process; returns its exit code, negative for a signal.

    Raises:
      FailureError: the process hangs.
    """
    deadline = time.monotonic() + LONGEST
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise FailureError(f"the process hung for {LONGEST:.0f} s")


def content(folder: Path) -> dict[str, str]:
    """A digest of every file of a folder, by its path. Archives and netCDF files count by their arrays."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if "checkpoints" in name.parts:  # orbax writes times and random names; the model comes from them
            if name.parts[-2] == "checkpoints":
                found[name.as_posix()] = "checkpoint"
        elif path.is_dir():
            found[name.as_posix()] = "folder"
        else:
            found[name.as_posix()] = _digest(path)
    return found


def _digest(path: Path) -> str:
    import numpy as np

    from qkjax.results.store import digest, read_result

    if path.suffix == ".nc":
        return digest(read_result(path))
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            parts = [f"{name} {file[name].dtype} {file[name].shape} ".encode() + file[name].tobytes() for name in file]
        return hashlib.sha256(b"".join(parts)).hexdigest()
    if path.name.endswith(".source.json"):  # states the date
        return "record"
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Trial:
    """One command in folders of its own.

    Attributes:
      name: the command.
      expected: what an uninterrupted run leaves.
      seconds: how long it takes.
      writes: number of its operations on files.
      bytes: size of all files that it leaves.
      counts: the number of interruptions so far, by kind and exit code.
    """

    def __init__(self, name: str, inputs: Inputs, home: Path, rng: random.Random):
        self.name, self.home, self.rng = name, home, rng
        self.words = [word.format(**inputs._asdict()) for word in COMMANDS[name]]
        self.counts: dict[tuple[str, int], int] = {}
        os.environ |= {
            "QKJAX_GS_URL": inputs.server,
            "QKJAX_CHECKPOINTS": "checkpoints_of_models",
            "no_proxy": "127.0.0.1",
        }
        home.mkdir(parents=True)
        for number in range(2):  # the second one finds everything compiled
            whole = home / f"whole{number}"
            whole.mkdir()
            began = time.monotonic()
            self.require(ended(start(self.words, whole, home)) == 0, "an uninterrupted run failed")
            self.seconds = time.monotonic() - began
        self.expected = content(home / "whole1")
        self.require(content(home / "whole0") == self.expected, "two uninterrupted runs differ")
        self.writes = int((home / "writes").read_text())
        self.bytes = sum(p.stat().st_size for p in (home / "whole1").rglob("*") if p.is_file())

    def counts_of(self, kinds: Sequence[str]) -> int:
        """The number of interruptions of these kinds."""
        return sum(n for (kind, _), n in self.counts.items() if kind in kinds)

    def require(self, condition: bool, problem: str) -> None:
        """Raises FailureError with the output of the last process unless the condition holds."""
        if not condition:
            output = (self.home / "output").read_text(errors="replace")[-3000:]
            raise FailureError(f"{self.name}: {problem}\n{output}")

    def interrupt(self, kind: str) -> None:
        """Interrupts the command once to three times, then runs it again, and compares.

        Raises:
          FailureError: see its message.
        """
        with (disk if kind == "full" else plain_folder)(self.home / "folder") as resize:
            for _ in range(self.rng.randint(1, 3)):
                code = self.full(resize) if kind == "full" else self.killed(kind)
                self.counts[kind, code] = self.counts.get((kind, code), 0) + 1
            resize(None)
            self.require(ended(start(self.words, self.home / "folder", self.home)) == 0, f"failed after {kind}")
            self.compare(kind)

    def killed(self, kind: str) -> int:
        """The exit code of a process that gets a signal at a random moment, or is killed at a random write."""
        number = getattr(signal, kind, signal.SIGKILL)
        kill_at = self.rng.randint(1, self.writes) if kind == "write" else None
        child = start(self.words, self.home / "folder", self.home, kill_at=kill_at)
        if kind != "write":
            time.sleep(self.rng.uniform(0, 1.05 * self.seconds))
            os.kill(child, number)
        code = ended(child)
        self.require(code in (0, 130, -number), f"exit code {code} after {kind}")
        self.require("Traceback" not in (self.home / "output").read_text(errors="replace"), f"traceback after {kind}")
        return code

    def full(self, resize: Callable) -> int:
        """The exit code of a process on a disk that becomes full at a random write."""
        size = self.rng.randrange(4096, max(8192, int(1.2 * self.bytes)))
        limit = None if resize(size) else self.rng.randrange(max(1, self.bytes))
        code = ended(start(self.words, self.home / "folder", self.home, limit))
        output = (self.home / "output").read_text(errors="replace")
        self.require(code in (0, 2), f"exit code {code} on a full disk")
        self.require("Traceback" not in output, "traceback on a full disk")
        if code:
            errors = [line for line in output.splitlines() if "error: " in line]
            says = ("No space left on device", "File too large", "free space", "disk quota")
            self.require(len(errors) == 1 and any(x in errors[0] for x in says), "not one line about a full disk")
        return code

    def compare(self, kind: str) -> None:
        """Compares the folder with that of an uninterrupted run.

        Raises:
          FailureError: they differ.
        """
        deadline = time.monotonic() + 10  # processes that draw figures may still be ending
        while (now := content(self.home / "folder")) != self.expected and time.monotonic() < deadline:
            time.sleep(0.2)
        different = sorted(n for n in now | self.expected if now.get(n) != self.expected.get(n))
        self.require(not different, f"differs after {kind}: {different}")

    def two_at_once(self) -> tuple[int, int]:
        """Two processes at once in one folder: the exit codes, of which one is 0.

        Raises:
          FailureError: both failed, one of them without saying why, or the result is not right.
        """
        with plain_folder(self.home / "folder"):
            pair = []
            for number in range(2):
                (own := self.home / f"process{number}").mkdir(exist_ok=True)
                if not os.path.lexists(own / "compiled"):
                    (own / "compiled").symlink_to(self.home / "compiled")
                pair.append(start(self.words, self.home / "folder", own))
                time.sleep(self.rng.uniform(0, 0.5 * self.seconds))
            codes = tuple(ended(child) for child in pair)
            texts = [(self.home / f"process{number}/output").read_text(errors="replace") for number in range(2)]
            (self.home / "output").write_text("\n".join(texts))
            self.require(sorted(codes) in ([0, 0], [0, 2]), f"exit codes {codes} of two processes")
            says = all("another process is using" in text for text, code in zip(texts, codes, strict=True) if code)
            self.require(says and "Traceback" not in "".join(texts), "a process does not say why it stopped")
            self.compare("two processes")
        return codes


@contextmanager
def plain_folder(path: Path) -> Iterator[Callable]:
    """An empty folder, which ends with the block; its size cannot be limited."""
    path.mkdir()
    try:
        yield lambda size: False
    finally:
        shutil.rmtree(path)


@contextmanager
def disk(path: Path) -> Iterator[Callable]:
    """A file system of its own. Yields a function that sets its size in bytes (None: large).

    The function returns False if file systems cannot be mounted. A size below what is used becomes that and a page.
    """
    path.mkdir()
    mounted = _mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(path))

    def resize(size: int | None) -> bool:
        if mounted:
            stat = os.statvfs(path)
            used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
            _mount("-o", f"remount,size={64 << 20 if size is None else max(size, used + 4096)}", str(path))
        return mounted

    try:
        yield resize
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(path)], check=False)
        shutil.rmtree(path, ignore_errors=True)


def _mount(*words: str) -> bool:
    try:
        return subprocess.run(["mount", *words], check=False, capture_output=True).returncode == 0
    except OSError:
        return False


SERVER = """
import http.server, os, sys, threading, time
body = open(sys.argv[1], "rb").read()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        part = body[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", '"one"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        for at in range(0, len(part), 1 << 16):
            self.wfile.write(part[at : at + (1 << 16)])
            time.sleep(0.02)
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()  # ends with its parent
server.serve_forever()
"""
"""A server of one file, which takes about half a second, as a process of its own: this one must have no threads."""


@contextmanager
def prepared(home: Path) -> Iterator[Inputs]:
    """Inputs of all commands, and the server of `fetch`, which ends with the block."""
    import numpy as np

    body = home / "body.npz"
    np.savez(body, x=np.frombuffer(np.random.default_rng(0).bytes(1 << 20), np.uint8))
    command = [sys.executable, "-c", SERVER, str(body)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            port = int(server.stdout.readline())
            if (child := os.fork()) == 0:  # computing starts threads
                code = 1
                try:
                    make_inputs(home, "")
                    code = 0
                finally:
                    os._exit(code)
            assert ended(child) == 0
            yield Inputs(home / "small.npz", home / "other.npz", home / "images", f"http://127.0.0.1:{port}")
        finally:
            server.kill()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs trials; returns the number of commands that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="interruptions of each command, of each kind in turn")
    parser.add_argument("--pairs", type=int, default=0, help="pairs of processes of each command at once")
    parser.add_argument("--commands", nargs="*", default=list(COMMANDS), choices=list(COMMANDS))
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figures", action="store_true", help="draw figures, which takes most of the time")
    parser.add_argument("--keep-going", action="store_true", help="count failures of a command, do not end it")
    options = parser.parse_args(arguments)
    import_everything()
    if not options.figures:
        draw_quickly()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="qkjax-interruptions-") as folder, prepared(Path(folder)) as inputs:
        for name in options.commands:
            failed += _one(name, inputs, Path(folder), options)
    return failed


def _one(name: str, inputs: Inputs, home: Path, options: argparse.Namespace) -> bool:
    """All interruptions of one command; prints the counts. Returns whether something failed."""
    rng, began, failures, pairs, trial = random.Random(f"{options.seed} {name}"), time.monotonic(), [], [], None
    try:
        trial = Trial(name, inputs, home / name, rng)
        while trial.counts_of(options.kinds) < options.times and (options.keep_going or not failures):
            kind = min(options.kinds, key=lambda kind: trial.counts_of([kind]))
            try:
                trial.interrupt(kind)
            except FailureError as failure:
                failures.append(str(failure))
        pairs = [trial.two_at_once() for _ in range(options.pairs)]
    except FailureError as failure:
        failures.append(str(failure))
    counts = ", ".join(f"{kind} {code}: {n}" for (kind, code), n in sorted(trial.counts.items())) if trial else ""
    ends = f"; pairs {[pairs.count(x) for x in sorted(set(pairs))]} {sorted(set(pairs))}" if pairs else ""
    took = time.monotonic() - began
    print(f"{name}: {len(failures)} failures; {counts}{ends}; {took:.0f} s", flush=True)
    for failure in failures:
        print(failure, flush=True)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(bool(main()))
