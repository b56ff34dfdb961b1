"""Rules that lower a float program, one for each canonical operation.

A rule reads its inputs in the layout that it needs, emits nodes and says in which layout the result is stored.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import onnx_ir as ir
import torch
from torch import fx, nn

from svitc.errors import InternalError, UnsupportedError
from svitc.ir import axes, ops
from svitc.ir.axes import Dim, Dims, size
from svitc.onnx import layout
from svitc.onnx.broadcast import common_layout
from svitc.onnx.builder import Attributes, Builder, Stored
from svitc.onnx.neuron_rules import spiking_neuron, stateless_neuron
from svitc.onnx.operators.registry import OPERATOR_RULES
from svitc.onnx.running import running_reduction

BuilderT = TypeVar("BuilderT", bound=Builder)
ResultT = TypeVar("ResultT")
# (builder, node, the node's module or None) -> the stored value; each rule expects its own class of module
LoweringRule = Callable[[BuilderT, fx.Node, Any], ResultT]
Rule = LoweringRule[Builder, Stored]


def apply_rule(
    b: BuilderT,
    node: fx.Node,
    modules: Mapping[type, LoweringRule[BuilderT, ResultT]],
    functions: Mapping[Any, LoweringRule[BuilderT, ResultT]],
    lowering: str,
) -> ResultT:
    """Lower one node by the rule for its layer or function.

    Args:
        b: builder that the rule emits nodes to.
        node: a call of a layer or function.
        modules: rules by class of layer; the first that matches applies.
        functions: rules by function.
        lowering: name of the lowering, for the error message.

    Raises:
        InternalError: no rule applies.
        UnsupportedError: the rule refuses the node; the error names the line of the user's code.
    """
    module = b.program.module_of(node)
    rule = functions.get(node.target)
    if module is not None:
        rule = next((r for kind, r in modules.items() if isinstance(module, kind)), None)
    if rule is None:
        operation = type(module).__name__ if module is not None else getattr(node.target, "__name__", node.target)
        raise InternalError(f"{b.name}: {operation} has no {lowering} lowering", where=node.meta.get("source"))
    try:
        return rule(b, node, module)
    except UnsupportedError as error:
        error.where = error.where or node.meta.get("source")
        raise


# layers


def convolution(b: Builder, node: fx.Node, module: nn.Conv1d | nn.Conv2d) -> Stored:
    """Lower a convolution to Conv."""
    weights = _parameters(b, node, module, ("weight", "bias"))
    return _layer(b, node, "Conv", weights, convolution_attributes(module))


def convolution_attributes(module: nn.Conv1d | nn.Conv2d) -> dict[str, int | list[int]]:
    """Return the ONNX attributes of a convolution, without those that have their default."""
    attributes: dict[str, int | list[int]] = {
        "kernel_shape": list(module.kernel_size),
        "pads": [int(p) for p in module.padding] * 2,
        "strides": list(module.stride),
    }
    if any(d != 1 for d in module.dilation):
        attributes["dilations"] = list(module.dilation)
    if module.groups != 1:
        attributes["group"] = module.groups
    return attributes


def linear(b: Builder, node: fx.Node, module: nn.Linear) -> Stored:
    """Lower a linear layer: Gemm for an input of two dimensions, otherwise MatMul and an addition of the bias."""
    if len(layout.physical(b.at(node.args[0]).view)) == 2:
        return _layer(b, node, "Gemm", _parameters(b, node, module, ("weight", "bias")), {"transB": 1})
    product = _layer(b, node, "MatMul", [b.weight(f"{node.target}.weight", module.weight, transpose=True)])
    if module.bias is None:
        return product
    bias = b.weight(f"{node.target}.bias", module.bias)
    value = b.op("Add", [b.read(product, product.dims), bias], product.dims, helper="add_bias")
    return b.store(value, product.dims, product.view)


def batch_norm(b: Builder, node: fx.Node, module: nn.BatchNorm1d | nn.BatchNorm2d) -> Stored:
    """Lower a batch norm in evaluation mode."""
    return _layer(b, node, "BatchNormalization", norm_weights(b, node, module), {"epsilon": float(module.eps)})


def norm_weights(b: Builder, node: fx.Node, module: nn.BatchNorm1d | nn.BatchNorm2d) -> list[ir.Value]:
    """Return the inputs of BatchNormalization after the first: scale, shift, mean and variance.

    A batch norm without learned scale and shift gets 1 and 0.
    """
    one = torch.ones(module.num_features)
    values = {
        "weight": one if module.weight is None else module.weight,
        "bias": 0 * one if module.bias is None else module.bias,
        "running_mean": module.running_mean,
        "running_var": module.running_var,
    }
    return [b.weight(f"{node.target}.{name}", value) for name, value in values.items() if value is not None]


def max_pool(b: Builder, node: fx.Node, module: nn.MaxPool2d) -> Stored:
    """Lower a max pooling layer."""
    return _layer(b, node, "MaxPool", (), max_pool_attributes(node, module))


def max_pool_attributes(node: fx.Node, module: nn.MaxPool2d) -> dict[str, int | list[int]]:
    """Return the ONNX attributes of a max pooling layer."""
    if module.return_indices:
        raise UnsupportedError(f"{node.target}: a pooling layer that returns indices has no lowering")
    attributes: dict[str, int | list[int]] = {**window(module)}
    if pair_of(module.dilation) != [1, 1]:
        attributes["dilations"] = pair_of(module.dilation)
    if module.ceil_mode:
        attributes["ceil_mode"] = 1
    return attributes


def average_pool(b: Builder, node: fx.Node, module: nn.AvgPool2d) -> Stored:
    """Lower an average pooling layer."""
    attributes: dict[str, int | list[int]] = {**window(module)}
    if module.divisor_override is not None:
        raise UnsupportedError(
            f"{node.target}: average pooling with a divisor of its own (divisor_override) has no lowering"
        )
    if module.ceil_mode and _has_cut_windows(b.at(node.args[0]).view[2:], window(module)):
        raise UnsupportedError(
            f"{node.target}: average pooling over windows that are cut off at the border (ceil_mode) has no lowering",
            hint="Runtimes divide such windows by different numbers; use ceil_mode=False.",
        )
    if module.count_include_pad:
        attributes["count_include_pad"] = 1
    return _layer(b, node, "AveragePool", (), attributes)


def zero_pad(b: Builder, node: fx.Node, module: nn.ZeroPad2d) -> Stored:
    """Lower zero padding of rows and columns."""
    left, right, top, bottom = module.padding
    rest = [0] * (len(layout.physical(b.at(node.args[0]).view)) - 2)
    return _layer(b, node, "Pad", [b.integers("pads", [*rest, top, left, *rest, bottom, right])])


# functions


def rearrange(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower a view, which emits nothing: the readers rearrange the stored value as they need it."""
    source = b.at(node.args[0])
    dims = b.program.type_of(node)
    view = layout.rearranged(source.view, str(node.args[1]), node.kwargs, dims)  # type: ignore[arg-type]
    return Stored(source.value, source.dims, view, source.parameter)


