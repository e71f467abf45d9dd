"""Shows the page of a report, with embedded data, in a notebook cell."""

import base64
import html
import json
import os
import tempfile
from pathlib import Path
from urllib.parse import quote

import xarray as xr

from qkjax.analyses.decomposition import decompose
from qkjax.analyses.image import open_photo
from qkjax.analyses.top_images.compute import top_images
from qkjax.analyses.top_images.pages import ScanOptions
from qkjax.analyses.top_images.sheets import options_of
from qkjax.errors import QkjaxError
from qkjax.images.preprocess import Photograph
from qkjax.images.sets import ImageSet
from qkjax.interaction.mode_name import ModeName
from qkjax.passes.inputs import for_photographs
from qkjax.report import page
from qkjax.report.map_tiles import map_tiles
from qkjax.report.model_pages import write_model
from qkjax.report.subject import ModelData, Subject
from qkjax.runtime.files import atomic_path
from qkjax.weights.checkpoint import Checkpoint

MODES = 8
"""Number of modes per head on the page, strongest first. If a weaker mode is requested, more modes are shown."""


class NotebookPage:
    """A page for a notebook cell. The notebook displays it if it is the value of the last expression in the cell.

    Attributes:
      html: the whole page, which contains markup, scripts, data and pictures, and loads no other files.
      height: height of the cell in pixels.
    """

    def __init__(self, text: str, height: int):
        """Makes a page from its HTML text and the height of its cell in pixels."""
        self.html, self.height = text, height

    def __repr__(self) -> str:
        return f"a page of {len(self.html) / 1e6:.1f} MB; display it in a notebook, or save(path) and open it"

    def _repr_html_(self) -> str:
        style = "width: 100%; border: 1px solid #cccccc"
        return f'<iframe srcdoc="{html.escape(self.html)}" height="{self.height}" style="{style}"></iframe>'

    def save(self, path: str | Path) -> None:
        """Writes the page as one HTML file that opens from disk.

        Raises:
          QkjaxError: the file cannot be written.
        """
        with atomic_path(Path(path)) as temporary:
            temporary.write_text(self.html, encoding="utf-8")


def show(
    checkpoint: Checkpoint,
    photograph: Photograph | str | Path = "chelsea",
    *,
    mode: str | None = None,
    top: xr.Dataset | None = None,
    images: ImageSet | None = None,
    height: int = 900,
) -> NotebookPage:
    """Shows the page of `qkjax report` in a notebook cell. The page opens at a mode, at a head, or at one image.

    If `top` is not given, the page shows the modes only on the photograph, which requires one forward pass. If `top` is
    given, the page shows each mode on the images that excite the mode most. For DINOv2 ViT-S/14, the size of the page
    is about 8 MB. The page works offline.

    Args:
      checkpoint: any checkpoint, including an edited checkpoint.
      photograph: the photograph in which the reader can pick a patch. The photograph is a Pillow image, a uint8 array
        (height, width, 3), the path of an image file, or the name of a default photograph.
      mode: mode or head at which the page opens, such as "L8 H4 M2" or "L8 H4"; by default, the page opens at the
        photograph.
      top: the result of `top_images` for `images`.
      images: the image set for which `top` was computed.
      height: height of the cell in pixels.

    Raises:
      QkjaxError: the mode is unknown, only one of `top` and `images` is given, or the photograph cannot be read.

    Example:
      >>> import qkjax
      >>> qkjax.show(qkjax.load("dinov2-vits14-focus"), mode="L8 H4 M2")  # doctest: +ELLIPSIS
      a page of ... MB; display it in a notebook, or save(path) and open it
    """
    if (top is None) != (images is None):
        raise QkjaxError("only one of top=... and images=... is given: pass both, or neither")
    checkpoint = for_photographs(checkpoint)
    name, photo = open_photo(photograph) if isinstance(photograph, str | Path) else ("image", photograph)
    modes = decompose(checkpoint)
    rank = modes.s.shape[-1]
    place = _place(mode, (checkpoint.config.depth, checkpoint.config.heads, rank))
    count = min(rank, max(MODES, place.mode + 1 if place else 0))
    if images is None:
        images = ImageSet(name, (name,), lambda _: photo, name)
        top = top_images(checkpoint, images, top=1, maps=count)
    stream, options = options_of(top)
    scan = ScanOptions(top.sizes["place"], tuple(map(str, top.score.values)), stream, options)
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        origin = {"checkpoint": os.path.abspath(checkpoint.source), "loaded_with": "{}"}
        subject = Subject(checkpoint.name, checkpoint, origin, site / "results")
        maps = map_tiles(checkpoint, modes, images, top, (count, top.sizes["place"]), site / "maps")
        data = ModelData(subject, modes, scan, None, top, maps)
        write_model(site / page.DATA / "m0", data, images, [(name, photo)])
        page.write(site, 1)
        return NotebookPage(_embedded(site, _address(checkpoint.name, mode, place)), height)


def _place(mode: str | None, shape: tuple[int, int, int]) -> ModeName | None:
    """Parses the name of a mode or of a head. For a head, returns the head's first mode; for None, returns None.

    Raises:
      QkjaxError: the mode or head does not exist.
    """
    if mode is None:
        return None
    return ModeName.parse(mode if "M" in mode.upper() else f"{mode} M0", shape)


def _address(name: str, mode: str | None, place: ModeName | None) -> str:
    """The URL fragment of the view at which the page opens; report/site/places.js reads the fragment."""
    model = quote(name, safe="")
    if place is None:
        return f"#{model}/image0"
    head = f"L{place.layer}H{place.head}"
    sign = "-" if place.sign < 0 else "+"
    return f"#{model}/{head}M{place.mode}{sign}" if "M" in mode.upper() else f"#{model}/{head}"


def _embedded(site: Path, address: str) -> str:
    """The HTML text of the page, with data and pictures embedded."""
    text = (site / page.MARK).read_text(encoding="utf-8")
    pictures = {
        path.relative_to(site).as_posix(): f"data:image/webp;base64,{base64.b64encode(path.read_bytes()).decode()}"
        for path in site.glob(f"{page.DATA}/**/*.webp")
    }
    inside = json.dumps({"hash": address, "pictures": pictures}).replace("</", "<\\/")
    # Scripts are encoded in base64, because a script that is embedded in HTML must not contain the byte 0.
    scripts = (base64.b64encode(path.read_bytes()).decode() for path in sorted(site.glob(f"{page.DATA}/**/*.js")))
    markup = f"<script>qkjax.inside = {inside};</script>\n"
    markup += "".join(f'<script src="data:text/javascript;base64,{script}"></script>\n' for script in scripts)
    return text.replace(f'<script src="{page.DATA}/m0/model.js"></script>\n', markup)
