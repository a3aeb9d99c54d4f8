"""Trained models as ONNX files, for runtimes in other languages and without this package.

A file has the model with its scaling: raw inputs go in, and predictions in the units of the data
come out, as from ``TrainedModel.predict``.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np

from steepest.extras import require
from steepest.memory.arrays import Array
from steepest.models.networks import MLP, Activation, Params

__all__ = ["onnx_bytes"]

OPSET = 17  # of 2022: runtimes from then on read it

OPERATORS: dict[Activation, str] = {"relu": "Relu", "tanh": "Tanh"}

Shape = Sequence[str | int]
Outputs = dict[str, tuple[int, Shape]]
"""The kind and the shape of each output."""


class _Graph:
    """A graph that grows by a node at a time; values are known by their names."""

    def __init__(self) -> None:
        self.onnx: Any = require("onnx", "onnx", "an ONNX file")
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._numbers = count(1)

    def constant(self, name: str, x: Array) -> str:
        """An array of numbers, true/false or text."""
        if x.dtype.kind == "O":
            text = [label.encode() for label in x]
            made = self.onnx.helper.make_tensor(name, self.kind(object), x.shape, text)
        else:
            made = self.onnx.numpy_helper.from_array(np.ascontiguousarray(x), name)
        self.constants.append(made)
        return name

    def node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """What an operator gives."""
        output = output or f"{operator.lower()}_{next(self._numbers)}"
        made = self.onnx.helper.make_node(operator, inputs, [output], name=output, **attributes)
        self.nodes.append(made)
        return output

    def cast(self, x: str, dtype: Any, output: str = "") -> str:
        """Numbers in another type."""
        return self.node("Cast", x, output=output, to=self.kind(dtype))

    def kind(self, dtype: Any) -> int:
        """ONNX's number of a type; objects are text."""
        found: int = self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return found

    def squeezed(self, x: str) -> str:
        """Of shape (samples,) in place of (samples, 1)."""
        return self.node("Squeeze", x, self.constant(f"axes_of_{x}", np.array([1], np.int64)))

    def file(self, x: tuple[str, Any, Shape], outputs: Outputs, facts: Mapping[str, str]) -> bytes:
        """The content of a file, checked. x: the input's name, type and shape."""
        helper = self.onnx.helper
        name, dtype, shape = x
        graph = helper.make_graph(
            self.nodes,
            "steepest",
            [helper.make_tensor_value_info(name, self.kind(dtype), shape)],
            [helper.make_tensor_value_info(out, *value) for out, value in outputs.items()],
            self.constants,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=helper.find_min_ir_version_for(opsets),
            producer_name="steepest",
        )
        helper.set_model_props(model, dict(facts))
        self.onnx.checker.check_model(model, full_check=True)
        content: bytes = model.SerializeToString()
        return content


def onnx_bytes(
    net: MLP,
    params: Params,
    scaling: Mapping[str, Array],
    classes: Array | None,
    inputs: Sequence[str],
    target: str | None,
    dtype: str,
) -> bytes:
    """The content of the file that ``TrainedModel.to_onnx`` writes; raises as it does.

    The network is computed in the type of its parameters, the scaling in float64.
    """
    if dtype not in ("float64", "float32"):
        raise ValueError(f"dtype = {dtype!r}: expected 'float64' or 'float32'")
    labels = None if classes is None else _labels(classes)
    graph = _Graph()
    z = _last_layer(graph, net, params, scaling, dtype)
    if labels is None:
        outputs = _value(graph, z, scaling)
    else:
        outputs = _classification(graph, z, net, labels, params["layer1"]["weight"].dtype)
    facts = {"task": net.task, "inputs": json.dumps(list(inputs), ensure_ascii=False)}
    if target is not None:
        facts["target"] = target
    return graph.file(("x", dtype, ["samples", net.sizes[0]]), outputs, facts)


def _last_layer(
    graph: _Graph, net: MLP, params: Params, scaling: Mapping[str, Array], dtype: str
) -> str:
    """The outputs of the last layer, of shape (samples, outputs)."""
    wide = "x" if dtype == "float64" else graph.cast("x", np.float64)
    centred = graph.node("Sub", wide, graph.constant("x_mean", scaling["x_mean"]))
    z = graph.node("Div", centred, graph.constant("x_scale", scaling["x_scale"]))
    if params["layer1"]["weight"].dtype != np.float64:
        z = graph.cast(z, params["layer1"]["weight"].dtype)
    for i, (name, layer) in enumerate(params.items(), 1):
        weight, bias = (graph.constant(f"{name}.{key}", layer[key]) for key in ("weight", "bias"))
        z = graph.node("Add", graph.node("MatMul", z, weight), bias)
        if i < len(params):
            z = graph.node(OPERATORS[net.activation], z)
    return z


def _value(graph: _Graph, z: str, scaling: Mapping[str, Array]) -> Outputs:
    """The output of a regression."""
    wide = graph.cast(graph.squeezed(z), np.float64)
    scale, mean = (graph.constant(key, np.asarray(scaling[key])) for key in ("y_scale", "y_mean"))
    graph.node("Add", graph.node("Mul", wide, scale), mean, output="value")
    return {"value": (graph.kind(np.float64), ["samples"])}


def _classification(graph: _Graph, z: str, net: MLP, labels: Array, dtype: Any) -> Outputs:
    """The outputs of a classification."""
    if net.objective == "logistic":
        both = graph.node("Concat", graph.node("Neg", z), z, axis=1)
        graph.node("Sigmoid", both, output="probabilities")
        zero = graph.constant("zero", np.zeros((), dtype))
        number = graph.cast(graph.squeezed(graph.node("Greater", z, zero)), np.int64)
    else:
        graph.node("Softmax", z, output="probabilities", axis=1)
        number = graph.node("ArgMax", z, axis=1, keepdims=0)
    graph.node("Gather", graph.constant("classes", labels), number, output="label", axis=0)
    return {
        "label": (graph.kind(labels.dtype), ["samples"]),
        "probabilities": (graph.kind(dtype), ["samples", len(labels)]),
    }


def _labels(classes: Array) -> Array:
    """Labels of a type that ONNX has: text, true/false, int64 or float64. Raises ValueError."""
    kind = classes.dtype.kind
    if kind in "UT" or (kind == "O" and all(isinstance(x, str) for x in classes)):
        return classes.astype(object)
    if kind == "b":
        return classes
    if kind in "iu" and classes.max() <= np.iinfo(np.int64).max:
        return classes.astype(np.int64)
    if kind == "f" and classes.dtype.itemsize <= 8:
        return classes.astype(np.float64)
    raise ValueError(
        f"classes have dtype {classes.dtype}, such as {classes[0]!r}: ONNX has labels that are "
        "text, true/false or numbers of up to 64 bits"
    )
