"""Predict how long the layers of a file take: ONNX Runtime's optimized graph, operator by operator, at measured speeds.

The graph is taken after ONNX Runtime has inlined the neurons, folded constants and fused products with the operators
behind them, so that exactly the operators that run are counted. The batch is 1. Operators run one after the other, so
their times add up.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, TypeVar

import onnx
import onnxruntime
from onnx import TensorProto

from svitc.errors import InputError
from svitc.latency.microbenchmarks import Speeds, at
from svitc.runtimes import OnnxRuntime

ValueT = TypeVar("ValueT")

BYTES: dict[int, int] = {
    TensorProto.UINT8: 1,
    TensorProto.INT8: 1,
    TensorProto.BOOL: 1,
    TensorProto.FLOAT: 4,
    TensorProto.INT32: 4,
    TensorProto.INT64: 8,
    TensorProto.DOUBLE: 8,
    TensorProto.UINT16: 2,
    TensorProto.FLOAT16: 2,
}


def optimized(model: bytes) -> onnx.ModelProto:
    """Return ONNX Runtime's optimized graph of a file, for one image, with the shape of every value.

    One optimization is left out: convolutions and pools are not converted to blocks of channels, because that form
    has no shapes.

    Raises:
        InputError: ONNX Runtime cannot load the file.
    """
    proto = onnx.load_from_string(model)
    options = OnnxRuntime().options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                options.add_free_dimension_override_by_name(dim.dim_param, 1)
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        try:
            onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's exceptions share no public base class
            raise InputError(f"ONNX Runtime cannot load the exported model: {error}") from error
        optimized_model = onnx.load(options.optimized_model_filepath)
    return onnx.shape_inference.infer_shapes(optimized_model)


@dataclass
class Operator:
    """A node and everything that its cost depends on.

    Attributes:
        node: the node.
        shapes: shapes of all values, inputs and constants included.
        types: element types of the values.
        producers: for each value the node that computes it.
    """

    node: onnx.NodeProto
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, int]
    producers: Mapping[str, onnx.NodeProto]

    def shape(self, i: int) -> tuple[int, ...]:
        """Return the shape of an input; () if there is no such input or its shape is unknown."""
        return self.shapes.get(self.node.input[i], ()) if i < len(self.node.input) else ()

    @property
    def inputs(self) -> list[float]:
        """Return the number of elements of each input."""
        return [float(math.prod(self.shapes.get(name, ()))) for name in self.node.input if name]

    @property
    def output(self) -> tuple[int, ...]:
        """Return the shape of the first output."""
        return self.shapes.get(self.node.output[0], ())

    @property
    def written(self) -> float:
        """Return the number of elements of all outputs."""
        return float(sum(math.prod(self.shapes.get(name, ())) for name in self.node.output if name))

    def width(self, name: str) -> int:
        """Return the bytes of one element of a value."""
        return BYTES.get(self.types.get(name, TensorProto.FLOAT), 4)

    def attribute(self, name: str, default: ValueT) -> ValueT:
        """Return an attribute's value, which has the default's type, or the default."""
        return next((onnx.helper.get_attribute_value(a) for a in self.node.attribute if a.name == name), default)


Rule = Callable[[Operator, Speeds], float]  # -> seconds


def _per_element(speed: str) -> Rule:
    """Return a rule for operators whose time is proportional to the elements written."""
    return lambda op, s: op.written * at(s, speed, op.written)


def _elementwise(op: Operator, s: Speeds) -> float:
    floats = op.written * op.width(op.node.output[0]) / 4  # bytes move a quarter of the data
    return floats * at(s, "add", floats) * max(1, len(op.node.input) - 1)


def _cast(op: Operator, s: Speeds) -> float:
    source, target = op.types.get(op.node.input[0]), op.attribute("to", 0)
    if source == target:
        return 0.0
    if source == TensorProto.BOOL and target != TensorProto.FLOAT:
        return op.written * at(s, "cast_bool", op.written)
    return op.written * at(s, "cast_widen" if target == TensorProto.FLOAT else "cast_narrow", op.written)


def _products(op: Operator, a: tuple[int, ...]) -> float:
    """Return the number of multiply-adds of a matrix product whose left operand has the shape ``a``."""
    deep = a[-2] if op.attribute("transA", 0) else a[-1]
    return op.written * deep


def _integer_product(op: Operator, s: Speeds) -> float:
    constant = op.node.input[1] not in op.producers
    kind = "integer" if constant else "integer_pair"
    return _products(op, op.shape(0)) * s[kind] + op.written * s[f"{kind}_out"]


def _float_product(op: Operator, s: Speeds) -> float:
    return _products(op, op.shape(0)) * s["product"] + op.written * s["product_out"]


def _convolution(op: Operator, s: Speeds) -> float:
    macs = op.written * math.prod(op.shape(1)[1:])
    if op.attribute("group", 1) > 1 and op.shape(1)[1] == 1:
        return macs * s["depthwise"]
    return macs * s["convolution"] + (op.written + op.inputs[0]) * s["convolution_out"]


def _pool(op: Operator, s: Speeds) -> float:
    compared = op.written * math.prod(op.attribute("kernel_shape", [1]))
    source = op.node.input[0]
    if op.node.op_type == "NhwcMaxPool":
        return compared * s["last_pool"]
    if op.width(source) == 1:
        return compared * s["pool_bytes"]
    return compared * at(s, "turned_pool" if _is_to_channels_first(op.producers.get(source)) else "pool", op.inputs[0])


def _is_to_channels_first(node: onnx.NodeProto | None) -> bool:
    """Return whether a node transposes channels last to channels first, whose time a pool's speed includes."""
    if node is None or node.op_type != "Transpose":
        return False
    return [list(a.ints) for a in node.attribute if a.name == "perm"] == [[0, 3, 1, 2]]


