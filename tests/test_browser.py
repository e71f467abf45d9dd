"""The report as a reader meets it: in a browser, opened from disk."""

import re
import shutil
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import xarray as xr
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from test_maps import BEIT, perturbed
from test_report import write_preference
from test_scan import make_images

import qkjax
from conftest import DATA
from qkjax.images.preprocess import PRESETS, preprocess
from qkjax.images.sources import open_images
from qkjax.report.job import ReportOptions, report
from qkjax.vit.model import forward
from qkjax.vit.tree import query_key_kernels
from qkjax.weights.checkpoint import write_checkpoint

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(not BROWSER, reason=f"no browser here: looked for {', '.join(NAMES)}")
SHOWN = ReportOptions(top=4, modes=6)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A report of three models of different shapes, one with results of another command; c has relative position
    biases, and images twice as wide as high."""
    folder = tmp_path_factory.mktemp("browser")
    make_images(folder / "images", 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        report((str(DATA / "a.npz"),), Path("images"), None, SHOWN, {})
        write_preference(folder / "results/a")
        wide = replace(BEIT, grid=(2, 4))
        write_checkpoint("c.npz", wide, perturbed(wide, 1), PRESETS["hf-vit"])
        report(("results/a", str(DATA / "b.npz"), "c.npz"), Path("images"), Path("report"), SHOWN, {})
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


def wait_for_address(page: Page, pattern: str) -> None:
    page.wait_for_function("pattern => new RegExp(pattern).test(location.hash)", arg=f"^{pattern}$")


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
    """Left and right are modes, with shift heads, up and down with shift layers; the address follows."""
    go(page, site, "#a/L1H1M1+")
    assert title(page) == "L1 H1 M1+"
    for key, name in (("ArrowRight", "L1 H1 M2+"), ("Shift+ArrowRight", "L1 H2 M2+"), ("Shift+ArrowDown", "L2 H2 M2+"),
                      ("ArrowLeft", "L2 H2 M1+"), ("Shift+ArrowLeft", "L2 H1 M1+"), ("Shift+ArrowUp", "L1 H1 M1+"),
                      ("ArrowLeft", "L1 H1 M0+"), ("ArrowLeft", "L1 H1 M0+")):  # fmt: skip
        page.keyboard.press(key)
        wait_for_title(page, name)
    assert page.evaluate("location.hash") == "#a/L1H1M0+"
    page.keyboard.press("ArrowDown")
    page.wait_for_function("scrollY > 0")  # by themselves up and down scroll, as everywhere
    before = page.locator("#p0-mode-1")
    before.focus()
    before.click(force=True)
    assert page.evaluate("document.activeElement.id") == "p0-mode-1", "at the end it keeps the focus, and does nothing"
    assert title(page) == "L1 H1 M0+"
    go(page, site, "#a/L99H99M99+/99")
    assert title(page) == "L3 H3 M5+", "the last that there is"
    go(page, site, "#nobody/L1H1")
    assert title(page) == "Layer 1, head 1"


@pytest.mark.parametrize(("sign", "tile"), [(1, 0), (-1, 2)])
def test_values_of_patches_are_those_of_the_file(page, site, sign, tile):
    """With the mouse and with the keyboard, to the digits shown: maps.nc holds what the page does."""
    layer, head, mode = 3, 1, 2
    go(page, site, f"#a/L{layer}H{head}M{mode}{'+' if sign > 0 else '-'}/{tile}")
    with xr.open_dataset(site / "results/a/top_images/maps.nc") as data:
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


class Seen(NamedTuple):
    """What a model makes of an image of the set, in float64, by formulas alone.

    Attributes:
      attention: (layers, heads, tokens, tokens).
      terms: of the modes, s_n (y_i . u_n) (y_j . v_n) / sqrt(d), (layers, heads, modes, tokens, tokens).
      logits: (layers, heads, tokens, tokens).
    """

    attention: np.ndarray
    terms: np.ndarray
    logits: np.ndarray

    def shares(self, layer: int, head: int, query: int | slice = slice(None)) -> np.ndarray:
        """Of each mode in the variance of the logits over keys, of one query or of all."""
        terms, logits = self.terms[layer, head][:, query], self.logits[layer, head][query]
        terms, logits = (x - x.mean(-1, keepdims=True) for x in (terms, logits))
        return (terms * logits).reshape(len(terms), -1).sum(-1) / (logits**2).sum()


def seen(site: Path, name: str, image: int) -> Seen:
    model = site / "c.npz" if name == "c" else DATA / f"{name}.npz"
    checkpoint = qkjax.load(model)
    config = checkpoint.config
    size = [n * p for n, p in zip(config.grid, config.patch_size, strict=True)]
    pixels = preprocess(open_images(site / "images").read(image), checkpoint.preprocess, tuple(size))[None]
    kinds = ("norm", "attention_logits", "attention")
    out = forward(qkjax.ViT(config), checkpoint.params, pixels, kinds)[1]
    tokens, logits, attention = (np.asarray(out[kind][:, 0], np.float64) for kind in kinds)
    query, key = (np.asarray(x, np.float64) for x in query_key_kernels(checkpoint.params))
    u, s, vt = np.linalg.svd(np.einsum("ldhk,lehk->lhde", query, key))
    rank = query.shape[-1]
    maps = (np.einsum("lid,lhdn->lhni", tokens, x[..., :rank]) for x in (u, np.swapaxes(vt, -1, -2)))
    terms = np.einsum("lhn,lhni,lhnj->lhnij", s[..., :rank], *maps) / np.sqrt(config.head_dim)
    return Seen(attention, terms, logits)


@pytest.mark.parametrize(("name", "rows", "layer", "head"), [("a", 4, 3, 2), ("c", 2, 1, 3)])
def test_attention_of_a_patch_is_the_models(page, site, name, rows, layer, head):
    """A patch picked by mouse and by keyboard, a head chosen, attention read, and the modes that make it; these link to
    their pages."""
    found = seen(site, name, 11)
    go(page, site, f"#{name}")
    page.get_by_role("link", name="Image").click()
    page.get_by_role("button", name="0011.png").click()
    wait_for_title(page, "Where does a patch attend? 0011.png")
    area = page.locator("#p0-pick canvas").bounding_box()
    assert abs(area["width"] / area["height"] - 4 / rows) < 0.05
    page.mouse.click(area["x"] + 0.6 * area["width"], area["y"] + 0.1 * area["height"])
    page.locator(".read", has_text="chosen: row 0, column 2").wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.locator(".read", has_text="chosen: row 1, column 2").wait_for()
    page.get_by_role("button", name=f"layer {layer}, head {head}").click()
    page.get_by_role("heading", name=f"Layer {layer}, head {head}: attention of this patch").wait_for()
    token = 1 + 1 * 4 + 2
    own = found.attention[layer, head, token]
    assert f"{100 * own[0]:.1f}% on the class token" in page.locator("#p0-attention").inner_text()
    box = page.locator("#p0-attended")
    box.scroll_into_view_if_needed()
    area = box.locator("canvas").bounding_box()
    for row, column in ((rows - 1, 3), (0, 0)):
        x, y = (column + 0.5) / 4, (row + 0.5) / rows
        page.mouse.move(area["x"] + x * area["width"], area["y"] + y * area["height"])
        text = page.locator("#p0-attention").inner_text()
        read = re.match(rf"row {row}, column {column}: attention (\S+), (\S+) times uniform", text)
        assert abs(float(read[1]) - own[1 + 4 * row + column]) < 1e-3
        assert abs(float(read[2]) - len(own) * own[1 + 4 * row + column]) < 0.06 * float(read[2])
    shares = found.shares(layer, head, token)
    best = np.argsort(-shares)[:8]
    lines = [line.split("\t") for line in page.locator(".detail tbody").inner_text().strip().split("\n") if "L" in line]
    shown = {re.search(r"M(\d+)", " ".join(line))[1]: " ".join(line) for line in lines}
    for mode in best[:3]:
        percent = float(re.search(r"(-?[\d.]+)%", shown[str(mode)])[1])
        assert abs(percent - 100 * shares[mode]) < 0.2, mode
    page.locator(".detail table a").first.click()
    page.locator(".pane h2", has_text=re.compile(rf"^L{layer} H{head} M\d+\+$")).wait_for()


def pixels_of(page: Page, box: str, rows: int, columns: int) -> np.ndarray:
    """Red, green and blue amid each patch of a picture, as it is seen, (rows, columns, 3)."""
    picture = page.locator(f"#{box} canvas").screenshot()
    pixels = np.asarray(Image.open(BytesIO(picture)).convert("RGB")).astype(int)
    height, width, _ = pixels.shape
    y, x = ((np.arange(n) + 0.5) / n * size for n, size in ((rows, height), (columns, width)))
    return pixels[np.ix_(y.astype(int), x.astype(int))]


def test_colours_say_what_the_numbers_say(page, site):
    """Maps orange above 0 and purple below; over the picture red where the query map is high, cyan where the key's."""
    with xr.open_dataset(site / "results/c/top_images/maps.nc") as data:
        own = data.isel(layer=1, head=2, mode=0, sign=0, place=0)
        query, key = (own[f"{n}_map"].values * float(own[f"{n}_step"]) for n in ("query", "key"))
    go(page, site, "#c/L1H2M0+")
    page.locator("#p0-large-key-map").wait_for()
    for name, values in (("query", query), ("key", key)):
        red, _, blue = np.moveaxis(pixels_of(page, f"p0-large-{name}-map", *values.shape), -1, 0)
        clear = abs(values) > 0.2 * abs(values).max()
        assert clear.sum() > 3
        np.testing.assert_array_equal((red > blue)[clear], (values > 0)[clear])
    limits = [np.percentile(x, (30, 95)) for x in (query, key)]
    bright = [np.clip((x - low) / (high - low), 0, 1) for x, (low, high) in zip((query, key), limits, strict=True)]
    red, green, blue = np.moveaxis(pixels_of(page, "p0-large-both-maps", *query.shape), -1, 0)
    apart = abs(bright[0] - bright[1]) > 0.3
    assert apart.sum() > 1
    np.testing.assert_array_equal((red > green)[apart], (bright[0] > bright[1])[apart])
    assert abs(green - blue).max() <= 2


