"""The mathematics of rotary positions against dense matrices in float64, pair of places by pair of places."""

from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qkjax
from qkjax.activations.rotary_contribution import rotary_contributions
from qkjax.errors import QkjaxError
from qkjax.interaction.modes import decompose
from qkjax.interaction.null import null_band
from qkjax.interaction.rotary import distance, edit
from qkjax.interaction.rotary.bias import bias_logits, spread
from qkjax.interaction.rotary.chance import SAMPLES, curve_factor, random_maps, rotary_null
from qkjax.interaction.rotary.distance import by_distance, cosine_by_offset, nuclear_norms, offset_angles
from qkjax.interaction.rotary.edit import edit_kernels, out_of_reach
from qkjax.interaction.rotary.exact import HeadMaps, head_maps, logits_from_rotated, project_rotated, rest_logits
from qkjax.interaction.rotary.isotropy import isotropy
from qkjax.interaction.rotary.mean import coherence, mean_kernels, offset_kernels
from qkjax.interaction.rotary.place import place_share
from qkjax.interaction.rotary.rotation import axial_angles, grid_steps, offsets, pair_counts, plane_columns, rotate
from qkjax.interaction.svd.lapack import by_lapack

LAYERS, EMBED, HEADS, HEAD_DIM = 2, 24, 2, 8


class Case(NamedTuple):
    grid: tuple[int, int]
    angles: np.ndarray
    pairs: str | np.ndarray


