"""Values and attention-weighted values that the model returns, against timm, transformers and float64."""

import numpy as np
import pytest

import qkjax
from conftest import DATA, assert_close, moved
from qkjax.vit import tree
from qkjax.vit.model import forward

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80, "image_size": 28,
         "patch_size": 7, "num_register_tokens": 3}  # fmt: skip
PLAIN = "vit_tiny_patch16_224"


def seen_by(model, modules) -> dict:
    """Inputs and outputs of torch modules in one forward pass of a photograph."""
    import torch

    images = np.random.default_rng(0).standard_normal((2, 28, 28, 3)).astype(np.float32)
    seen = {}
    for name, module in modules.items():
        module.register_forward_hook(lambda _, given, result, name=name: seen.update({name: (given[0], result)}))
    with torch.no_grad():
        model(torch.tensor(images.transpose(0, 3, 1, 2)))
    return images, seen


def test_values_are_those_of_transformers(transformers):
    config = transformers.Dinov2WithRegistersConfig(**SMALL, layerscale_value=0.5)
    model = moved(transformers.Dinov2WithRegistersModel(config))
    names = {"value": ("v_proj", "value"), "out": ("o_proj", "dense")}  # names of transformers 5, and of earlier ones
    modules = {
        f"{ours} {i}": next(m for name, m in layer.attention.named_modules() if name.endswith(theirs))
        for i, layer in enumerate(model.encoder.layer)
        for ours, theirs in names.items()
    }
    images, seen = seen_by(model, modules)
    checkpoint = qkjax.load(model)
    _, ours = forward(qkjax.ViT(checkpoint.config), checkpoint.params, images, ("value", "weighted_value"))
    for layer in range(2):
        assert_close(ours["value"][layer].reshape(2, 20, 48), seen[f"value {layer}"][1])
        assert_close(ours["weighted_value"][layer].reshape(2, 20, 48), seen[f"out {layer}"][0])


@pytest.mark.parametrize("capture", [("value", "weighted_value"), ("value", "weighted_value", "attention")])
def test_values_are_those_of_timm(timm, capture):
    """With and without attention among the captures, which are two ways to compute the weighted values."""
    model = timm.create_model(PLAIN, depth=2, embed_dim=48, num_heads=4, img_size=28, patch_size=7, num_classes=5)
    blocks = [block.attn for block in moved(model).blocks]
    modules = {f"qkv {i}": b.qkv for i, b in enumerate(blocks)} | {f"out {i}": b.proj for i, b in enumerate(blocks)}
    images, seen = seen_by(model, modules)
    checkpoint = qkjax.load(model)
    _, ours = forward(qkjax.ViT(checkpoint.config), checkpoint.params, images, capture)
    for layer in range(2):
        assert_close(ours["value"][layer].reshape(2, 17, 48), seen[f"qkv {layer}"][1][..., 96:])
        assert_close(ours["weighted_value"][layer].reshape(2, 17, 48), seen[f"out {layer}"][0])


def test_weighted_values_are_attention_times_values_in_float64():
    """Values reach 4; the forward pass is float32."""
    checkpoint, images = qkjax.load(DATA / "a.npz"), np.load(DATA / "a_expected.npz")["images"]
    names = ("norm", "attention", "value", "weighted_value")
    _, seen = forward(qkjax.ViT(checkpoint.config), checkpoint.params, images, names)
    seen = {name: np.asarray(value, np.float64) for name, value in seen.items()}
    for layer, own in enumerate(tree.attention_parameters(checkpoint.params)):
        kernel, bias = (np.asarray(own["value"][name], np.float64) for name in ("kernel", "bias"))
        value = np.einsum("bnd,dhk->bnhk", seen["norm"][layer], kernel) + bias
        np.testing.assert_allclose(seen["value"][layer], value, atol=2e-5)
        weighted = np.einsum("bhqk,bkhd->bqhd", seen["attention"][layer], value)
        np.testing.assert_allclose(seen["weighted_value"][layer], weighted, atol=2e-5)
