"""DINOv3 and models with its rotation, with random weights, against transformers and timm, and under Meta's names.

Every parameter is moved from its initial value. Hidden states agree to 1e-5 of their range, and attention to 1e-5, at
the native size and at one that is not square.
"""

import json
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from test_rotary_eva import assert_close, assert_rotation, compare, save, small_timm

import qkjax
from conftest import moved
from qkjax.images.preprocess import PRESETS
from qkjax.vit.model import forward
from qkjax.vit.rotary_config import Rotary
from qkjax.weights.families.facts import Facts
from qkjax.weights.families.torch_rotary import with_stored_rotation

DINOV3 = Rotary(100.0, "centred", pairs="half")
GATED = {"use_gated_mlp": True, "hidden_act": "silu"}
CONFIGURATIONS = {
    "S, B and L": {"num_attention_heads": 3},
    "S+ and H+": {"num_attention_heads": 3, **GATED},
    "7B": {"query_bias": False, "value_bias": False, **GATED},
    "without registers, and with a key bias": {"num_register_tokens": 0, "key_bias": True},
    "without biases, with another temperature and epsilon": {
        "query_bias": False, "value_bias": False, "proj_bias": False, "mlp_bias": False, "rope_theta": 20.0,
        "layer_norm_eps": 1e-3},
}  # fmt: skip
"""Small models with what distinguishes the published configurations, and other values of config.json."""
SIZES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80, "patch_size": 7,
         "image_size": 28, "num_register_tokens": 4}  # fmt: skip


@pytest.fixture
def library(torch):
    return pytest.importorskip("transformers.models.dinov3_vit.modeling_dinov3_vit")


def small(torch, library, **fields):
    config = library.DINOv3ViTConfig(**{**SIZES, **fields}, attn_implementation="eager")
    return moved(library.DINOv3ViTModel(config)).eval()


def test_every_field_of_the_rotation_decides_the_tokens(torch, library, tmp_path):
    """Otherwise the comparisons in this file would not test the rotation."""
    model = small(torch, library, num_attention_heads=3, num_hidden_layers=1)
    model.save_pretrained(tmp_path)
    checkpoint = qkjax.load(tmp_path)
    images = np.random.default_rng(0).normal(size=(1, 28, 49, 3)).astype(np.float32)
    ours = np.asarray(qkjax.forward(checkpoint, images)[0])
    others = {"temperature": 90.0, "coordinates": "index", "first": "columns", "pairs": "interleaved"}
    for field, value in others.items():
        config = replace(checkpoint.config, rotary=replace(DINOV3, **{field: value}))
        other = np.asarray(forward(qkjax.ViT(config), checkpoint.params, images)[0])
        assert np.abs(other - ours).max() > 1e-4 * np.ptp(ours)


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
    assert not any(re.search("assumed that|left out|assumed, because", note) for note in checkpoint.notes)
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
        (
            {"rope_temperature": 20.0, "rope_type": "dinov3", "rope_grid_offset": 1.0, "rope_rescale_coords": 2.0},
            Rotary(20.0, "centred", 1.0, pairs="half"),
        ),
        (
            {"rope_grid_indexing": "xy", "ref_feat_shape": 8, "rope_rotate_half": False},
            Rotary(100.0, "centred", first="columns"),
        ),
    ],
)
def test_arguments_of_timm_that_change_the_rotation(timm, torch, arguments, expected, tmp_path):
    assert_rotation(timm, torch, tmp_path, "vit_small_patch16_dinov3_qkvb", arguments, expected, (48, 80))


def assert_same_parameters(ours, theirs):
    assert jax.tree.structure(ours.params) == jax.tree.structure(theirs.params)
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)


def test_live_models(timm, torch, library, tmp_path):
    name = "vit_base_patch16_dinov3_qkvb"
    model, arguments = small_timm(timm, torch, name)
    live, saved = qkjax.load(model), qkjax.load(save(tmp_path, model, name, arguments))
    assert live.config == saved.config
    assert_same_parameters(live, saved)
    model = small(torch, library)
    model.save_pretrained(tmp_path)
    live, saved = qkjax.load(model), qkjax.load(tmp_path)
    assert live.config == saved.config
    assert_same_parameters(live, saved)


