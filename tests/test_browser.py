"""The report as a reader meets it: in a browser, opened from disk."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright
from test_scan import make_images

import qkjax
from conftest import DATA
from qkjax.preprocess import preprocess
from qkjax.report.job import ReportOptions, report

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(not BROWSER, reason=f"no browser here: looked for {', '.join(NAMES)}")
SHOWN = ReportOptions(top=4, modes=6)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A report of two models of different shapes, one with results of another command."""
    folder = tmp_path_factory.mktemp("browser")
    make_images(folder / "images", 12)
    (folder / "results/a/preference").mkdir(parents=True)
    (folder / "results/a/preference/preference.csv").write_text("layer,own\n0,0.123456\n1,0.5\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        report((str(DATA / "a.npz"), str(DATA / "b.npz")), Path("images"), Path("report"), SHOWN, {})
    return folder


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, site):
    """A page that fails the test if anything goes to the console or to a network."""
    opened, said = browser.new_page(), []
    opened.set_default_timeout(20_000)
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: said.append(request.url) if not _is_local(request.url) else None)
    yield opened
    opened.close()
    assert not said


def _is_local(url: str) -> bool:
    return url.startswith(("file://", "data:", "blob:"))


def go(page: Page, site: Path, address: str = "") -> None:
    page.goto("about:blank")  # or another address would only turn the page that is there
    page.goto(f"file://{site}/report/index.html{address}")
    page.locator(".pane h2").first.wait_for()


def title(page: Page) -> str:
    return page.locator(".pane h2").first.inner_text()


def wait_for_title(page: Page, text: str) -> None:
    page.locator(".pane h2", has_text=re.compile(f"^{re.escape(text)}$")).first.wait_for()


def test_from_the_overview_to_a_mode_by_clicks(page, site):
    go(page, site)
    assert title(page) == "a"
    assert page.locator(".cell").count() == 16
    page.get_by_role("link", name="layer 2, head 3").click()
    wait_for_title(page, "Layer 2, head 3")
    assert page.locator(".cards li").count() == 6
    page.locator(".cards a").nth(4).click()
    page.locator(".pane h2", has_text="L2 H3 M4").wait_for()
    assert page.locator(".sheet li").count() == 8, "four images for each sign"
    page.go_back()
    wait_for_title(page, "Layer 2, head 3")


def test_a_mode_by_keys_and_by_its_address(page, site):
    """Left and right are modes, up and down heads, with shift layers, s the sign; the address follows."""
    go(page, site, "#a/L1H1M1+")
    assert title(page) == "L1 H1 M1+"
    for key, name in (("ArrowRight", "L1 H1 M2+"), ("ArrowDown", "L1 H2 M2+"), ("Shift+ArrowDown", "L2 H2 M2+"),
                      ("ArrowLeft", "L2 H2 M1+"), ("ArrowUp", "L2 H1 M1+"), ("Shift+ArrowUp", "L1 H1 M1+"),
                      ("s", "L1 H1 M1-"), ("ArrowLeft", "L1 H1 M0-"), ("ArrowLeft", "L1 H1 M0-")):  # fmt: skip
        page.keyboard.press(key)
        wait_for_title(page, name)
    address = page.evaluate("location.hash")
    assert address == "#a/L1H1M0-"
    go(page, site, "#a/L99H99M99+/99")
    assert title(page) == "L3 H3 M5+", "the last that there is"
    go(page, site, "#nobody/L1H1")
    assert title(page) == "Layer 1, head 1"


@pytest.mark.parametrize(("sign", "tile"), [(1, 0), (-1, 2)])
def test_values_of_patches_are_those_of_the_file(page, site, sign, tile):
    """With the mouse and with the keyboard, to the digits shown: maps.nc holds what the page does."""
    layer, head, mode = 3, 1, 2
    go(page, site, f"#a/L{layer}H{head}M{mode}{'+' if sign > 0 else '-'}/{tile}")
    with xr.open_dataset(site / "results/a/modes/maps.nc") as data:
        own = data.sel(sign=sign).isel(layer=layer, head=head, mode=mode, place=tile)
        query, key = (sign * own[f"{n}_map"].values * float(own[f"{n}_step"]) for n in ("query", "key"))
    box = page.locator("#p0-large-query-map")
    box.scroll_into_view_if_needed()
    area = box.locator("canvas").bounding_box()

    def read() -> list[float]:
        text = page.locator("#p0-read").inner_text()
        found = re.fullmatch(r"row (\d+), column (\d+): query (\S+), key (\S+)", text)
        assert found, text
        return [int(found[1]), int(found[2]), float(found[3]), float(found[4])]

    for row, column in ((0, 0), (1, 3), (3, 2)):
        page.mouse.move(area["x"] + (column + 0.5) / 4 * area["width"], area["y"] + (row + 0.5) / 4 * area["height"])
        assert read() == [row, column, float(f"{query[row, column]:.4g}"), float(f"{key[row, column]:.4g}")]
    box.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    assert read() == [2, 1, float(f"{query[2, 1]:.4g}"), float(f"{key[2, 1]:.4g}")]
    assert title(page) == f"L{layer} H{head} M{mode}{'+' if sign > 0 else '-'}", "the keys moved the patch alone"


