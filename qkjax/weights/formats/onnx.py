"""Reads a DINOv2 backbone from an ONNX graph that torch exported."""

import numpy as np

from qkjax.errors import QkjaxError

PREFIX = "backbone."


def read_dinov2(data: bytes) -> tuple[dict[str, np.ndarray], int]:
    """Returns the state dict and the number of heads of the DINOv2 model under `backbone.` in an ONNX file.

    Most initializers have their Hugging Face names. The exporter transposed the weights of matrix products and dropped
    their names. The function identifies each of these weights by the named bias that the graph adds to the matrix
    product.

    Raises:
      QkjaxError: the `onnx` package is not installed, or the file does not contain such a graph.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx import numpy_helper
    except ImportError as error:
        raise QkjaxError("reading this checkpoint needs the onnx package: pip install 'qkjax[onnx]'") from error
    try:
        graph = onnx.load_model_from_string(data).graph
        _check_external(graph)
        arrays = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        state = {n.removeprefix(PREFIX): a for n, a in arrays.items() if n.startswith(PREFIX)}
        state |= _anonymous_weights(graph, arrays) | {"embeddings.position_embeddings": _positions(graph, arrays)}
        heads = _head_count(graph)
    except (DecodeError, ValueError, LookupError, TypeError, AttributeError, StopIteration) as error:
        raise QkjaxError(f"not a DINOv2 graph with the expected nodes: {repr(error)[:200]}") from error
    return state, heads


def _check_external(graph) -> None:
    """Checks that the file contains the data of all its tensors; onnx would read other files from the current folder.

    Raises:
      QkjaxError: the data of a tensor is in another file.
    """
    constants = [a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute]
    for tensor in (*graph.initializer, *constants):
        if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
            raise QkjaxError(f"the data of tensor {tensor.name!r} is in another file, expected all data in this file")


def _anonymous_weights(graph, arrays: dict) -> dict[str, np.ndarray]:
    """The weights (out, in), with the names ("layer.0...query.weight") that are inferred from the biases."""
    producer = {out: node for node in graph.node for out in node.output}
    weights = {}
    for node in graph.node:
        bias = next((i for i in node.input if i.startswith(PREFIX) and i.endswith(".bias")), None)
        if node.op_type != "Add" or bias is None:
            continue
        product = producer.get(next(i for i in node.input if i != bias))
        if product is not None and product.op_type == "MatMul":
            weight = next(i for i in product.input if i in arrays)
            weights[bias.removeprefix(PREFIX).removesuffix("bias") + "weight"] = arrays[weight].T
    return weights


def _positions(graph, arrays: dict) -> np.ndarray:
    """The position embedding (1, 1 + tokens, D). The exporter split off the class token's row to resize the rest."""

    def constant(op: str) -> np.ndarray:
        return next(
            arrays[i]
            for node in graph.node
            if node.op_type == op and "/embeddings/" in node.name
            for i in node.input
            if i in arrays and arrays[i].ndim == 3 and not i.startswith(PREFIX)
        )

    return np.concatenate([constant("Concat"), constant("Reshape")], axis=1)


def _head_count(graph) -> int:
    """The number of heads, from the last two axes (heads, head_dim) of the shape to which queries are reshaped."""
    concat = next(
        n for n in graph.node if n.op_type == "Concat" and n.name.endswith("layer.0/attention/attention/Concat")
    )
    constants = {o: n.attribute[0].t for n in graph.node if n.op_type == "Constant" for o in n.output}
    from onnx import numpy_helper

    sizes = [int(numpy_helper.to_array(constants[i]).item()) for i in concat.input if i in constants]
    return sizes[0]