def elementwise(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower a sum, difference or product of two tensors, or a product or quotient of a tensor and a number."""
    left, right = node.args
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return _scaled(b, node)
    op_type = {operator.add: "Add", operator.sub: "Sub", operator.mul: "Mul"}[node.target]  # type: ignore[index]
    pair = (b.at(left), b.at(right))
    dims, operand_dims, view = common_layout(*pair)
    inputs = [b.read(stored, operand) for stored, operand in zip(pair, operand_dims, strict=True)]
    return b.store(b.op(op_type, inputs, dims), dims, view)


def _scaled(b: Builder, node: fx.Node) -> Stored:
    """Lower a tensor multiplied or divided by a number."""
    left, right = node.args
    number = left if isinstance(right, fx.Node) else right
    x = b.at(right if isinstance(right, fx.Node) else left)
    assert isinstance(number, (int, float))
    if number == 1:
        return x
    divide = node.target is operator.truediv and abs(math.frexp(number)[0]) != 0.5
    if node.target is operator.truediv and not divide:
        number = 1 / number  # a power of two: the product has the same bits as the quotient
    factor = b.scalar(f"{'divisor' if divide else 'factor'}.{number:g}", float(number))
    value = x.value if x.value is not None else b.read(x, x.dims)
    return b.store(b.op("Div" if divide else "Mul", [value, factor], x.dims), x.dims, x.view)


def matmul(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower a matrix product of two activations."""
    left, right = b.at(node.args[0]), b.at(node.args[1])
    view = layout.fresh((*left.view[:-1], right.view[-1]))
    inputs = [b.read(s, layout.physical(s.view, keep=2)) for s in (left, right)]
    dims = layout.physical(view, keep=2)
    return b.store(b.op("MatMul", inputs, dims), dims, view)


def reduction(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower a mean or sum over dimensions."""
    x = b.at(node.args[0])
    reduced, keep = set(node.kwargs["dim"]), bool(node.kwargs["keepdim"])  # type: ignore[arg-type]
    tokens = layout.flat(tuple(dim for i, dim in enumerate(x.view) if i in reduced))
    view = tuple(() if i in reduced else dim for i, dim in enumerate(x.view) if keep or i not in reduced)
    if not tokens:
        return Stored(x.value, x.dims, view, x.parameter)  # over dimensions of size 1
    start = x.dims if not x.constant_along and x.value is not None else layout.physical(x.view)
    dims = tuple(run for dim in start for run in runs(dim, tokens))  # only a mixed dimension is split
    reduced_axes = [i for i, dim in enumerate(dims) if dim and dim[0] in tokens]
    op_type = "ReduceMean" if node.target is torch.mean else "ReduceSum"
    out = tuple(() if i in reduced_axes else dim for i, dim in enumerate(dims) if keep or i not in reduced_axes)
    value = b.op(op_type, [b.read(x, dims), b.integers("axes", reduced_axes)], out, {} if keep else {"keepdims": 0})
    return b.store(value, out, view)


def block(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower one of the equal blocks of a dimension; one Split gives all of them."""
    source, dim, index, count = node.args
    assert isinstance(dim, int) and isinstance(count, int) and isinstance(index, int)
    x = b.at(source)
    dims = layout.physical(x.view, keep=0)
    axis = dim - (len(x.view) - len(dims))
    if len(dims) < len(x.view) and dim < 2:
        dims, axis = x.view, dim
    rest = layout.blocks(dims[axis], count)
    out = (*dims[:axis], rest, *dims[axis + 1 :])
    key = ("blocks", source, dim, count)
    if key not in b.cache:
        attributes = {"axis": axis, "num_outputs": count}
        b.cache[key] = b.ops("Split", [b.read(x, dims)], [out] * count, attributes, helper="split")
    return b.store(b.cache[key][index], out, (*x.view[:dim], rest, *x.view[dim + 1 :]))


def part(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower a range of a dimension; one Split gives all ranges, which together must cover it."""
    source, dim = node.args[0], node.args[1]
    assert isinstance(source, fx.Node) and isinstance(dim, int)
    readers = sorted((u for u in source.users if u.target is ops.take_range), key=lambda u: int(u.args[2]))  # type: ignore[arg-type]
    sizes = [int(u.args[3]) - int(u.args[2]) for u in readers]  # type: ignore[arg-type]
    x = b.at(source)
    dims = layout.physical(x.view, keep=0)
    axis = dim - (len(x.view) - len(dims))
    if sum(sizes) != axes.size(dims[axis]):
        raise InternalError(f"{b.name}: the ranges of {source.target} do not cover its dimension {dim} exactly")
    key = ("ranges", source, dim)
    if key not in b.cache:
        rests = [layout.fresh(b.program.type_of(u))[dim] for u in readers]
        outs = [(*dims[:axis], rest, *dims[axis + 1 :]) for rest in rests]
        inputs = [b.read(x, dims), b.integers("split", sizes)]
        b.cache[key] = list(zip(b.ops("Split", inputs, outs, {"axis": axis}, helper="split"), rests, strict=True))
    value, rest = b.cache[key][readers.index(node)]
    out = (*dims[:axis], rest, *dims[axis + 1 :])
    return b.store(value, out, (*x.view[:dim], rest, *x.view[dim + 1 :]))


def attribute(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower a parameter that the program reads directly; it is written in the layout in which it is read."""
    dims = layout.fresh(b.program.type_of(node))
    return Stored(None, dims, dims, str(node.target))


# shared by rules


def _layer(
    b: Builder,
    node: fx.Node,
    op_type: str,
    weights: Sequence[ir.Value],
    attributes: Attributes | None = None,
) -> Stored:
    """Emit one node that reads the layer's input and writes its output, both in their physical layout."""
    source = b.at(node.args[0])
    view = layout.fresh(b.program.type_of(node))
    dims = layout.physical(view)
    x = b.read(source, layout.physical(source.view))
    return b.store(b.op(op_type, [x, *weights], dims, attributes), dims, view)


def _parameters(b: Builder, node: fx.Node, module: nn.Module, names: Sequence[str]) -> list[ir.Value]:
    """Return the constants of a layer's parameters, without those that the layer does not have."""
    parameters = [(name, getattr(module, name)) for name in names]
    return [b.weight(f"{node.target}.{name}", value) for name, value in parameters if value is not None]


def pair_of(value: int | tuple[int, ...]) -> list[int]:
    """Return a pooling option as one number for each of the two dimensions."""
    return [value] * 2 if isinstance(value, int) else list(value)


def window(module: nn.MaxPool2d | nn.AvgPool2d) -> dict[str, list[int]]:
    """Return the ONNX attributes of a pooling layer's windows."""
    return {
        "kernel_shape": pair_of(module.kernel_size),
        "pads": pair_of(module.padding) * 2,
        "strides": pair_of(module.stride),
    }


def _has_cut_windows(pixels: Dims, window: Mapping[str, list[int]]) -> bool:
    """Return whether the last windows of a pooling layer reach beyond its padded input."""
    spans = zip(pixels, window["pads"][:2], window["kernel_shape"], window["strides"], strict=True)
    return any((size(dim) + 2 * pad - kernel) % stride for dim, pad, kernel, stride in spans)


def runs(dim: Dim, reduced: Dim) -> list[Dim]:
    """Split a dimension into maximal runs of tokens that are reduced and of tokens that are not."""
    parts: list[Dim] = []
    for token in dim:
        if parts and (parts[-1][-1] in reduced) == (token in reduced):
            parts[-1] += (token,)
        else:
            parts.append((token,))
    return parts or [()]


MODULE_RULES: dict[type, Rule] = {
    **dict.fromkeys(ops.CONVOLUTIONS, convolution),
    nn.Linear: linear,
    **dict.fromkeys(ops.BATCH_NORMS, batch_norm),
    nn.MaxPool2d: max_pool,
    nn.AvgPool2d: average_pool,
    nn.ZeroPad2d: zero_pad,
    **dict.fromkeys(ops.STATEFUL_NEURONS, spiking_neuron),
    **dict.fromkeys(ops.STATELESS_NEURONS, stateless_neuron),
    ops.RunningReduction: running_reduction,
}
FUNCTION_RULES: dict[Any, Rule] = {
    **OPERATOR_RULES,
    **dict.fromkeys(ops.VIEWS, rearrange),
    **dict.fromkeys(ops.ELEMENTWISE, elementwise),
    torch.matmul: matmul,
    **dict.fromkeys(ops.REDUCTIONS, reduction),
    ops.take_block: block,
    ops.take_range: part,
}
