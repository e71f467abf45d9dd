"""The documentation: it builds, its links lead somewhere, and it knows every command."""

import re
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")]


@pytest.mark.skipif(not find_spec("mkdocs"), reason="needs the docs extra: pip install -e '.[docs]'")
def test_the_site_builds_without_a_warning(tmp_path):
    """And the reference has the docstrings: what is public, with shapes and what is returned."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    subprocess.run(command, cwd=ROOT, check=True, timeout=200)
    page = (tmp_path / "api/interaction/index.html").read_text()
    assert 'id="qkjax.interaction.modes.decompose"' in page
    assert "layers embed heads head_dim" in page
    assert (tmp_path / "images/report_mode.png").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target.split("#")[0]).exists() or target.startswith("#"), target


def test_every_command_has_its_section():
    usage = subprocess.check_output([sys.executable, "-m", "qkjax", "--help"], text=True)
    commands = set(re.search(r"\{([\w,]+)\}", usage)[1].split(","))
    page = (ROOT / "docs/commands.md").read_text()
    assert set(re.findall(r"(?<=qkjax )\w+", "\n".join(re.findall(r"^## .*$", page, flags=re.MULTILINE)))) == commands
    assert "TODO" not in page


def test_the_citation_is_of_this_version():
    assert f"\nversion: {version('qkjax')}\n" in (ROOT / "CITATION.cff").read_text()
