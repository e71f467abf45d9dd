"""What files of torch models leave out, hide or contradict: each case against the library that the file comes from.

A fact that decides a number is read, asked for, or assumed with a note; it is never guessed without a word.
"""

import json
import shutil
import subprocess
import sys
import warnings
from argparse import Namespace

import jax
import numpy as np
import pytest

import qkjax
from conftest import NEEDS, assert_agrees, assert_close, moved
from qkjax.errors import AssumptionWarning

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80, "image_size": 28,
         "patch_size": 7}  # fmt: skip
TIMM = {"depth": 2, "embed_dim": 48, "num_heads": 4, "img_size": 28, "patch_size": 7, "num_classes": 5}
PLAIN = "vit_tiny_patch16_224"


def small_timm(name: str = PLAIN, **arguments):
    """A random model of timm of two narrow layers."""
    import timm

    return moved(timm.create_model(name, **{**TIMM, **arguments}))


def state_of(model) -> dict:
    return {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}


def save_state(folder, state: dict, config: dict | None = None):
    """A folder with model.safetensors, and config.json if there is one."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_timm(folder, model, name: str = PLAIN, arguments: dict | None = None, **config):
    """A folder as on the hub, from a model of `small_timm`."""
    arguments = {**TIMM, **(arguments or {})}
    return save_state(folder, state_of(model), {"architecture": name, "model_args": arguments, **config})


def assert_same(first, second):
    assert first.config == second.config
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


def refused(model, match: str, **settings):
    with pytest.raises(qkjax.QkjaxError, match=match) as caught:
        qkjax.load(model, **settings)
    assert "\n" not in str(caught.value)


# Heads


def test_heads_that_a_bare_file_does_not_state(timm, tmp_path):
    """The width does not determine them: MoCo v3's ViT-S has 12 heads at width 384, DeiT's has 6."""
    model = small_timm(embed_dim=96, num_heads=12)
    save_state(tmp_path, state_of(model))
    refused(tmp_path, "the file does not state the number of heads, and 96 query rows do not determine it: pass heads=")
    assert_agrees(qkjax.load(tmp_path, heads=12), model)


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_heads_of_a_nested_config_that_omits_them(transformers, torch, kind, tmp_path):
    """The library's default of 12 holds, not 192 / 64."""
    vision = {**SMALL, "hidden_size": 192} | {"num_attention_heads": 12}
    model = moved(
        getattr(transformers, f"{kind}VisionModel")(
            getattr(transformers, f"{kind}VisionConfig")(**vision, attn_implementation="eager")
        )
    )
    del vision["num_attention_heads"]
    state = {
        name if name.startswith("vision_model.") else f"vision_model.{name}": x for name, x in state_of(model).items()
    }
    save_state(tmp_path, state, {"model_type": kind.lower(), "vision_config": vision})
    checkpoint = qkjax.load(tmp_path)
    assert checkpoint.config.heads == 12
    images = torch.randn(1, 3, 28, 28)
    wanted = model(images, output_attentions=True).attentions
    _, captured = qkjax.forward(checkpoint, images.numpy().transpose(0, 2, 3, 1), ("attention",))
    for layer in range(2):
        assert_close(captured["attention"][layer], wanted[layer])


def test_config_of_an_unknown_model_type_has_no_defaults(timm, tmp_path):
    """A config.json that states no heads is not a reason to assume the 12 of transformers' ViT."""
    model = small_timm(embed_dim=96, num_heads=8)
    save_state(tmp_path, state_of(model), {})
    refused(tmp_path, "the file does not state the number of heads")
    save_state(tmp_path, state_of(model), {"model_type": "vit_of_tomorrow", "num_attention_heads": 8})
    checkpoint = qkjax.load(tmp_path)
    assert_agrees(checkpoint, model)
    assert (
        "model type 'vit_of_tomorrow' is unknown; qkjax reads it as a plain ViT, since its parameters fit one"
        in checkpoint.notes
    )
    assert any("assumed" in n and "activation='gelu', norm_eps=1e-06" in n for n in checkpoint.notes)


