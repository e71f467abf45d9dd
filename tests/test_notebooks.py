"""Every notebook runs from top to bottom, defines nothing (the library does the work), and shows what comes out."""

import base64
import os
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
TRAINING = "05_retraining", "06_rotary"


def pictures(notebook) -> list[np.ndarray]:
    outputs = [
        o["data"]["image/png"] for c in notebook.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})
    ]
    found = []
    for data in outputs:
        with Image.open(BytesIO(base64.b64decode(data))) as opened:
            found.append(np.asarray(opened.convert("RGB"), float))
    return found


def shown(notebook):
    """The notebook as it is committed: figures and values, without progress bars, times and paths."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.output_type in ("display_data", "execute_result")]
    return notebook


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's own libraries
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs(default, path, tmp_path):
    """UPDATE_NOTEBOOKS=1 writes what comes out into the notebooks."""
    notebook, committed = (nbformat.read(path, as_version=4) for _ in range(2))
    sources = [c.source for c in notebook.cells if c.cell_type == "code"]
    assert sources
    assert not any(s.lstrip().startswith(("def ", "class ")) for s in sources)
    NotebookClient(notebook, timeout=250, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    texts = [o["data"].get("text/plain", "") for c in notebook.cells for o in c.get("outputs", []) if "data" in o]
    assert texts
    assert not any("nan" in text for text in texts)
    figures = pictures(notebook)
    drawing = "qkjax.figures.", ".figures[", "plt.subplots"
    assert len(figures) == sum(any(name in s for name in drawing) for s in sources)
    imports = [line for s in sources for line in s.splitlines() if line.lstrip().startswith(("import ", "from "))]
    assert all(line.startswith(("import ", "    import qkjax", "from qkjax.train.")) for line in imports), (
        "no deep import"
    )
    if os.environ.get("UPDATE_NOTEBOOKS"):
        nbformat.write(shown(notebook), path)
        return
    assert committed == shown(nbformat.from_dict(committed)), "nothing but figures and values is committed"
    before = pictures(committed)
    assert len(before) == len(figures), "UPDATE_NOTEBOOKS=1 brings the figures of the notebooks up to date"
    for was, now in zip(before, figures, strict=True):
        # Equal to the bit on one machine; elsewhere rounding moves curves by less than their width. Of 255; a figure
        # without its curves differs by 1.1 or more. Training makes much of rounding.
        assert abs(np.subtract(was.shape, now.shape)).max() <= 8
        height, width = (min(sides) for sides in zip(was.shape[:2], now.shape[:2], strict=True))
        assert abs(was[:height, :width] - now[:height, :width]).mean() < (4 if path.stem in TRAINING else 1)
