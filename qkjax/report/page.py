"""Writes the page: one HTML file, which contains style and script and loads the data from other scripts."""

from importlib import resources
from pathlib import Path

MARK, DATA = "index.html", "data"
OURS = (MARK, 'content="qkjax report"', (MARK, DATA))
"""Arguments with which `atomic_folder` recognises an existing folder as a report that may be replaced."""
SCRIPTS = ("dom.js", "data.js", "places.js", "colours.js", "charts.js", "tiles.js", "overview.js", "positions.js",
           "head.js", "mode.js", "look.js", "results.js", "main.js")  # fmt: skip


def write(folder: Path, count: int) -> None:
    """Writes index.html for `count` models, whose data are in the folders data/m0, data/m1 and so on."""
    site = resources.files("qkjax.report").joinpath("site")
    # A single script instead of modules, because a browser does not load modules from a file that is opened from disk.
    code = "\n".join(site.joinpath(name).read_text() for name in SCRIPTS)
    models = "".join(f'<script src="{DATA}/m{i}/model.js"></script>\n' for i in range(count))
    text = site.joinpath("page.html").read_text()
    parts = {"STYLE": site.joinpath("style.css").read_text(), "SCRIPT": code, "MODELS": models,
             "COUNT": str(count)}  # fmt: skip
    for name, part in parts.items():
        text = text.replace(f"<!--{name}-->" if name == "MODELS" else f"/*{name}*/", part)
    (folder / MARK).write_text(text)