def without_heads(state: dict, pruned: tuple[int, ...], layers=(0, 1)) -> dict:
    """The state of a ViT of transformers after pruning heads of 12 rows."""
    import torch

    kept = torch.tensor([row for row in range(48) if row // 12 not in pruned])
    result = dict(state)
    for name, value in state.items():
        if not any(f"layer.{layer}." in name or f"layers.{layer}." in name for layer in layers):
            continue
        if any(part in name for part in (".query.", ".key.", ".value.", ".q_proj.", ".k_proj.", ".v_proj.")):
            result[name] = value[kept].contiguous()
        elif name.endswith(("attention.output.dense.weight", "o_proj.weight")):
            result[name] = value[:, kept].contiguous()
    return result


def test_pruned_heads(transformers, torch, tmp_path):
    """Two of four heads are cut out in every layer. In the whole model, these heads add nothing to the output."""
    model = moved(transformers.ViTModel(transformers.ViTConfig(**SMALL, attn_implementation="eager")))
    whole = state_of(model)
    config = {**SMALL, "model_type": "vit"}
    pruned = without_heads(whole, (1, 3))
    save_state(tmp_path / "equal", pruned, {**config, "pruned_heads": {"0": [1, 3], "1": [3, 1]}})
    checkpoint = qkjax.load(tmp_path / "equal")
    assert (checkpoint.config.heads, checkpoint.config.head_dim) == (2, 12)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith(("attention.output.dense.weight", "o_proj.weight")):
                value[:, 12:24], value[:, 36:48] = 0, 0
    images = torch.randn(1, 3, 28, 28)
    wanted = model(images, output_attentions=True)
    _, captured = qkjax.forward(checkpoint, images.numpy().transpose(0, 2, 3, 1), ("attention",))
    assert_close(captured["attention"][1], wanted.attentions[1][:, [0, 2]])
    assert_close(captured["encoded"], wanted.last_hidden_state)

    save_state(tmp_path / "unstated", pruned, config)
    refused(tmp_path / "unstated", "the queries have 24 rows, which do not match 4 heads of 12: heads were pruned")
    unequal = without_heads(whole, (1, 3), layers=(1,))
    save_state(tmp_path / "unequal", unequal, {**config, "pruned_heads": {"1": [1, 3]}})
    refused(tmp_path / "unequal", "layers with different numbers of pruned heads")


def test_given_heads_overrule_the_file_with_a_note(timm, tmp_path):
    save_timm(tmp_path, small_timm())
    assert not any("heads" in note for note in qkjax.load(tmp_path).notes)
    checkpoint = qkjax.load(tmp_path, heads=2)
    assert (checkpoint.config.heads, checkpoint.config.head_dim) == (2, 24)
    assert "heads=2 is used as given; the files state 4" in checkpoint.notes


# Grid


@pytest.mark.parametrize("where", ["input_size", "img_size", "both"])
def test_grid_that_is_not_square(timm, where, tmp_path):
    """16 patches are 2 x 8, as timm's config.json says, in the one place or in the other."""
    model = small_timm(img_size=(14, 56))
    arguments = {"img_size": [14, 56]} if where != "input_size" else {"img_size": None}
    size = [3, 14, 56] if where == "input_size" else [3, 28, 28]
    config = {} if where == "img_size" else {"pretrained_cfg": {"input_size": size}}
    save_timm(tmp_path, model, arguments=arguments, **config)
    checkpoint = qkjax.load(tmp_path)
    assert checkpoint.config.grid == (2, 8)
    assert_agrees(checkpoint, model, (14, 56))


def test_grid_that_the_caller_gives(timm, tmp_path):
    model = small_timm(img_size=(14, 56))
    save_state(tmp_path, state_of(model))
    square = qkjax.load(tmp_path, heads=4)
    assert square.config.grid == (4, 4)
    assert "assumed that the 17 rows of the position embedding form a square grid of 4 x 4" in square.notes
    given = qkjax.load(tmp_path, heads=4, grid=(2, 8))
    assert given.config.grid == (2, 8)
    assert not any("square" in note for note in given.notes)
    assert_agrees(given, model, (14, 56))
    refused(
        tmp_path, r"the position embedding has 17 rows \(.*\), which do not match grid=\(3, 5\)", heads=4, grid=(3, 5)
    )


def test_lists_as_sizes_in_a_config(transformers, torch, tmp_path):
    """64 patches are 4 x 16, though 8 x 8 would fit."""
    config = transformers.ViTConfig(**{**SMALL, "image_size": [28, 112], "patch_size": [7, 7]})
    model = moved(transformers.ViTModel(config))
    model.save_pretrained(tmp_path)
    checkpoint = qkjax.load(tmp_path)
    assert checkpoint.config.grid == (4, 16)
    images = torch.randn(1, 3, 28, 112)
    _, captured = qkjax.forward(checkpoint, images.numpy().transpose(0, 2, 3, 1))
    assert_close(captured["encoded"], model(images).last_hidden_state)


def test_position_rows_with_two_readings(timm, tmp_path):
    """25 rows: 5 x 5 patches, or a class token, 8 registers and 4 x 4 patches."""
    model = small_timm(reg_tokens=8)
    assert model.pos_embed.shape[1] == 25
    save_state(tmp_path, state_of(model))
    refused(tmp_path, r"several square grids \(.*with cls, registers: 16 patches.*\): pass grid=", heads=4)
    refused(tmp_path, "without special tokens: 25 patches", heads=4)
    assert_agrees(qkjax.load(tmp_path, heads=4, grid=(4, 4)), model)
    other = small_timm(reg_tokens=8, img_size=35, no_embed_class=True)
    save_state(tmp_path, state_of(other))
    assert_agrees(qkjax.load(tmp_path, heads=4, grid=(5, 5)), other, (35, 35))


# Architectures


def test_residual_post_norm_is_refused_by_name(timm, tmp_path):
    """Its parameters have the names and shapes of a pre-norm ViT."""
    name = "vit_base_patch16_rpn_224"
    save_timm(tmp_path, small_timm(name), name)
    refused(tmp_path, "vit_base_patch16_rpn_224: its LayerNorms follow attention and MLP")


def test_unknown_architecture_of_timm(timm, tmp_path):
    """It loads as a plain ViT; a note names what was assumed."""
    model = small_timm()
    save_timm(tmp_path, model, "vit_of_tomorrow_patch7_28")
    checkpoint = qkjax.load(tmp_path)
    assert_agrees(checkpoint, model)
    assert any(
        "timm's vit_of_tomorrow_patch7_28 is unknown; qkjax reads the model as a plain ViT" in note
        and "activation='gelu', norm_eps=1e-06" in note
        for note in checkpoint.notes
    )
    save_timm(tmp_path, model, "vit_rope_of_tomorrow")
    refused(tmp_path, "its name suggests that the model has rotary positions")


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("where", ["global_pool", "model_args"])
def test_mean_pooling_with_a_class_token(timm, norm, where, tmp_path):
    """Of the patches alone, with the norm before or after the mean."""
    changed = {"global_pool": "avg", "fc_norm": norm}
    model = small_timm(**changed)
    if where == "model_args":
        save_timm(tmp_path, model, arguments=changed)
    else:
        save_timm(tmp_path, model, global_pool="avg")
    checkpoint = qkjax.load(tmp_path)
    assert (checkpoint.config.pool, checkpoint.config.class_token, checkpoint.config.pool_norm) == ("gap", True, norm)
    assert_agrees(checkpoint, model)


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("pool", ["map", "avg"])
def test_pooling_with_and_without_special_tokens(timm, pool, include, tmp_path):
    """timm's attention pooling leaves out class token and registers, unless `pool_include_prefix`."""
    name = "vit_so150m_patch16_reg4_map_256"
    changed = {"global_pool": pool, "pool_include_prefix": include, "class_token": True, "mlp_ratio": 2}
    model = small_timm(name, **changed)
    save_timm(tmp_path, model, name, changed)
    checkpoint = qkjax.load(tmp_path)
    assert (checkpoint.config.class_token, checkpoint.config.registers) == (True, 4)
    assert_agrees(checkpoint, model)


def test_classifier_of_timms_clip(timm, tmp_path):
    """A CLIP that was fine-tuned for classes has a dense layer on its class token; it is kept."""
    name = "vit_base_patch16_clip_224"
    model = small_timm(name)
    save_timm(tmp_path, model, name)
    checkpoint = qkjax.load(tmp_path)
    assert (checkpoint.config.pre_norm, checkpoint.config.classes) == (True, 5)
    assert_agrees(checkpoint, model)


def test_overlapping_patches(transformers, tmp_path):
    """The audio spectrogram transformer is analysed by its weights; it cannot be run on images."""
    sizes = {k: v for k, v in SMALL.items() if k != "image_size"}
    config = transformers.ASTConfig(**sizes, max_length=32, num_mel_bins=32, frequency_stride=5, time_stride=5)
    model = moved(transformers.ASTModel(config))
    model.save_pretrained(tmp_path)
    checkpoint = qkjax.load(tmp_path)
    assert checkpoint.config.weights_only == "its patches overlap"
    state = {name: value.double().numpy() for name, value in state_of(model).items()}
    query, key = (
        next(v for n, v in state.items() if ".1." in n and n.endswith(ends))
        for ends in (("query.weight", "q_proj.weight"), ("key.weight", "k_proj.weight"))
    )
    wanted = np.linalg.svd(query[12:24].T @ key[12:24], compute_uv=False)[:12]
    np.testing.assert_allclose(qkjax.analyze(checkpoint).singular_value[1, 1], wanted, rtol=1e-4, atol=1e-5 * wanted[0])
    with pytest.raises(qkjax.QkjaxError, match=r"cannot be run on images \(its patches"):
        qkjax.forward(checkpoint, np.zeros((1, 32, 32, 3), np.float32))


def test_unknown_key_in_a_config(transformers, tmp_path):
    """A key that may change the model; if it is false or empty, it cannot."""
    model = moved(transformers.ViTModel(transformers.ViTConfig(**SMALL)))
    config = {**SMALL, "model_type": "vit", "gate_of_tomorrow": 3}
    save_state(tmp_path, state_of(model), config)
    refused(tmp_path, "is for vit and has gate_of_tomorrow=3, an unknown key: remove this key if it does not")
    save_state(tmp_path, state_of(model), {**config, "gate_of_tomorrow": False})
    assert qkjax.load(tmp_path).config.heads == 4
    refused_keys = {"use_qk_norm": "normalises queries and keys", "num_experts": "mixture of experts",
                    "rope_theta": "an unknown key", "quantization_config": "dequantise"}  # fmt: skip
    for name, reason in refused_keys.items():
        save_state(tmp_path, state_of(model), {**SMALL, "model_type": "vit", name: 8})
        refused(tmp_path, reason)


def test_unknown_argument_of_timm(timm, tmp_path):
    model = small_timm()
    save_timm(tmp_path, model, arguments={"gate_of_tomorrow": True})
    refused(tmp_path, "config.json has gate_of_tomorrow=True, an unknown argument: remove it")
    save_timm(tmp_path, model, arguments={"global_pool": "sum"})
    refused(tmp_path, "config.json has global_pool='sum', expected one of 'token', 'avg'")


# Several models, wrappers and other objects in a file


def test_averaged_weights_beside_raw_ones(timm, torch, tmp_path):
    """Files of timm's and DeiT's training hold both; neither is chosen silently."""
    raw, averaged = small_timm(), small_timm()
    with torch.no_grad():
        averaged.blocks[0].attn.qkv.weight.mul_(0.5)
    path = tmp_path / "model_best.pth.tar"
    torch.save({"state_dict": state_of(raw), "state_dict_ema": state_of(averaged), "epoch": 3}, path)
    count = len(state_of(raw))
    refused(
        path,
        rf"several models: state_dict \({count} parameters\), state_dict_ema \({count} parameters\); choose one, as in "
        r".*model_best.pth.tar:state_dict$",
        heads=4,
    )
    assert_agrees(qkjax.load(f"{path}:state_dict_ema", heads=4), averaged)
    assert_agrees(qkjax.load(f"{path}:state_dict", heads=4), raw)
    refused(
        f"{path}:nonsense",
        rf"no model 'nonsense'; it contains state_dict \({count} parameters\), state_dict_ema",
    )


def test_one_model_under_a_name(timm, torch, tmp_path):
    state = state_of(small_timm())
    torch.save({"model": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, tmp_path / "x.pth")
    assert_same(qkjax.load(f"{tmp_path}/x.pth:model", heads=4), qkjax.load(tmp_path / "x.pth", heads=4))
    refused(f"{tmp_path}/x.pth:model_ema", rf"no model 'model_ema'; it contains model \({len(state)} parameters\)$")
    torch.save(state, tmp_path / "bare.pth")
    refused(f"{tmp_path}/bare.pth:nonsense", r"it contains the top level \(")


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + name: value for name, value in state.items()}


def test_teacher_and_student(timm, torch, tmp_path):
    """DINO's training file: nested, or flat."""
    model = small_timm()
    student, teacher = state_of(model), {n: x * 1.5 for n, x in state_of(model).items()}
    for name, state in (("student", student), ("teacher", teacher)):
        torch.save(state, tmp_path / f"{name}.pth")
    nested = {"student": prefixed(student, "module.backbone."), "teacher": prefixed(teacher, "backbone."), "epoch": 1}
    flat = prefixed(student, "student.backbone.") | prefixed(teacher, "teacher.backbone.")
    for file in (nested, flat):
        torch.save(file, tmp_path / "both.pth")
        refused(tmp_path / "both.pth", r"several models: student \(.*\), teacher \(", heads=4)
        for name in ("student", "teacher"):
            assert_same(
                qkjax.load(f"{tmp_path}/both.pth:{name}", heads=4), qkjax.load(tmp_path / f"{name}.pth", heads=4)
            )
        assert_agrees(qkjax.load(f"{tmp_path}/both.pth:student", heads=4), model)


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "backbone.", "module.backbone.",
     "teacher.backbone.", "model.", "encoder."],
)  # fmt: skip
def test_prefixes_of_wrappers(timm, torch, prefix, tmp_path):
    """DataParallel, torch.compile, and training code put their names before those of the model."""
    state = state_of(small_timm())
    torch.save(state, tmp_path / "bare.pth")
    torch.save(prefixed(state, prefix), tmp_path / "x.pth")
    wrapped, bare = qkjax.load(tmp_path / "x.pth", heads=4), qkjax.load(tmp_path / "bare.pth", heads=4)
    assert_same(wrapped, bare)
    # "encoder." belongs to the names of some libraries
    added = () if prefix == "encoder." else (f"qkjax removed {prefix!r} from the names of the parameters",)
    assert wrapped.notes == (*added, *bare.notes)


