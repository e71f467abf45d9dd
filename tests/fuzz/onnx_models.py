"""The ONNX graph of a DINOv2 backbone, as the wheel of the default model has it; see `models`."""

from functools import partial
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from qkjax.weights.checkpoint import write_checkpoint
from qkjax.weights.download.wheel import model_of_graph

from . import arrays, files, models
from .files import INDEX
from .kind import Kind, NotApplicableError, change, pick
from .vit import HEADS, POSITIONS, hub_arrays

DIMENSIONS = st.sampled_from([0, -1, 1, 2**40, 2**63 - 1])
ONNX = st.one_of(
    change("onnx node", INDEX, st.sampled_from(["removed", "renamed", "no input", "no output", "other", "twice"])),
    change("onnx tensor", INDEX, st.sampled_from(["external", "type", "no data", "segment", "doubles", "short"])),
    change("onnx dimension", INDEX, INDEX, DIMENSIONS),
)


def onnx_model(given: arrays.Arrays):
    """The parts of an exported graph that `read_dinov2` looks for, with the parameters."""
    from onnx import helper, numpy_helper

    tensors, nodes = [], []
    for name, value in given.items():
        if name.endswith(".weight") and value.ndim == 2 and "layer." in name:
            weight, bias = f"onnx::MatMul_{len(nodes)}", f"backbone.{name.removesuffix('weight')}bias"
            tensors.append(numpy_helper.from_array(np.ascontiguousarray(value.T), weight))
            nodes.append(helper.make_node("MatMul", ["x", weight], [f"y{len(nodes)}"]))
            nodes.append(helper.make_node("Add", [bias, nodes[-1].output[0]], [f"z{len(nodes)}"]))
        elif name == POSITIONS:
            tensors.append(numpy_helper.from_array(value[:, :1], "first"))
            tensors.append(numpy_helper.from_array(value[:, 1:], "rest"))
        else:
            tensors.append(numpy_helper.from_array(value, f"backbone.{name}"))
    heads = numpy_helper.from_array(np.array([HEADS]))
    nodes += [
        helper.make_node("Concat", ["first", "x"], ["a"], name="/embeddings/Concat"),
        helper.make_node("Reshape", ["rest", "x"], ["b"], name="/embeddings/Reshape"),
        helper.make_node("Constant", [], ["heads"], value=heads),
        helper.make_node("Concat", ["heads"], ["c"], name="/encoder/layer.0/attention/attention/Concat"),
    ]
    return helper.make_model(helper.make_graph(nodes, "g", [], [], tensors))


def make_onnx(root: Path, changes: list) -> Path:
    """Writes the graph with its changes."""
    model = onnx_model(arrays.changed(hub_arrays(), changes))
    for what, *arguments in changes:
        if what.startswith("onnx"):
            _ONNX[what](model.graph, *arguments)
    (root / "m.onnx").write_bytes(model.SerializeToString())
    files.apply_all(root, changes)
    if not (root / "m.onnx").is_file():
        raise NotApplicableError("qkjax extracts this file itself")
    return root / "m.onnx"


def _node(graph, index: int, how: str) -> None:
    node = pick(index, graph.node)
    if how == "removed":
        graph.node.remove(node)
    elif how == "twice":
        graph.node.add().CopyFrom(node)
    elif how == "other":
        node.op_type = "Add"
    else:
        node.ClearField({"renamed": "name", "no input": "input", "no output": "output"}[how])


def _tensor(graph, index: int, how: str) -> None:
    tensor = pick(index, graph.initializer)
    if how == "external":
        tensor.data_location = tensor.EXTERNAL
        tensor.external_data.add(key="location", value="/etc/hostname")
    elif how == "type":
        tensor.data_type = index % 23
    elif how == "no data":
        tensor.ClearField("raw_data")
    elif how == "segment":
        tensor.segment.begin = 5
    elif how == "doubles":
        tensor.double_data.append(1.0)
    else:
        tensor.raw_data = tensor.raw_data[:-4]


def _dimension(graph, index: int, axis: int, value: int) -> None:
    tensor = pick(index, graph.initializer)
    if not tensor.dims:
        raise NotApplicableError("no axis")
    tensor.dims[axis % len(tensor.dims)] = value


_ONNX = {"onnx node": _node, "onnx tensor": _tensor, "onnx dimension": _dimension}


def load(path: Path, scratch: Path) -> tuple:
    """The tokens of the model in a graph, which is first converted to npz, as after a download."""
    saved = scratch / f"{path.name}.npz"
    write_checkpoint(saved, *model_of_graph(path.read_bytes(), path.name))
    try:
        return models.load(saved, scratch)
    finally:
        saved.unlink()


def read(path: Path) -> dict:
    """The arrays of the graph, by the library onnx alone."""
    import onnx

    graph = onnx.load_model(path).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    given = {name.removeprefix("backbone."): array for name, array in stored.items()}
    for node in graph.node:
        if node.op_type == "Add" and len(node.input) == 2 and node.input[1] in products:
            given[f"{node.input[0][len('backbone.') : -len('bias')]}weight"] = stored[products[node.input[1]]].T
    return given | {POSITIONS: np.concatenate([stored["first"], stored["rest"]], 1)}


KINDS = {"onnx": Kind(make_onnx, st.one_of(arrays.CHANGES, files.CHANGES, ONNX), load, partial(models.check, read))}
