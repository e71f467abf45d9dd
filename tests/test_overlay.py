"""Overlays lie where the patches are, in the colours they should have; sheets hold every tile."""

import numpy as np
import pytest

from qkjax import QkjaxError
from qkjax.figures import contact_sheet, overlay, top_images_sheet
from qkjax.figures.overlay import PICTURE, brightness, enlarge, map_pixels
from qkjax.figures.sheets import SheetRow, Tile
from qkjax.interaction.mode_name import ModeName, requested_indices


def test_brightness_runs_between_two_percentiles():
    values = np.random.default_rng(0).standard_normal((16, 16))
    low, high = np.percentile(values, (30, 95))
    scaled = brightness(values)
    assert (scaled[values <= low] == 0).all()
    assert (scaled[values >= high] == 1).all()
    middle = (values > low) & (values < high)
    np.testing.assert_allclose(scaled[middle], ((values - low) / (high - low))[middle])
    assert not brightness(np.full((4, 4), 3.0)).any()


def test_maps_cover_their_patches_to_the_pixel():
    """Grid 2 x 3 of patches of 8 x 4 pixels (height x width)."""
    large = enlarge(np.arange(6.0).reshape(2, 3), (16, 12))
    for row in range(2):
        for column in range(3):
            assert (large[8 * row : 8 * row + 8, 4 * column : 4 * column + 4] == 3 * row + column).all()


def test_colours_red_query_cyan_key_white_both_grey_neither():
    picture = np.full((4, 16, 3), (200, 100, 50), np.uint8)
    query, key = np.array([[1.0, 0, 1, 0]]), np.array([[0.0, 1, 1, 0]])
    seen = overlay(picture, query, key)
    grey = round(PICTURE * (0.299 * 200 + 0.587 * 100 + 0.114 * 50))
    wanted = [(255, grey, grey), (grey, 255, 255), (255, 255, 255), (grey, grey, grey)]
    for patch, colour in enumerate(wanted):
        assert (abs(seen[:, 4 * patch : 4 * patch + 4].astype(int) - colour) <= 1).all()
    alone = map_pixels(query, picture.shape, (0,))
    assert (alone[:, :4] == (255, 0, 0)).all()
    assert not alone[:, 4:8].any()


def is_in(column: np.ndarray, tile: np.ndarray) -> bool:
    """Whether a tile stands somewhere in a column of tiles as wide as itself."""
    places = range(len(column) - len(tile) + 1)
    return any(np.array_equal(column[y : y + len(tile)], tile) for y in places)


@pytest.fixture
def rows() -> list[SheetRow]:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (2, 3, 28, 42, 3), dtype=np.uint8)
    return [
        SheetRow(f"L0 H{h}", [Tile(p, *rng.standard_normal((2, 2, 3)), f"{h}{i}\ncos 0.1") for i, p in enumerate(line)])
        for h, line in enumerate(pictures)
    ]


def test_sheet_of_top_images(rows):
    figure = top_images_sheet("a_$title$", rows)
    (axes,) = figure.axes
    texts = [t.get_text() for t in axes.texts]
    assert texts == [
        "L0 H0",
        "00\ncos 0.1",
        "01\ncos 0.1",
        "02\ncos 0.1",
        "L0 H1",
        "10\ncos 0.1",
        "11\ncos 0.1",
        "12\ncos 0.1",
    ]
    canvas = axes.images[0].get_array()
    tile = rows[1].tiles[2]
    wanted = np.concatenate([tile.picture, overlay(*tile[:3])])
    assert is_in(canvas[:, -42:], wanted), "the last tile, with the picture above its overlay"
    assert any("30th" in t.get_text() and "95th" in t.get_text() for t in figure.texts)


def test_contact_sheet(rows):
    picture = rows[0].tiles[0].picture
    figure = contact_sheet("title", picture, rows)
    canvas = figure.axes[0].images[0].get_array()
    tile = rows[1].tiles[2]
    maps = [map_pixels(m, picture.shape, c)[::2, ::2] for m, c in ((tile.query_map, (0,)), (tile.key_map, (1, 2)))]
    assert is_in(canvas[:, -42:], np.concatenate([overlay(*tile[:3]), np.concatenate(maps, axis=1)]))
    assert is_in(canvas[:, :42], picture)


def test_rows_may_be_of_different_lengths(rows):
    shorter = [rows[0], SheetRow("L0 H1", rows[1].tiles[:1])]
    assert len(top_images_sheet("t", shorter).axes[0].texts) == 6


@pytest.mark.parametrize(
    ("text", "wanted"), [("L8 H7 M2", (8, 7, 2, 0)), ("l0h0m11-", (0, 0, 11, -1)), (" L1 H2 M3+ ", (1, 2, 3, 1))]
)
def test_mode_names(text, wanted):
    name = ModeName.parse(text, (12, 8, 64))
    assert name == wanted
    assert ModeName.parse(str(name), (12, 8, 64)) == name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("8 7 2", "mode='8 7 2': expected layer, head and mode"),
        ("L12 H0 M0", "mode='L12 H0 M0': expected a layer from 0 to 11"),
    ],
)
def test_names_of_no_mode(text, says):
    with pytest.raises(QkjaxError, match=says):
        ModeName.parse(text, (12, 8, 64))


def test_chosen_layers():
    assert list(requested_indices("layer", None, 3)) == [0, 1, 2]
    assert list(requested_indices("layer", 2, 3)) == [2]
    for value in (3, -1):
        with pytest.raises(QkjaxError, match=f"head={value}: expected a number from 0 to 2, as the model has 3 heads"):
            requested_indices("head", value, 3)