def test_curve_and_shares_are_the_models(page, site):
    """The weighted cosine by layer as the curve draws it, and of a mode the share of the logits of the images looked
    at, against dense float64."""
    go(page, site, "#a")
    query, key = (np.asarray(x, np.float64) for x in query_key_kernels(qkjax.load(DATA / "a.npz").params))
    u, s, vt = np.linalg.svd(np.einsum("ldhk,lehk->lhde", query, key))
    cosine = (u * np.swapaxes(vt, -1, -2)).sum(-2)
    wanted = ((s * cosine).sum(-1) / s.sum(-1)).mean(-1)
    points = page.locator('polyline[stroke="var(--first)"]').get_attribute("points")
    x, y = np.array([pair.split(",") for pair in points.split()], float).T
    assert np.ptp(np.diff(x)) < 1e-6
    zero = float(page.locator("line.zero").get_attribute("y1"))
    scale = (y - zero) @ wanted / (wanted @ wanted)
    assert scale < 0, "up is more"
    np.testing.assert_allclose(y - zero, scale * wanted, atol=0.5)
    looked_at = page.evaluate("load('m0/model').then((model) => model.facts.look)")
    wanted = np.mean([seen(site, "a", int(name[:4])).shares(2, 1) for name in looked_at], axis=0)
    go(page, site, "#a/L2H1M1+")
    said = page.locator("dl div", has_text="share of logits").locator("dd").inner_text()
    assert abs(float(said.removesuffix("%")) - 100 * wanted[1]) < 0.1