def test_attention_of_a_patch_is_the_models(page, site):
    """A patch picked by mouse and by keyboard, a head chosen, attention read; its modes link to their pages."""
    checkpoint = qkjax.load(DATA / "a.npz")
    images = qkjax.open_images(site / "images")
    pixels = preprocess(images.read(11), checkpoint.preprocess)[None]
    attention = qkjax.forward(qkjax.ViT(checkpoint.config), checkpoint.params, pixels, ("attention",))[1]["attention"]
    go(page, site)
    page.get_by_role("link", name="Image").click()
    page.get_by_role("button", name="0011.png").click()
    wait_for_title(page, "Where does a patch attend? 0011.png")
    area = page.locator("#p0-pick canvas").bounding_box()
    page.mouse.click(area["x"] + 0.6 * area["width"], area["y"] + 0.1 * area["height"])
    page.locator(".read", has_text="chosen: row 0, column 2").wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.locator(".read", has_text="chosen: row 1, column 2").wait_for()
    page.get_by_role("button", name="layer 3, head 2").click()
    page.get_by_role("heading", name="Layer 3, head 2: attention of this patch").wait_for()
    own = np.asarray(attention)[3, 0, 2, 1 + 1 * 4 + 2]
    assert f"{100 * own[0]:.1f}% on the class token" in page.locator("#p0-attention").inner_text()
    box = page.locator("#p0-attended")
    box.scroll_into_view_if_needed()
    area = box.locator("canvas").bounding_box()
    page.mouse.move(area["x"] + 0.9 * area["width"], area["y"] + 0.6 * area["height"])
    text = page.locator("#p0-attention").inner_text()
    found = re.match(r"row 2, column 3: attention (\S+), (\S+) times uniform", text)
    assert abs(float(found[1]) - own[1 + 2 * 4 + 3]) < 1e-3
    assert abs(float(found[2]) - 17 * own[1 + 2 * 4 + 3]) < 0.06 * float(found[2])
    page.locator(".detail table a").first.click()
    page.locator(".pane h2", has_text=re.compile(r"^L3 H2 M\d+\+$")).wait_for()


def test_two_models_side_by_side(page, site):
    go(page, site)
    page.get_by_role("button", name="Side by side").click()
    page.locator(".pane").nth(1).locator("h2").wait_for()
    assert [h.inner_text() for h in page.locator(".pane h2").all()] == ["a", "b"]
    assert page.locator(".pane").nth(0).get_by_text("b, weighted, at the same relative depth").is_visible()
    page.locator("#p1-cell-0-1").click()
    page.locator(".pane").nth(1).locator("h2", has_text="Layer 0, head 1").wait_for()
    assert title(page) == "a", "the other pane stays"
    page.keyboard.press("ArrowDown")
    page.locator(".pane").nth(1).locator("h2", has_text="Layer 1, head 1").wait_for()
    assert page.evaluate("location.hash") == "#a|b/L1H1"
    page.locator("#p1-model").select_option("a")
    page.locator("#p0-tab-head").click()
    page.get_by_label("move both").check()
    page.locator("#p0-head1").click()
    page.locator(".pane").nth(1).locator("h2", has_text=re.compile("head [12]")).wait_for()
    page.get_by_role("button", name="One view").click()
    page.wait_for_function("document.querySelectorAll('.pane').length == 1")


def test_results_of_other_commands(page, site):
    go(page, site, "#a/results")
    page.get_by_text("preference.csv: 2 rows").click()
    assert page.locator("td").all_inner_texts() == ["0", "0.123", "1", "0.5"]
    go(page, site, "#b/results")
    assert "This report has none" in page.locator(".pane").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_and_no_wider_than_a_phone(browser, site, scheme):
    """axe finds nothing to complain of, in any view; nothing sticks out at 360 pixels."""
    opened = browser.new_page(color_scheme=scheme, viewport={"width": 360, "height": 740})
    axe = Axe()
    for address in ("", "#a/L1H1", "#a/L1H1M2-/1", "#a/image0", "#a/results", "#a/L1H1|b/L0H0M0+"):
        go(opened, site, address)
        opened.wait_for_timeout(300)
        found = axe.run(opened)
        assert not found.response["violations"], (address, found.generate_report())
        assert opened.evaluate("document.documentElement.scrollWidth") <= 360, address
    opened.close()


def test_a_file_that_is_missing_is_named(browser, site, tmp_path):
    shutil.copytree(site / "report", tmp_path / "report")
    (tmp_path / "report/data/m0/L01_H01.js").unlink()
    opened = browser.new_page()
    opened.goto(f"file://{tmp_path}/report/index.html#a/L1H1")
    assert "data/m0/L01_H01.js is missing" in opened.get_by_role("alert").inner_text()
    opened.close()
