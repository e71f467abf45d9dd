"""DINOv3 and models with its rotation, with random weights, against transformers and timm, and under Meta's names.

Every parameter is moved from its initial value. Hidden states agree to 1e-5 of their range, and attention to 1e-5, at
the native size and at one that is not square.
"""

import json

import numpy as np
import pytest
from test_rotary_eva import assert_close, compare, save, small_timm

import qkjax
from conftest import moved
from qkjax.vit.rotary_config import Rotary

DINOV3 = Rotary(100.0, "centred", pairs="half")
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
CONFIGURATIONS = {
    "S": {"num_attention_heads": 6},
    "S+": {"num_attention_heads": 6, **GATED},
    "B": {"num_attention_heads": 12},
    "L": {"num_attention_heads": 3},
    "H+": {"hidden_size": 80, "num_attention_heads": 20, "intermediate_size": 320, **GATED},
    "7B": {"num_attention_heads": 4, "query_bias": False, "value_bias": False, **GATED},
    "without registers": {"num_register_tokens": 0},
    "all biases": {"key_bias": True},
    "no biases": {"query_bias": False, "value_bias": False, "proj_bias": False, "mlp_bias": False},
    "another temperature and epsilon": {"rope_theta": 20.0, "layer_norm_eps": 1e-3},
}
"""Small models with what distinguishes the published configurations, and other values of config.json."""
SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80, "patch_size": 7,
         "image_size": 28, "num_register_tokens": 4}  # fmt: skip


@pytest.fixture
def library(torch):
    return pytest.importorskip("transformers.models.dinov3_vit.modeling_dinov3_vit")


def small(torch, library, **fields):
    config = library.DINOv3ViTConfig(**{**SIZES, **fields}, attn_implementation="eager")
    return moved(library.DINOv3ViTModel(config)).eval()


def assert_equal_to_transformers(torch, checkpoint, model):
    for pixels in ((28, 28), (21, 49)):
        images = torch.randn(2, 3, *pixels, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            theirs = model(images, output_hidden_states=True, output_attentions=True)
        inputs = images.numpy().transpose(0, 2, 3, 1)
        output, ours = qkjax.forward(checkpoint, inputs, ("residual", "attention"))
        for layer in range(2):
            assert_close(ours["residual"][layer], theirs.hidden_states[layer])
            np.testing.assert_allclose(ours["attention"][layer], theirs.attentions[layer].numpy(), atol=1e-5, rtol=0)
        assert_close(ours["encoded"], theirs.last_hidden_state)
        assert_close(output, theirs.pooler_output)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_transformers(torch, library, name, tmp_path):
    model = small(torch, library, **CONFIGURATIONS[name])
    model.save_pretrained(tmp_path)
    checkpoint = qkjax.load(tmp_path)
    theta = CONFIGURATIONS[name].get("rope_theta", 100.0)
    assert checkpoint.config.rotary == Rotary(theta, "centred", pairs="half")
    assert checkpoint.config.grid == (4, 4)
    assert not any(
        "assumed that" in note or "left out" in note or "assumed, because" in note for note in checkpoint.notes
    )
    assert_equal_to_transformers(torch, checkpoint, model)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_act": "gelu", "use_gated_mlp": True}, r"use_gated_mlp=True with activation 'gelu', expected 'silu'"),
        ({"hidden_act": "silu", "use_gated_mlp": False}, "activation 'silu', expected one of"),
        ({"rope_theta": -1.0}, "rope_theta=-1.0: expected .* positive rope_theta"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_type='dynamic'"),
        ({"image_size": 224, "intermediate_size": 81}, "intermediate_size=81, but the parameters have 80"),
    ],
)
def test_configurations_that_transformers_or_qkjax_cannot_run(torch, library, fields, message, tmp_path):
    small(torch, library).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | fields))
    with pytest.raises(qkjax.QkjaxError, match=message) as caught:
        qkjax.load(tmp_path)
    assert "\n" not in str(caught.value)


TIMM = {
    "vit_small_patch16_dinov3": {"num_classes": 5},
    "vit_small_plus_patch16_dinov3_qkvb": {"global_pool": "token", "swiglu_align_to": 16},
    "vit_7b_patch16_dinov3": {},  # gated, without biases of queries and values
    "vit_tiny_patch16_dinov3_qkvb": {"num_reg_tokens": 2},  # EUPE
    "vit_giant_patch16_lingbot": {},
}


@pytest.mark.parametrize("name", TIMM)
def test_timm(timm, torch, name, tmp_path):
    model, arguments = small_timm(timm, torch, name, **TIMM[name])
    checkpoint = qkjax.load(save(tmp_path, model, name, arguments))
    assert checkpoint.config.rotary == DINOV3 and checkpoint.config.grid == (4, 4)
    compare(torch, model, checkpoint, (64, 64))
    compare(torch, model, checkpoint, (48, 112))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"rope_temperature": 20.0, "rope_type": "dinov3"}, Rotary(20.0, "centred", pairs="half")),
        ({"rope_grid_offset": 1.0, "rope_rescale_coords": 2.0}, Rotary(100.0, "centred", 1.0, pairs="half")),
        ({"rope_grid_indexing": "xy", "ref_feat_shape": 8}, Rotary(100.0, "centred", first="columns", pairs="half")),
        ({"rope_rotate_half": False}, Rotary(100.0, "centred")),
    ],
)
def test_arguments_of_timm_that_change_the_rotation(timm, torch, arguments, expected, tmp_path):
    name = "vit_small_patch16_dinov3_qkvb"
    model, arguments = small_timm(timm, torch, name, **arguments)
    checkpoint = qkjax.load(save(tmp_path, model, name, arguments))
    assert checkpoint.config.rotary == expected
    compare(torch, model, checkpoint, (48, 80))


def test_live_models(timm, torch, library):
    model, _ = small_timm(timm, torch, "vit_base_patch16_dinov3_qkvb")
    compare(torch, model, qkjax.load(model), (64, 64))
    model = small(torch, library)
    assert_equal_to_transformers(torch, qkjax.load(model), model)


def test_rotation_of_a_bare_file_is_not_guessed(torch, library, tmp_path):
    """The names of transformers and timm do not state the rotation, and a position embedding is missing."""
    model = small(torch, library)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    (tmp_path / "config.json").unlink()
    with pytest.raises(qkjax.QkjaxError, match=r"no position embedding.* rotary=qkjax\.Rotary"):
        qkjax.load(path, heads=4)
    checkpoint = qkjax.load(path, heads=4, rotary=DINOV3, norm_eps=1e-5)
    assert_equal_to_transformers(torch, checkpoint, model)
