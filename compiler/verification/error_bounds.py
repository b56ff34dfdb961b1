"""Bounds on what rounding weights and inputs can do: how far each value of a quantized program is from the float one.

The bounds are worst cases, computed beside the values of one run. Let x' be a value of the quantized program, x that of
the float program given the same spikes, and E >= |x - x'|. Then

    layer with weights W, which became W'     |W x + b - W' x' - b'|  <=  |W| E + |W - W'| |x'| + |b - b'|
    rounding to whole numbers of steps        E / step + |x' / step - round(x' / step)|, but E / step where a layer of
                                              its own reads the rest
    sum, difference, view, mean, maximum      the same operation on the bounds
    product a b                               |a'| E_b + |b'| E_a + E_a E_b
    general operator                          operator_errors.py
    neuron                                    0: both programs get the same spikes

Where nothing is known, E is ``UNKNOWN``, and not infinite, since what is multiplied by 0 does not differ.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from svitc.ir import ops
from svitc.ir.operators.broadcasting import broadcast_rule
from svitc.ir.operators.registry import operator_of
from svitc.ir.program import Program
from svitc.verification.operator_errors import UNKNOWN, VAST, Bound, operator_error, or_zeros
from svitc.verification.recorder import Recorder


class ErrorBounds(Recorder):
    """Recorder of a quantized program that also bounds how far its values are from those before weights were rounded.

    Args:
        program: the quantized program.
        spikes: neuron -> spikes to pass on instead of its own.
        exact: layer -> the same layer before its weights were rounded, at the same scale.

    Attributes:
        bounds: neuron -> bound on the error of its input.
        outputs: bound on the error of each output.
        clamped: rounding of a value -> numbers of its elements that lay outside its range, and of all of them.
    """

    def __init__(
        self, program: Program, spikes: dict[str, torch.Tensor], exact: Mapping[str, nn.Module | None]
    ) -> None:
        super().__init__(program, spikes, fires=False)
        self.exact = exact
        self.bounds: dict[str, Bound] = {}
        self.outputs: list[Bound] = []
        self.clamped: dict[str, tuple[int, int]] = {}
        self._errors: dict[fx.Node, Bound] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and bound the error of its value."""
        value = super().run_node(n)
        if n.op == "output":
            self.outputs = [self._errors[source] for source in _nodes(n.args[0])]
            return value
        error: Bound = None
        if n.op == "call_module":
            error = self._of_layer(n, value)
        elif n.op == "call_function":
            error = self._of_function(n, value)
        self._errors[n] = None if error is None else error.nan_to_num(UNKNOWN).clamp(max=UNKNOWN)
        return value

    def _of_layer(self, node: fx.Node, value: torch.Tensor) -> Bound:
        source, path = node.all_input_nodes[0], str(node.target)
        error, x, layer = self._errors[source], self.env[source], self.fetch_attr(path)
        if ops.is_neuron(layer):
            self.bounds[path] = error
            return None
        if isinstance(layer, ops.FixedPoint):
            steps = x / layer.step
            if _has_rest(node):  # which a layer of its own reads, so that nothing is lost
                return None if error is None else error / layer.step
            self.clamped[path] = int((steps.round().abs() > layer.limit).sum()), steps.numel()
            rounding = (steps - value).abs()
            return rounding if error is None else error / layer.step + rounding
        if ops.is_projection(layer):
            return self._of_projection(path, layer, x, error)
        if error is None:
            return None
        if ops.is_batch_norm(layer):
            variance = layer.get_buffer("running_var")
            weight = torch.ones_like(variance) if layer.weight is None else layer.weight
            scale = weight.abs() / (variance + layer.eps).sqrt()
            return error * scale.reshape(-1, *(1,) * (error.ndim - 2))
        if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d, nn.ZeroPad2d)):
            return layer(error)  # padding of a maximum is ignored, and errors are not negative
        return torch.full_like(value, UNKNOWN)

    def _of_projection(self, path: str, layer: nn.Module, x: torch.Tensor, error: Bound) -> Bound:
        exact: Any = self.exact.get(path) or layer
        weight = exact.weight.detach()
        total: Bound = None if error is None else _sums(layer, error, weight.abs(), None)
        if ops.is_quantized(layer):
            column = layer.get_buffer("scale").reshape(-1, *(1,) * (weight.ndim - 1))
            bias = 0 if exact.bias is None else exact.bias.detach()
            difference = weight - layer.get_buffer("weight").to(weight.dtype) * column
            rounding = _sums(layer, x.abs(), difference.abs(), (bias - layer.get_buffer("bias")).abs())
            total = rounding if total is None else total + rounding
        return total

    def _of_function(self, node: fx.Node, value: torch.Tensor) -> Bound:
        if all(self._errors[source] is None for source in node.all_input_nodes):
            return None
        sources = [arg for arg in node.args if isinstance(arg, fx.Node)]
        if node.target in (operator.mul, torch.matmul) and len(sources) == len(node.args):
            (a, b), (e, f) = (self.env[s].abs() for s in sources), (self._errors[s] for s in sources)
            product: Any = node.target
            terms = [product(a, f) if f is not None else None, product(e, b) if e is not None else None]
            terms += [product(e, f)] if e is not None and f is not None else []
            return sum(term for term in terms if term is not None)  # type: ignore[return-value]
        if node.target in (operator.mul, operator.truediv):
            number: Any = next((arg for arg in node.args if not isinstance(arg, fx.Node)), None)
            error = self._errors[sources[0]]
            if number is None or (node.target is operator.truediv and isinstance(node.args[1], fx.Node)):
                return torch.full_like(value, UNKNOWN)
            return error * abs(number) if node.target is operator.mul else error / abs(number)  # type: ignore[operator]
        if node.target in (operator.add, operator.sub):  # each term counts, the same one twice in x + x
            errors = [self._errors[source] for source in sources]
            return sum(error.expand(value.shape) for error in errors if error is not None)  # type: ignore[return-value]
        general = operator_of(node.target)
        if general is not None and (not general.moves or general.rule is broadcast_rule):
            return operator_error(general, node, value, [(self.env[s], self._errors[s]) for s in sources])
        filled = {s: or_zeros(self.env[s], self._errors[s]) for s in node.all_input_nodes}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda source: filled[source])
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _has_rest(rounded: fx.Node) -> bool:
    """Return whether a program also computes what is left of a value after rounding: ``x - rounded * step``."""
    x = rounded.all_input_nodes[0]
    multiples = [user for user in rounded.users if user.target is operator.mul]
    return any(user.target is operator.sub and user.args[0] is x for multiple in multiples for user in multiple.users)


def _nodes(argument: Any) -> list[fx.Node]:
    """Return the nodes in an argument, in order."""
    nodes: list[fx.Node] = []
    fx.node.map_arg(argument, nodes.append)
    return nodes


def _sums(layer: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return the result of a convolution or linear layer with another weight and bias."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    convolve = F.conv2d if isinstance(layer, nn.Conv2d) else F.conv1d
    return convolve(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


__all__ = ["VAST", "Bound", "ErrorBounds"]
