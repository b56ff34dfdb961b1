"""One rule for each canonical operation: how it reads its inputs, what it emits and how that lies."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import fx, nn

from svitc.errors import InternalError, UnsupportedError
from svitc.ir import axes, ops
from svitc.ir.axes import Dim, Dims, size
from svitc.ir.neuron_dynamics import dynamics_of
from svitc.onnx import layout
from svitc.onnx.broadcast import common_layout
from svitc.onnx.builder import Builder, Stored
from svitc.onnx.neuron_functions import AnyKind, integer_kind_of, kind_of

Rule = Callable[[Builder, fx.Node, Any], Stored]


def apply_rule(b: Any, node: fx.Node, modules: Any, functions: Any, lowering: str) -> Any:
    """What the rule for a node's layer or function gives.

    Raises:
        InternalError: there is none.
        UnsupportedError: the rule's own, with the user's line.
    """
    module = b.program.module_of(node)
    rule = functions.get(node.target)
    if module is not None:
        rule = next((r for kind, r in modules.items() if isinstance(module, kind)), None)
    if rule is None:
        what = type(module).__name__ if module is not None else getattr(node.target, "__name__", node.target)
        raise InternalError(f"{b.name}: {what} has no {lowering} lowering", where=node.meta.get("source"))
    try:
        return rule(b, node, module)
    except UnsupportedError as error:
        error.where = error.where or node.meta.get("source")
        raise


# layers


def convolution(b: Builder, node: fx.Node, module: nn.Conv1d | nn.Conv2d) -> Stored:
    attributes: dict[str, Any] = {
        "kernel_shape": list(module.kernel_size),
        "pads": [int(p) for p in module.padding] * 2,
        "strides": list(module.stride),
    }
    if any(d != 1 for d in module.dilation):
        attributes["dilations"] = list(module.dilation)
    if module.groups != 1:
        attributes["group"] = module.groups
    return _layer(b, node, "Conv", _parameters(b, node, module, ("weight", "bias")), attributes)


def linear(b: Builder, node: fx.Node, module: nn.Linear) -> Stored:
    if len(layout.physical(b.at(node.args[0]).view)) == 2:
        return _layer(b, node, "Gemm", _parameters(b, node, module, ("weight", "bias")), {"transB": 1})
    product = _layer(b, node, "MatMul", [b.weight(f"{node.target}.weight", module.weight, transpose=True)])
    if module.bias is None:
        return product
    bias = b.weight(f"{node.target}.bias", module.bias)
    value = b.op("Add", [b.read(product, product.dims), bias], product.dims, helper="add_bias")
    return b.store(value, product.dims, product.view)


def batch_norm(b: Builder, node: fx.Node, module: nn.BatchNorm1d | nn.BatchNorm2d) -> Stored:
    return _layer(b, node, "BatchNormalization", norm_weights(b, node, module), {"epsilon": float(module.eps)})


def norm_weights(b: Builder, node: fx.Node, module: nn.BatchNorm1d | nn.BatchNorm2d) -> list[ir.Value]:
    """Scale, shift, mean and variance of a batch norm."""
    one = torch.ones(module.num_features)
    values = {
        "weight": one if module.weight is None else module.weight,
        "bias": 0 * one if module.bias is None else module.bias,
        "running_mean": module.running_mean,
        "running_var": module.running_var,
    }
    return [b.weight(f"{node.target}.{name}", each) for name, each in values.items() if each is not None]


def max_pool(b: Builder, node: fx.Node, module: nn.MaxPool2d) -> Stored:
    if module.return_indices:
        raise UnsupportedError(f"{node.target}: a pooling layer that returns indices has no lowering")
    attributes = window(module)
    if pair_of(module.dilation) != [1, 1]:
        attributes["dilations"] = pair_of(module.dilation)
    return _layer(b, node, "MaxPool", (), attributes | ({"ceil_mode": 1} if module.ceil_mode else {}))


def average_pool(b: Builder, node: fx.Node, module: nn.AvgPool2d) -> Stored:
    attributes = window(module)
    if module.divisor_override is not None:
        raise UnsupportedError(f"{node.target}: average pooling with a divisor of its own has no lowering")
    if module.ceil_mode and _partial(b.at(node.args[0]).view[2:], attributes):
        raise UnsupportedError(
            f"{node.target}: average pooling over windows that are cut off (ceil_mode) has no lowering",
            hint="Runtimes differ in what they divide by there; use ceil_mode=False.",
        )
    if module.count_include_pad:
        attributes["count_include_pad"] = 1
    return _layer(b, node, "AveragePool", (), attributes)


def zero_pad(b: Builder, node: fx.Node, module: nn.ZeroPad2d) -> Stored:
    left, right, top, bottom = module.padding
    rest = [0] * (len(layout.physical(b.at(node.args[0]).view)) - 2)
    return _layer(b, node, "Pad", [b.integers("pads", [*rest, top, left, *rest, bottom, right])])


def integer_spike(b: Builder, node: fx.Node, module: ops.IntegerSpike) -> Stored:
    """It works on elements: any layout will do that keeps their order, by which they are compared (neuron_split.py)."""
    source = b.at(node.args[0])
    as_it_lies = source.in_order and not source.constant_along and source.value is not None
    dims = source.dims if as_it_lies else layout.physical(source.view, keep=0)
    kind = integer_kind_of(module)
    return b.store(b.call(kind, [b.read(source, dims), *_scalars(b, kind)], dims), dims, source.view)


def spiking_neuron(b: Builder, node: fx.Node, module: nn.Module) -> Stored:
    source = b.at(node.args[0])
    time = source.view[0]
    static = source.constant_along == time != ()
    if static:
        source = Stored(source.value, source.dims, layout.without(source.view, time), source.parameter)
    outermost = static or (len(source.dims) > 0 and source.dims[0][: len(time)] == time)
    # it works on elements, so that any grouping of the dimensions will do
    dims = source.dims if source.in_order and outermost else layout.physical(source.view, keep=0)
    kind = kind_of(str(node.target), module, size(time), static)
    inputs = [b.read(source, dims)]
    if kind.takes_decay:
        inputs.append(b.weight(f"{node.target}.decay", dynamics_of(module).float32_rate))
    inputs += _scalars(b, kind)
    out = ((*time, *dims[0]), *dims[1:]) if static else dims
    return b.store(b.call(kind, inputs, out), out, b.at(node.args[0]).view)


# functions


def rearrange(b: Builder, node: fx.Node, _: None) -> Stored:
    """A view emits nothing; what reads it finds the shortest way from how the value lies."""
    source = b.at(node.args[0])
    view = layout.rearranged(source.view, str(node.args[1]), node.kwargs)  # type: ignore[arg-type]
    return Stored(source.value, source.dims, view, source.parameter)


def elementwise(b: Builder, node: fx.Node, _: None) -> Stored:
    left, right = node.args
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return _scaled(b, node)
    op_type = {operator.add: "Add", operator.sub: "Sub", operator.mul: "Mul"}[node.target]  # type: ignore[index]
    pair = (b.at(left), b.at(right))
    dims, wanted, view = common_layout(*pair)
    inputs = [b.read(stored, each) for stored, each in zip(pair, wanted, strict=True)]
    return b.store(b.op(op_type, inputs, dims), dims, view)


def _scaled(b: Builder, node: fx.Node) -> Stored:
    """A tensor times or over a number."""
    left, right = node.args
    number = left if isinstance(right, fx.Node) else right
    x = b.at(right if isinstance(right, fx.Node) else left)
    assert isinstance(number, (int, float))
    if number == 1:
        return x
    divide = node.target is operator.truediv and abs(math.frexp(number)[0]) != 0.5
    if node.target is operator.truediv and not divide:
        number = 1 / number  # a power of two: the product is the quotient
    factor = b.scalar(f"{'divisor' if divide else 'factor'}.{number:g}", float(number))
    value = x.value if x.value is not None else b.read(x, x.dims)
    return b.store(b.op("Div" if divide else "Mul", [value, factor], x.dims), x.dims, x.view)


def matmul(b: Builder, node: fx.Node, _: None) -> Stored:
    left, right = b.at(node.args[0]), b.at(node.args[1])
    view = layout.fresh((*left.view[:-1], right.view[-1]))
    inputs = [b.read(s, layout.physical(s.view, keep=2)) for s in (left, right)]
    dims = layout.physical(view, keep=2)
    return b.store(b.op("MatMul", inputs, dims), dims, view)


def reduction(b: Builder, node: fx.Node, _: None) -> Stored:
    x = b.at(node.args[0])
    gone, keep = set(node.kwargs["dim"]), bool(node.kwargs["keepdim"])  # type: ignore[arg-type]
    lost = layout.flat([dim for i, dim in enumerate(x.view) if i in gone])  # type: ignore[arg-type]
    view = tuple(() if i in gone else dim for i, dim in enumerate(x.view) if keep or i not in gone)
    if not lost:
        return Stored(x.value, x.dims, view, x.parameter)  # over dimensions of size 1
    start = x.dims if not x.constant_along and x.value is not None else layout.physical(x.view)
    dims = tuple(part for dim in start for part in runs(dim, lost))  # only a mixed dimension is split
    over = [i for i, dim in enumerate(dims) if dim and dim[0] in lost]
    op_type = "ReduceMean" if node.target is torch.mean else "ReduceSum"
    out = tuple(() if i in over else dim for i, dim in enumerate(dims) if keep or i not in over)
    value = b.op(op_type, [b.read(x, dims), b.integers("axes", over)], out, {} if keep else {"keepdims": 0})
    return b.store(value, out, view)


def block(b: Builder, node: fx.Node, _: None) -> Stored:
    source, dim, index, count = node.args
    assert isinstance(dim, int) and isinstance(count, int) and isinstance(index, int)
    x = b.at(source)
    dims = layout.physical(x.view, keep=0)
    axis = dim - (len(x.view) - len(dims))
    if len(dims) < len(x.view) and dim < 2:
        dims, axis = x.view, dim
    rest = layout.blocks(dims[axis], count)
    out = (*dims[:axis], rest, *dims[axis + 1 :])
    key = ("blocks", source, dim, count)  # one Split makes them all
    if key not in b.cache:
        attributes = {"axis": axis, "num_outputs": count}
        b.cache[key] = b.ops("Split", [b.read(x, dims)], [out] * count, attributes, helper="split")
    return b.store(b.cache[key][index], out, (*x.view[:dim], rest, *x.view[dim + 1 :]))


def part(b: Builder, node: fx.Node, _: None) -> Stored:
    """A range of a dimension; one Split makes all the ranges that tile it."""
    source, dim = node.args[0], node.args[1]
    assert isinstance(source, fx.Node) and isinstance(dim, int)
    readers = sorted((u for u in source.users if u.target is ops.take_range), key=lambda u: int(u.args[2]))  # type: ignore[arg-type]
    sizes = [int(u.args[3]) - int(u.args[2]) for u in readers]  # type: ignore[arg-type]
    x = b.at(source)
    dims = layout.physical(x.view, keep=0)
    axis = dim - (len(x.view) - len(dims))
    if sum(sizes) != axes.size(dims[axis]):
        raise InternalError(f"{b.name}: the ranges of {source.target} do not tile it")
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
    """A bare parameter; it is written in the layout in which it is read."""
    dims = layout.fresh(b.program.type_of(node))
    return Stored(None, dims, dims, str(node.target))


# shared by rules


def _layer(
    b: Builder,
    node: fx.Node,
    op_type: str,
    weights: Sequence[ir.Value],
    attributes: dict[str, Any] | None = None,
) -> Stored:
    """One node that reads the physical form of the layer's input and gives that of its output."""
    source = b.at(node.args[0])
    view = layout.fresh(b.program.type_of(node))
    dims = layout.physical(view)
    x = b.read(source, layout.physical(source.view))
    return b.store(b.op(op_type, [x, *weights], dims, attributes), dims, view)


