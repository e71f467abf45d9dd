"""Models in memory: what `load` reads from a live module equals what it reads from that module's file."""

import json
import warnings

import jax
import numpy as np
import pytest

import qkjax
from conftest import NEEDS, moved
from qkjax.errors import AssumptionWarning
from qkjax.vit.tree import query_key

TIMM = ("vit_tiny_patch16_224", "test_vit3", "beit_base_patch16_224", "samvit_base_patch16_224",
        "naflexvit_base_patch16_siglip")  # fmt: skip


def assert_equal(first: qkjax.Checkpoint, second: qkjax.Checkpoint):
    assert first.config == second.config
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)


@pytest.mark.parametrize("name", TIMM)
def test_timm_module_and_its_file(timm, name, tmp_path):
    from safetensors.torch import save_file

    arguments = {} if name.startswith("test") else {"depth": 2}
    model = moved(timm.create_model(name, **arguments))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    sizes = {"input_size": list(model.pretrained_cfg["input_size"])}
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": name, "model_args": arguments, "pretrained_cfg": sizes})
    )
    live = qkjax.load(model)
    assert live.name == name
    assert_equal(live, qkjax.load(tmp_path))


def test_refusal_of_a_live_rotary_model(timm):
    with pytest.raises(qkjax.QkjaxError, match="rotary position embeddings: a head has no single matrix"):
        qkjax.load(
            timm.create_model("naflexvit_base_patch16_gap", depth=1, embed_dim=48, num_heads=4, rope_type="axial")
        )


def small_clip(transformers):
    vision = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80,
              "image_size": 28, "patch_size": 7}  # fmt: skip
    text = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2,
            "vocab_size": 99, "bos_token_id": 0, "eos_token_id": 1}  # fmt: skip
    return moved(transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=text)))


def test_transformers_module_and_its_file(torch, transformers, tmp_path):
    model = small_clip(transformers)
    model.save_pretrained(tmp_path)
    assert_equal(qkjax.load(model), qkjax.load(tmp_path))
    with pytest.warns(AssumptionWarning, match="text_model"):
        qkjax.load(model)


def test_module_in_bfloat16_and_its_file(torch, transformers, tmp_path):
    """The dtype of the parameters is that of the module."""
    model = small_clip(transformers).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    live = qkjax.load(model)
    assert_equal(live, qkjax.load(tmp_path))
    assert live.params["embedding"]["kernel"].dtype == "bfloat16"


def test_wrapped_module(torch, transformers):
    model = small_clip(transformers)
    wrapped = torch.nn.DataParallel(model)
    assert_equal(qkjax.load(wrapped), qkjax.load(model))
    assert "unwrapped from 'module'" in qkjax.load(wrapped).notes


def test_open_clip_module(torch):
    open_clip = pytest.importorskip("open_clip", reason=NEEDS)
    visual = open_clip.transformer.VisionTransformer(
        image_size=28, patch_size=7, width=48, layers=2, heads=4, mlp_ratio=2, output_dim=24, act_layer=torch.nn.GELU
    )
    model = moved(visual)
    checkpoint = qkjax.load(model)
    assert (checkpoint.config.heads, checkpoint.config.grid, checkpoint.config.activation) == (4, (4, 4), "gelu")
    images = torch.randn(2, 3, 28, 28)
    model.proj = None
    wanted = model(images)
    ours, _ = qkjax.forward(checkpoint, images.numpy().transpose(0, 2, 3, 1))
    np.testing.assert_allclose(ours, wanted.detach().numpy(), atol=1e-5 * wanted.abs().max().item())


