"""Rules of the QDQ lowering; operations without a rule here have that of a float file (float_rules.py)."""

from __future__ import annotations

import numpy as np
from torch import fx, nn

from svitc.analysis.integer_range import runs_in_floats
from svitc.ir import ops
from svitc.ir.axes import Dims
from svitc.ir.quantized_modules import QUANTIZED
from svitc.onnx import float_rules, layout
from svitc.onnx.builder import Stored, as_array
from svitc.onnx.float_rules import LoweringRule
from svitc.onnx.qdq.builder import QdqBuilder
from svitc.onnx.qdq.neurons import neuron

Rule = LoweringRule[QdqBuilder, Stored]
Projection = nn.Conv1d | nn.Conv2d | nn.Linear


def projection(b: QdqBuilder, node: fx.Node, module: Projection) -> Stored:
    """Lower a convolution or linear layer with integer weights: a product, and the bias directly behind it.

    What reads one pixel or token for each that it writes is a matrix product of rows, channels last, whose result a
    neuron splits into time steps without copying it.
    """
    source, path = b.at(node.args[0]), str(node.target)
    view = layout.fresh(b.program.type_of(node))
    pointwise, channel = _is_pointwise(module), len(view) - 1 if isinstance(module, nn.Linear) else 1
    dims, out = (_rows(v, channel) if pointwise else layout.physical(v) for v in (source.view, view))
    numbers, x = b.ranges.get(node.all_input_nodes[0]), b.read(source, dims)
    in_floats = numbers is None or runs_in_floats(module, numbers)
    if numbers is not None and not in_floats:
        x = b.through_bytes(x, numbers, dims)
    weights, scale = module.weight.numpy(), module.get_buffer("scale").numpy()
    bias = as_array(module.get_buffer("bias"))
    axis = 0
    if pointwise:
        weights, axis = np.ascontiguousarray(weights.reshape(len(weights), -1).T), 1
    else:
        bias = bias.reshape(-1, *(1,) * (weights.ndim - 2))
    column = scale.reshape([-1 if i == axis else 1 for i in range(weights.ndim)])
    if not in_floats:
        weight = b.scaled_weights(path, weights, scale, axis)
    elif pointwise:  # not as bytes: OpenVINO may quantize real numbers that meet them in a MatMul
        weight = b.small(f"{path}.weight", weights * column)
    else:
        weight = b.widened(f"{path}.weight", weights, column, 1.0)
    if pointwise:
        product = b.op("MatMul", [x, weight], out)
    else:
        product = b.op("Conv", [x, weight], out, float_rules.convolution_attributes(module))  # type: ignore[arg-type]
    value = b.op("Add", [product, b.small(f"{path}.bias", bias)], out, helper="add_bias")
    return b.store(value, out, view)


def _is_pointwise(module: Projection) -> bool:
    """Return whether a layer reads one pixel or token for each that it writes, and all channels of it."""
    if isinstance(module, nn.Linear):
        return True
    size_one = all(k == 1 for k in module.kernel_size) and set(module.stride) == {1}
    return size_one and not any(module.padding) and module.groups == 1


def _rows(view: Dims, channel: int) -> Dims:
    """Return the layout of a matrix with the channels as columns and everything else as rows."""
    return (tuple(token for i, dim in enumerate(view) if i != channel for token in dim), view[channel])


def fixed_point(b: QdqBuilder, node: fx.Node, module: ops.FixedPoint) -> Stored:
    """Lower the rounding of a real input to whole numbers of steps.

    It is written out, as runtimes may compute a QuantizeLinear of real numbers with one more rounding.
    """
    x = b.at(node.args[0])
    dims = layout.physical(x.view)
    scaled = b.op("Mul", [b.read(x, dims), b.scalar("steps", 1 / module.step)], dims, helper="steps")
    limits = [b.scalar("lowest", -module.limit), b.scalar("highest", module.limit)]
    value = b.op("Clip", [b.op("Round", [scaled], dims, helper="round"), *limits], dims)
    return b.store(value, dims, x.view)


MODULE_RULES: dict[type, Rule] = {
    **dict.fromkeys(QUANTIZED.values(), projection),  # first: they are subclasses of float layers
    **float_rules.MODULE_RULES,
    **dict.fromkeys((*ops.STATEFUL_NEURONS, *ops.STATELESS_NEURONS), neuron),
    ops.FixedPoint: fixed_point,
}
__all__ = ["MODULE_RULES"]
