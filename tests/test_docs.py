"""The documentation: it builds, its links lead somewhere, and it knows every command."""

import re
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]


@pytest.mark.skipif(not find_spec("myst_nb"), reason="needs the docs extra: pip install -e '.[docs]'")
def test_the_site_builds_without_a_warning(tmp_path):
    """And the reference has the docstrings of the public functions, formulas are MathML, notebooks are pages."""
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "docs", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, timeout=280)
    page = (tmp_path / "api.html").read_text()
    for name in ("decompose", "analyze", "top_images", "attention_preference", "ablate"):
        assert re.search(rf'id="qkjax[\w.]*\.{name}"', page), name
    assert "<math" in (tmp_path / "index.html").read_text()
    assert (tmp_path / "notebooks" / "01_first_look.html").exists()
    pages = "".join(path.read_text() for path in tmp_path.glob("*.html"))
    assert not re.findall(r'<(?:script|link)[^>]+(?:src|href)="https?://', pages), "nothing is loaded from elsewhere"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    if page.parent.name == "docs":  # the site has copies of the notebooks
        text = text.replace("](notebooks/", "](../notebooks/")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target.split("#")[0]).exists() or target.startswith("#"), target


def test_every_command_has_its_section():
    usage = subprocess.check_output([sys.executable, "-m", "qkjax", "--help"], text=True)
    commands = set(re.search(r"\{([\w,-]+)\}", usage)[1].split(","))
    page = (ROOT / "docs/commands.md").read_text()
    assert (
        set(re.findall(r"(?<=qkjax )[\w-]+", "\n".join(re.findall(r"^## .*$", page, flags=re.MULTILINE)))) == commands
    )
    assert "TODO" not in page


def test_the_citation_is_of_this_version():
    assert f"\nversion: {version('qkjax')}\n" in (ROOT / "CITATION.cff").read_text()