def test_rotation_of_a_bare_file_is_not_guessed(torch, library, tmp_path):
    """The names of transformers and timm do not state the rotation, and a position embedding is missing."""
    small(torch, library).save_pretrained(tmp_path)
    whole, path = qkjax.load(tmp_path), tmp_path / "model.safetensors"
    (tmp_path / "config.json").unlink()
    with pytest.raises(qkjax.QkjaxError, match=r"no position embedding.* rotary=qkjax\.Rotary"):
        qkjax.load(path, heads=4)
    checkpoint = qkjax.load(path, heads=4, rotary=DINOV3, grid=(4, 4))
    assert any("norm_eps=1e-05" in note for note in checkpoint.notes)
    assert checkpoint.config == whole.config
    assert_same_parameters(checkpoint, whole)


def to_meta(torch, model) -> dict:
    """The parameters of a model of transformers under the names and in the layout of Meta's file."""
    heads, width = model.config.num_attention_heads, model.config.hidden_size
    gated = model.config.use_gated_mlp
    top = {"embeddings.cls_token": "cls_token", "embeddings.register_tokens": "storage_tokens", "norm": "norm",
           "embeddings.patch_embeddings": "patch_embed.proj"}  # fmt: skip
    inner = {"norm1": "norm1", "norm2": "norm2", "attention.o_proj": "attn.proj", "layer_scale1.lambda1": "ls1.gamma",
             "layer_scale2.lambda1": "ls2.gamma", "mlp.gate_proj": "mlp.w1", "mlp.up_proj": "mlp.w2" if gated else
             "mlp.fc1", "mlp.down_proj": "mlp.w3" if gated else "mlp.fc2"}  # fmt: skip
    state, meta = {name.removeprefix("model."): value for name, value in model.state_dict().items()}, {}
    for name, value in state.items():
        for old, new in top.items():
            if name.startswith(old):
                meta[name.replace(old, new)] = value
        for old, new in inner.items():
            if match := re.fullmatch(rf"layer\.(\d+)\.{re.escape(old)}(.*)", name):
                meta[f"blocks.{match[1]}.{new}{match[2]}"] = value
    for layer in range(2):
        parts = [[state.get(f"layer.{layer}.attention.{x}_proj.{leaf}") for x in "qkv"] for leaf in ("weight", "bias")]
        attention = f"blocks.{layer}.attn.qkv"
        meta[f"{attention}.weight"] = torch.cat(parts[0])
        if parts[1][0] is not None:  # the mask sets the key bias, whatever its value, to zero
            meta[f"{attention}.bias"] = torch.cat([parts[1][0], torch.randn(width), parts[1][2]])
            meta[f"{attention}.bias_mask"] = torch.cat([torch.ones(width), torch.zeros(width), torch.ones(width)])
    planes = width // heads // 4
    periods = (model.config.rope_theta ** (torch.arange(planes) / planes)).to(torch.bfloat16)
    return meta | {"mask_token": torch.randn(1, width), "rope_embed.periods": periods}


META = {
    "S, B and L": (CONFIGURATIONS["S, B and L"], ()),
    "S+ and H+": (CONFIGURATIONS["S+ and H+"], ()),
    "7B, which has a norm for the class tokens of local crops": (CONFIGURATIONS["7B"], ("local_cls_norm",)),
    "EUPE, which has projectors": ({"num_attention_heads": 3, "rope_theta": 30.0}, ("projectors.0.norm",)),
}


@pytest.mark.parametrize("name", META)
def test_names_of_meta(torch, library, name, tmp_path):
    """The parameters equal those of the model of transformers, and for one model, the tokens are compared, too."""
    from safetensors.torch import save_file

    fields, extra = META[name]
    model = small(torch, library, **fields)
    model.save_pretrained(tmp_path / "hub")
    state = to_meta(torch, model) | {f"{norm}.{leaf}": torch.randn(48) for norm in extra for leaf in ("weight", "bias")}
    first = name == next(iter(META))
    path = tmp_path / ("dinov3.pth" if first else "dinov3.safetensors")
    if first:
        torch.save(state, path)
    else:
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    with pytest.warns(qkjax.errors.AssumptionWarning, match="assumed"):
        checkpoint = qkjax.load(path)  # the periods state the dimension of a head, and so the number of heads
    assert any("rounded to bfloat16" in note for note in checkpoint.notes)
    assert any("norm_eps=1e-05" in note and "pool='tok'" in note for note in checkpoint.notes)
    assert checkpoint.preprocess == PRESETS["hf-dinov3"]
    whole = qkjax.load(tmp_path / "hub")
    assert checkpoint.config == replace(whole.config, grid=None)
    assert_same_parameters(checkpoint, whole)
    if first:
        assert_equal_to_transformers(torch, checkpoint, model)


