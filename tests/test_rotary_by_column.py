"""V-JEPA 2's rotation, which is not orthogonal: the code of transformers, and loops over pairs of places in float64."""

import itertools

import numpy as np
import pytest

import qkjax
from qkjax.interaction.rotary.by_column import (
    mean_kernels_by_column,
    place_share_by_column,
    rotate_columns,
    vjepa2_angles,
)

GRID = (2, 3, 3)


@pytest.fixture
def attention(torch):
    """V-JEPA 2's attention in float64, for heads with columns that are not rotated, and its kernels."""
    vjepa2 = pytest.importorskip("transformers.models.vjepa2.modeling_vjepa2")
    config = vjepa2.VJEPA2Config(hidden_size=64, num_attention_heads=2, crop_size=21, patch_size=7, frames_per_clip=4,
                                 tubelet_size=2, attn_implementation="eager")  # fmt: skip
    torch.manual_seed(0)
    return vjepa2.VJEPA2RopeAttention(config, 64, 2).double().eval()


def kernels(attention):
    """(layers, embed, heads, head_dim), with one layer."""
    weights = (x.weight.detach().numpy().T for x in (attention.query, attention.key))
    return [x.reshape(1, 64, 2, 32) for x in weights]


def interaction(query, key, angles, head: int):
    """M(p_i, p_j) of all pairs of places, by a loop."""
    q, k = query[0, :, head], key[0, :, head]
    return np.array([[rotate_columns(q, first) @ rotate_columns(k, second).T for second in angles] for first in angles])


def test_rotation(torch, attention):
    """Queries and keys at all places equal those of transformers, to the rounding of float64."""
    x = torch.randn(2, 2, 18, 32, dtype=torch.float64)
    theirs = attention.apply_rotary_embeddings(x, attention.get_position_ids(torch.zeros(2, 18, 64)))
    np.testing.assert_allclose(rotate_columns(x.numpy(), vjepa2_angles(32, GRID)), theirs.numpy(), atol=1e-12)


def test_logits_depend_on_both_places(torch, attention):
    """What qkjax states when it loads the model: Wq Wk^T holds at the first place, and at no other."""
    (query, key), angles = kernels(attention), vjepa2_angles(32, GRID)
    for bias in (attention.query.bias, attention.key.bias):
        torch.nn.init.zeros_(bias)
    content = 4 * np.random.default_rng(0).normal(size=64)
    with torch.no_grad():  # all tokens have the same content
        weights = attention(torch.from_numpy(np.tile(content, (1, 18, 1))))[1][0].numpy()
    for head in range(2):
        every = interaction(query, key, angles, head)
        logits = np.einsum("d,ijde,e->ij", content, every, content) / np.sqrt(32)
        expected = np.exp(logits - logits.max(1, keepdims=True))
        np.testing.assert_allclose(
            weights[head], expected / expected.sum(1, keepdims=True), atol=1e-6
        )  # a float32 softmax
        plain = query[0, :, head] @ key[0, :, head].T
        np.testing.assert_allclose(every[0, 0], plain, atol=1e-12)
        difference = [abs(every[i, i] - plain).max() for i in range(1, 18)]
        assert min(difference) > 0.01 * abs(plain).max()


def test_modes_and_share_of_the_mean_over_places(attention):
    (query, key), angles = kernels(attention), vjepa2_angles(32, GRID)
    modes, share = (
        qkjax.decompose(*mean_kernels_by_column(query, key, angles)),
        place_share_by_column(query, key, angles),
    )
    for head in range(2):
        every = interaction(query, key, angles, head)
        mean = every.mean((0, 1))
        u, s, v = (np.asarray(x[0, head], np.float64) for x in (modes.u, modes.s, modes.v))
        np.testing.assert_allclose((u * s) @ v.T, mean, atol=1e-5 * s[0])
        square = np.mean([(every[i, j] ** 2).sum() for i, j in itertools.product(range(18), repeat=2)])
        assert abs(share[0, head] - (1 - (mean**2).sum() / square)) < 1e-10
        assert 0.1 < share[0, head] < 0.9