def test_arguments_beside_the_weights(timm, torch, tmp_path):
    """Training code saves its argparse.Namespace along with the model."""
    model = small_timm()
    torch.save({"model": state_of(model), "args": Namespace(lr=0.1, model="vit")}, tmp_path / "x.pth")
    checkpoint = qkjax.load(tmp_path / "x.pth", heads=4)
    assert_agrees(checkpoint, model)
    assert "qkjax reads 'model', the only model in the file" in checkpoint.notes


def test_masked_autoencoder_with_its_decoder(timm, torch, tmp_path):
    """Meta's file; decoder_* is left out."""
    model = small_timm(num_classes=0)
    inner = {n.replace("blocks.", "decoder_blocks."): x for n, x in state_of(model).items() if "blocks" in n}
    rest = {"decoder_embed.weight": torch.ones(24, 48), "decoder_pos_embed": torch.ones(1, 17, 24),
            "decoder_norm.weight": torch.ones(24), "decoder_pred.bias": torch.ones(7),
            "mask_token": torch.ones(1, 1, 24)}  # fmt: skip
    torch.save({"model": state_of(model) | inner | rest}, tmp_path / "mae.pth")
    assert_agrees(qkjax.load(tmp_path / "mae.pth", heads=4), model)


def meta_dinov2(torch, name: str, **arguments):
    """A state dict with the names of Meta's DINOv2, and the model of timm that timm converts it to."""
    from timm.models.vision_transformer import checkpoint_filter_fn

    model = small_timm(name, **{"num_classes": 0, **arguments})
    state = state_of(model)
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
    if model.no_embed_class:
        state["pos_embed"] = torch.cat([0.2 * torch.randn(1, 1, 48), state["pos_embed"]], 1)
    state["mask_token"] = torch.zeros(1, 48)
    if "blocks.0.mlp.fc1.weight" in state and state["blocks.0.mlp.fc2.weight"].shape[1] * 2 == len(
        state["blocks.0.mlp.fc1.weight"]
    ):
        state = {n.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): x for n, x in state.items()}
    model.load_state_dict(checkpoint_filter_fn(dict(state), model))
    return state, model