def _transpose(op: Operator, s: Speeds) -> float:
    shape = op.shape(0)
    perm = list(op.attribute("perm", list(range(len(shape)))[::-1]))
    moved = [i for i in perm if shape[i] > 1]
    if moved == sorted(moved):
        return 0.0
    width = op.width(op.node.input[0])
    if moved[-1] != max(moved):
        return op.written * at(s, "transpose_byte" if width == 1 else "transpose_float", op.written)
    row = shape[moved[-1]]  # elements that are copied in one piece: the last dimensions that stay side by side
    for last, before in zip(moved[:0:-1], moved[-2::-1], strict=True):
        if before != last - 1:
            break
        row *= shape[before]
    return op.written / row * s["row"] + op.written * width * s["row_byte"]


def _gather(op: Operator, s: Speeds) -> float:
    source = op.shape(0)
    axis = op.attribute("axis", 0) % max(1, len(source))
    row = math.prod(source[axis + 1 :])
    return op.written / max(1, row) * s["row"] + op.written * op.width(op.node.input[0]) * s["row_byte"]


def _copy(op: Operator, s: Speeds) -> float:
    floats = op.written * op.width(op.node.output[0]) / 4
    return floats * at(s, "copy", floats) / 2


def _reduce(op: Operator, s: Speeds) -> float:
    return op.inputs[0] * at(s, "add", op.inputs[0])


def _other(op: Operator, s: Speeds) -> float:
    """Return the time of an addition of as many elements, for operators without a rule."""
    elements = max(op.written, *op.inputs, 0.0)
    return elements * at(s, "add", elements)


