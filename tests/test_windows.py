"""SAM 3's image encoder, whose attention has windows: random weights against transformers, and float64 loops.

Every parameter is moved from its initial value. Hidden states agree to 1e-5 of their range, and attention to 1e-5.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from test_rotary_eva import SMALL, assert_close

import qkjax
from conftest import moved
from qkjax.vit.model import forward

SAM3 = SMALL | {"num_hidden_layers": 3, "image_size": 56, "pretrain_image_size": 28, "window_size": 4,
                "global_attn_indexes": [1], "model_type": "sam3_vit_model"}  # fmt: skip
SIZES = {"one window": (28, 28), "four windows": (56, 56), "not square": (56, 84)}
"""Windows have 4 x 4 patches of 7 pixels, and the position embedding has 4 x 4 patches."""


@pytest.fixture
def sam3(torch):
    return pytest.importorskip("transformers.models.sam3.modeling_sam3")


def sam3_model(torch, sam3, **fields):
    torch.manual_seed(0)
    config = sam3.Sam3VisionConfig(
        backbone_config=SAM3 | fields, fpn_hidden_size=16, attn_implementation="eager",
    )  # fmt: skip
    return moved(sam3.Sam3VisionModel(config)).eval()


def at_size(sam3, model, pixels):
    """The same model with the places of another size of image; transformers takes (width, height)."""
    for layer in model.backbone.layers:
        layer.config.image_size = pixels[::-1]
        layer.position_ids = layer.precompute_positions(layer.config, layer.window_size)
    return model


@pytest.fixture
def checkpoint(torch, sam3, tmp_path):
    sam3_model(torch, sam3).save_pretrained(tmp_path)
    return qkjax.load(tmp_path)


def tokens_and_attention(torch, model, images):
    tokens, weights = [], []
    hooks = [layer.register_forward_hook(lambda _, __, out: tokens.append(out)) for layer in model.backbone.layers]
    hooks += [layer.attention.register_forward_hook(lambda _, __, out: weights.append(out[1]))
              for layer in model.backbone.layers]  # fmt: skip
    with torch.no_grad():
        model.backbone(images)
    for hook in hooks:
        hook.remove()
    return tokens, weights


def whole_attention(weights, grid, size: int):
    """Attention (images x windows, heads, keys, keys) as attention between all patches, by loops over windows."""
    rows, columns = grid
    count = rows // size * (columns // size)
    if weights.shape[-1] == rows * columns:
        return weights
    images, heads = len(weights) // count, weights.shape[1]
    result = np.zeros((images, heads, rows * columns, rows * columns), np.float32)
    for number in range(len(weights)):
        image, (row, column) = number // count, divmod(number % count, columns // size)
        patches = [(row * size + r) * columns + column * size + c for r in range(size) for c in range(size)]
        result[image][np.ix_(range(heads), patches, patches)] = weights[number]
    return result


@pytest.mark.parametrize("name", SIZES)
def test_transformers(torch, sam3, tmp_path, name):
    model = sam3_model(torch, sam3)
    model.save_pretrained(tmp_path)
    checkpoint = qkjax.load(tmp_path)
    assert (checkpoint.config.window, checkpoint.config.global_layers) == (4, (1,))
    pixels, grid = SIZES[name], tuple(n // 7 for n in SIZES[name])
    images = torch.randn(2, 3, *pixels, generator=torch.Generator().manual_seed(1))
    tokens, weights = tokens_and_attention(torch, at_size(sam3, model, pixels), images)
    inputs = images.numpy().transpose(0, 2, 3, 1)
    output, ours = qkjax.forward(checkpoint, inputs, ("residual", "attention", "attention_logits"))
    for layer, weight in enumerate(weights):
        expected = whole_attention(weight.numpy(), grid, 4)
        np.testing.assert_allclose(ours["attention"][layer], expected, atol=1e-5, rtol=0)
        assert (np.isneginf(ours["attention_logits"][layer]) == (expected == 0)).all()
    for layer, token in enumerate(tokens[:-1]):
        assert_close(ours["residual"][layer + 1], token.flatten(1, 2))
    assert_close(ours["encoded"], tokens[-1].flatten(1, 2))
    assert_close(output, tokens[-1].flatten(1, 2).mean(1))
    _, uncaptured = qkjax.forward(checkpoint, inputs)  # windows are computed by themselves
    assert_close(uncaptured["encoded"], tokens[-1].flatten(1, 2))


def test_attention_of_some_queries(checkpoint):
    images = np.random.default_rng(0).normal(size=(1, 56, 84, 3)).astype(np.float32)
    model, names = qkjax.ViT(checkpoint.config), ("attention", "attention_logits")
    every = model.apply({"params": checkpoint.params}, images, capture=names)[1]["encoder"]
    some = model.apply({"params": checkpoint.params}, images, capture=names, queries=np.array([0, 17, 95]))[1][
        "encoder"
    ]
    for layer, name in itertools.product(("block00", "block01"), names):
        np.testing.assert_allclose(some[layer][name], every[layer][name][:, :, [0, 17, 95]], atol=1e-6)


@pytest.mark.parametrize("pixels", [(28, 35), (21, 28), (42, 56)])
def test_incomplete_windows_are_refused(checkpoint, pixels):
    with pytest.raises(qkjax.QkjaxError, match=r"resolution=.*whole windows of 4 x 4 patches.*28 pixels") as caught:
        qkjax.forward(checkpoint, np.zeros((1, *pixels, 3), np.float32))
    assert "\n" not in str(caught.value)


def test_saved_file_keeps_the_windows(checkpoint, tmp_path):
    qkjax.save(checkpoint, tmp_path / "own.npz")
    assert qkjax.load(tmp_path / "own.npz").config == checkpoint.config


@pytest.mark.parametrize(("field", "value"), [("window", 2), ("global_layers", (1, 2)), ("posemb_resample", "bicubic")])
def test_every_field_of_the_windows_decides_the_tokens(checkpoint, field, value):
    images = np.random.default_rng(0).normal(size=(1, 56, 56, 3)).astype(np.float32)
    configs = checkpoint.config, replace(checkpoint.config, **{field: value})
    ours, other = (np.asarray(forward(qkjax.ViT(config), checkpoint.params, images)[0]) for config in configs)
    assert np.abs(ours - other).max() > 1e-4 * np.ptp(ours)
