"""TIPS's Flax checkpoints against timm: the same weights under the names of Google's code."""

import jax
import numpy as np
import pytest

import qkjax
from conftest import assert_agrees, moved
from qkjax.errors import AssumptionWarning
from qkjax.weights.formats.npz import write_npz

HEADS, GRID = 3, (4, 5)
PIXELS = (GRID[0] * 14, GRID[1] * 14)
SIZES = {"embed_dim": 48, "depth": 2, "num_heads": HEADS, "img_size": PIXELS, "init_values": 0}


def small_tips(timm, gated: bool):
    """A random model of timm without layer scales, which Google's code does not have."""
    name = "vit_giant_patch14_reg1_tipsv2" if gated else "vit_base_patch14_reg1_tipsv2"
    activation = {} if gated else {"act_layer": "gelu_tanh"}  # the code of TIPS calls flax.linen.gelu
    return moved(timm.create_model(name, **SIZES, **activation))


def flax_arrays(model, gated: bool) -> dict[str, np.ndarray]:
    """The parameters of a timm model under the names and in the layout of TIPS's Flax checkpoints."""
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    width = state["norm.weight"].shape[0]
    arrays = {
        "ToTokenSequence_0/embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "ToTokenSequence_0/embedding/bias": state["patch_embed.proj.bias"],
        "ToTokenSequence_0/posembed_input": state["pos_embed"].reshape(1, *GRID, width),
        "ToTokenSequence_0/cls": np.concatenate([state["cls_token"], state["reg_token"]], axis=1),
        "encoder_norm/scale": state["norm.weight"],
        "encoder_norm/bias": state["norm.bias"],
    }
    for layer in range(SIZES["depth"]):
        ours, theirs = f"transformer/encoderblock_{layer}", f"blocks.{layer}"
        for index in (0, 1):
            arrays[f"{ours}/LayerNorm_{index}/scale"] = state[f"{theirs}.norm{index + 1}.weight"]
            arrays[f"{ours}/LayerNorm_{index}/bias"] = state[f"{theirs}.norm{index + 1}.bias"]
        attention = f"{ours}/MultiHeadDotProductAttention_0"
        kernels = state[f"{theirs}.attn.qkv.weight"].reshape(3, HEADS, -1, width)
        biases = state[f"{theirs}.attn.qkv.bias"].reshape(3, HEADS, -1)
        for part, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
            arrays[f"{attention}/{part}/kernel"] = kernel.transpose(2, 0, 1)
            arrays[f"{attention}/{part}/bias"] = bias
        arrays[f"{attention}/out/kernel"] = state[f"{theirs}.attn.proj.weight"].T.reshape(HEADS, -1, width)
        arrays[f"{attention}/out/bias"] = state[f"{theirs}.attn.proj.bias"]
        first, second = ((state[f"{theirs}.mlp.fc{i}.weight"].T, state[f"{theirs}.mlp.fc{i}.bias"]) for i in (1, 2))
        if gated:
            parts = zip(np.split(first[0], 2, axis=1), np.split(first[1], 2), strict=True)
            dense = {f"FFNSwiGluFused_0/Dense_{i}": part for i, part in enumerate([*parts, second])}
        else:
            dense = {"MlpBlock_0/Dense_0": first, "MlpBlock_0/Dense_1": second}
        for name, (kernel, bias) in dense.items():
            arrays[f"{ours}/{name}/kernel"], arrays[f"{ours}/{name}/bias"] = kernel, bias
    return arrays


@pytest.mark.parametrize("gated", [False, True], ids=["mlp", "swiglu"])
def test_tokens_and_output_are_those_of_timm(timm, torch, gated, tmp_path):
    model = small_tips(timm, gated)
    write_npz(tmp_path / "tips_v2_vision.npz", flax_arrays(model, gated))
    checkpoint = qkjax.load(tmp_path / "tips_v2_vision.npz")
    assert (checkpoint.config.heads, checkpoint.config.grid, checkpoint.config.prefix_tokens) == (HEADS, GRID, 2)
    assert_agrees(checkpoint, model, PIXELS)


def test_positions_are_resampled_as_the_code_of_tips_does(timm, tmp_path):
    """The code calls `jax.image.resize(..., "bilinear")`."""
    from qkjax.vit.posemb import resample

    arrays = flax_arrays(small_tips(timm, False), False)
    write_npz(tmp_path / "tips.npz", arrays)
    checkpoint = qkjax.load(tmp_path / "tips.npz")
    table = checkpoint.params["pos_embedding"]
    for grid in ((3, 4), (8, 9)):
        wanted = jax.image.resize(arrays["ToTokenSequence_0/posembed_input"], (1, *grid, 48), "bilinear")
        ours = resample(table, GRID, grid, checkpoint.config.posemb_resample)
        np.testing.assert_allclose(ours.reshape(wanted.shape), wanted, atol=1e-5)


def test_images_are_squashed_to_448_pixels_in_0_to_1(timm, tmp_path):
    write_npz(tmp_path / "tips.npz", flax_arrays(small_tips(timm, False), False))
    with pytest.warns(AssumptionWarning, match="preset 'tips'"):
        preprocess = qkjax.load(tmp_path / "tips.npz").preprocess
    assert (preprocess.resize, preprocess.crop, preprocess.mean, preprocess.std) == ("squash", 448, (0,) * 3, (1,) * 3)


def test_refusals(timm, tmp_path):
    arrays = flax_arrays(small_tips(timm, False), False)
    write_npz(tmp_path / "tips.npz", arrays)
    with pytest.raises(qkjax.QkjaxError, match=r"has 4 x 5 positions, which do not match grid=\(5, 4\)"):
        qkjax.load(tmp_path / "tips.npz", grid=(5, 4))
    write_npz(tmp_path / "text.npz", {"token_emb/emb_var": np.zeros((8, 48), np.float32)})
    with pytest.raises(qkjax.QkjaxError, match="expected the image tower of TIPS, not its text tower"):
        qkjax.load(tmp_path / "text.npz")
    missing = {name: array for name, array in arrays.items() if "encoderblock_1/LayerNorm_0" not in name}
    write_npz(tmp_path / "missing.npz", missing)
    with pytest.raises(qkjax.QkjaxError, match="'Transformer/encoderblock_1/LayerNorm_0/bias' is missing"):
        qkjax.load(tmp_path / "missing.npz")


def test_npz_with_names_of_pytorch(timm, tmp_path):
    """TIPS's files for PyTorch are npz files, too. They state no heads."""
    model = small_tips(timm, False)
    write_npz(tmp_path / "torch.npz", {name: value.numpy() for name, value in model.state_dict().items()})
    write_npz(tmp_path / "flax.npz", flax_arrays(model, False))
    with pytest.raises(qkjax.QkjaxError, match="heads"):
        qkjax.load(tmp_path / "torch.npz")
    stated = {"heads": HEADS, "grid": GRID, "activation": "gelu_tanh", "posemb_resample": "bilinear_antialias"}
    ours, theirs = qkjax.load(tmp_path / "torch.npz", **stated), qkjax.load(tmp_path / "flax.npz")
    assert ours.config == theirs.config
    jax.tree.map(np.testing.assert_array_equal, ours.params, theirs.params)