def _view(op: Operator, s: Speeds) -> float:
    return 0.0


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("Add", "Sub", "Mul", "Div", "Min", "Max", "Sum", "Clip", "Round", "Neg", "And", "Or", "Not"), _elementwise
    ),
    **dict.fromkeys(("Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"), _per_element("compare")),
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"), _view),
    **dict.fromkeys(("Pad", "Concat", "Split", "Slice", "Expand", "Tile"), _copy),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax"), _reduce),
    **dict.fromkeys(("MatMul", "FusedMatMul", "Gemm", "FusedGemm"), _float_product),
    **dict.fromkeys(("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), _integer_product),
    **dict.fromkeys(("Conv", "FusedConv"), _convolution),
    **dict.fromkeys(("MaxPool", "AveragePool", "NhwcMaxPool"), _pool),
    "ThresholdedRelu": _per_element("threshold"),
    "QuantizeLinear": _per_element("cast_narrow"),
    "Where": _per_element("where"),
    "Cast": _cast,
    "Transpose": _transpose,
    "Gather": _gather,
}


def operators(proto: onnx.ModelProto) -> list[Operator]:
    """Return the nodes of an optimized graph, in order."""
    graph = proto.graph
    shapes: dict[str, tuple[int, ...]] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    types: dict[str, int] = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        shapes[value.name] = tuple(dim.dim_value or 1 for dim in kind.shape.dim)
        types[value.name] = kind.elem_type
    producers = {name: node for node in graph.node for name in node.output}
    return [Operator(node, shapes, types, producers) for node in graph.node]


def seconds(op: Operator, speeds: Speeds, turned: Iterable[str] = ()) -> float:
    """Predict how long an operator takes, in seconds.

    Args:
        op: the operator.
        speeds: measured speeds.
        turned: outputs of transpositions whose time is included in that of the pool that reads them.
    """
    rule = RULES.get(op.node.op_type, _other)
    work = 0.0 if op.node.output[0] in turned else rule(op, speeds)
    return work + speeds["node"]


class LayerCost(TypedDict):
    """The predicted cost of one layer: its name and kind, the seconds it takes, and the number of its operators."""

    layer: str
    kind: str
    seconds: float
    operators: int


def by_layer(proto: onnx.ModelProto, speeds: Speeds, layers: Mapping[str, str]) -> list[LayerCost]:
    """Predict how long every layer takes.

    Args:
        proto: optimized graph.
        speeds: measured speeds.
        layers: kind of each layer and operation, by the name that its nodes have; rows keep their order.

    Returns:
        one row for each layer. Operators in a layer's scope that belong to none of its operations (views, mostly) are
        in a row of kind ``moves`` with the scope's name.
    """
    ops = operators(proto)
    # a pool's speed was measured together with the transposition before it
    turned = {
        op.node.input[0]
        for op in ops
        if op.node.op_type == "MaxPool"
        and op.width(op.node.input[0]) > 1
        and _is_to_channels_first(op.producers.get(op.node.input[0]))
    }
    owners: dict[str, str] = {}  # layer for each value that one of its operators reads
    named: list[tuple[str, str, float]] = []
    for op in reversed(ops):
        name = next((n for n in (owner(output, layers) for output in op.node.output) if n), None)
        # inside a neuron, and where ONNX Runtime invented the name, an operator belongs to the layer that reads it
        name = name or next((owners[output] for output in op.node.output if output in owners), None)
        kind = layers.get(name or "")
        if name is None:
            name, kind = op.node.output[0].rpartition(".")[0] or "the model", "moves"
        for value in op.node.input:
            owners.setdefault(value, name)
        named.append((name, kind or "moves", seconds(op, speeds, turned)))
    rows: dict[str, LayerCost] = {}
    for name, kind, took in reversed(named):
        row = rows.setdefault(name, {"layer": name, "kind": kind, "seconds": 0.0, "operators": 0})
        row["seconds"] += took
        row["operators"] += 1
    order = {name: i for i, name in enumerate(layers)}
    return sorted(rows.values(), key=lambda row: order.get(row["layer"], len(order)))


def owner(value: str, layers: Mapping[str, str]) -> str | None:
    """Return the layer with the longest name that a value's name begins with, compared part by part, or None.

    Operations with equal names are numbered: ``blocks.0.attn.matmul_2`` belongs to ``blocks.0.attn.matmul``.
    """
    parts = value.split(".")
    for count in range(len(parts), 0, -1):
        name = ".".join(parts[:count])
        for candidate in (name, re.sub(r"_\d+$", "", name)):
            if candidate in layers:
                return candidate
    return None
