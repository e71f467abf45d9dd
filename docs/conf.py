"""The documentation as a site: Sphinx with MyST-NB, as JAX, Flax and Optax have it, and the furo theme.

Formulas become MathML, which browsers draw by themselves, so that the site loads no script from elsewhere.
"""

from importlib.metadata import version as version_of
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "notebooks"
# Notebooks are pages, with the outputs that they are committed with; their links to docs/ stay within the site.
PAGES.mkdir(exist_ok=True)
for notebook in (ROOT / "notebooks").glob("*.ipynb"):
    (PAGES / notebook.name).write_text(notebook.read_text().replace("](../docs/", "](../"))

project = "qkjax"
author = "the qkjax authors"
version = release = version_of("qkjax")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "notebooks/README.md"]
html_theme = "furo"
html_title = f"qkjax {version}"
html_theme_options = {"source_edit_link": "", "navigation_with_keys": True}
html_show_sphinx = False

nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header", "mystnb.unknown_mime_type"]

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
maximum_signature_line_length = 88


def _mathml(translator, node: nodes.Node) -> None:
    """An inline formula or a display formula as MathML."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    translator.body.append(convert(node.astext(), display=display))
    raise nodes.SkipNode


def setup(app) -> None:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", inline_renderers=(_mathml, None), block_renderers=(_mathml, None))


html_math_renderer = "mathml"
