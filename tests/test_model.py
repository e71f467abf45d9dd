"""The model: captures, types, sizes. Values are tested against the golden files and other libraries."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qkjax
from conftest import DATA
from qkjax.vit import tree
from qkjax.vit.model import CAPTURES, forward


@pytest.fixture(scope="module")
def small():
    return qkjax.load(DATA / "a.npz"), np.load(DATA / "a_expected.npz")["images"]


def test_captures_belong_together(small):
    checkpoint, images = small
    _, seen = forward(qkjax.ViT(checkpoint.config), checkpoint.params, images, CAPTURES)
    shapes = {name: seen[name].shape for name in CAPTURES}
    assert shapes == {
        "norm": (4, 3, 17, 64), "query": (4, 3, 17, 4, 16), "key": (4, 3, 17, 4, 16), "value": (4, 3, 17, 4, 16),
        "rotated_query": (4, 3, 17, 4, 16), "rotated_key": (4, 3, 17, 4, 16),
        "attention_logits": (4, 3, 4, 17, 17), "attention": (4, 3, 4, 17, 17), "weighted_value": (4, 3, 17, 4, 16),
        "residual": (4, 3, 17, 64),
    }  # fmt: skip
    seen = {name: np.asarray(value, np.float64) for name, value in seen.items()}
    a = qkjax.query_key(checkpoint.params)
    mean, std = (getattr(seen["residual"], f)(-1, keepdims=True) for f in ("mean", "std"))
    norm = (seen["residual"] - mean) / np.sqrt(std**2 + 1e-6) * a.norm_scale[:, None, None] + a.norm_bias[:, None, None]
    np.testing.assert_allclose(seen["norm"], norm, atol=1e-5)
    query = np.einsum("lbnd,ldhk->lbnhk", norm, a.query_kernel) + a.query_bias[:, None, None]
    np.testing.assert_allclose(seen["query"], query, atol=1e-4)
    logits = np.einsum("lbqhk,lbnhk->lbhqn", seen["query"], seen["key"]) / 4
    np.testing.assert_allclose(seen["attention_logits"], logits, atol=1e-4)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    np.testing.assert_allclose(seen["attention"], weights / weights.sum(-1, keepdims=True), atol=1e-5)


def test_only_what_is_asked_for_is_returned(small):
    checkpoint, images = small
    _, seen = forward(qkjax.ViT(checkpoint.config), checkpoint.params, images, ("query",))
    assert set(seen) == {"encoded", "query"}
    with pytest.raises(qkjax.QkjaxError, match="capture=\\('qeury',\\): unknown names; choose from norm"):
        forward(qkjax.ViT(checkpoint.config), checkpoint.params, images, ("qeury",))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_bfloat16(name):
    """8 bits of mantissa: 0.4% a product, a few percent of the range after four layers."""
    checkpoint = qkjax.load(DATA / f"{name}.npz")
    images = np.load(DATA / f"{name}_expected.npz")["images"]
    exact, _ = forward(qkjax.ViT(checkpoint.config), checkpoint.params, images)
    rough, seen = forward(qkjax.ViT(checkpoint.config, dtype="bfloat16"), checkpoint.params, images, ("query",))
    assert seen["query"].dtype == jnp.bfloat16
    assert 0 < np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.gpu
def test_any_size_from_one_patch_up(small):
    checkpoint, _ = small
    model = qkjax.ViT(checkpoint.config)
    for height, width in ((8, 8), (24, 40), (39, 17)):  # what fills no patch is dropped
        output, seen = forward(model, checkpoint.params, np.ones((1, height, width, 3), np.float32))
        assert seen["encoded"].shape == (1, 1 + (height // 8) * (width // 8), 64)
        assert np.isfinite(output).all()
    with pytest.raises(qkjax.QkjaxError, match="expected at least one patch"):
        forward(model, checkpoint.params, np.ones((1, 7, 8, 3), np.float32))


def test_registers_and_layer_scale_have_a_place():
    config = qkjax.ViTConfig(
        width=24, depth=2, heads=3, head_dim=8, mlp_dim=48, patch_size=(4, 4), grid=(2, 2), pool="tok",
        class_token=True, registers=4, layer_scale=True, activation="gelu", posemb_resample="bicubic",
    )  # fmt: skip

    model, images = qkjax.ViT(config), np.ones((2, 8, 12, 3), np.float32)
    params = model.init(jax.random.key(0), images[:, :, :8])["params"]
    output, seen = forward(model, params, images)
    assert output.shape == (2, 24)
    assert seen["encoded"].shape == (2, 1 + 4 + 6, 24)


@pytest.mark.gpu
def test_layer_outputs_are_those_that_forward_returns(small):
    checkpoint, images = small
    model = qkjax.ViT(checkpoint.config)
    _, out = model.apply({"params": checkpoint.params}, images, capture=("norm", "attention"))
    _, captured = forward(model, checkpoint.params, images, ("norm", "attention"))
    for name in ("norm", "attention"):
        assert len(tree.layer_outputs(out, name)) == checkpoint.config.depth
        np.testing.assert_allclose(tree.stacked_outputs(out, name), captured[name], atol=1e-5)
    with pytest.raises(KeyError, match="query"):
        tree.layer_outputs(out, "query")


def test_trees_with_other_queries_and_keys(small):
    """The tree's own parts change nothing; wider heads with zeros give the same attention weights and outputs."""
    checkpoint, images = small
    own = qkjax.query_key(checkpoint.params)
    same = tree.with_query_key(checkpoint.params, own)
    assert jax.tree.all(jax.tree.map(lambda a, b: (np.asarray(a) == np.asarray(b)).all(), same, checkpoint.params))

    columns, d = 24, checkpoint.config.head_dim
    wide = [np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, columns - d)]) for x in own[:4]]
    factor = np.sqrt(columns / d).astype(np.float32)  # the softmax divides by sqrt(columns)
    parts = qkjax.QueryKey(wide[0] * factor, wide[1], wide[2] * factor, wide[3], *own[4:])
    params = tree.with_query_key(tree.widened_heads(checkpoint.params, columns), parts)
    model = qkjax.ViT(replace(checkpoint.config, head_dim=columns))
    outputs = [
        forward(m, p, images)[0] for m, p in ((qkjax.ViT(checkpoint.config), checkpoint.params), (model, params))
    ]
    np.testing.assert_allclose(*outputs, atol=1e-4)


def test_parts_of_a_tree_can_be_read_and_replaced(small):
    params = small[0].params
    other = tree.with_patch_embedding(params, kernel=2 * tree.patch_kernel(params))
    np.testing.assert_array_equal(tree.patch_kernel(other), 2 * tree.patch_kernel(params))
    assert tree.patch_bias(other) is tree.patch_bias(params)
    table = tree.position_embedding(params)
    np.testing.assert_array_equal(tree.position_embedding(tree.with_position_embedding(params, 2 * table)), 2 * table)
    assert set(params) - set(tree.without_heads(params)) == {"head", "pre_logits"}
    assert tree.depth_of(params) == small[0].config.depth


def test_fields_added_since_version_0_1_do_not_change_settings_of_usual_models(default):
    """A result of version 0.1 is taken for that of the same model: its configuration is the same text."""
    names = list(default.config.to_dict())
    assert names[-1] == "activation" and not {"norm", "final_norm", "weights_only"} & set(names)
    other = replace(default.config, norm="rms")
    assert other.to_dict()["norm"] == "rms"
    assert qkjax.ViTConfig(**other.to_dict()) == other