def test_registers_in_metas_dinov2(timm, torch, tmp_path):
    state, model = meta_dinov2(torch, "vit_small_patch14_reg4_dinov2", img_size=28)
    assert "register_tokens" in state
    torch.save(state, tmp_path / "dinov2_reg4.pth")
    checkpoint = qkjax.load(tmp_path / "dinov2_reg4.pth", heads=4)
    assert (checkpoint.config.registers, checkpoint.config.grid) == (4, (4, 4))
    assert_agrees(checkpoint, model)


def test_chunked_blocks_and_gated_mlp_of_metas_dinov2(timm, torch, tmp_path):
    """FSDP's names `blocks.0.1`, and `mlp.w12`, `mlp.w3` of giant."""
    state, model = meta_dinov2(torch, "vit_giant_patch14_dinov2", depth=3)
    assert "blocks.0.mlp.w12.weight" in state
    torch.save(state, tmp_path / "giant.pth")
    plain = qkjax.load(tmp_path / "giant.pth", heads=4)
    assert plain.config.activation == "swiglu"
    assert_agrees(plain, model)
    chunk = {"0": "0.0", "1": "0.1", "2": "1.2"}
    names = {n: f"blocks.{chunk[n.split('.')[1]]}.{n.split('.', 2)[2]}" for n in state if n.startswith("blocks.")}
    torch.save({names.get(n, n): x for n, x in state.items()}, tmp_path / "chunked.pth")
    assert_same(qkjax.load(tmp_path / "chunked.pth", heads=4), plain)


