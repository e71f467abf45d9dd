"""Models with rotary positions other than DINOv3, each with random weights, against its own library.

Every parameter is moved from its initial value. Hidden states agree to 1e-5 of their range, and attention to 1e-5, at
the native size and at one that is not square.
"""

import json

import numpy as np
import pytest

import qkjax
from conftest import moved
from qkjax.vit.model import forward

TINY = {"depth": 2, "embed_dim": 48, "num_heads": 4, "img_size": 64}
TIMM = {
    "vit_pe_core_tiny_patch16_384": {"num_classes": 5},
    "vit_pe_core_gigantic_patch14_448": {"img_size": 56, "num_classes": 5},  # without a class token
    "vit_pe_lang_large_patch14_448": {"img_size": 56},  # with layer scale
    "vit_pe_lang_gigantic_patch14_448": {"img_size": 56},
    "vit_pe_spatial_tiny_patch16_512": {},
    "vit_pe_spatial_gigantic_patch14_448": {"img_size": 56},
    "eva02_tiny_patch14_224": {"img_size": 56},
    "eva02_base_patch14_448": {"img_size": 56},  # split queries, keys and values, and a norm in the MLP
    "eva02_base_patch16_clip_224": {"num_classes": 5},  # and a norm in attention
    "eva02_large_patch14_clip_336": {"img_size": 56},
    "vit_medium_patch16_rope_reg1_gap_256": {},
    "vit_betwixt_patch16_rope_reg4_gap_256": {},
    "vit_small_patch16_rope_224": {},
    "vit_small_patch16_rope_ape_224": {},
}


def small_timm(timm, torch, name: str, **arguments):
    """A small model of an architecture of timm, with every parameter moved, and its arguments."""
    arguments = {**TINY, **TIMM.get(name, {}), **arguments}
    if "_pe_core" in name:
        arguments.setdefault("attn_pool_num_heads", 6)  # another number of heads than in the layers
    torch.manual_seed(0)
    return moved(timm.create_model(name, **arguments)).eval(), arguments


def save(folder, model, name: str | None, arguments: dict):
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, folder / "model.safetensors")
    if name:
        (folder / "config.json").write_text(json.dumps({"architecture": name, "model_args": arguments}))
    return folder if name else folder / "model.safetensors"


def timm_forward(torch, model, images):
    """The tokens after each layer, the attention of each layer, and the output."""
    tokens, attention = [], []

    def keep(query, key, *_, **__):
        attention.append(torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, -1))
        return original(query, key, *_, **__)

    hooks = [block.register_forward_hook(lambda _, __, out: tokens.append(out)) for block in model.blocks]
    original = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = keep
    try:
        with torch.no_grad():
            output = model(images)
    finally:
        torch.nn.functional.scaled_dot_product_attention = original
        for hook in hooks:
            hook.remove()
    return tokens, attention[: len(model.blocks)], output


def assert_close(ours, theirs):
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= 1e-5 * np.ptp(theirs)


def compare(torch, model, checkpoint, pixels):
    images = torch.randn(2, 3, *pixels, generator=torch.Generator().manual_seed(1))
    tokens, attention, output = timm_forward(torch, model, images)
    inputs = images.numpy().transpose(0, 2, 3, 1)
    result, captured = forward(qkjax.ViT(checkpoint.config), checkpoint.params, inputs, ("residual", "attention"))
    for layer, token in enumerate(tokens[:-1]):
        assert_close(captured["residual"][layer + 1], token)
    for layer, weights in enumerate(attention):
        np.testing.assert_allclose(captured["attention"][layer], weights.numpy(), atol=1e-5, rtol=0)
    assert_close(result, output)


@pytest.mark.parametrize("name", TIMM)
def test_timm(timm, torch, name, tmp_path):
    model, arguments = small_timm(timm, torch, name)
    checkpoint = qkjax.load(save(tmp_path, model, name, arguments))
    assert checkpoint.config.rotary is not None
    pixels = model.patch_embed.img_size
    compare(torch, model, checkpoint, pixels)
    wide = (pixels[0], 2 * pixels[1])
    model.set_input_size(img_size=wide)
    compare(torch, model, checkpoint, wide)
