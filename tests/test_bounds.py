"""What a checkpoint's files state is checked before it is believed or read into memory."""

import json
import os
import struct
import subprocess
import sys
import warnings
import zipfile

import numpy as np
import pytest

import qkjax
from qkjax.weights.formats.onnx import read_dinov2


def refused(model, match: str, **settings):
    with pytest.raises(qkjax.QkjaxError, match=match) as caught:
        qkjax.load(model, **settings)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def hub_folder(folder, shapes: dict | None = None, **config):
    """A ViT of transformers of two layers for 32 x 32 pixels; `shapes` replaces parameters, None removes one."""
    from safetensors.numpy import save_file

    sizes = {"embeddings.cls_token": (1, 1, 16), "embeddings.position_embeddings": (1, 17, 16),
             "embeddings.patch_embeddings.projection.weight": (16, 3, 8, 8),
             "embeddings.patch_embeddings.projection.bias": (16,), "layernorm.weight": (16,),
             "layernorm.bias": (16,)}  # fmt: skip
    for layer in range(2):
        block = f"encoder.layer.{layer}."
        parts = ("attention.attention.query", "attention.attention.key", "attention.attention.value",
                 "attention.output.dense", "intermediate.dense", "output.dense")  # fmt: skip
        for part in parts:
            sizes |= {f"{block}{part}.weight": (16, 16), f"{block}{part}.bias": (16,)}
        for norm in ("before", "after"):
            sizes |= {f"{block}layernorm_{norm}.weight": (16,), f"{block}layernorm_{norm}.bias": (16,)}
    rng = np.random.default_rng(0)
    sizes |= shapes or {}
    folder.mkdir(exist_ok=True)
    arrays = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in sizes.items() if shape is not None}
    save_file(arrays, folder / "model.safetensors")
    stated = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8, "intermediate_size": 16}  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**stated, **config}))
    return folder


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"num_hidden_layers": 12}, "num_hidden_layers=12, but the parameters have 2: they belong to different models"),
        ({"patch_size": 16, "image_size": 64}, r"patch_size=\(16, 16\), but the parameters have \(8, 8\)"),
        ({"intermediate_size": 999}, "intermediate_size=999, but the parameters have 16"),
        ({"image_size": 224}, r"image_size=\(224, 224\), but the position embedding has \(4, 4\) patches"),
        ({"hidden_size": 96}, "16 rows, which do not match 2 heads of 48"),
        ({"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 4}, "do not match 4 heads"),
    ],
)
def test_config_that_contradicts_the_parameters(config, match, tmp_path):
    assert qkjax.load(hub_folder(tmp_path / "right")).config.depth == 2
    refused(hub_folder(tmp_path / "wrong", **config), match)


@pytest.mark.parametrize(
    ("name", "shape", "rank"),
    [
        ("encoder.layer.1.attention.output.dense.weight", (), 2),
        ("encoder.layer.0.attention.attention.query.weight", (16,), 2),
        ("encoder.layer.0.attention.attention.key.bias", (16, 1), 1),
        ("encoder.layer.0.layernorm_before.weight", (1, 16), 1),
        ("encoder.layer.1.intermediate.dense.weight", (16, 4, 4), 2),
    ],
)
def test_parameters_with_another_number_of_axes(name, shape, rank, tmp_path):
    refused(hub_folder(tmp_path / "x", {name: shape}), rf"parameter '{name}' has shape .*, expected {rank} axes")


