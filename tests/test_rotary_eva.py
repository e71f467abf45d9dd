"""Models with rotary positions other than DINOv3, each with random weights, against its own library.

Every parameter is moved from its initial value. Hidden states agree to 1e-5 of their range, and attention to 1e-5, at
the native size and at one that is not square.
"""

import json
from dataclasses import replace

import numpy as np
import pytest

import qkjax
from conftest import moved
from qkjax.vit.model import forward
from qkjax.vit.rotary_config import Rotary

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


SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80, "patch_size": 7}


def test_mlcd(torch, tmp_path):
    """The class token, too, is rotated, by its own learned angles."""
    mlcd = pytest.importorskip("transformers.models.mlcd.modeling_mlcd")
    torch.manual_seed(0)
    config = mlcd.MLCDVisionConfig(**SMALL, image_size=28, attn_implementation="eager")
    model = moved(mlcd.MLCDVisionModel(config)).eval()
    model.save_pretrained(tmp_path)
    checkpoint = qkjax.load(tmp_path)
    for pixels in ((28, 28), (21, 49)):
        images = torch.randn(2, 3, *pixels)
        with torch.no_grad():
            theirs = model(images, output_hidden_states=True, output_attentions=True)
        inputs = images.numpy().transpose(0, 2, 3, 1)
        output, ours = qkjax.forward(checkpoint, inputs, ("residual", "attention"))
        for layer in range(2):
            assert_close(ours["residual"][layer], theirs.hidden_states[layer])
            np.testing.assert_allclose(ours["attention"][layer], theirs.attentions[layer].numpy(), atol=1e-5, rtol=0)
        assert_close(output, theirs.pooler_output)


def assert_modes(checkpoint, pairs):
    """Compares the modes with the SVD of Wq Wk^T in float64."""
    modes, heads = qkjax.decompose(checkpoint), checkpoint.config.heads
    for layer, (query, key) in enumerate(pairs):
        rows = (np.split(x.detach().double().numpy(), heads) for x in (query, key))
        for head, (q, k) in enumerate(zip(*rows, strict=True)):
            u, s, v = (np.asarray(x[layer, head], np.float64) for x in (modes.u, modes.s, modes.v))
            np.testing.assert_allclose((u * s) @ v.T, q.T @ k, atol=1e-6 * s[0])


def test_vjepa2(torch, tmp_path):
    vjepa2 = pytest.importorskip("transformers.models.vjepa2.modeling_vjepa2")
    torch.manual_seed(0)
    config = vjepa2.VJEPA2Config(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, crop_size=28, patch_size=7,
                                 frames_per_clip=4, pred_hidden_size=24, pred_num_attention_heads=2,
                                 pred_num_hidden_layers=1)  # fmt: skip
    model = moved(vjepa2.VJEPA2Model(config)).eval()
    model.save_pretrained(tmp_path)
    with pytest.raises(qkjax.QkjaxError, match=r"several models.*:encoder"):
        qkjax.load(tmp_path)
    checkpoint = qkjax.load(f"{tmp_path}:encoder")
    assert "not orthogonal" in checkpoint.config.weights_only
    assert_modes(checkpoint, [(x.attention.query.weight, x.attention.key.weight) for x in model.encoder.layer])


def test_rotation_of_vjepa2_is_not_orthogonal(torch):
    """The reason that qkjax states: at the first place, R R^T is the identity, and at others it is not."""
    vjepa2 = pytest.importorskip("transformers.models.vjepa2.modeling_vjepa2")
    eye = torch.eye(8, dtype=torch.float64)[None, None]
    first, other = (vjepa2.rotate_queries_or_keys(eye, torch.full((8,), float(p)))[0, 0] for p in (0, 3))
    assert torch.equal(first @ first.mT, eye[0, 0])
    assert (other @ other.mT - eye[0, 0]).abs().max() > 0.1


