"""The report of a model with rotary positions: what the page reads, and what it computes, against float64."""

import shutil

import numpy as np
import pytest
from test_report import attention_of
from test_rotary_passes import PRESET, checkpoint  # noqa: F401 (a fixture)

import qkjax
from qkjax.images.preprocess import normalise, picture
from qkjax.interaction.rotary.rotation import rotate
from qkjax.report.attended_rotary import attended_at_places
from qkjax.report.model_card import positions
from qkjax.vit.rotary import token_angles

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HEAD = (1, 0)


def keys_from(checkpoint, pixels, modes) -> np.ndarray:  # noqa: F811
    """u_n M(p_i - p_j) y_j of one head in float64: (modes, tokens i, tokens j)."""
    captured = qkjax.forward(checkpoint, normalise(pixels, PRESET)[None], capture=("norm",))[1]
    y = np.asarray(captured["norm"], np.float64)[HEAD[0], 0]
    parts = qkjax.query_key(checkpoint)
    query, key = (x[HEAD[0], :, HEAD[1]].astype(np.float64) for x in parts[:2])
    angles, pairs = token_angles(checkpoint.config, checkpoint.params, (4, 4)), parts.rotation.pairs
    of_modes = rotate((np.asarray(modes.u, np.float64)[HEAD].T @ query)[:, None], angles, pairs)
    return np.einsum("nid,jd->nij", of_modes, rotate(y @ key, angles, pairs))


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return picture(np.random.default_rng(2).integers(0, 256, (40, 40, 3), np.uint8), PRESET)


def test_terms_give_back_the_attention(checkpoint, pixels):  # noqa: F811
    terms, _ = attended_at_places(checkpoint, qkjax.decompose(checkpoint), pixels)
    attention = qkjax.forward(checkpoint, normalise(pixels, PRESET)[None], ("attention",))[1]["attention"][:, 0]
    for layer, head in np.ndindex(2, 2):
        np.testing.assert_allclose(attention_of(terms, layer, head), attention[layer, head], atol=1e-3)
    shares = qkjax.attribute_logits(checkpoint, pixels)
    np.testing.assert_allclose(terms.share, shares.variance_share, atol=1e-4)
    np.testing.assert_allclose(terms.bias_share, shares.key_bias_variance_share, atol=1e-4)


@pytest.mark.skipif(not BROWSER, reason="no browser")
def test_keys_of_a_mode_move_with_the_chosen_patch(checkpoint, pixels, tmp_path):  # noqa: F811
    """The page's own script, for every query token and mode; and the page says nothing to the console."""
    api = pytest.importorskip("playwright.sync_api")
    expected = keys_from(checkpoint, pixels, qkjax.decompose(checkpoint))
    qkjax.show(checkpoint, pixels).save(tmp_path / "page.html")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page, messages = browser.new_page(), []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(f"file://{tmp_path / 'page.html'}")
        page.get_by_role("button", name="layer 1, head 0").click()
        page.get_by_role("heading", name="Layer 1, head 0: attention of this patch").wait_for()
        assert "null" not in page.locator("main").inner_text()  # a report of one image has no choice of images
        assert "keys from here" in page.locator(".detail thead").inner_text().lower()
        values = page.evaluate("""async ([layer, head]) => {
            const [model, data] = await Promise.all([load("m0/model"), load(`m0/look0_L0${layer}`)]);
            const each = (count, value) => [...Array(count).keys()].map(value);
            return each(model.facts.modes, (mode) => each(19, (i) => [...keysFrom(data, model, head, mode, i)]));
        }""", HEAD)  # fmt: skip
        browser.close()
    assert not messages
    np.testing.assert_allclose(values, expected, atol=1e-3 * np.ptp(expected))
    moved = np.abs(np.asarray(values)[0, 3] - np.asarray(values)[0, 18]).max()
    assert moved > 0.05 * np.ptp(expected[0])


def test_measures_of_positions_are_those_of_analyze(checkpoint):  # noqa: F811
    """The page of a head shows them; `analyze` is compared with float64 elsewhere."""
    facts, arrays = positions(checkpoint)
    dataset = qkjax.analyze(checkpoint)
    np.testing.assert_array_equal(arrays["position_share"], dataset.position_share.astype(np.float32))
    np.testing.assert_array_equal(arrays["distance_cosine"], dataset.distance_cosine.astype(np.float32))
    steps = arrays["offset_cosine"]
    np.testing.assert_allclose(steps / 127, dataset.offset_cosine, atol=0.5 / 127 + 1e-6)
    assert list(facts["offsets"]) == list(steps.shape[2:])
    assert facts["distances"] == dataset.distance.values.tolist()
    assert facts["share"] == float(dataset.null_position_share)
    assert facts["share_width"] == float(dataset.null_position_share_width.sel(scope="head"))
    np.testing.assert_array_equal(facts["cosine_width"], dataset.null_distance_cosine_width.sel(scope="head"))
