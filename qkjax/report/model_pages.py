"""The data of one model's pages: files that the page loads on demand."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
from tqdm import tqdm

from qkjax.images.preprocess import Pixels, picture
from qkjax.images.sets import ImageSet
from qkjax.interaction.bias import BiasTerms, bias_terms
from qkjax.interaction.metrics import measure
from qkjax.passes.inputs import crop_to_patches, resolution_of
from qkjax.report import model_card
from qkjax.report.attended import Attended, attended
from qkjax.report.pack import script
from qkjax.report.pictures import SIDES, small_pictures, webp
from qkjax.report.subject import ModelData
from qkjax.runtime.interrupt import deferred_interrupt
from qkjax.vit.tree import query_key

LOOKED_AT = 2
"""Number of images in which patches can be picked by default: each takes 8.6 MB of a ViT-B's report."""
ROOM = (10e6, 97e6)
"""Bytes that small pictures may take at least, and that all of a model's files may take with them: the size of
pictures is foreseen from a sample, and so a little less than 100 MB."""

Photographs = Sequence[tuple[str, "PIL.Image.Image"]]


def write_model(folder: Path, found: ModelData, images: ImageSet, looked_at: Photographs) -> int:
    """Writes all of a model into a new folder.

    Args:
      images: the images that were scanned.
      looked_at: names and photographs in which patches can be picked; empty: some of the images.

    Returns:
      Its size in bytes.

    Raises:
      QkjaxError: a result of another command cannot be read.
      KeyboardInterrupt: between two files.
    """
    folder.mkdir(parents=True)
    photos = looked_at or _some(images, found)
    bias = bias_terms(query_key(found.subject.checkpoint.params))
    with deferred_interrupt() as interrupted:
        terms = _write_looks(folder, found, photos, bias, interrupted)
        _write_heads(folder, found, interrupted)
        metrics = measure(found.modes)
        facts = model_card.facts(found, images.names, metrics, [name for name, _ in photos])
        facts["results"] = model_card.results_of(found, folder)
        shares = [np.mean([getattr(x, name) for x in terms], axis=0) for name in ("share", "bias_share")]
        _write(folder, "model", facts, model_card.arrays(metrics, bias, *shares))
        _write_pictures(folder, found, images, interrupted)
    return _size(folder)


def _write(folder: Path, stem: str, facts: dict, arrays: dict) -> None:
    (folder / f"{stem}.js").write_text(script(f"{folder.name}/{stem}", facts, arrays), encoding="utf-8", newline="")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _seen(found: ModelData, photo: "PIL.Image.Image") -> Pixels:
    """The pixels of a photograph that the model sees."""
    checkpoint = found.subject.checkpoint
    resolution = resolution_of(checkpoint, found.scan.options.resolution)
    return crop_to_patches(checkpoint, picture(photo, checkpoint.preprocess, resolution))


def _some(images: ImageSet, found: ModelData) -> Photographs:
    """Some images of a set, evenly spaced, that could be read."""
    missing = {*found.maps.left_out.values, *found.top.unreadable.values}
    left = [i for i in range(len(images)) if images.names[i] not in missing]
    chosen = sorted({left[round(i * (len(left) - 1) / max(LOOKED_AT - 1, 1))] for i in range(LOOKED_AT)})
    return [(images.names[i], images.read(i)) for i in chosen]


def _write_looks(folder: Path, found: ModelData, photos: Photographs, bias: BiasTerms, interrupted) -> list[Attended]:
    """The picture, and a script for each layer, of each image in which patches can be picked."""
    terms = []
    for place, (_, photo) in enumerate(tqdm(photos, desc="images", unit="img", disable=len(photos) < 3)):
        pixels = _seen(found, photo)
        terms.append(attended(found.subject.checkpoint, found.modes, bias.key_direction, pixels))
        (folder / f"look{place}.webp").write_bytes(webp(pixels, SIDES[0], 85))
        for layer in range(len(bias.key_direction)):
            own = {name: x[layer] for name, x in terms[-1]._asdict().items() if "share" not in name}
            _write(folder, f"look{place}_L{layer:02d}", {}, own)
        interrupted()
    return terms


def _write_heads(folder: Path, found: ModelData, interrupted) -> None:
    """A script for each head: which images excite its modes most, their scores, and the maps."""
    layers, heads, modes, _, places = found.maps.query_step.shape

    def write(at: tuple[int, int]) -> None:
        top = {
            name: found.top[name].values[(0, *at)][:modes, :, :places].astype(dtype)
            for name, dtype in (("image_index", np.int32), ("value", np.float32))
        }
        maps = {name: found.maps[name].values[at] for name in ("query_step", "key_step", "query_map", "key_map")}
        maps |= {name: maps[name].reshape(*maps[name].shape[:3], -1) for name in ("query_map", "key_map")}
        _write(folder, "L{:02d}_H{:02d}".format(*at), {}, top | maps)

    every = list(product(range(layers), range(heads)))
    with ThreadPoolExecutor() as pool, tqdm(total=len(every), desc="pages", unit="head") as bar:
        for _ in pool.map(write, every):  # zlib works outside Python's lock
            bar.update()
            interrupted()


def _write_pictures(folder: Path, found: ModelData, images: ImageSet, interrupted) -> None:
    """Thumbnails of the images on the page, in the room that all other files leave; and the images' names."""
    _, _, modes, _, places = found.maps.query_step.shape
    index = found.top.image_index.values[0, :, :, :modes, :, :places]
    shown = [int(i) for i in np.unique(index[index >= 0])]
    missing = set(found.maps.left_out.values)
    wanted = [i for i in shown if images.names[i] not in missing]
    room = max(ROOM[0], ROOM[1] - _size(folder))
    (folder / "pictures").mkdir()
    with tqdm(total=len(wanted), desc="pictures", unit="img") as bar:
        for number, data in small_pictures(images, wanted, lambda i: _seen(found, images.read(i)), room):
            (folder / "pictures" / f"{number}.webp").write_bytes(data)
            bar.update()
            interrupted()
    _write(folder, "names", {"names": {i: str(found.top.image.values[i]) for i in shown}}, {})
