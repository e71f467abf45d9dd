"""Folders and archives of images, and data sets with masks and tables."""

import tarfile
import zipfile
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from qkjax.errors import QkjaxError
from qkjax.images.o3 import open_o3
from qkjax.images.preprocess import Preprocess, picture
from qkjax.images.scenes import crop_to_model
from qkjax.images.segmented import crop_objects, open_objects
from qkjax.images.sets import ImageSet
from qkjax.images.sources import open_images
from qkjax.runtime.visible import HIDDEN, visible

from . import containers, files, pictures
from .containers import ZIP
from .kind import Kind, change
from .oracle import LENGTH, ViolationError
from .pictures import SIDE, images, reference

PRESET = Preprocess("squash", "pil-bilinear", SIDE, SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
ORIGINALS = images()
ARCHIVED = ("a.png", "h.png", "i.png", "j.png")
TABLES = ("", "image_name\n", "image_name\na.png\n\n", 'image_name\n"a.png', "image_name,name\nzz.png,\n", "\0\0",
          "name\n\x1b\n", "image_name\n" + "x" * 200_000, "image_name\n" + "\udcff\n", "\ufeffimage_name\na.png\n",
          "=1\n=1+1\n")  # fmt: skip


def apply_all(root: Path, changes: list) -> None:
    """Applies changes of files, of archives and of images."""
    for what, *arguments in changes:
        if what in files.NAMES_OF_CHANGES:
            files.apply(root, what, *arguments)
        elif what in containers.CHANGES:
            containers.CHANGES[what](root, *arguments)
        elif what == "table":
            if not (path := root / "m/image_properties.csv").is_fifo():
                path.write_text(TABLES[arguments[0]], errors="surrogateescape")
        else:
            pictures.apply(root, what, *arguments)


def make_images(root: Path, changes: list) -> Path:
    """A folder of images in several formats."""
    (root / "m").mkdir()
    for name, data in ORIGINALS.items():
        (root / "m" / name).write_bytes(data)
    apply_all(root, changes)
    return root / "m"


def make_archives(root: Path, changes: list) -> Path:
    """A folder of a zip file and a tar file."""
    (root / "m").mkdir()
    with zipfile.ZipFile(root / "m/x.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for name in ARCHIVED:
            file.writestr(name, ORIGINALS[name])
    with tarfile.open(root / "m/y.tar", "w") as file:
        for name in ARCHIVED:
            info = tarfile.TarInfo(name)
            info.size = len(ORIGINALS[name])
            file.addfile(info, BytesIO(ORIGINALS[name]))
    apply_all(root, changes)
    return root / "m"


def read_all(opened, cut, path: Path, scratch: Path) -> tuple[ImageSet, list]:
    """The set, and for each of its images the result of `cut`, or the reason why there is none."""
    found, results = opened(path), []
    for index, name in enumerate(found.names):
        try:
            results.append(cut(found.read(index), name))
        except QkjaxError as error:
            results.append(str(error))
    return found, results


def check_reasons(found: ImageSet, results: list) -> None:
    """Names, notes and reasons are short, and name the image."""
    reasons = [(name, result) for name, result in zip(found.names, results, strict=True) if isinstance(result, str)]
    for name, reason in (*reasons, *found.left_out):
        if len(reason) >= LENGTH or "\n" in reason:
            raise ViolationError(f"reason of more than {LENGTH} characters or several lines\n{name!r}: {reason!r}")
    for note in (*found.notes, *found.names):
        if HIDDEN.search(visible(note)):
            raise ViolationError(f"hidden characters\n{note!r}")


def check_images(path: Path, changes: list, result: tuple) -> None:
    """The pictures are those that Pillow makes."""
    found, results = result
    check_reasons(found, results)
    assert len(found) or found.notes
    for name, ours in zip(found.names, results, strict=True):
        if not isinstance(ours, str) and (theirs := reference((path / _file(path, name)).read_bytes())) is not None:
            assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1, name


def _file(path: Path, name: str) -> str:
    """The name of the file of an image whose name may have escape sequences for bytes that are not text."""
    return next(x.name for x in path.iterdir() if x.name.encode(errors="backslashreplace").decode() == name)


def check_archives(path: Path, changes: list, result: tuple) -> None:
    """Each picture is one of the original ones; images are not left out in silence."""
    found, results = result
    check_reasons(found, results)
    originals = [picture_of(data) for name, data in ORIGINALS.items() if name in ARCHIVED]
    for name, ours in zip(found.names, results, strict=True):
        if not isinstance(ours, str):
            assert any(np.array_equal(ours, original) for original in originals), name
    moved = {"remove", "rename", "copy", "swap", "link", "folder", "pipe", "empty", "tar name", "zip name"}
    moved &= {what for what, *_ in changes}
    # the content of such a member is the long name of the next one, or says more about it
    moved |= {"tar type"} & {what for what, *_, kind in changes if kind in ("K", "L", "x", "g", "X")}
    # the checksum of a tar header is a sum, so that bytes in another order may be another valid size
    moved |= {what for what, *_ in changes if what == "bytes" and "reverse" in _}
    again = [what for what, *_ in changes if what.startswith(("tar", "zip"))]  # tarfile may lose members of odd files
    if not moved and len(again) < 2 and len(found) < 2 * len(ARCHIVED):
        assert found.notes, f"only {len(found)} images, and no note"


def picture_of(data: bytes) -> np.ndarray:
    """The picture of an undamaged image file as qkjax makes it."""
    from qkjax.images.preprocess import open_image

    return picture(open_image(BytesIO(data), "x"), PRESET)


def make_masks(names: tuple[str, ...], root: Path, changes: list) -> Path:
    """A data set of two images with masks in folders of given names."""
    from PIL import Image

    first, second = np.zeros((2, 40, 40), np.uint8)
    first[:20, :20], second[20:, 20:] = 255, 255
    contents = {"targ_labels": first, "dist_labels": second, "masks": first // 85 + second // 51}
    for folder in names:
        (root / "m" / folder).mkdir(parents=True)
        for name in ("a.png", "b.png"):
            if folder == "images":
                (root / "m/images" / name).write_bytes(ORIGINALS["a.png"])
            else:
                Image.fromarray(contents[folder]).save(root / "m" / folder / name)
    if "masks" not in names:
        (root / "m/image_properties.csv").write_text("image_name,x\na.png,1\nb.png,2\n")
    apply_all(root, changes)
    return root / "m"


def check_masks(path: Path, changes: list, result: tuple) -> None:
    """Shares of patches are from 0 to 1, and those of unchanged images are the right ones."""
    found, results = result
    check_reasons(found, results)
    for ours in results:
        if not isinstance(ours, str):
            assert ((ours[1] >= 0) & (ours[1] <= 1)).all()
    if not changes:
        corners = [shares.reshape(len(shares), 4, 4)[:2] for _, shares in results]
        for first, second in corners:
            np.testing.assert_allclose([first[0, 0] + second[0, 0], first[3, 3] + second[3, 3]], 1, atol=0.01)


def _crop(function, item, name: str):
    return function(item, name, PRESET, None, (8, 8))


COMMON = (files.CHANGES, pictures.IMAGES)
TABLE = change("table", st.integers(0, len(TABLES) - 1))
KINDS = {
    "images": Kind(
        make_images, st.one_of(*COMMON), partial(read_all, open_images, lambda x, _: picture(x, PRESET)), check_images
    ),
    "archives": Kind(
        make_archives,
        st.one_of(files.CHANGES, pictures.TAR, ZIP),
        partial(read_all, open_images, lambda x, _: picture(x, PRESET)),
        check_archives,
    ),
    "o3": Kind(
        partial(make_masks, ("images", "targ_labels", "dist_labels")),
        st.one_of(*COMMON, TABLE),
        partial(read_all, open_o3, partial(_crop, crop_to_model)),
        check_masks,
    ),
    "objects": Kind(
        partial(make_masks, ("images", "masks")),
        st.one_of(*COMMON),
        partial(read_all, open_objects, partial(_crop, crop_objects)),
        check_masks,
    ),
}