def test_training_loop_changes_no_checkpoint_and_keeps_no_memory(torch, transformers):
    """Ten analyses in the middle of a training loop: copies, which are freed; the module stays where and what it is."""
    import gc
    import weakref

    model = small_clip(transformers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = qkjax.load(model)
    kernel = query_key(before.params).query_kernel.copy()
    seen = []
    for _ in range(10):
        loss = model.vision_model(torch.randn(2, 3, 28, 28)).pooler_output.square().mean()
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        checkpoint = qkjax.load(model)
        qkjax.analyze(checkpoint)
        seen.append(weakref.ref(checkpoint))
        assert all(parameter.device.type == "cpu" and parameter.requires_grad for parameter in model.parameters())
    del checkpoint
    gc.collect()
    assert not any(reference() for reference in seen)
    np.testing.assert_array_equal(query_key(before.params).query_kernel, kernel)
    assert not np.array_equal(query_key(qkjax.load(model).params).query_kernel, kernel)


def test_dictionary_of_arrays(default):
    config = default.config
    stated = {name: getattr(config, name) for name in ("norm_eps", "activation", "posemb_resample", "grid", "pool")}
    with pytest.warns(AssumptionWarning) as caught:  # nothing is assumed but the preprocessing
        assert_equal(qkjax.load(default.params, **stated), default)
    assert ["preprocessing" in str(warning.message) for warning in caught] == [True]
    with pytest.warns(AssumptionWarning, match="assumed, as in big_vision: pool='tok'"):
        qkjax.load(default.params)


def test_nnx_module_and_state():
    from flax import nnx

    config = qkjax.ViTConfig(width=24, depth=2, heads=2, head_dim=12, mlp_dim=48, patch_size=(8, 8), grid=(4, 4))
    images = np.zeros((1, 32, 32, 3), np.float32)
    model = nnx.bridge.ToNNX(qkjax.ViT(config), rngs=nnx.Rngs(0)).lazy_init(images)
    checkpoint = qkjax.load(model)
    assert checkpoint.config == config
    assert_equal(checkpoint, qkjax.load(nnx.state(model)))
    output, _ = qkjax.forward(checkpoint, images)
    np.testing.assert_allclose(output, model(images)[0], atol=1e-6)


def test_bare_kernels():
    query, key = np.random.default_rng(0).standard_normal((2, 3, 12, 2, 4)).astype(np.float32)
    checkpoint = qkjax.from_kernels(query, key)
    modes = qkjax.decompose(query, key)
    np.testing.assert_array_equal(qkjax.decompose(checkpoint).s, modes.s)
    np.testing.assert_array_equal(qkjax.analyze(checkpoint).cosine, qkjax.measure(modes).cosine)
    with pytest.raises(qkjax.QkjaxError, match="only query and key kernels"):
        qkjax.forward(checkpoint, np.zeros((1, 8, 8, 3)))
    with pytest.raises(qkjax.QkjaxError, match=r"key_bias has shape \(3, 2\), expected \(3, 2, 4\)"):
        qkjax.from_kernels(query, key, key_bias=np.zeros((3, 2)))
    with pytest.raises(qkjax.QkjaxError, match="NaN"):
        qkjax.from_kernels(query * np.nan, key)


@pytest.mark.parametrize("model", [3, [1.0], object()])
def test_what_is_no_model(model):
    with pytest.raises(qkjax.QkjaxError, match="expected a name, a path, a torch, nnx or Equinox module"):
        qkjax.load(model)


def small_equimo(**arguments):
    """A random vision transformer of Equimo, with every parameter moved away from its initial value."""
    equinox = pytest.importorskip("equinox", reason=NEEDS)
    vit = pytest.importorskip("equimo.models.vit", reason=NEEDS)
    sizes = {"img_size": 28, "in_channels": 3, "dim": 48, "patch_size": 7, "num_heads": [4, 4], "depths": [2, 1],
             "num_classes": 5, "class_token": True}  # fmt: skip
    model = vit.VisionTransformer(**{**sizes, **arguments}, key=jax.random.key(0))
    arrays, rest = equinox.partition(model, equinox.is_inexact_array)
    leaves, tree = jax.tree.flatten(arrays)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved_leaves = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return equinox.combine(jax.tree.unflatten(tree, moved_leaves), rest)


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ({"reg_tokens": 2, "init_values": 1e-5, "eps": 1e-6, "act_layer": "exactgelu"}, {"activation": "gelu"}),
        ({"global_pool": "token"}, {"activation": "gelu_tanh", "pool": "tok", "norm_eps": 1e-5}),
        ({"class_token": False, "global_pos_embed_cls": False, "num_classes": 0}, {"pool": "gap"}),
        ({"ffn_layer": "swiglu", "reg_tokens": 3, "global_pos_embed_reg": True}, {"activation": "swiglu"}),
    ],
)
def test_equinox_module(arguments, settings):
    """Equimo's vision transformer: its layers come in chunks, and its axes are those of torch."""
    model = small_equimo(**arguments)
    checkpoint = qkjax.load(model)
    assert (checkpoint.config.depth, checkpoint.config.heads, checkpoint.config.grid) == (3, 4, (4, 4))
    assert {name: getattr(checkpoint.config, name) for name in settings} == settings
    assert not any("assumed, because" in note for note in checkpoint.notes)
    images = np.asarray(jax.random.normal(jax.random.key(2), (2, 3, 28, 28)))
    with jax.default_matmul_precision("highest"):
        wanted = np.stack([model(image, inference=True) for image in images])
    ours, _ = qkjax.forward(checkpoint, images.transpose(0, 2, 3, 1))
    np.testing.assert_allclose(ours, wanted, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"qk_norm": True}, "normalised queries and keys"),
        ({"global_pool": "max"}, "pooling 'max'"),
        ({"use_local_pos_embed": True, "num_heads": 4}, "rotary position embeddings"),
        ({"act_layer": "relu"}, "activation"),
        ({"norm_layer": "rmsnorm"}, "norms of class RMSNorm"),
    ],
)
def test_equinox_module_that_is_refused(arguments, match):
    with pytest.raises(qkjax.QkjaxError, match=match):
        qkjax.load(small_equimo(**arguments))


