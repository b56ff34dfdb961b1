"""Rules of the QDQ lowering; operations without a rule here have that of a float file (float_rules.py)."""

from __future__ import annotations

import numpy as np
from torch import fx, nn

from svitc.analysis.integer_range import runs_in_floats
from svitc.ir import ops
from svitc.ir.quantized_modules import QUANTIZED
from svitc.onnx import float_rules, layout
from svitc.onnx.builder import Stored, as_array
from svitc.onnx.float_rules import LoweringRule
from svitc.onnx.qdq.builder import QdqBuilder
from svitc.onnx.qdq.neurons import neuron

Rule = LoweringRule[QdqBuilder, Stored]
Projection = nn.Conv1d | nn.Conv2d | nn.Linear


def projection(b: QdqBuilder, node: fx.Node, module: Projection) -> Stored:
    """Lower a convolution or linear layer with integer weights: a product, and the bias directly behind it."""
    source, path = b.at(node.args[0]), str(node.target)
    numbers = b.ranges.get(node.all_input_nodes[0])
    in_floats = runs_in_floats(module, numbers)
    dims = layout.physical(source.view)
    x = b.read(source, dims)
    if not in_floats:
        assert numbers is not None
        x = b.through_bytes(x, numbers, dims)
    weights, scale = module.weight.numpy(), module.get_buffer("scale").numpy()
    view = layout.fresh(b.program.type_of(node))
    out, bias = layout.physical(view), as_array(module.get_buffer("bias"))
    axis = 1 if isinstance(module, nn.Linear) else 0
    if isinstance(module, nn.Linear):
        weights = np.ascontiguousarray(weights.T)
    column = [-1 if i == axis else 1 for i in range(weights.ndim)]
    if in_floats and isinstance(
        module, nn.Linear
    ):  # OpenVINO would quantize what meets bytes in a MatMul, real numbers, too
        weight = b.small(f"{path}.weight", weights * scale)
    elif in_floats:
        weight = b.widened(f"{path}.weight", weights, scale.reshape(column), 1.0)
    else:
        weight = b.scaled_weights(path, weights, scale, axis)
    if isinstance(module, nn.Linear):
        product = b.op("MatMul", [x, weight], out)
    else:
        product = b.op("Conv", [x, weight], out, float_rules.convolution_attributes(module))
        bias = bias.reshape(-1, *(1,) * (weights.ndim - 2))
    value = b.op("Add", [product, b.small(f"{path}.bias", bias)], out, helper="add_bias")
    return b.store(value, out, view)


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