def dinov3(grid: tuple[int, int], head_dim: int) -> np.ndarray:
    centres = [(np.arange(n) + 0.5) / n * 2 - 1 for n in grid]
    return axial_angles(*centres, 2 * np.pi / 100 ** (4 * np.arange(head_dim // 4) / head_dim))


def integers(grid: tuple[int, int], head_dim: int) -> np.ndarray:
    return axial_angles(*map(np.arange, grid), 10000 ** (-4 * np.arange(head_dim // 4) / head_dim))


def learned(grid: tuple[int, int], head_dim: int) -> np.ndarray:
    """Frequencies of each head, along oblique directions."""
    places = np.array(list(product(*map(range, grid))))
    return places @ np.random.default_rng(5).normal(0, 0.4, (LAYERS, HEADS, 2, head_dim // 2))


def partial(grid: tuple[int, int], head_dim: int) -> np.ndarray:
    """Half of the planes do not rotate."""
    return integers(grid, head_dim) * (np.arange(head_dim // 2) % 2)


CASES = {
    "dinov3": Case((5, 3), dinov3((5, 3), HEAD_DIM), "half"),
    "integers": Case((4, 4), integers((4, 4), HEAD_DIM), "interleaved"),
    "learned": Case((3, 4), learned((3, 4), HEAD_DIM), "half"),
    "partial": Case((1, 6), partial((1, 6), HEAD_DIM), np.array([[0, 5, 2, 7], [1, 3, 6, 4]])),
}


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]


def random_kernels(condition: float = 1.0, embed: int = EMBED, head_dim: int = HEAD_DIM) -> np.ndarray:
    """A query and a key kernel, with the given condition number of each head if it is above 1."""
    rng = np.random.default_rng(1)
    kernels = rng.standard_normal((2, LAYERS, HEADS, embed, head_dim))
    if condition > 1:
        left, _, right = np.linalg.svd(kernels, full_matrices=False)
        kernels = 4 * left * np.geomspace(1, 1 / condition, head_dim) @ right
    return np.moveaxis(kernels, 3, 2).astype(np.float32)


@pytest.fixture(params=[1.0, 1e4], ids=["random", "nearly-deficient"])
def kernels(request) -> np.ndarray:
    return random_kernels(request.param)


def matrix(angles: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """R of one place, entry by entry."""
    result = np.zeros((columns.size, columns.size))
    for angle, (a, b) in zip(angles, columns.T, strict=True):
        result[a, a] = result[b, b] = np.cos(angle)
        result[a, b], result[b, a] = np.sin(angle), -np.sin(angle)
    return result


def interactions(kernels: np.ndarray, case: Case) -> np.ndarray:
    """M for all pairs of places (i, j), each (layers, heads, i, j, embed, embed) in float64."""
    layers, embed, heads, head_dim = kernels.shape[1:]
    columns = plane_columns(head_dim, case.pairs)
    angles = np.broadcast_to(case.angles, (layers, heads, *case.angles.shape[-2:]))
    places = angles.shape[2]
    result = np.empty((layers, heads, places, places, embed, embed))
    for layer, head in product(range(layers), range(heads)):
        query, key = kernels.astype(np.float64)[:, layer, :, head]
        rotations = [matrix(x, columns) for x in angles[layer, head]]
        for i, j in product(range(places), repeat=2):
            result[layer, head, i, j] = query @ rotations[i] @ rotations[j].T @ key.T
    return result


def square(x: np.ndarray) -> np.ndarray:
    return (x**2).sum((-2, -1))


def test_rotation_is_the_matrix(case):
    x = np.random.default_rng(0).standard_normal((3, HEAD_DIM))
    angles = np.broadcast_to(case.angles, (LAYERS, HEADS, *case.angles.shape[-2:]))[1, 1, 2]
    dense = x @ matrix(angles, plane_columns(HEAD_DIM, case.pairs))
    np.testing.assert_allclose(rotate(x, angles, case.pairs), dense, atol=1e-15)
    traced = jax.jit(lambda x, a: rotate(x, a, case.pairs))(x.astype(np.float32), angles.astype(np.float32))
    np.testing.assert_allclose(traced, dense, atol=2e-6)


def test_dinov3_rotates_as_published():
    """`q * cos + rotate_half(q) * sin`, with the angles of both halves of a head repeated."""
    angles, x = dinov3((2, 3), 8), np.random.default_rng(0).standard_normal((6, 8))
    cos, sin = np.cos(np.tile(angles, 2)), np.sin(np.tile(angles, 2))
    half = np.concatenate([-x[:, 4:], x[:, :4]], axis=1)
    np.testing.assert_allclose(rotate(x, angles), x * cos + half * sin, atol=1e-15)
    row, column = -1 / 2, 2 / 3  # the centre of the last patch of the first row
    np.testing.assert_allclose(angles[2], 2 * np.pi * np.array([row, row / 10, column, column / 10]), atol=1e-14)


def test_dinov3_rotates_as_in_transformers(transformers, torch):
    rope = pytest.importorskip("transformers.models.dinov3_vit.modeling_dinov3_vit")
    config = transformers.DINOv3ViTConfig(hidden_size=32, num_attention_heads=2, patch_size=4, image_size=20)
    cosine_and_sine = rope.DINOv3ViTRopePositionEmbedding(config).eval()(torch.zeros(1, 3, 20, 12))
    query, key = torch.randn(2, 1, 2, 17, 16, generator=torch.Generator().manual_seed(0))  # 2 special tokens
    angles = np.concatenate([np.zeros((2, 8)), dinov3((5, 3), 16)])
    for ours, theirs in zip((query, key), rope.apply_rotary_pos_emb(query, key, *cosine_and_sine), strict=True):
        np.testing.assert_allclose(rotate(ours.numpy(), angles), theirs.numpy(), atol=2e-6)


def test_eva02_rotates_as_in_timm(timm, torch):
    """Interleaved pairs, base 10000, and a grid of 5 x 3 patches that is scaled to that of pre-training."""
    layers = pytest.importorskip("timm.layers")
    rope = layers.RotaryEmbeddingCat(16, in_pixels=False, feat_shape=[5, 3], ref_feat_shape=[4, 4])
    query = torch.randn(1, 2, 15, 16, generator=torch.Generator().manual_seed(0))
    places = [np.arange(n) / n * 4 for n in (5, 3)]
    angles = axial_angles(*places, 10000 ** (-4 * np.arange(4) / 16))
    theirs = layers.apply_rot_embed_cat(query, rope.get_embed())
    np.testing.assert_allclose(rotate(query.numpy(), angles, "interleaved"), theirs.numpy(), atol=2e-6)


def test_steps_of_a_grid_give_all_offsets(case):
    steps, angles = grid_steps(case.angles, case.grid), case.angles
    for i, j in product(range(np.prod(case.grid)), repeat=2):
        delta = np.subtract(np.unravel_index(i, case.grid), np.unravel_index(j, case.grid))
        np.testing.assert_allclose(delta @ steps, angles[..., i, :] - angles[..., j, :], atol=1e-12)


def test_mbar_is_the_mean_over_all_pairs(kernels, case):
    mean = interactions(kernels, case).mean((2, 3))
    query, key = mean_kernels(*kernels, case.angles, case.pairs)
    scale = np.abs(mean).max()
    ours = np.einsum("ldhk,lehk->lhde", query.astype(np.float64), key.astype(np.float64))
    np.testing.assert_allclose(ours / scale, mean / scale, atol=3e-7)
    u, s, v = map(np.asarray, decompose(query, key))
    np.testing.assert_allclose(np.einsum("lhdn,lhn,lhen->lhde", u, s, v) / scale, mean / scale, atol=1e-6)
    s_dense = np.linalg.svd(mean, compute_uv=False)[..., :HEAD_DIM]
    np.testing.assert_allclose(s / s_dense[..., :1], s_dense / s_dense[..., :1], atol=1e-6)


def test_mbar_in_float64(case):
    kernels = random_kernels().astype(np.float64)
    query, key = mean_kernels(*kernels, case.angles, case.pairs)
    mean = interactions(kernels, case).mean((2, 3))
    np.testing.assert_allclose(np.einsum("ldhk,lehk->lhde", query, key), mean, atol=1e-13 * np.abs(mean).max() * EMBED)


def test_mbar_within_a_jitted_program(case):
    """With traced angles, too, as for learned frequencies; derivatives are finite even if c is 0."""
    kernels, angles = random_kernels(), case.angles.astype(np.float32)
    expected = mean_kernels(*kernels, case.angles, case.pairs)
    traced = jax.jit(lambda *x: mean_kernels(*x, case.pairs))(*kernels, angles)
    for ours, x in zip(traced, expected, strict=True):
        np.testing.assert_allclose(ours, x, atol=1e-4)
    gradient = jax.grad(lambda a: sum((x**2).sum() for x in mean_kernels(*kernels, a, case.pairs)))(jnp.asarray(angles))
    assert np.isfinite(gradient).all()
    share = jax.jit(lambda q, k: place_share(q, k, case.angles, case.grid, case.pairs))(*kernels).share
    np.testing.assert_allclose(share, place_share(*kernels, case.angles, case.grid, case.pairs).share, atol=1e-6)


def test_modes_of_one_offset(kernels, case):
    dense = interactions(kernels, case)[:, :, 3, 1]
    angles = case.angles[..., 3, :] - case.angles[..., 1, :]
    s = decompose(*offset_kernels(*kernels, angles, case.pairs)).s
    s_dense = np.linalg.svd(dense, compute_uv=False)[..., :HEAD_DIM]
    np.testing.assert_allclose(s / s_dense[..., :1], s_dense / s_dense[..., :1], atol=1e-6)


def test_a_zero_rotation_changes_no_bit(kernels):
    angles = np.zeros((15, HEAD_DIM // 2))
    plain = decompose(*kernels)
    for rotated in (mean_kernels(*kernels, angles), offset_kernels(*kernels, angles[0])):
        for ours, expected in zip(decompose(*rotated), plain, strict=True):
            np.testing.assert_array_equal(ours, expected)
    assert (np.asarray(place_share(*kernels, angles, (5, 3)).share) == 0).all()
    cosine = np.asarray(qkjax.measure(plain).weighted_cosine)[..., None, None]
    np.testing.assert_allclose(cosine_by_offset(*kernels, angles, (5, 3)), cosine + np.zeros((9, 5)), atol=1e-6)


def test_share_of_place_over_all_pairs(kernels, case):
    m = interactions(kernels, case)
    mean = m.mean((2, 3))
    total = square(m).mean((2, 3))
    result = place_share(*kernels, case.angles, case.grid, case.pairs)
    np.testing.assert_allclose(result.share, 1 - square(mean) / total, atol=1e-5)
    np.testing.assert_allclose(result.contribution.sum(-1), result.share, atol=1e-5)
    columns = plane_columns(HEAD_DIM, case.pairs)
    for a in range(HEAD_DIM // 2):
        other = np.setdiff1d(np.arange(HEAD_DIM), columns[:, a])
        one = kernels.copy()
        one[..., other] = 0
        part = interactions(one, case)
        change = part - part.mean((2, 3), keepdims=True)
        covariance = (change * (m - mean[:, :, None, None])).sum((-2, -1)).mean((2, 3))
        np.testing.assert_allclose(result.contribution[..., a], covariance / total, atol=1e-5)
        within = square(change).mean((2, 3)) / square(part).mean((2, 3))
        np.testing.assert_allclose(result.within_plane[..., a], within, atol=1e-5)


def test_share_of_each_axis(kernels, case):
    """E[M | offset along the axis], pair by pair; the axes of an axial rotation add up to the whole share."""
    m = interactions(kernels, case)
    places = np.array(list(product(*map(range, case.grid))))
    total = square(m).mean((2, 3))
    result = place_share(*kernels, case.angles, case.grid, case.pairs)
    for axis in range(2):
        offset = places[:, None, axis] - places[None, :, axis]
        variance = 0
        for value in np.unique(offset):
            conditional = m[:, :, offset == value].mean(2)
            variance = variance + (offset == value).mean() * square(conditional - m.mean((2, 3)))
        np.testing.assert_allclose(result.axis[..., axis], variance / total, atol=1e-5)
    if case.angles.ndim == 2:
        np.testing.assert_allclose(result.axis.sum(-1), result.share, atol=1e-5)
    else:
        assert (result.axis.sum(-1) < result.share + 1e-5).all()
        assert (result.axis.sum(-1) < result.share - 1e-3).any()


@pytest.mark.parametrize("lapack", [True, False], ids=["lapack", "products"])
def test_cosine_of_every_offset(kernels, case, lapack, monkeypatch):
    """tr M / ||M||_nuclear by the SVD of each dense M."""
    monkeypatch.setattr(distance, "by_lapack", lambda: lapack)
    monkeypatch.setattr(distance, "CHUNK", 7)  # the last chunk is not full
    ours = cosine_by_offset(*kernels, case.angles, case.grid, case.pairs)
    m = interactions(kernels, case)
    dense = np.trace(m, axis1=-2, axis2=-1) / np.linalg.svd(m, compute_uv=False).sum(-1)
    centre = np.asarray(case.grid) - 1
    for i, j in product(range(np.prod(case.grid)), repeat=2):
        delta = np.subtract(np.unravel_index(i, case.grid), np.unravel_index(j, case.grid))
        np.testing.assert_allclose(ours[(slice(None), slice(None), *(centre + delta))], dense[:, :, i, j], atol=2e-6)


def test_nuclear_norms_within_a_jitted_program(case):
    kernels, angles = random_kernels(), offset_angles(case.angles, case.grid)
    jitted = jax.jit(lambda q, k: nuclear_norms(q, k, angles, case.pairs))(*kernels)
    np.testing.assert_allclose(jitted, nuclear_norms(*kernels, angles, case.pairs), rtol=2e-6)


def test_opposite_offsets_are_not_transposes():
    """M(-delta) has other singular values than M(delta), so no offset can be left out; with Wq = Wk it could be."""
    case, kernels = CASES["integers"], random_kernels()
    norms = nuclear_norms(*kernels, offset_angles(case.angles, case.grid), case.pairs)
    assert np.abs(norms - norms[..., ::-1]).max() > 0.01 * norms.max()
    same = nuclear_norms(kernels[0], kernels[0], offset_angles(case.angles, case.grid), case.pairs)
    np.testing.assert_allclose(same, same[..., ::-1], rtol=1e-12 if by_lapack() else 1e-6)  # float32 on accelerators


def measures(query, key, case: Case) -> list[np.ndarray]:
    modes = decompose(*mean_kernels(query, key, case.angles, case.pairs))
    share = place_share(query, key, case.angles, case.grid, case.pairs)
    cosine = cosine_by_offset(query, key, case.angles, case.grid, case.pairs)
    return [np.asarray(x) for x in (modes.s / modes.s[..., :1], share.share, cosine, share.contribution, share.axis)]


def test_only_a_change_of_basis_that_commutes_with_all_rotations_changes_nothing(case):
    """Wq A, Wk A^-T: A may scale and rotate each plane; any other A changes M(delta), though not M(0)."""
    rng = np.random.default_rng(3)
    query, key = random_kernels().astype(np.float64)
    scale, turn = np.exp(rng.normal(0, 0.5, HEAD_DIM // 2)), rng.uniform(0, 6, HEAD_DIM // 2)
    columns = plane_columns(HEAD_DIM, case.pairs)
    allowed = matrix(turn, columns)
    for a, plane in enumerate(columns.T):
        allowed[plane] *= scale[a]
    general = rng.standard_normal((HEAD_DIM, HEAD_DIM))
    before = measures(query, key, case)
    for basis, same in ((allowed, True), (general, False)):
        q, k = query @ basis, key @ np.linalg.inv(basis).T
        np.testing.assert_allclose(decompose(q, k).s, decompose(query, key).s, rtol=1e-5)
        after = measures(q, k, case)
        if same:
            for x, y in zip(before, after, strict=True):
                np.testing.assert_allclose(x, y, atol=1e-5)
        else:
            assert all(np.abs(x - y).max() > 2e-4 for x, y in zip(before[:3], after[:3], strict=True))


def tokens_of_layer(kernels: np.ndarray, case: Case, layer: int = 1, special: int = 2):
    """Contents of special tokens and of one token per place, and the angles of all (0 for special tokens)."""
    rng = np.random.default_rng(7)
    angles = np.broadcast_to(case.angles, (LAYERS, HEADS, *case.angles.shape[-2:]))[layer]
    angles = np.concatenate([np.zeros((HEADS, special, angles.shape[-1])), angles], axis=1)
    tokens = rng.standard_normal((2, angles.shape[1], kernels.shape[2])).astype(np.float32)
    biases = rng.standard_normal((2, HEADS, kernels.shape[-1])).astype(np.float32)
    return tokens, biases, np.moveaxis(angles, 0, 1)


def dense_logits(tokens, kernels, biases, angles, pairs, layer: int = 1) -> np.ndarray:
    columns = plane_columns(kernels.shape[-1], pairs)
    both = []
    for kernel, bias in zip(kernels.astype(np.float64), biases.astype(np.float64), strict=True):
        x = np.einsum("bnd,dhk->bnhk", tokens.astype(np.float64), kernel[layer]) + bias
        for n, h in product(range(x.shape[1]), range(HEADS)):
            x[:, n, h] = x[:, n, h] @ matrix(angles[n, h], columns)
        both.append(x)
    return np.einsum("bihk,bjhk->bhij", *both) / np.sqrt(kernels.shape[-1]), both


def test_logits_are_the_sum_over_modes(kernels, case):
    """Also between special tokens and patches, with biases; the remainder is 0 if all planes have c > 0."""
    tokens, biases, angles = tokens_of_layer(kernels, case)
    logits, (query, key) = dense_logits(tokens, kernels, biases, angles, case.pairs)
    modes = decompose(*mean_kernels(*kernels, case.angles, case.pairs))
    maps = head_maps(*kernels, case.angles, modes, case.pairs)
    layer = [jnp.asarray(x[1]) for x in (maps.query, maps.key, maps.s, maps.rest)]
    ours = logits_from_rotated(*(jnp.asarray(x, jnp.float32) for x in (query, key)), *layer)
    reach = np.ptp(logits)
    np.testing.assert_allclose(ours / reach, logits / reach, atol=1e-4)
    if coherence(case.angles).min() > 0 and np.abs(kernels[..., 0]).max() > 3:  # full rank and well conditioned
        assert np.abs(maps.rest).max() < 1e-5
        assert (maps.in_rest == 0).all()


def test_mean_over_places_of_a_term_is_the_term_of_mbar(case):
    """E_p [y Wq R(p) F_n] = y u_n, also for angles whose mean phase is not 0."""
    kernels = random_kernels()
    modes = decompose(*mean_kernels(*kernels, case.angles, case.pairs))
    maps = head_maps(*kernels, case.angles, modes, case.pairs)
    count = 2 * (coherence(case.angles) > 0).sum(-1).min()
    y = np.random.default_rng(8).standard_normal((1, EMBED))
    columns = plane_columns(HEAD_DIM, case.pairs)
    angles = np.broadcast_to(case.angles, (LAYERS, HEADS, *case.angles.shape[-2:]))[1]
    for kernel, one, direction in zip(kernels, (maps.query, maps.key), (modes.u, modes.v), strict=True):
        for h in range(HEADS):
            rotated = np.stack([y @ kernel[1, :, h] @ matrix(a, columns) for a in angles[h]])
            mean = (rotated @ one[1, h]).mean(0)[0, :count]
            expected = y @ np.asarray(direction[1, h], np.float64)
            np.testing.assert_allclose(mean, expected[0, :count], atol=2e-4)


def test_planes_without_mean_are_in_the_remainder():
    case, kernels = CASES["dinov3"], random_kernels()
    assert (coherence(case.angles) == 0).tolist() == [True, False, True, False]
    modes = decompose(*mean_kernels(*kernels, case.angles))
    maps = head_maps(*kernels, case.angles, modes)
    assert (maps.in_rest == 4).all()
    positional = np.diag([1, 0, 1, 0, 1, 0, 1, 0.0])
    np.testing.assert_allclose(maps.rest, np.broadcast_to(positional, maps.rest.shape), atol=1e-5)
    query, key = np.random.default_rng(0).standard_normal((2, 1, 5, HEADS, HEAD_DIM)).astype(np.float32)
    expected = np.einsum("bihk,bjhk->bhij", query @ positional, key) / np.sqrt(HEAD_DIM)
    np.testing.assert_allclose(rest_logits(query, key, maps.rest[0]), expected, atol=1e-4)
    alpha, beta = project_rotated(query, key, maps.query[0], maps.key[0])
    assert alpha.shape == beta.shape == (1, 5, HEADS, HEAD_DIM)
    assert (np.asarray(alpha)[..., 4:] == 0).all()


def test_scales_of_planes_move_no_mode_to_the_remainder():
    """Scaling a plane of Wq, and the same plane of Wk inversely, changes no logit."""
    case, kernels = CASES["integers"], random_kernels()
    scale = np.repeat(np.float32([1e3, 1e-3, 1, 30]), 2)
    unbalanced = np.stack([kernels[0] * scale, kernels[1] / scale])
    modes = [decompose(*mean_kernels(*x, case.angles, case.pairs)) for x in (kernels, unbalanced)]
    maps = [head_maps(*x, case.angles, m, case.pairs) for x, m in zip((kernels, unbalanced), modes, strict=True)]
    assert (maps[1].in_rest == 0).all()
    np.testing.assert_allclose(maps[1].query * scale[:, None], maps[0].query, rtol=1e-3, atol=1e-4)


def test_degenerate_heads_keep_exact_logits():
    """A head that is zero, one with equal columns, and more columns than the embedding has dimensions."""
    case = CASES["integers"]
    for embed in (EMBED, 6):
        kernels = random_kernels(embed=embed)
        kernels[:, 1, :, 0, 1] = kernels[:, 1, :, 0, 0]
        kernels[0, 1, :, 1] = 0
        tokens, biases, angles = tokens_of_layer(kernels, case)
        logits, (query, key) = dense_logits(tokens, kernels, biases, angles, case.pairs)
        modes = decompose(*mean_kernels(*kernels, case.angles, case.pairs))
        maps = head_maps(*kernels, case.angles, modes, case.pairs)
        layer = [jnp.asarray(x[1]) for x in (maps.query, maps.key, maps.s, maps.rest)]
        ours = logits_from_rotated(*(jnp.asarray(x, jnp.float32) for x in (query, key)), *layer)
        np.testing.assert_allclose(ours / np.ptp(logits), logits / np.ptp(logits), atol=1e-4)


def test_heads_that_are_zero_or_not_finite():
    """They give NaN for what is not defined, and do not change other heads."""
    case, kernels = CASES["integers"], random_kernels()
    damaged = kernels.copy()
    damaged[0, 0, :, 0] = 0
    damaged[1, 1, 3, 1, 2] = np.nan
    expected, result = (
        [
            np.asarray(place_share(*x, case.angles, case.grid, case.pairs).share),
            cosine_by_offset(*x, case.angles, case.grid, case.pairs).sum((-1, -2)),
        ]
        for x in (kernels, damaged)
    )
    bad = np.array([[True, False], [False, True]])
    for x, y in zip(expected, result, strict=True):
        assert np.isnan(y).tolist() == bad.tolist()
        # On accelerators, the heads of a batch are rotated until all of them converge.
        np.testing.assert_allclose(y[~bad], x[~bad], rtol=0 if by_lapack() else 1e-6)
    maps = head_maps(*damaged, case.angles, decompose(*mean_kernels(*damaged, case.angles, case.pairs)), case.pairs)
    assert (maps.in_rest == np.where(bad, HEAD_DIM, 0)).all()
    np.testing.assert_array_equal(maps.rest[bad], np.stack([np.eye(HEAD_DIM)] * 2))


def test_bias_terms_complete_the_logits(case):
    kernels = random_kernels()
    tokens, biases, angles = tokens_of_layer(kernels, case)
    logits, _ = dense_logits(tokens, kernels, biases, angles, case.pairs)
    content, _ = dense_logits(tokens, kernels, 0 * biases, angles, case.pairs)
    query, key = (np.einsum("bnd,dhk->bnhk", tokens, kernel[1]) for kernel in kernels)
    terms = bias_logits(query, key, *biases, angles, case.pairs)
    reach = np.ptp(logits)
    np.testing.assert_allclose(
        (content + terms.query + terms.key + terms.constant[None]) / reach, logits / reach, atol=1e-6
    )
    only_query, _ = dense_logits(tokens, kernels, biases * [[[1]], [[0]]], angles, case.pairs)
    np.testing.assert_allclose(terms.key / reach, (only_query - content) / reach, atol=1e-6)


def test_shares_of_the_logits_add_up_to_1(case):
    """The share of a mode by loops in float64, with equal weights and with weights by attention."""
    kernels = random_kernels()
    tokens, biases, angles = tokens_of_layer(kernels, case)
    logits, _ = dense_logits(tokens, kernels, biases, angles, case.pairs)
    _, (q, k) = dense_logits(tokens, kernels, 0 * biases, angles, case.pairs)
    attention = np.exp(logits - logits.max(-1, keepdims=True))
    attention = attention / attention.sum(-1, keepdims=True)
    modes = decompose(*mean_kernels(*kernels, case.angles, case.pairs))
    maps = HeadMaps(*(x[1] for x in head_maps(*kernels, case.angles, modes, case.pairs)))
    query, key = (
        (np.einsum("bnd,dhk->bnhk", tokens, kernel[1]) + bias).astype(np.float32)
        for kernel, bias in zip(kernels, biases, strict=True)
    )
    scores = [x.astype(np.float32) for x in (logits, attention)]
    shares = rotary_contributions(query, key, *biases, *scores, angles, maps, case.pairs)
    total = shares.modes.sum(-1) + shares.rest + shares.query_bias + shares.key_bias + shares.constant
    np.testing.assert_allclose(total, 1, atol=1e-4)
    for index, weights in enumerate((np.full_like(attention, 1 / attention.shape[-1]), attention)):
        centred = logits - (weights * logits).sum(-1, keepdims=True)
        for image, head, n in product(range(2), range(HEADS), (0, 3)):
            alpha = q[image, :, head] @ maps.query[head, :, n].astype(np.float64)
            beta = k[image, :, head] @ maps.key[head, :, n].astype(np.float64)
            term = maps.s[head, n] * np.outer(alpha, beta) / np.sqrt(HEAD_DIM)
            w, logit = weights[image, head], centred[image, head]
            term = term - (w * term).sum(-1, keepdims=True)
            expected = (w * term * logit).sum() / (w * logit**2).sum()
            np.testing.assert_allclose(shares.modes[index, image, head, n], expected, atol=1e-4)


def test_spread_of_bias_terms(case):
    kernels = random_kernels()
    bias = np.random.default_rng(2).standard_normal((LAYERS, 1, HEADS, HEAD_DIM)).astype(np.float32)
    m = interactions(kernels, case)
    np.testing.assert_allclose(
        spread(*kernels, case.angles, case.pairs), np.sqrt(square(m).mean((2, 3)) / HEAD_DIM), rtol=1e-5
    )
    padded = np.concatenate([bias, np.zeros((LAYERS, EMBED - 1, HEADS, HEAD_DIM), np.float32)], axis=1)
    m = interactions(np.stack([padded, kernels[1]]), case)
    np.testing.assert_allclose(
        spread(bias, kernels[1], case.angles, case.pairs), np.sqrt(square(m).mean((2, 3)) / HEAD_DIM), rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["drop", "flip", "rotate", "equalize", "unbias"])
def test_edits_of_mbar_are_those_of_dense_arithmetic(case, kind):
    kernels = random_kernels()
    mean = interactions(kernels, case).mean((2, 3))
    modes = decompose(*mean_kernels(*kernels, case.angles, case.pairs))
    weights = np.zeros((LAYERS, HEADS, HEAD_DIM), np.float32)
    weights[0, 0, :2] = weights[1, 1, 1] = 1
    edited = edit_kernels(*kernels, case.angles, modes, kind, weights, case.pairs)
    new = [np.asarray(x) for x in edited[:2]]
    u, s, v = (np.asarray(x, np.float64) for x in modes)
    chosen = weights > 0
    count = np.maximum(chosen.sum(-1, keepdims=True), 1)
    level = np.sqrt((chosen * s**2).sum(-1, keepdims=True) / count)
    strengths = np.where(
        chosen, {"drop": 0 * s, "flip": -s, "rotate": s, "equalize": level + 0 * s, "unbias": s}[kind], s
    )
    keys = np.where(chosen[:, :, None], u, v) if kind == "rotate" else v
    after = interactions(np.stack(new), case)
    np.testing.assert_allclose(
        after.mean((2, 3)), np.einsum("lhdn,lhn,lhen->lhde", u, strengths, keys), atol=2e-6 * np.abs(mean).max() * EMBED
    )
    untouched = ~chosen.any(-1)
    for x, y in zip(new, kernels, strict=True):
        np.testing.assert_array_equal(np.moveaxis(x, 2, 1)[untouched], np.moveaxis(y, 2, 1)[untouched])
    change = after - interactions(kernels, case)
    total = square(change).mean((2, 3))
    shares = np.asarray(edited.mean_change)
    assert np.isnan(shares[untouched]).all()
    edits = chosen.any(-1) & (kind != "unbias")
    assert (np.asarray(edited.retained) == 1).all()
    np.testing.assert_allclose(shares[edits], (square(change.mean((2, 3))) / total.clip(1e-30))[edits], atol=1e-5)


@pytest.mark.parametrize(("sign", "lapack"), [(1, True), (-1, True), (1, False)])
def test_parts_of_mbar_in_kernels(case, sign, lapack, monkeypatch):
    """The best approximation of (Mbar + Mbar^T) / 2 of the rank that planes with c > 0 can hold."""
    for module in ("modes", "rotary.edit"):
        monkeypatch.setattr(f"qkjax.interaction.{module}.by_lapack", lambda: lapack)
    edit._edit.clear_cache()
    kernels = random_kernels()
    mean = interactions(kernels, case).mean((2, 3))
    modes = decompose(*mean_kernels(*kernels, case.angles, case.pairs))
    weights = np.zeros((LAYERS, HEADS, HEAD_DIM), np.float32)
    weights[1] = 1
    kind = "symmetric" if sign == 1 else "antisymmetric"
    edited = edit_kernels(*kernels, case.angles, modes, kind, weights, case.pairs)
    count = 2 * (coherence(case.angles) > 0).sum(-1).min()
    part = (mean + sign * np.swapaxes(mean, -1, -2))[1] / 2
    left, s, right = np.linalg.svd(part)
    after = interactions(np.stack(edited[:2]), case)
    # Pairs of equal singular values of an antisymmetric matrix end at an even count.
    best = np.einsum("hdn,hn,hne->hde", left[..., :count], s[:, :count], right[:, :count])
    np.testing.assert_allclose(after.mean((2, 3))[1], best, atol=1e-5 * s.max())
    retained = (s[:, :count] ** 2).sum(-1) / (s**2).sum(-1)
    np.testing.assert_allclose(edited.retained[1], retained, atol=1e-5)
    for x, y in zip(edited[:2], kernels, strict=True):
        np.testing.assert_array_equal(x[0], y[0])
        if case.angles.ndim == 2:
            fixed = np.repeat(coherence(case.angles) == 0, 2)[np.argsort(plane_columns(HEAD_DIM, case.pairs).T, None)]
            np.testing.assert_array_equal(x[..., fixed], y[..., fixed])


def test_the_symmetric_part_of_a_symmetric_head_changes_nothing():
    """Wq = Wk: Mbar is symmetric, and the nearest kernels are the kernels themselves."""
    case, kernel = CASES["integers"], random_kernels()[0]
    modes = decompose(*mean_kernels(kernel, kernel, case.angles, case.pairs))
    weights = np.ones((LAYERS, HEADS, HEAD_DIM), np.float32)
    edited = edit_kernels(kernel, kernel, case.angles, modes, "symmetric", weights, case.pairs)
    np.testing.assert_allclose(edited.query_kernel, kernel, atol=1e-4)
    np.testing.assert_allclose(edited.key_kernel, kernel, atol=1e-4)


def test_out_of_reach_is_what_no_edit_changes():
    """Dropping every mode of Mbar leaves exactly the planes with c = 0."""
    case, kernels = CASES["dinov3"], random_kernels()
    modes = decompose(*mean_kernels(*kernels, case.angles))
    weights = np.ones((LAYERS, HEADS, HEAD_DIM), np.float32)
    edited = edit_kernels(*kernels, case.angles, modes, "drop", weights)
    left = square(interactions(np.stack(edited[:2]), case)).mean((2, 3))
    share = left / square(interactions(kernels, case)).mean((2, 3))
    assert (share > 0.1).all()
    np.testing.assert_allclose(out_of_reach(*kernels, case.angles), share, atol=1e-5)
    positional = [0, 2, 4, 6]
    np.testing.assert_array_equal(edited.query_kernel[..., positional], kernels[0][..., positional])


def test_averages_by_distance_and_direction():
    grid = (3, 4)
    values = np.random.default_rng(0).standard_normal((1, 2, 5, 7))
    sums: dict[int, list] = {}
    for i, j in product(product(*map(range, grid)), repeat=2):
        delta = np.subtract(i, j)
        sums.setdefault(round(float(np.hypot(*delta))), []).append(values[:, :, delta[0] + 2, delta[1] + 3])
    result = by_distance(values, pair_counts(grid))
    assert result.distance.tolist() == sorted(sums)
    assert result.pairs.tolist() == [len(sums[d]) for d in sorted(sums)]
    expected = np.stack([np.mean(sums[d], axis=0) for d in sorted(sums)], -1)
    np.testing.assert_allclose(result.value, expected, atol=1e-12)
    places = offsets(grid)
    measured = isotropy(np.stack([places[..., 1] * 1.0, np.hypot(*np.moveaxis(places, -1, 0))])[None])
    np.testing.assert_allclose(measured.isotropic[0], [0, 1], atol=1e-12)
    np.testing.assert_allclose(measured.odd[0], [1, 0], atol=1e-12)
    np.testing.assert_allclose(measured.along[0], [[0, 0], [1.5, 1.5]], atol=1e-12)
    np.testing.assert_allclose(measured.ahead[0], [[0, 4], [0, 0]], atol=1e-12)


@pytest.mark.parametrize("name", ["dinov3", "integers"])
def test_chance_against_simulated_heads(name):
    """1,500 heads with D = 48 and d = 8; shares at the expected squared norms, intervals by fresh random kernels."""
    case = CASES[name]
    rng = np.random.default_rng(11)
    query, key = rng.standard_normal((2, 1, 48, 1500, HEAD_DIM)).astype(np.float32)
    null = rotary_null(48, 4, case.angles, case.grid)
    shares = place_share(query, key, case.angles, case.grid)
    assert abs(np.mean(shares.share) - null.share) < 0.01
    np.testing.assert_allclose(np.mean(shares.contribution, (0, 1)), null.contribution, atol=0.01)
    np.testing.assert_allclose(np.mean(shares.within_plane, (0, 1)), null.within_plane, atol=0.01)
    np.testing.assert_allclose(np.mean(shares.axis, (0, 1)), null.axis, atol=0.01)
    inside = np.abs(np.asarray(shares.share)[0] - null.share) < null.share_width.head
    assert 0.91 < inside.mean() < 0.98
    cosine = cosine_by_offset(query, key, case.angles, case.grid)
    inside = np.abs(cosine[0]) < null.cosine_width.head
    assert (np.abs(inside.mean(0) - 0.95) < 0.03).all()
    assert null.cosine_width.head == null_band(48, 4, HEAD_DIM).head_weighted_cosine
    curve = by_distance(cosine, pair_counts(case.grid)).value[0]
    np.testing.assert_allclose(curve.std(0) / cosine[0, :, 0, 0].std(), curve_factor(case.angles, case.grid), rtol=0.08)
    assert (np.abs((np.abs(curve) < null.curve_width.head).mean(0) - 0.95) < 0.03).all()
    direction = isotropy(cosine)
    assert abs(np.mean(direction.isotropic) - null.isotropic) < 0.03
    assert abs(np.mean(direction.odd) - null.odd) < 0.03
    for ours, half_width in ((direction.ahead[0], null.ahead_width.head), (direction.along[0], null.along_width.head)):
        assert (np.abs((np.abs(ours) < half_width).mean(0) - 0.95) < 0.035).all()


def test_chance_without_any_rotation():
    null = rotary_null(24, 2, np.zeros((15, 4)), (5, 3))
    assert null.share == 0
    assert null.share_width.head < 1e-5
    np.testing.assert_allclose(null.curve_width.head, null.cosine_width.head)
    assert np.isnan([null.isotropic, null.odd, *null.isotropic_end, *null.odd_end]).all()


def test_planes_that_are_all_positional():
    """Mbar is 0, and the remainder has the whole logit."""
    kernels, angles = random_kernels(), np.outer(np.arange(4), [1, 1, -1, 1]) * np.pi / 2
    modes = decompose(*mean_kernels(*kernels, angles))
    assert (np.asarray(modes.s) == 0).all()
    maps = head_maps(*kernels, angles, modes)
    np.testing.assert_array_equal(maps.rest, np.broadcast_to(np.eye(HEAD_DIM), maps.rest.shape))
    np.testing.assert_allclose(out_of_reach(*kernels, angles), 1, atol=1e-6)
    np.testing.assert_allclose(place_share(*kernels, angles, (4,)).share, 1, atol=1e-6)
    edited = edit_kernels(*kernels, angles, modes, "symmetric", np.ones((LAYERS, HEADS, HEAD_DIM), np.float32))
    np.testing.assert_array_equal(edited.query_kernel, kernels[0])


def test_a_grid_of_three_axes():
    """Frames, rows and columns, each with planes of its own."""
    grid, kernels = (2, 3, 2), random_kernels()
    places = np.array(list(product(*map(range, grid))))
    angles = places @ np.array([[0.9, 0, 0, 0], [0, 1.1, 0, 0.3], [0, 0, 0.5, 0]])
    case = Case(grid, angles, "half")
    m = interactions(kernels, case)
    result = place_share(*kernels, angles, grid)
    np.testing.assert_allclose(result.share, 1 - square(m.mean((2, 3))) / square(m).mean((2, 3)), atol=1e-5)
    np.testing.assert_allclose(result.axis.sum(-1), result.share, atol=1e-5)
    cosine = cosine_by_offset(*kernels, angles, grid)
    assert cosine.shape == (LAYERS, HEADS, 3, 5, 3)
    dense = np.trace(m, axis1=-2, axis2=-1) / np.linalg.svd(m, compute_uv=False).sum(-1)
    np.testing.assert_allclose(cosine[..., 0, 0, 0], dense[:, :, 0, -1], atol=2e-6)  # the first and the last place
    assert isotropy(cosine).along.shape == (LAYERS, HEADS, 3)


def test_random_maps_have_variance_1():
    case = CASES["integers"]
    assert abs(random_maps(case.angles, case.grid, SAMPLES).var() - 1) < 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plane_columns(7), "expected an even number"),
        (lambda: plane_columns(4, np.array([[0, 1], [2, 2]])), "each of the 4 columns once"),
        (lambda: grid_steps(np.zeros((14, 2)), (5, 3)), "do not fill a grid of 5 x 3"),
        (lambda: grid_steps(np.arange(30.0).reshape(15, 2) ** 2, (5, 3)), "row-major order"),
        (
            lambda: edit_kernels(
                *random_kernels(), np.zeros((4, 4)), decompose(*random_kernels()), "transpose", np.zeros((2, 2, 8))
            ),
            "unknown edit 'transpose': expected one of drop",
        ),
        (
            lambda: head_maps(*random_kernels(), np.zeros((4, 4)), decompose(*random_kernels(), normalize=True)),
            "expected the plain frame",
        ),
    ],
)
def test_errors_say_what_was_expected(call, message):
    with pytest.raises(QkjaxError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
