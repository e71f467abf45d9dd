"""What `analyze` reports for models with rotary positions, against loops over all pairs of positions in float64."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import xarray as xr
from commands import command
from test_rotary_eva import save, small_timm

import qkjax
from qkjax.errors import QkjaxError
from qkjax.interaction.head_null import head_null
from qkjax.interaction.null import null_band
from qkjax.interaction.rotary.chance import rotary_null
from qkjax.interaction.rotary.distance import cosine_by_offset
from qkjax.interaction.rotary.isotropy import isotropy
from qkjax.interaction.rotary.place import place_share
from qkjax.interaction.rotary.rotation import plane_columns, rotate
from qkjax.results.chance import CHANCE_LABELS
from qkjax.results.modes import NULL_FIELDS, layer_rows, layer_table
from qkjax.results.positions import positions_of
from qkjax.results.store import read_result, write_dataset
from qkjax.vit.config import ViTConfig
from qkjax.vit.rotary import patch_rotation
from qkjax.vit.rotary_config import Rotary
from qkjax.vit.tree import bare_tree
from qkjax.weights.checkpoint import Checkpoint
from qkjax.weights.preprocessing import from_architecture

GRID = (3, 4)
LAYERS, EMBED, HEADS, HEAD_DIM = 2, 24, 2, 8
FRAMES = {
    "plain": {},
    "normalised tokens": {"fold_scale": True, "center": True, "normalize": True},
}
KINDS = {"DINOv3": Rotary(100.0, "centred", pairs="half"), "EVA-02": Rotary(1e4, reference=(2, 2), first="columns")}


def checkpoint_of(kind: str) -> Checkpoint:
    config = ViTConfig(EMBED, LAYERS, HEADS, HEAD_DIM, 48, (8, 8), posemb="none", class_token=True, pool="tok",
                       rotary=KINDS[kind])  # fmt: skip
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((2, LAYERS, EMBED, HEADS, HEAD_DIM)).astype(np.float32)
    key = key + 0.8 * query  # heads group, more so near than far
    bias = rng.standard_normal((2, LAYERS, HEADS, HEAD_DIM)).astype(np.float32)
    norm = rng.uniform(0.5, 1.5, (LAYERS, EMBED)).astype(np.float32)
    parts = qkjax.QueryKey(query, key, *bias, norm, 0 * norm)
    return Checkpoint("rotary", config, bare_tree(parts), "rotary.npz", from_architecture(config))


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request) -> Checkpoint:
    return checkpoint_of(request.param)


def kernels_of(checkpoint: Checkpoint, frame: str) -> list[np.ndarray]:
    """Kernels in float64, (layers, heads, embed, head_dim), from the definition of the frame."""
    parts = qkjax.query_key(checkpoint.params)
    kernels = [np.moveaxis(x.astype(np.float64), 2, 1) for x in parts[:2]]
    if frame == "plain":
        return kernels
    centre = np.eye(EMBED) - 1 / EMBED
    query, key = (np.einsum("de,le,lhek->lhdk", centre, parts.norm_scale.astype(np.float64), x) for x in kernels)
    return [query / np.sqrt(HEAD_DIM), key]


def rotated_kernels(checkpoint: Checkpoint, frame: str) -> list[np.ndarray]:
    """W R(p) of all positions: (layers, heads, positions, embed, head_dim)."""
    rotation = patch_rotation(checkpoint.config, GRID)
    kernels = kernels_of(checkpoint, frame)
    return [rotate(x[:, :, None], rotation.angles[:, None], rotation.pairs) for x in kernels]


def pairs_of(checkpoint: Checkpoint, frame: str = "plain", planes=None) -> np.ndarray:
    """M of all pairs of positions (or only its part in some planes): (layers, heads, i, j, embed, embed)."""
    rotation = patch_rotation(checkpoint.config, GRID)
    query, key = (
        rotate(x[:, :, None], rotation.angles[:, None], rotation.pairs) for x in kernels_of(checkpoint, frame)
    )
    if planes is not None:
        columns = plane_columns(HEAD_DIM, rotation.pairs)[:, planes]
        query, key = query[..., columns.ravel()], key[..., columns.ravel()]
    return np.einsum("lhied,lhjfd->lhijef", query, key)


def square(x: np.ndarray) -> np.ndarray:
    return (x**2).sum((-1, -2))


def mean(x: np.ndarray) -> np.ndarray:
    return x.mean((2, 3))


PLACES = list(product(*map(range, GRID)))
DELTA = np.array([[np.subtract(p, q) for q in PLACES] for p in PLACES])  # query minus key: (i, j, axis)


@pytest.fixture(scope="module", params=FRAMES)
def case(request, checkpoint):
    return checkpoint, request.param, qkjax.analyze(checkpoint, grid=GRID, **FRAMES[request.param])


def test_modes_are_those_of_the_mean_over_all_pairs(case):
    checkpoint, frame, data = case
    m = mean(pairs_of(checkpoint, frame))
    u, s, v = (data[name].values.astype(np.float64) for name in ("u", "singular_value", "v"))
    np.testing.assert_allclose(np.einsum("lhen,lhn,lhfn->lhef", u, s, v), m, atol=2e-6 * s.max())
    expected = np.linalg.svd(m, compute_uv=False)
    rank = 2 * int((data.coherence > 0).sum())
    np.testing.assert_allclose(s, expected[..., :rank], atol=2e-6 * s.max())
    assert (expected[..., rank:] < 1e-9 * s.max()).all()
    np.testing.assert_allclose(data.weighted_cosine, np.trace(m, axis1=2, axis2=3) / expected.sum(-1), atol=1e-5)
    np.testing.assert_allclose(data.symmetric_share, square((m + np.swapaxes(m, -1, -2)) / 2) / square(m), atol=1e-5)


def test_share_of_position_is_that_over_all_pairs(case):
    checkpoint, frame, data = case
    m = pairs_of(checkpoint, frame)
    total, average = mean(square(m)), mean(m)
    share = 1 - square(average) / total
    np.testing.assert_allclose(data.position_share, share, atol=1e-5)
    for axis in (0, 1):
        given = 0
        for offset in range(1 - GRID[axis], GRID[axis]):
            chosen = DELTA[..., axis] == offset
            given = given + chosen.mean() * square(m[:, :, chosen].mean(2) - average)
        np.testing.assert_allclose(data.position_share_of_axis[..., axis], given / total, atol=1e-5)
    deviation = m - average[:, :, None, None]
    for plane in range(HEAD_DIM // 2):
        own = pairs_of(checkpoint, frame, [plane])
        away = own - mean(own)[:, :, None, None]
        contribution = mean((away * deviation).sum((-1, -2))) / total
        np.testing.assert_allclose(data.position_share_of_plane[..., plane], contribution, atol=1e-5)
        within = 1 - square(mean(own)) / mean(square(own))
        np.testing.assert_allclose(data.position_share_within_plane[..., plane], within, atol=1e-5)


def test_weighted_cosine_of_every_offset_by_dense_svd(case):
    checkpoint, frame, data = case
    m = pairs_of(checkpoint, frame)
    cosine = np.trace(m, axis1=-2, axis2=-1) / np.linalg.svd(m, compute_uv=False).sum(-1)  # of all pairs
    for i, j in np.ndindex(len(PLACES), len(PLACES)):
        own = data.offset_cosine.sel(row_offset=DELTA[i, j, 0], column_offset=DELTA[i, j, 1])
        np.testing.assert_allclose(own, cosine[:, :, i, j], atol=2e-6)
    distance = np.rint(np.hypot(*np.moveaxis(DELTA, -1, 0)))
    assert data.distance.values.tolist() == sorted(set(distance.ravel()))
    for d in data.distance.values:
        chosen = distance == d
        assert data.distance_pairs.sel(distance=d) == chosen.sum()
        np.testing.assert_allclose(data.distance_cosine.sel(distance=d), cosine[:, :, chosen].mean(-1), atol=2e-6)
    for axis in (0, 1):
        sides = data.offset_cosine.stack(offset=("row_offset", "column_offset"))
        along = sides[("row_offset", "column_offset")[axis]]
        difference = sides[..., along.values > 0].mean("offset") - sides[..., along.values < 0].mean("offset")
        np.testing.assert_allclose(data.side_difference[..., axis], difference, atol=1e-9)


def test_bias_terms_over_all_pairs(checkpoint):
    data, parts = qkjax.analyze(checkpoint, grid=GRID), qkjax.query_key(checkpoint.params)
    rotation = patch_rotation(checkpoint.config, GRID)
    turn = lambda x: rotate(x.astype(np.float64)[:, :, None], rotation.angles, rotation.pairs)
    query, key = (
        rotate(x[:, :, None], rotation.angles[:, None], rotation.pairs) for x in kernels_of(checkpoint, "plain")
    )
    bq, bk = turn(parts.query_bias), turn(parts.key_bias)
    towards_query = np.einsum("lhidk,lhjk->lhijd", query, bk)
    towards_key = np.einsum("lhjdk,lhik->lhijd", key, bq)
    np.testing.assert_allclose(data.bias_query_direction, mean(towards_query), atol=2e-5)
    np.testing.assert_allclose(data.bias_key_direction, mean(towards_key), atol=2e-5)
    np.testing.assert_allclose(data.bias_constant, mean(np.einsum("lhik,lhjk->lhij", bq, bk)), atol=2e-5)
    fold = np.einsum("de,le->lde", np.eye(EMBED) - 1 / EMBED, parts.norm_scale.astype(np.float64))
    for name, term in {"query": towards_query, "key": towards_key}.items():
        size = mean((np.einsum("lde,lhije->lhijd", fold, term) ** 2).sum(-1))
        np.testing.assert_allclose(data[f"bias_{name}_spread"], np.sqrt(size / HEAD_DIM), rtol=1e-5)
    m = pairs_of(checkpoint, "normalised tokens")  # already divided by sqrt(head_dim)
    np.testing.assert_allclose(data.bias_interaction_spread, np.sqrt(mean(square(m))), rtol=1e-5)


def random_heads(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, 1, EMBED, count, HEAD_DIM)).astype(np.float32)


def inside(values: np.ndarray, half_width, centre=0.0) -> np.ndarray:
    """Share of layers of 3 heads whose mean is inside the interval."""
    layers = values.reshape(-1, 3, *values.shape[1:]).mean(1)
    return (np.abs(layers - centre) < half_width).mean(0)


def test_chance_against_fresh_random_layers():
    """700 layers of 3 heads, with the rotation of DINOv3."""
    config = ViTConfig(EMBED, 1, 3, HEAD_DIM, 48, (8, 8), posemb="none", rotary=KINDS["DINOv3"])
    rotation = patch_rotation(config, GRID)
    query, key = random_heads(2100, 7)
    null = rotary_null(EMBED, 3, rotation.angles, GRID)
    shares = place_share(query, key, rotation.angles, GRID)
    for field in ("share", "contribution", "axis"):
        values = np.asarray(getattr(shares, field)[0])
        covered = inside(values, getattr(null, f"{field}_width").layer, getattr(null, field))
        assert (np.abs(covered - 0.95) < 0.035).all(), field
    cosine = cosine_by_offset(query, key, rotation.angles, GRID)
    direction = isotropy(cosine)
    for field, width in (("along", null.along_width), ("ahead", null.ahead_width)):
        assert (np.abs(inside(getattr(direction, field)[0], width.layer) - 0.95) < 0.04).all(), field
    for field, end in (("isotropic", null.isotropic_end), ("odd", null.odd_end)):
        layers = getattr(direction, field)[0].reshape(-1, 3).mean(1)
        assert abs((layers < end.layer).mean() - 0.95) < 0.04, field


def test_chance_of_the_mean_over_positions():
    """The interval of Mbar is wider than that of Wq Wk^T, because planes with small c count less."""
    config = ViTConfig(EMBED, 1, 3, HEAD_DIM, 48, (8, 8), posemb="none", rotary=KINDS["DINOv3"])
    rotation = patch_rotation(config, GRID)
    query, key = (np.moveaxis(x[0], 1, 0).astype(np.float64) for x in random_heads(1500, 9))
    rbar = np.exp(1j * rotation.angles).mean(0)
    c = np.tile(np.abs(rbar) ** 2, 2)  # "half" pairs
    m = (query * c) @ np.swapaxes(key, -1, -2)
    cosine = np.trace(m, axis1=1, axis2=2) / np.linalg.svd(m, compute_uv=False).sum(-1)
    parts = qkjax.QueryKey(*random_heads(3, 1), *np.zeros((2, 1, 3, HEAD_DIM), np.float32),
                           *np.ones((2, 1, EMBED), np.float32), rotation=rotation)  # fmt: skip
    null = qkjax.measure(qkjax.decompose(parts)).null
    assert abs((np.abs(cosine) < null.head_weighted_cosine).mean() - 0.95) < 0.025
    assert abs(inside(cosine, null.weighted_cosine) - 0.95) < 0.035
    assert null.weighted_cosine > 1.1 * null_band(EMBED, 3, HEAD_DIM).weighted_cosine
    unrotated = qkjax.measure(qkjax.decompose(parts, positions="none")).null
    assert unrotated == null_band(EMBED, 3, HEAD_DIM)


def test_command_and_timm(timm, torch, tmp_path, monkeypatch, capsys):
    """The command, for a tiny EVA-02 model, against kernels that timm rotated."""
    from timm.layers import apply_rot_embed_cat

    model, arguments = small_timm(timm, torch, "eva02_tiny_patch14_224")
    folder, out = save(tmp_path, model, "eva02_tiny_patch14_224", arguments), tmp_path / "out"
    done = command(monkeypatch, capsys, "analyze", folder, "--out", out)
    assert done.code == 0, done.err
    names = {file.name for file in out.iterdir()}
    assert {"positions.csv", "planes.csv", "distance.csv", "offsets.csv", "cosine_by_offset.png"} <= names
    refused = command(monkeypatch, capsys, "analyze", folder, "--rotary-grid", "1", "1")
    assert refused.code == 2
    assert refused.err.strip().splitlines()[-1].startswith("qkjax: error: --rotary-grid (1, 1): expected at least 2")
    data, parts = read_result(out / "modes.nc"), qkjax.query_key(qkjax.load(folder))
    assert parts.rotation.grid == tuple(model.patch_embed.grid_size)
    angles = model.rope.get_embed().detach()  # (patches, sine and cosine)
    query, key = (
        apply_rot_embed_cat(torch.tensor(x).permute(0, 2, 1, 3)[..., None, :], angles).double().numpy()
        for x in parts[:2]
    )  # (layers, heads, embed, patches, head_dim)
    m = np.einsum("lhed,lhfd->lhef", query.mean(3), key.mean(3))
    u, s, v = (data[name].values.astype(np.float64) for name in ("u", "singular_value", "v"))
    np.testing.assert_allclose(np.einsum("lhen,lhn,lhfn->lhef", u, s, v), m, atol=2e-6 * s.max())
    columns = parts.rotation.grid[1]
    one_right = np.einsum("lhed,lhfd->lhef", query[..., columns + 1, :], key[..., columns, :])
    cosine = np.trace(one_right, axis1=2, axis2=3) / np.linalg.svd(one_right, compute_uv=False).sum(-1)
    np.testing.assert_allclose(data.offset_cosine.sel(row_offset=0, column_offset=1), cosine, atol=1e-5)


def test_a_model_without_rotary_positions_has_the_same_bits():
    """Variables, values and table are those of the functions that know no positions."""
    checkpoint = checkpoint_of("DINOv3")
    plain = replace(checkpoint, config=replace(checkpoint.config, rotary=None))
    data, parts = qkjax.analyze(plain), qkjax.query_key(plain.params)
    modes = qkjax.decompose(*parts[:2])
    metrics, bias = qkjax.measure(modes), qkjax.bias_terms(parts)
    expected = {"u": modes.u, "v": modes.v}
    expected |= {name: value for name, value in metrics._asdict().items() if name not in NULL_FIELDS}
    expected |= {f"bias_{name}": value for name, value in bias._asdict().items()}
    assert set(data.data_vars) == set(expected) | set(CHANCE_LABELS)
    for name, value in expected.items():
        np.testing.assert_array_equal(data[name], value)
    assert metrics.null == null_band(EMBED, HEADS, HEAD_DIM)
    metrics = metrics._replace(head_null=head_null(modes, metrics.null, *parts[:2]))
    expected_rows = layer_table(metrics, bias)
    assert [{name: row[name] for name in expected_rows[0]} for row in layer_rows(data)] == expected_rows
    described = qkjax.describe(data)
    assert list(described.tables) == ["layers", "heads"]
    assert described.tables["layers"] == layer_rows(data)
    assert len(described.figures) == 5
    assert set(data.dims) == {"layer", "head", "embed", "mode", "eigen", "pair", "null"}
    assert data.attrs["options"] == '{"fold_scale": false, "center": false, "normalize": false}'


CHANGES = {
    "a cosine": lambda d: d.assign(offset_cosine=d.offset_cosine * 0.999),
    "chance": lambda d: d.assign(null_position_share_width=d.null_position_share_width * 0),
    "no curve": lambda d: d.drop_vars("distance_cosine"),
}


@pytest.fixture(scope="module")
def analysed() -> xr.Dataset:
    return qkjax.analyze(checkpoint_of("DINOv3"), grid=GRID)


def test_changed_measures_are_refused(analysed, tmp_path):
    write_dataset(analysed, tmp_path / "modes.nc")
    read = read_result(tmp_path / "modes.nc")
    for change in CHANGES.values():
        change(read).to_netcdf(tmp_path / "changed.nc", engine="h5netcdf")
        with pytest.raises(QkjaxError, match=r"changed.nc \(its content differs from its checksum\)"):
            read_result(tmp_path / "changed.nc")


IMPOSSIBLE = {
    "a cosine above 1": lambda d: d.assign(offset_cosine=d.offset_cosine + 3),
    "other dimensions": lambda d: d.assign(position_share=d.position_share.T),
    "other offsets": lambda d: d.assign_coords(row_offset=d.row_offset + 1),
    "another grid": lambda d: d.assign_attrs(options='{"grid": [5, 5]}'),
    "no grid": lambda d: d.assign_attrs(options="{}"),
    "fewer planes": lambda d: d.isel(plane=slice(1)),
    "no chance": lambda d: d.drop_vars("null_odd_share_end"),
}


@pytest.mark.parametrize("change", IMPOSSIBLE)
def test_impossible_measures_are_refused(analysed, change):
    with pytest.raises(QkjaxError, match="has no valid measures of rotary positions") as caught:
        qkjax.describe(IMPOSSIBLE[change](analysed))
    assert "\n" not in str(caught.value)


def test_measures_survive_the_file(analysed, tmp_path):
    write_dataset(analysed, tmp_path / "modes.nc")
    before, after = positions_of(analysed), positions_of(read_result(tmp_path / "modes.nc"))
    flat = lambda x: [leaf for part in x for leaf in flat(part)] if isinstance(x, tuple) else [x]
    for one, other in zip(flat(before), flat(after), strict=True):
        np.testing.assert_array_equal(one, other)


def test_tables_and_figures(analysed):
    described = qkjax.describe(analysed)
    layers = described.tables["layers"]
    means = analysed.mean("head")
    for layer, row in enumerate(layers):
        own = means.isel(layer=layer)
        assert row["position_share"] == pytest.approx(float(own.position_share))
        assert row["cosine_near"] == pytest.approx(float(own.distance_cosine.sel(distance=1)))
        assert row["cosine_far"] == pytest.approx(float(own.distance_cosine.sel(distance=2)))
        assert row["null_position_share_width"] == float(analysed.null_position_share_width.sel(scope="layer"))
        near = analysed.null_distance_cosine_width.sel(scope="layer", distance=1)
        assert row["null_cosine_near"] == float(near)
    for row in described.tables["offsets"]:
        own = means.offset_cosine.isel(layer=row["layer"])
        own = own.sel(row_offset=row["row_offset"], column_offset=row["column_offset"])
        assert row["weighted_cosine"] == pytest.approx(float(own))
    sizes = {"layers": LAYERS, "heads": LAYERS * HEADS, "positions": LAYERS * HEADS, "planes": LAYERS * HEAD_DIM // 2,
             "distance": LAYERS * analysed.sizes["distance"], "offsets": LAYERS * 5 * 7}  # fmt: skip
    assert {name: len(rows) for name, rows in described.tables.items()} == sizes
    assert max(map(len, described.text.splitlines())) <= 80
    assert analysed.attrs["summary"].startswith("M is the mean over the positions of a grid of 3 x 4 patches.")
    for name in ("position_share", "position_share_by_plane", "cosine_by_distance", "cosine_by_offset"):
        figure = described.figures[name]()
        assert "3 x 4 patches" in " ".join(text.get_text() for text in figure.findobj(match=has_text))


def has_text(artist) -> bool:
    return hasattr(artist, "get_text")


def test_grids_that_do_not_apply():
    checkpoint = checkpoint_of("DINOv3")
    plain = replace(checkpoint, config=replace(checkpoint.config, rotary=None))
    with pytest.raises(QkjaxError, match="only to a checkpoint with rotary positions"):
        qkjax.analyze(plain, grid=GRID)
    with pytest.raises(QkjaxError, match="expected at least two"):
        qkjax.analyze(checkpoint, grid=(1, 1))


@pytest.mark.parametrize("factor", [np.nan, np.inf, 1e30])
def test_kernels_that_are_not_finite_are_refused(factor):
    checkpoint = checkpoint_of("DINOv3")
    parts = qkjax.query_key(checkpoint.params)
    parts = parts._replace(query_kernel=parts.query_kernel * np.float32(factor))
    with pytest.raises(QkjaxError, match="expected finite numbers: its query and key kernels are too large"):
        qkjax.analyze(replace(checkpoint, params=bare_tree(parts)), grid=GRID)


@pytest.mark.parametrize("layers", [slice(1), slice(None)])
def test_heads_that_are_zero(layers):
    """Their measures are NaN, and every table and figure exists; warnings are errors."""
    checkpoint = checkpoint_of("DINOv3")
    parts = qkjax.query_key(checkpoint.params)
    query = parts.query_kernel.copy()
    query[layers] = 0
    data = qkjax.analyze(replace(checkpoint, params=bare_tree(parts._replace(query_kernel=query))), grid=GRID)
    zero = np.isin(np.arange(LAYERS), np.arange(LAYERS)[layers])
    assert (np.isnan(data.position_share).all("head") == zero).all()
    assert (np.isnan(data.offset_cosine).all(("head", "row_offset", "column_offset")) == zero).all()
    described = qkjax.describe(data)
    for name in ("position_share", "position_share_by_plane", "cosine_by_distance", "cosine_by_offset"):
        assert described.figures[name]().axes
    assert len(described.tables["positions"]) == LAYERS * HEADS


def test_comparison_states_what_is_compared():
    checkpoint = checkpoint_of("DINOv3")
    result = qkjax.compare(checkpoint, replace(checkpoint, name="copy"))
    np.testing.assert_allclose(result.similarity, 1, atol=1e-5)
    assert "M is the mean over positions in rotary (" in result.attrs["summary"]