@pytest.mark.parametrize("activation", ["GELU", "QuickGELU"])
def test_image_tower_in_a_file_of_open_clip(torch, activation, tmp_path):
    """Its activation is in no parameter: QuickGELU is assumed, with a note, unless the caller states it."""
    open_clip = pytest.importorskip("open_clip", reason=NEEDS)
    act = torch.nn.GELU if activation == "GELU" else open_clip.transformer.QuickGELU
    visual = moved(
        open_clip.transformer.VisionTransformer(
            image_size=28, patch_size=7, width=48, layers=2, heads=4, mlp_ratio=2, output_dim=24, act_layer=act
        )
    )
    text = {"transformer.resblocks.0.ln_1.weight": torch.ones(8), "token_embedding.weight": torch.ones(9, 8)}
    state = prefixed(state_of(visual), "visual.") | text | {"logit_scale": torch.ones(())}
    save_state(tmp_path, state)
    (tmp_path / "model.safetensors").rename(tmp_path / "open_clip_model.safetensors")
    given = {} if activation == "QuickGELU" else {"activation": "gelu"}
    checkpoint = qkjax.load(tmp_path, heads=4, **given)
    assert any("activation='quick_gelu'" in note for note in checkpoint.notes) == (not given)
    assert any("left out, because they are not part of the image model" in note for note in checkpoint.notes)
    images = torch.randn(2, 3, 28, 28)
    visual.proj = None
    ours, _ = qkjax.forward(checkpoint, images.numpy().transpose(0, 2, 3, 1))
    assert_close(ours, visual(images))