def test_two_models_side_by_side(page, site):
    go(page, site)
    page.get_by_role("button", name="Side by side").click()
    page.locator(".pane").nth(1).locator("h2").wait_for()
    assert [h.inner_text() for h in page.locator(".pane h2").all()] == ["a", "b"]
    assert page.locator(".pane").nth(0).get_by_text("b, weighted, at the same relative depth").is_visible()
    page.locator("#p1-cell-0-1").click()
    page.locator(".pane").nth(1).locator("h2", has_text="Layer 0, head 1").wait_for()
    assert title(page) == "a", "the other pane stays"
    page.keyboard.press("Shift+ArrowDown")
    page.locator(".pane").nth(1).locator("h2", has_text="Layer 1, head 1").wait_for()
    assert page.evaluate("location.hash") == "#a&b/L1H1"
    page.locator("#p0-cell-0-0").click()
    wait_for_address(page, "#a/L0H0&b/L1H1")
    page.get_by_label("move both").check()
    page.locator("#p0-head1").click()
    wait_for_address(page, "#a/L0H1&b/L1H2")  # each a step from where it is
    page.keyboard.press("Shift+ArrowUp")
    wait_for_address(page, "#a/L0H1&b/L0H2")  # the first layer stays the first
    page.locator("#p0-mode-3").click()
    wait_for_address(page, "#a/L0H1M3[+-]&b/L0H2M3[+-]")  # what is chosen is chosen in both
    page.get_by_label("move both").uncheck()
    page.locator("#p1-tab-overview").click()
    page.locator("#p1-tab-mode").click()
    wait_for_address(page, "#a/L0H1M3[+-]&b/L0H2M3[+-]")  # the place is kept meanwhile
    page.locator("#p1-model").select_option("c")
    wait_for_address(page, "#a/L0H1M3[+-]&c/L0H2M3[+-]")
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
    for address in ("", "#a/L1H1", "#a/L1H1M2-/1", "#a/image0", "#a/results", "#a/L1H1&b/L0H0M0+"):
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
    damaged = tmp_path / "report/data/m0/L02_H01.js"
    damaged.write_text(damaged.read_text()[:-500])
    opened.goto("about:blank")
    opened.goto(f"file://{tmp_path}/report/index.html#a/L2H1")
    assert "data/m0/L02_H01.js is damaged" in opened.get_by_role("alert").inner_text()
    opened.close()
