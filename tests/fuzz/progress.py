"""What passes write and read back: their progress, and finished ablations."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import numpy as np
import xarray as xr
from hypothesis import strategies as st

import qkjax
from qkjax.analyses.top_images import compute
from qkjax.images.sets import ImageSet
from qkjax.passes import engine
from qkjax.passes.options import PassOptions
from qkjax.passes.partial_file import write_partial
from qkjax.results.store import digest
from qkjax.weights.checkpoint import Checkpoint

from . import arrays, containers, files, json_values
from .containers import NPZ
from .files import INDEX
from .kind import Kind, NotApplicableError, change, pick
from .models import write_npz
from .vit import SIDE, big_vision_arrays

TOP, PLAN = 3, [{"edit": "drop", "select": "cosine>0"}]
OPTIONS = PassOptions(batch=4, resolution=(SIDE, SIDE))
COUNT = 11
TEMPORARY = gettempdir()
"""The folder of temporary files outside of examples, which have one of their own."""
TEXTS = st.integers(0, len(json_values.VALUES) - 1)
FORGED = st.one_of(
    change("forged", INDEX, st.sampled_from(arrays.DTYPES)),
    change("forged", INDEX, st.sampled_from(arrays.SHAPES)),
    change("forged", INDEX, st.sampled_from([*arrays.VALUES, -1.0, 7.0, 1e9])),
    change("forged text", INDEX, INDEX, st.sampled_from(json_values.HOW), TEXTS),
    change("forged without", INDEX),
)


@cache
def home() -> Path:
    """A folder with the model, for the life of this process."""
    folder = TemporaryDirectory(prefix="qkjax-fuzz-", dir=TEMPORARY)
    write_npz(Path(folder.name), big_vision_arrays())
    _kept.append(folder)
    return Path(folder.name)


_kept = []


@cache
def model() -> Checkpoint:
    """The model."""
    return qkjax.load(home() / "m.npz")


def images(broken: int = COUNT) -> ImageSet:
    """Pictures in memory, of which one is not readable; those from `broken` on raise an error that is a bug."""
    from PIL import Image

    def read(index: int) -> Image.Image:
        if index >= broken:
            raise RuntimeError("stop here")
        if index == 2:
            raise qkjax.QkjaxError("2.png is broken")
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (SIDE, SIDE, 3), np.uint8))

    return ImageSet("set", tuple(f"{index}.png" for index in range(COUNT)), read, "fingerprint")


def scan(partial: Path | None, pictures: ImageSet | None = None) -> xr.Dataset:
    """A whole pass, or the rest of one."""
    return compute.top_images(model(), pictures or images(), top=TOP, options=OPTIONS, partial=partial)


@cache
def whole() -> xr.Dataset:
    """The result of an uninterrupted pass."""
    return scan(None)


@cache
def interrupted() -> dict[str, np.ndarray]:
    """The progress after two of three batches."""
    path, seconds = home() / "x.partial.npz", engine.SAVE_SECONDS
    engine.SAVE_SECONDS = -1
    try:
        scan(path, images(broken=8))
    except RuntimeError:
        pass
    finally:
        engine.SAVE_SECONDS = seconds
    with np.load(path) as file:
        return dict(file)


def make_progress(root: Path, changes: list) -> Path:
    """A file of progress. Forged ones have the right checksums."""
    stored = arrays.changed(interrupted(), changes)
    texts = {name: json.loads(str(stored.pop(name))) for name in ("settings", "unreadable", "layout") if name in stored}
    if any(what.startswith("forged") for what, *_ in changes):
        for what, *arguments in changes:
            if what.startswith("forged"):
                with np.errstate(all="ignore"):
                    _forge(stored, texts, what, *arguments)
        write_partial(root / "x.partial.npz", texts["settings"], stored, tuple(map(tuple, texts["unreadable"])))
    else:
        np.savez(root / "x.partial.npz", **stored, **{name: np.array(json.dumps(x)) for name, x in texts.items()})
    apply_to_bytes(root, changes)
    return root / "x.partial.npz"


def _forge(stored: dict, texts: dict, what: str, index: int, *arguments) -> None:
    name = pick(index, sorted(stored))
    if what == "forged without":
        del stored[name]
    elif what == "forged text":
        name = pick(index, sorted({"settings", "unreadable"} & texts.keys()))
        texts[name] = json.loads(json_values.changed(json.dumps(texts[name]), *arguments))
    elif arguments[0] in arrays.DTYPES:
        stored[name] = stored[name].astype(arguments[0])
    elif arguments[0] in arrays.SHAPES:
        stored[name] = arrays.reshaped(stored[name], arguments[0])
    elif stored[name].dtype.kind in "iuf":
        with np.errstate(all="ignore"):
            stored[name].flat[: 1 + stored[name].size // 2] = np.float64(arguments[0]).astype(stored[name].dtype)
    else:
        raise NotApplicableError("no numbers")


def apply_to_bytes(root: Path, changes: list) -> None:
    """Applies changes of files and of zip files."""
    for what, *arguments in changes:
        if what in files.NAMES_OF_CHANGES:
            files.apply(root, what, *arguments)
        elif what in containers.CHANGES:
            containers.CHANGES[what](root, *arguments)


def check_whole(path: Path, changes: list, result: xr.Dataset) -> None:
    """The result is that of an uninterrupted pass, to the bit; forged numbers may be others, but are finite."""
    if any(what.startswith("forged") for what, *_ in changes):
        assert np.isfinite(result.value.where(result.image_index >= 0, 0)).all()
        assert (result.image_index < COUNT).all()
    else:
        assert digest(result) == digest(whole())


@cache
def finished() -> dict[str, bytes]:
    """The files of two finished ablations."""
    folder = home() / "done"
    qkjax.ablate(model(), PLAN, images(), options=OPTIONS, partial=folder)
    return {path.name: path.read_bytes() for path in folder.glob("*.npz")}


@cache
def ablations() -> xr.Dataset:
    """The result of the ablations."""
    return qkjax.ablate(model(), PLAN, images(), options=OPTIONS)


def make_ablations(root: Path, changes: list) -> Path:
    """A folder of finished ablations."""
    (root / "done").mkdir()
    for name, data in finished().items():
        (root / "done" / name).write_bytes(data)
    if any(what in arrays.NAMES_OF_CHANGES for what, *_ in changes):
        path = sorted((root / "done").iterdir())[0]
        with np.load(path) as file:
            np.savez(path, **arrays.changed(dict(file), changes))
    apply_to_bytes(root / "done", changes)
    return root / "done"


def check_ablations(path: Path, changes: list, result: xr.Dataset) -> None:
    """The result is that without the folder, to the bit: damaged files are computed again."""
    assert digest(result) == digest(ablations())


def resume(path: Path, scratch: Path) -> xr.Dataset:
    """The result of the rest of a pass."""
    try:
        return scan(path)
    except qkjax.QkjaxError as error:
        if "expected finite numbers" not in str(error):
            raise
        assert not path.exists()  # forged scores, which take the progress with them
        raise qkjax.QkjaxError(f"{path}: {error}") from error


KINDS = {
    "progress": Kind(
        make_progress,
        st.one_of(arrays.CHANGES, files.CHANGES, NPZ, FORGED, FORGED),
        resume,
        check_whole,
        writes=True,
    ),
    "ablations": Kind(
        make_ablations,
        st.one_of(arrays.CHANGES, files.CHANGES, NPZ),
        lambda path, scratch: qkjax.ablate(model(), PLAN, images(), options=OPTIONS, partial=path),
        check_ablations,
        writes=True,
    ),
}