@pytest.fixture
def meta_file(torch, library, tmp_path):
    """A function that writes a file with Meta's names and some parameters changed, and returns its path."""
    from safetensors.torch import save_file

    state = to_meta(torch, small(torch, library))

    def write(**changes):
        changed = {name.replace("__", "."): value for name, value in changes.items()}
        save_file({key: value.contiguous() for key, value in (state | changed).items()}, tmp_path / "x.safetensors")
        return tmp_path / "x.safetensors"

    return write


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"rope_embed__periods": [1.0, 5.0, 6.0]}, {}, r"periods' has values from 1 to 6, expected the powers"),
        ({"rope_embed__periods": [1e38, 1e38, 0.5]}, {}, r"periods' has values from 0.5 to 1e\+38"),
        ({"rope_embed__periods": 3.0}, {}, r"periods' has shape \(\), expected one period"),
        ({"rope_embed__periods": []}, {}, r"periods' has shape \(0,\), expected one period"),
        ({"rope_embed__periods": [-1.0, 2.0]}, {}, r"periods' has values from -1 to 2"),
        ({"rope_embed__periods": [2.0, 8.0, 40.0]}, {}, r"periods' has values from 2 to 40"),
        ({"cls_norm__weight": [1.0] * 48, "cls_norm__bias": [0.0] * 48}, {}, "cls_norm.weight' is a last norm for the"),
        ({"blocks__0__attn__qkv__bias_mask": [1.0] * 48}, {}, r"bias_mask' has shape \(48,\), expected .* \(144,\)"),
        ({"blocks__0__attn__qkv__bias_mask": [float("nan")] * 144}, {}, "not finite|NaN"),
        ({}, {"heads": 3}, "which do not match 3 heads of 12"),
        ({"storage_token": [1.0]}, {}, "unknown parameter 'storage_token'.*storage_tokens"),
    ],
)
def test_metas_files_that_are_refused(torch, meta_file, changes, settings, message):
    path = meta_file(**{name: torch.tensor(value) for name, value in changes.items()})
    with pytest.raises(qkjax.QkjaxError, match=message) as caught:
        qkjax.load(path, **settings)
    assert "\n" not in str(caught.value)


def test_rotary_positions_that_are_given_precede_metas_periods(torch, meta_file):
    rotary = Rotary(50.0, "centred")
    with pytest.warns(qkjax.errors.AssumptionWarning, match="although the periods .* state temperature=100"):
        assert qkjax.load(meta_file(), rotary=rotary).config.rotary == rotary
    odd = meta_file(rope_embed__periods=torch.tensor([1.0, 5.0, 6.0]))
    with pytest.warns(qkjax.errors.AssumptionWarning, match="although the periods .* are not those of DINOv3"):
        assert qkjax.load(odd, rotary=rotary).config.rotary == rotary
    with pytest.raises(qkjax.QkjaxError, match="no position embedding"):
        qkjax.load(odd, rotary=None)


@pytest.mark.parametrize("temperature", [100.0, 20.0, 37.5, 123.456])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("planes", [16, 32])
def test_temperature_of_periods(torch, temperature, dtype, planes):
    """The periods in the file determine every angle to their own precision."""
    exponents = torch.arange(planes) / planes
    periods = (temperature**exponents).to(getattr(torch, dtype))
    read = {"rope_embed.periods": periods.float().numpy()}.__getitem__
    rotary = with_stored_rotation(["rope_embed.periods"], read, Facts()).settings["rotary"]
    tolerance = 2.0**-8 if dtype == "bfloat16" else 1e-5
    np.testing.assert_allclose(rotary.temperature ** exponents.numpy(), periods.float().numpy(), rtol=tolerance)
    if temperature < 100.5 and temperature == round(temperature):
        assert rotary.temperature == temperature