def _parameters(b: Builder, node: fx.Node, module: nn.Module, names: Sequence[str]) -> list[ir.Value]:
    found = [(name, getattr(module, name)) for name in names]
    return [b.weight(f"{node.target}.{name}", value) for name, value in found if value is not None]


def _scalars(b: Builder, kind: AnyKind) -> list[ir.Value]:
    return [b.scalar(f"{kind.name.lower()}.{name}", number) for name, number in kind.constants.items()]


def pair_of(value: int | tuple[int, ...]) -> list[int]:
    return [value] * 2 if isinstance(value, int) else list(value)


def window(module: nn.MaxPool2d | nn.AvgPool2d) -> dict[str, Any]:
    return {
        "kernel_shape": pair_of(module.kernel_size),
        "pads": pair_of(module.padding) * 2,
        "strides": pair_of(module.stride),
    }


def _partial(pixels: Dims, window: dict[str, Any]) -> bool:
    spans = zip(pixels, window["pads"][:2], window["kernel_shape"], window["strides"], strict=True)
    return any((size(dim) + 2 * pad - kernel) % stride for dim, pad, kernel, stride in spans)


def runs(dim: Dim, lost: Dim) -> list[Dim]:
    """A dimension in runs of tokens that are reduced and tokens that stay."""
    runs: list[Dim] = []
    for token in dim:
        if runs and (runs[-1][-1] in lost) == (token in lost):
            runs[-1] += (token,)
        else:
            runs.append((token,))
    return runs or [()]


MODULE_RULES: dict[type, Rule] = {
    **dict.fromkeys(ops.CONVOLUTIONS, convolution),
    nn.Linear: linear,
    **dict.fromkeys(ops.BATCH_NORMS, batch_norm),
    nn.MaxPool2d: max_pool,
    nn.AvgPool2d: average_pool,
    nn.ZeroPad2d: zero_pad,
    **dict.fromkeys(ops.NEURONS, spiking_neuron),
    ops.IntegerSpike: integer_spike,
}
FUNCTION_RULES: dict[Any, Rule] = {
    **dict.fromkeys(ops.VIEWS, rearrange),
    **dict.fromkeys(ops.ELEMENTWISE, elementwise),
    torch.matmul: matmul,
    **dict.fromkeys(ops.REDUCTIONS, reduction),
    ops.take_block: block,
    ops.take_range: part,
}