@pytest.mark.parametrize("kind", ["nested", "meta"])
def test_tensors_without_dense_data(torch, kind, tmp_path):
    from safetensors.torch import load_file

    warnings.simplefilter("ignore")  # nested tensors are a prototype
    state = load_file(hub_folder(tmp_path / "x") / "model.safetensors")
    odd = {"nested": lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
           "meta": lambda: torch.empty(16, 16, device="meta")}[kind]()  # fmt: skip
    torch.save(state | {"encoder.layer.0.intermediate.dense.weight": odd}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", f"is a {kind} tensor, expected a dense tensor with data", heads=2)


def zip_of(path, member: str, start: bytes, size: int):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        with file.open(member, "w") as out:
            out.write(start)
            for _ in range(size // 1_000_000):
                out.write(bytes(1_000_000))
        if member != "x/data.pkl":
            file.writestr("x/data.pkl", b"\x80\x02}.")
        file.writestr("x/version", b"3\n")


@pytest.mark.parametrize("member", ["x/data.pkl", "x/data/0"])
def test_small_torch_file_that_unpacks_to_much(torch, member, tmp_path):
    size = 150_000_000
    zip_of(tmp_path / "bomb.pth", member, b"\x80\x02X" + struct.pack("<I", size), size)
    assert (tmp_path / "bomb.pth").stat().st_size < 1_000_000
    refused(tmp_path / "bomb.pth", "but unpacks to 150")


@pytest.mark.skipif(not hasattr(os.stat_result, "st_blocks"), reason="this system does not state sizes on disk")
def test_file_of_holes(tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 28], "data_offsets": [0, 1 << 30]}}).encode()
    with open(tmp_path / "x.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + (1 << 30))
    refused(tmp_path / "x.safetensors", "but only .* are on disk", heads=2)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
@pytest.mark.parametrize(
    "name",
    ["zarr/embedding~kernel/.zarray", "hub/x.safetensors", "hub/config.json", "m.npz", "m.pth", "step-LAST",
     "hub/preprocessor_config.json"],
)  # fmt: skip
def test_pipes_are_not_opened(name, tmp_path):
    """In another process, which would wait for ever."""
    (tmp_path / "zarr/embedding~kernel").mkdir(parents=True)
    hub_folder(tmp_path / "hub")
    (tmp_path / name).unlink(missing_ok=True)
    if name == "hub/x.safetensors":
        (tmp_path / "hub/model.safetensors").unlink()
    os.mkfifo(tmp_path / name)
    model = {"zarr": "zarr", "hub": "hub", "step-LAST": "step"}.get(name.split("/")[0], name)
    load = "try: qkjax.load(sys.argv[1])\nexcept qkjax.QkjaxError as error: sys.exit(f'refused: {error}')"
    code = f"import sys, qkjax\n{load}"
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / model)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    read = done.returncode == 0 and name.endswith("config.json")  # a pipe is not read as a configuration
    assert read or done.stderr.startswith("refused: "), done.stderr[-300:]


READERS = {
    "top_images.partial.npz": (
        "import qkjax.passes.partial_file as f; print(f.batches_done(p), f.interrupted_settings(p))"
    ),
    "m.npz.source.json": "from qkjax.weights.download.record import read_record; read_record(Path('m.npz'))",
    "top_images.nc": "from qkjax.results.store import read_result; read_result(p)",
}
"""Names of qkjax's own files, and code that reads `p`, the file."""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
@pytest.mark.parametrize("name", READERS)
def test_pipes_in_place_of_our_own_files(name, tmp_path):
    """In another process, which would wait for ever."""
    os.mkfifo(tmp_path / name)
    code = f"from pathlib import Path\np = Path({name!r})\n{READERS[name]}"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    unknown = done.stdout == "None {}\n"
    assert unknown or f"QkjaxError: {name} is not a file" in done.stderr, done.stderr[-300:]


def dinov2_graph(external: str | None = None, inputs=("four",)):
    """The nodes that `read_dinov2` looks for."""
    onnx = pytest.importorskip("onnx", reason="needs the onnx extra: pip install -e '.[onnx]'")
    from onnx import TensorProto, helper, numpy_helper

    block = np.zeros((1, 1, 8), np.float32)
    names = ("rest", "first", "backbone.embeddings.cls_token")
    tensors = [numpy_helper.from_array(block, name) for name in names]
    if external is not None:
        tensors[-1].ClearField("raw_data")
        tensors[-1].data_location = TensorProto.EXTERNAL
        tensors[-1].external_data.add(key="location", value=external)
    heads = "/encoder/layer.0/attention/attention/Concat"
    nodes = [
        helper.make_node("Concat", ["first"], ["a"], name="/embeddings/Concat"),
        helper.make_node("Reshape", ["rest"], ["b"], name="/embeddings/Reshape"),
        helper.make_node("Constant", [], ["four"], value=numpy_helper.from_array(np.array([4]))),
        helper.make_node("Concat", list(inputs), ["c"], name=heads),
    ]
    assert onnx.__version__
    return helper.make_model(helper.make_graph(nodes, "g", [], [], tensors)).SerializeToString()


@pytest.mark.parametrize("place", ["/etc/hostname", "../x", "nothing", ""])
def test_graph_with_data_in_another_file(place):
    with pytest.raises(qkjax.QkjaxError, match="is in another file, expected all data in this file"):
        read_dinov2(dinov2_graph(place))


@pytest.mark.parametrize("inputs", [(), ("rest",)])
def test_graph_with_nodes_cut_short(inputs):
    with pytest.raises(qkjax.QkjaxError, match="not a DINOv2 graph with the expected nodes"):
        read_dinov2(dinov2_graph(inputs=inputs))
    assert read_dinov2(dinov2_graph())[1] == 4