@pytest.mark.parametrize("field", ["temperature", "offset", "reference", "first", "pairs"])
def test_every_field_of_the_rotation_decides_the_tokens(timm, torch, field, tmp_path):
    model, arguments = small_timm(timm, torch, "vit_pe_core_tiny_patch16_384")
    checkpoint = qkjax.load(save(tmp_path, model, "vit_pe_core_tiny_patch16_384", arguments))
    other = {"temperature": 100.0, "offset": 0.0, "reference": None, "first": "rows", "pairs": "half"}[field]
    config = replace(checkpoint.config, rotary=replace(checkpoint.config.rotary, **{field: other}))
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    ours, other = (np.asarray(forward(qkjax.ViT(c), checkpoint.params, images)[0]) for c in (checkpoint.config, config))
    if field == "offset":  # it is the same for queries and keys, and the class token is not rotated
        assert np.abs(ours - other).max() > 1e-6
    else:
        assert np.abs(ours - other).max() > 1e-4


@pytest.mark.parametrize("name", ["vit_pe_core_tiny_patch16_384", "vit_pe_spatial_tiny_patch16_512",
                                  "eva02_tiny_patch14_224", "eva02_base_patch14_448"])  # fmt: skip
def test_rotation_of_a_bare_file_is_not_guessed(timm, torch, name, tmp_path):
    model, arguments = small_timm(timm, torch, name)
    path = save(tmp_path, model, None, arguments)
    with pytest.raises(qkjax.QkjaxError, match=r"resemble .* pass rotary=") as caught:
        qkjax.load(path, heads=4)
    assert "\n" not in str(caught.value)


def test_rotation_of_a_bare_file_is_a_setting(timm, torch, tmp_path):
    name = "eva02_tiny_patch14_224"
    model, arguments = small_timm(timm, torch, name)
    path = save(tmp_path, model, None, arguments)
    checkpoint = qkjax.load(path, heads=4, rotary=Rotary(10000.0, reference=(16, 16)))
    assert checkpoint.config.rotary == qkjax.load(save(tmp_path, model, name, arguments)).config.rotary
    checkpoint = replace(checkpoint, config=replace(checkpoint.config, posemb_resample="bicubic_antialias"))
    compare(torch, model, checkpoint, (56, 56))
    assert qkjax.load(path, heads=4, rotary=None).config.rotary is None


def test_saved_file_keeps_the_rotation(timm, torch, tmp_path):
    name = "eva02_base_patch14_448"
    model, arguments = small_timm(timm, torch, name)
    checkpoint = qkjax.load(save(tmp_path, model, name, arguments))
    qkjax.save(checkpoint, tmp_path / "own.npz")
    assert qkjax.load(tmp_path / "own.npz").config == checkpoint.config


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"rope_temperature": 100.0, "rope_grid_offset": 1.0}, Rotary(100.0, offset=1.0, reference=(16, 16))),
        ({"rope_grid_indexing": "xy", "ref_feat_shape": 8}, Rotary(10000.0, reference=(8, 8), first="columns")),
        ({"rope_rotate_half": True, "ref_feat_shape": None}, Rotary(10000.0, reference=(16, 16), pairs="half")),
        ({"use_rot_pos_emb": False}, None),
    ],
)
def test_arguments_that_change_the_rotation(timm, torch, arguments, expected, tmp_path):
    assert_rotation(timm, torch, tmp_path, "eva02_tiny_patch14_224", arguments, expected, (56, 56))


def assert_rotation(timm, torch, folder, name: str, arguments: dict, expected: Rotary | None, pixels) -> None:
    """A model of timm with other arguments has the expected rotary positions, and the outputs of the library."""
    model, arguments = small_timm(timm, torch, name, **arguments)
    checkpoint = qkjax.load(save(folder, model, name, arguments))
    assert checkpoint.config.rotary == expected
    compare(torch, model, checkpoint, pixels)


def test_live_model(timm, torch):
    model, _ = small_timm(timm, torch, "vit_pe_core_tiny_patch16_384")
    compare(torch, model, qkjax.load(model), (64, 64))