# Files that are not models


@pytest.mark.parametrize(
    ("files", "listed"),
    [
        (["checkpoint.pth"], "checkpoint.pth; expected model.safetensors"),
        (["flax_model.msgpack"], "flax_model.msgpack"),
        (["__0_0.distcp", ".metadata"], "__0_0.distcp"),
        (["a.safetensors", "b.safetensors"], "a.safetensors, b.safetensors"),
        ([], "contains nothing"),
    ],
)
def test_folder_without_a_readable_model(files, listed, tmp_path):
    for name in files:
        (tmp_path / name).write_bytes(b"x")
    refused(tmp_path, listed)
    refused(tmp_path, r"expected model.safetensors, .*, open_clip_pytorch_model.bin, one \*.safetens")
    if pickled := [name for name in files if name.endswith((".bin", ".pth"))]:
        refused(tmp_path, f"pass the path of a file, such as .*{pickled[0]}")


def test_torchscript_archive(torch, tmp_path):
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))

        def forward(self, x):
            return x + self.weight

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.save(torch.jit.trace(Two(), torch.ones(2)), tmp_path / "x.pt")
    refused(tmp_path / "x.pt", r"is a TorchScript archive: save torch.jit.load\(path\).state_dict\(\) with torch.save")


def plain_state() -> dict[str, np.ndarray]:
    """The names of timm's ViT, of one layer, without timm."""
    shapes = {
        "cls_token": (1, 1, 8), "pos_embed": (1, 17, 8), "patch_embed.proj.weight": (8, 3, 7, 7),
        "patch_embed.proj.bias": (8,), "norm.weight": (8,), "norm.bias": (8,), "blocks.0.norm1.weight": (8,),
        "blocks.0.norm1.bias": (8,), "blocks.0.attn.qkv.weight": (24, 8), "blocks.0.attn.qkv.bias": (24,),
        "blocks.0.attn.proj.weight": (8, 8), "blocks.0.attn.proj.bias": (8,), "blocks.0.norm2.weight": (8,),
        "blocks.0.norm2.bias": (8,), "blocks.0.mlp.fc1.weight": (16, 8), "blocks.0.mlp.fc1.bias": (16,),
        "blocks.0.mlp.fc2.weight": (8, 16), "blocks.0.mlp.fc2.bias": (8,),
    }  # fmt: skip
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("blocks.0.attn.qkv.lora_A.default.weight", r"belongs to an adapter \(LoRA\): merge it .*merge_and_unload"),
        ("base_model.model.blocks.0.attn.qkv.base_layer.weight", "belongs to an adapter"),
        ("blocks.0.attn.qkv.SCB", "belongs to quantised weights: dequantise the model first"),
        ("blocks.0.attn.qkv.weight.absmax", "belongs to quantised weights"),
        ("blocks.0.attn.qkv.qweight", "belongs to quantised weights"),
    ],
)
def test_adapters_and_quantised_weights(name, advice, tmp_path):
    from safetensors.numpy import save_file

    save_file(plain_state() | {name: np.ones((2, 2), np.float32)}, tmp_path / "model.safetensors")
    refused(tmp_path, advice, heads=2)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"architecture": PLAIN, "model_args": {"num_heads": "4"}}, "heads='4': expected a positive whole number"),
        ({"architecture": PLAIN, "model_args": {"img_size": 28, "patch_size": "x"}}, "a value of the wrong type"),
        ({"architecture": PLAIN, "pretrained_cfg": {"input_size": 28}}, "a value of the wrong type"),
        ({"architecture": PLAIN, "model_args": [1]}, r"model_args=\[1\], expected an object"),
        ({"model_type": "vit", "pruned_heads": [1]}, "a value of the wrong type"),
        ({"model_type": "vit", "pruned_heads": {"0": 3}}, "a value of the wrong type"),
        ({"model_type": "vit", "architectures": 3}, "a value of the wrong type"),
        ({"model_type": "vit", "num_hidden_layers": "a", "pruned_heads": {"0": [1]}}, "a value of the wrong type"),
    ],
)
def test_values_of_the_wrong_type_in_a_config(config, match, tmp_path):
    from safetensors.numpy import save_file

    save_file(plain_state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path, match)


