"""The page in a notebook cell: everything is inside, and it shows what was asked for."""

import re
import shutil

import pytest

import qkjax
from conftest import DATA


@pytest.fixture(scope="module")
def checkpoint():
    return qkjax.load(DATA / "a.npz")


def test_the_page_has_everything_inside_and_writes_nothing(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = qkjax.show(checkpoint, mode="L2 H1 M3")
    assert not list(tmp_path.iterdir())
    sources = re.findall(r'(?:src|href)="([^"]*)"', re.sub(r"<script>.*?</script>", "", shown.html, flags=re.DOTALL))
    assert sources and all(source.startswith("data:") for source in sources)
    assert '"hash": "#a/L2H1M3+"' in shown.html
    assert '"#a/L2H1"' in qkjax.show(checkpoint, mode="L2 H1").html
    assert '"#a/image0"' in qkjax.show(checkpoint).html
    assert shown._repr_html_().startswith("<iframe srcdoc=")
    assert len(repr(shown)) < 100
    shown.save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == shown.html


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"mode": "L9 H0 M0"}, "L9 H0 M0"),
        ({"mode": "best"}, "'best M0'|'best'"),
        ({"photograph": "chelsee"}, "nearest: 'chelsea'"),
        (
            {"images": qkjax.images.ImageSet("x", (), lambda index: index, "")},
            "only one of top=... and images=... is given",
        ),
    ],
)
def test_arguments_that_cannot_be(checkpoint, arguments, says):
    with pytest.raises(qkjax.QkjaxError, match=says):
        qkjax.show(checkpoint, **arguments)


def test_it_works_in_an_iframe_without_a_message(checkpoint, tmp_path):
    """As notebooks have it; links stay within the cell."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium")
    (tmp_path / "cell.html").write_text("<!doctype html>" + qkjax.show(checkpoint, mode="L2 H1 M3-")._repr_html_())
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page, messages = browser.new_page(viewport={"width": 1000, "height": 900}), []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(f"file://{tmp_path / 'cell.html'}")
        frame = page.frame_locator("iframe")
        frame.get_by_text("L2 H1 M3", exact=False).first.wait_for(timeout=30_000)
        frame.locator("nav.tabs a").get_by_text("Image").click()
        frame.locator("nav.tabs a[aria-current=page]").get_by_text("Image").wait_for(timeout=30_000)
        assert page.url.endswith("cell.html")
        assert not messages
        browser.close()