def test_equinox_module_of_another_library():
    """Its parameters must have names that qkjax knows."""
    equinox = pytest.importorskip("equinox", reason=NEEDS)
    with pytest.raises(qkjax.QkjaxError, match=r"unknown parameter 'layers\.0\.bias'"):
        qkjax.load(equinox.nn.MLP(4, 4, 8, 1, key=jax.random.key(0)), heads=1)


def trainer_of(torch, **parts):
    """A module as training frameworks have it: the model is an attribute, next to other parts."""
    module = torch.nn.Module()
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def test_model_inside_the_module_of_a_trainer(torch, transformers):
    model = small_clip(transformers)
    trainer = trainer_of(torch, inner=trainer_of(torch, net=model, head=torch.nn.Linear(48, 3)))
    assert_equal(qkjax.load(trainer), qkjax.load(model))
    assert "unwrapped from 'inner.net'; qkjax leaves out the rest of the module" in qkjax.load(trainer).notes
    with pytest.raises(qkjax.QkjaxError, match=r"contains several models \(teacher, student\): load one of them"):
        qkjax.load(trainer_of(torch, teacher=model, student=small_clip(transformers)))


def test_live_adapter(torch, transformers):
    peft = pytest.importorskip("peft", reason="needs peft, which is in no extra")
    model = small_clip(transformers).vision_model
    warnings.simplefilter("ignore")  # peft's own
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    with pytest.raises(qkjax.QkjaxError, match="belongs to an adapter"):
        qkjax.load(adapted)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda torch, model: setattr(model.blocks[1].mlp, "act", torch.nn.ReLU()), "its layers differ"),
        (lambda torch, model: setattr(model.blocks[1].norm1, "eps", 1e-2), "different epsilons"),
        (lambda torch, model: setattr(model.norm, "eps", 1e-2), "different epsilons"),
        (lambda torch, model: [setattr(b.attn, "scale", 0.3) or setattr(b.attn, "fused_attn", False)
                               for b in model.blocks], "not scaled by 1/sqrt"),
        (lambda torch, model: setattr(model.blocks[1].attn, "q_norm", torch.nn.LayerNorm(64)), "normalises queries"),
    ],
    ids=["activation", "epsilon of a layer", "last epsilon", "scale", "query norm"],
)  # fmt: skip
def test_timm_module_that_was_changed_in_part(timm, torch, change, reason):
    """What holds for the first layer need not hold for all."""
    model = moved(timm.create_model("vit_tiny_patch16_224", depth=2))
    change(torch, model)
    try:
        assert reason in qkjax.load(model).config.weights_only
    except qkjax.QkjaxError as error:
        assert reason in str(error)


def test_open_clip_module_that_was_changed_in_part(torch):
    open_clip = pytest.importorskip("open_clip", reason=NEEDS)
    sizes = {"image_size": 28, "patch_size": 7, "width": 48, "layers": 2, "heads": 4, "mlp_ratio": 2, "output_dim": 24}
    model = open_clip.transformer.VisionTransformer(**sizes, act_layer=torch.nn.GELU)
    model.transformer.resblocks[1].ln_2.eps = 1e-2
    with pytest.raises(qkjax.QkjaxError, match="norms with different epsilons"):
        qkjax.load(model)
    model.transformer.resblocks[1].ln_2.eps = 1e-5
    model.transformer.resblocks[1].mlp.gelu = torch.nn.ReLU()
    with pytest.raises(qkjax.QkjaxError, match="layers with different activations"):
        qkjax.load(model)