def test_width_that_the_arguments_change(timm, tmp_path):
    """The architecture's number of heads holds, not the size of a head."""
    model = small_timm(num_heads=3)
    arguments = {name: value for name, value in TIMM.items() if name != "num_heads"}
    save_state(tmp_path, state_of(model), {"architecture": PLAIN, "model_args": arguments})
    checkpoint = qkjax.load(tmp_path)
    assert (checkpoint.config.heads, checkpoint.config.head_dim) == (3, 16)
    assert_agrees(checkpoint, model)


def test_positions_that_show_their_grid(tmp_path):
    """NaFlex stores positions as rows x columns; a grid that contradicts them is refused."""
    from safetensors.numpy import save_file

    state = plain_state() | {"pos_embed": np.ones((1, 2, 8, 8), np.float32)}
    save_file(state, tmp_path / "model.safetensors")
    assert qkjax.load(tmp_path, heads=2).config.grid == (2, 8)
    assert qkjax.load(tmp_path, heads=2, grid=(2, 8)).config.grid == (2, 8)
    refused(tmp_path, r"has 2 x 8 positions, which do not match grid=\(4, 4\)", heads=2, grid=(4, 4))


# Notes


@pytest.fixture
def bare(tmp_path):
    """A file that does not state its activation, epsilon and pooling."""
    from safetensors.numpy import save_file

    save_file(plain_state(), tmp_path / "bare.safetensors")
    return tmp_path / "bare.safetensors"


def test_notes_of_a_bare_file(bare):
    with pytest.warns(AssumptionWarning, match="bare: assumed, because the file does not state it: activation='gelu'"):
        checkpoint = qkjax.load(bare, heads=2)
    assert any("norm_eps=1e-06, pool='tok'" in note and "no rotary positions" in note for note in checkpoint.notes)
    given = qkjax.load(
        bare, heads=2, activation="gelu", norm_eps=1e-6, pool="tok", posemb_resample="bicubic", grid=(4, 4)
    )
    assert not any("activation=" in note or "square" in note for note in given.notes)


def test_notes_are_stored_with_results_and_files(bare, tmp_path):
    checkpoint = qkjax.load(bare, heads=2)
    assert json.loads(qkjax.analyze(checkpoint).attrs["assumptions"]) == list(checkpoint.notes)
    qkjax.save(checkpoint, tmp_path / "saved.npz")
    with pytest.warns(AssumptionWarning, match="saved: assumed"):
        again = qkjax.load(tmp_path / "saved.npz")
    assert again.notes == checkpoint.notes
    assert_same(again, checkpoint)
    assert qkjax.edit(checkpoint, "unbias").notes == checkpoint.notes


def test_weights_alone_are_saved_and_loaded(transformers, tmp_path):
    sizes = {k: v for k, v in SMALL.items() if k != "image_size"}
    model = transformers.ASTModel(transformers.ASTConfig(**sizes, max_length=32, num_mel_bins=32))
    moved(model).save_pretrained(tmp_path / "ast")
    checkpoint = qkjax.load(tmp_path / "ast")
    qkjax.save(checkpoint, tmp_path / "again.npz")
    again = qkjax.load(tmp_path / "again.npz")
    assert_same(again, checkpoint)
    assert again.notes == checkpoint.notes
    assert qkjax.compare(checkpoint, again).sizes["layer"] == 2


def test_command_line_prints_notes(bare, tmp_path):
    """In a process of its own: pytest takes warnings for itself."""
    words = ["-m", "qkjax", "analyze", bare, "--heads", "2", "--out", tmp_path / "out"]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "note: bare: assumed, because the file does not state it: activation='gelu'" in done.stderr
    assert "AssumptionWarning" not in done.stderr


# open_clip's repositories


def open_clip_folder(folder, model, config: dict):
    """A folder as open_clip pushes it to the hub."""
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    save_file(state_of(model), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


CLIP_TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
CLIP_IMAGE = {"image_size": [28, 21], "layers": 2, "width": 48, "head_width": 12, "patch_size": 7, "mlp_ratio": 2.0}


@pytest.mark.parametrize(
    ("quick", "vision", "activation"),
    [
        (True, {}, "quick_gelu"),
        (False, {}, "gelu"),
        (False, {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}}, "gelu_tanh"),
        (False, {"ls_init_value": 0.1}, "gelu"),
    ],
)
def test_config_of_open_clip(torch, quick, vision, activation, tmp_path):
    open_clip = pytest.importorskip("open_clip", reason=NEEDS)
    vision = {**CLIP_IMAGE, **vision}
    model = moved(open_clip.CLIP(24, {**vision, "image_size": tuple(vision["image_size"])}, CLIP_TEXT, quick))
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear", "resize_mode": "squash"}
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": CLIP_TEXT, "quick_gelu": quick},
              "preprocess_cfg": preprocess}  # fmt: skip
    checkpoint = qkjax.load(open_clip_folder(tmp_path, model, config))
    found = checkpoint.config
    assert (found.heads, found.grid, found.activation) == (4, (4, 3), activation)
    assert not any("assumed" in note for note in checkpoint.notes)
    stated = checkpoint.preprocess
    assert (stated.resize, stated.filter, stated.crop, stated.mean) == (
        "squash",
        "pil-bilinear",
        (28, 21),
        (0.1, 0.2, 0.3),
    )
    model.visual.proj = None
    images = torch.randn(2, 3, 28, 21)
    ours, _ = qkjax.forward(checkpoint, images.numpy().transpose(0, 2, 3, 1))
    assert_close(ours, model.visual(images))


