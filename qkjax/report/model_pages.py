"""Writes the files that contain the data of one model. The page loads these files on demand."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from qkjax.analyses.decomposition import query_key
from qkjax.analyses.edit_rotary import rotary_bias_share
from qkjax.images.preprocess import Pixels, picture
from qkjax.images.sets import ImageSet
from qkjax.interaction.bias import bias_terms, relative_spreads
from qkjax.interaction.metrics import measure
from qkjax.passes.inputs import crop_to_patches, resolution_of
from qkjax.report import model_card
from qkjax.report.attended import Attended, attended
from qkjax.report.attended_rotary import angles_of, attended_at_places
from qkjax.report.pack import script
from qkjax.report.pictures import SIDES, small_pictures, webp
from qkjax.report.subject import ModelData
from qkjax.runtime.interrupt import deferred_interrupt

PHOTOS = 2
"""Default number of images in which the reader can pick a patch. Each image needs 8.6 MB in the report of a ViT-B."""
SPACE = (10e6, 97e6)
"""Smallest number of bytes that thumbnails may use, and largest number of bytes for all files of a model. The largest
number is slightly below 100 MB, because the size of the thumbnails is estimated from a sample."""

Photographs = Sequence[tuple[str, "PIL.Image.Image"]]


def write_model(folder: Path, data: ModelData, images: ImageSet, photos: Photographs) -> int:
    """Writes all files of a model into a new folder.

    Args:
      folder: the folder, which must not exist.
      data: the data of the model's pages.
      images: the images of the scan.
      photos: pairs of names and photographs in which the reader can pick a patch; if empty, some of the images are
        used.

    Returns:
      The total size of the files in bytes.

    Raises:
      QkjaxError: a result of `qkjax preference`, `objects`, `tokens` or `ablate` cannot be read.
      KeyboardInterrupt: the user interrupted the program; raised between two files.
    """
    folder.mkdir(parents=True)
    photos = photos or _default_photos(images, data)
    rotary = data.subject.checkpoint.config.rotary is not None
    with deferred_interrupt() as interrupted:
        terms = _write_looks(folder, data, photos, interrupted)
        _write_heads(folder, data, interrupted)
        metrics = measure(data.modes)
        facts = model_card.facts(data, images.names, metrics, [name for name, _ in photos])
        facts["results"] = model_card.results_of(data, folder)
        shares = [np.mean([getattr(x, name) for x in terms], axis=0) for name in ("share", "bias_share")]
        arrays = model_card.arrays(metrics, _key_bias(data), *shares)
        if rotary:
            facts["positions"], own = model_card.positions(data.subject.checkpoint)
            arrays |= own
            arrays["angles"] = angles_of(data.subject.checkpoint, _model_pixels(data, photos[0][1])).astype(np.float32)
        _write(folder, "model", facts, arrays)
        _write_pictures(folder, data, images, interrupted)
    return _size(folder)


def _key_bias(data: ModelData) -> Float[np.ndarray, "layers heads"]:
    """The spread of the key bias term of each head, relative to that of y_i M y_j."""
    checkpoint = data.subject.checkpoint
    if checkpoint.config.rotary is not None:
        return np.sqrt(rotary_bias_share(query_key(checkpoint)))
    return relative_spreads(bias_terms(query_key(checkpoint)))[1]


def _write(folder: Path, stem: str, facts: dict, arrays: dict) -> None:
    (folder / f"{stem}.js").write_text(script(f"{folder.name}/{stem}", facts, arrays), encoding="utf-8", newline="")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _model_pixels(data: ModelData, photo: "PIL.Image.Image") -> Pixels:
    """The pixels of a photograph that the model sees."""
    checkpoint = data.subject.checkpoint
    resolution = resolution_of(checkpoint, data.scan.options.resolution)
    return crop_to_patches(checkpoint, picture(photo, checkpoint.preprocess, resolution))


def _default_photos(images: ImageSet, data: ModelData) -> Photographs:
    """The names and photographs of `PHOTOS` readable images that are evenly spaced in the set."""
    missing = {*data.maps.left_out.values, *data.top.unreadable.values}
    readable = [i for i in range(len(images)) if images.names[i] not in missing]
    chosen = sorted({readable[round(i * (len(readable) - 1) / max(PHOTOS - 1, 1))] for i in range(PHOTOS)})
    return [(images.names[i], images.read(i)) for i in chosen]


def _write_looks(folder: Path, data: ModelData, photos: Photographs, interrupted) -> list[Attended]:
    """For each image in which the reader can pick a patch, writes a picture and one script per layer."""
    terms, checkpoint = [], data.subject.checkpoint
    direction = None if checkpoint.config.rotary else bias_terms(query_key(checkpoint)).key_direction
    for place, (_, photo) in enumerate(tqdm(photos, desc="images", unit="img", disable=len(photos) < 3)):
        pixels = _model_pixels(data, photo)
        if direction is None:
            result, keys = attended_at_places(checkpoint, data.modes, pixels)
        else:
            result, keys = attended(checkpoint, data.modes, direction, pixels), None
        terms.append(result)
        (folder / f"look{place}.webp").write_bytes(webp(pixels, SIDES[0], 85))
        written = result._asdict() | ({} if keys is None else keys._asdict())
        for layer in range(checkpoint.config.depth):
            own = {name: x[layer] for name, x in written.items() if "share" not in name}
            _write(folder, f"look{place}_L{layer:02d}", {}, own)
        interrupted()
    return terms


def _write_heads(folder: Path, data: ModelData, interrupted) -> None:
    """Writes one script per head, which contains maps, indices and scores of the modes' top images."""
    layers, heads, modes, _, places = data.maps.query_step.shape

    def write(at: tuple[int, int]) -> None:
        top = {
            name: data.top[name].values[(0, *at)][:modes, :, :places].astype(dtype)
            for name, dtype in (("image_index", np.int32), ("value", np.float32))
        }
        maps = {name: data.maps[name].values[at] for name in ("query_step", "key_step", "query_map", "key_map")}
        maps |= {name: maps[name].reshape(*maps[name].shape[:3], -1) for name in ("query_map", "key_map")}
        _write(folder, "L{:02d}_H{:02d}".format(*at), {}, top | maps)

    every = list(product(range(layers), range(heads)))
    with ThreadPoolExecutor() as pool, tqdm(total=len(every), desc="pages", unit="head") as bar:
        for _ in pool.map(write, every):  # threads suffice, because zlib releases the global interpreter lock
            bar.update()
            interrupted()


def _write_pictures(folder: Path, data: ModelData, images: ImageSet, interrupted) -> None:
    """Writes the names and the thumbnails of the images on the page.

    The thumbnails may use the space that all other files of the model leave free.
    """
    _, _, modes, _, places = data.maps.query_step.shape
    index = data.top.image_index.values[0, :, :, :modes, :, :places]
    displayed = [int(i) for i in np.unique(index[index >= 0])]
    missing = set(data.maps.left_out.values)
    readable = [i for i in displayed if images.names[i] not in missing]
    space = max(SPACE[0], SPACE[1] - _size(folder))
    (folder / "pictures").mkdir()
    with tqdm(total=len(readable), desc="pictures", unit="img") as bar:
        for number, webp_bytes in small_pictures(
            images, readable, lambda i: _model_pixels(data, images.read(i)), space
        ):
            (folder / "pictures" / f"{number}.webp").write_bytes(webp_bytes)
            bar.update()
            interrupted()
    _write(folder, "names", {"names": {i: str(data.top.image.values[i]) for i in displayed}}, {})