def test_config_of_open_clip_with_a_tower_of_timm(torch, timm, tmp_path):
    open_clip = pytest.importorskip("open_clip", reason=NEEDS)
    vision = {"timm_model_name": PLAIN, "timm_pool": "avg", "timm_proj": "linear", "image_size": 224}
    model = moved(open_clip.CustomTextCLIP(24, vision, CLIP_TEXT))
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": CLIP_TEXT}}
    checkpoint = qkjax.load(open_clip_folder(tmp_path, model, config))
    assert (checkpoint.config.heads, checkpoint.config.grid, checkpoint.config.pool) == (3, (14, 14), "gap")
    images = torch.randn(2, 3, 224, 224)
    ours, _ = qkjax.forward(checkpoint, images.numpy().transpose(0, 2, 3, 1))
    assert_close(ours, model.visual.trunk(images))


@pytest.mark.parametrize(
    ("vision", "match"),
    [
        ({"attentional_pool": True}, "attentional_pool=True, which qkjax does not know"),
        ({"qk_norm": True}, "qk_norm=True"),
        ({"layers": [3, 4, 6, 3]}, "for a ResNet, expected a vision transformer"),
        ({"pool_type": "max"}, "pool_type='max'"),
        ({"width": "48"}, "not positive whole numbers"),
        ({"norm_kwargs": 3}, "a value of the wrong type"),
        ({"timm_model_name": "vit_pe_core_base_patch16_224"}, "do not match 12 heads of 64"),
        (None, "has no vision_cfg"),
    ],
)
def test_config_of_open_clip_that_is_refused(vision, match, tmp_path):
    from safetensors.numpy import save_file

    save_file(plain_state(), tmp_path / "open_clip_model.safetensors")
    section = {} if vision is None else {"vision_cfg": {**CLIP_IMAGE, **vision}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 24, **section}}))
    refused(tmp_path, match)


def test_weights_of_transformers_beside_those_of_open_clip(transformers, torch, tmp_path):
    """The file that is read decides which configuration counts."""
    model = moved(transformers.ViTModel(transformers.ViTConfig(**SMALL), add_pooling_layer=False))
    model.save_pretrained(tmp_path)
    config = {"model_cfg": {"vision_cfg": {**CLIP_IMAGE, "head_width": 24}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert qkjax.load(tmp_path).config.heads == SMALL["num_attention_heads"]


# Shards


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_shards(transformers, torch, safe, tmp_path):
    model = moved(transformers.ViTModel(transformers.ViTConfig(**SMALL), add_pooling_layer=False))
    model.save_pretrained(tmp_path / "whole")
    whole = qkjax.load(tmp_path / "whole")
    folder = tmp_path / "shards"
    if safe:
        model.save_pretrained(folder, max_shard_size="40KB")
    else:
        shutil.copytree(tmp_path / "whole", folder)
        (folder / "model.safetensors").unlink()
        state, names = state_of(model), sorted(model.state_dict())
        places = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
        for shard in set(places.values()):
            torch.save({name: state[name] for name in names if places[name] == shard}, folder / shard)
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert_same(qkjax.load(folder), whole)
    next(folder.glob("*-00002*")).unlink(missing_ok=True)
    refused(folder, "shard '.*' is missing")


# Resampling


@pytest.mark.parametrize("grid", [(16, 16), (20, 11), (40, 37)])
def test_position_offset_of_metas_dinov2(torch, grid):
    """Meta's code passes interpolate a scale of (new size + 0.1) / old size instead of the new size."""
    from qkjax.vit.posemb import resample

    table = torch.randn(1, 37 * 37, 8)
    scale = tuple((side + 0.1) / 37 for side in grid)
    square = table.reshape(1, 37, 37, 8).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(square, scale_factor=scale, mode="bicubic").permute(0, 2, 3, 1)
    ours = resample(table.numpy(), (37, 37), grid, "bicubic_offset")
    assert_close(np.asarray(ours).reshape(theirs.shape), theirs)
