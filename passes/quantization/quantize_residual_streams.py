"""QuantizeResidualStreams: rounds a membrane stream that projections read to integers of eight bits."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from svitc.analysis.integer_range import IntegerRange, integer_ranges
from svitc.ir import ops
from svitc.ir.batch_norm import scale_and_shift
from svitc.ir.pass_manager import Pass, PassResult
from svitc.ir.program import Program, Stage
from svitc.ir.quantized_modules import FixedPoint
from svitc.passes.inference.fold_batch_norm_into_consumers import can_fold_into_consumers
from svitc.passes.quantization.quantize_input import rounded_for
from svitc.passes.quantization.quantize_weights import LEVELS

DEVIATIONS = 6.0  # standard deviations from the mean; a normal distribution exceeds them with a probability of 2e-9
POOLED = 1.5  # standard deviations by which the largest of nine normal numbers exceeds their mean: 1.485


class Spread(NamedTuple):
    """The range of the channels of a value.

    Attributes:
        low: the least mean of a channel.
        high: the largest mean of a channel.
        variance: the largest variance.
    """

    low: float
    high: float
    variance: float

    @property
    def reach(self) -> float:
        """Return the largest magnitude that must be represented."""
        return max(-self.low, self.high, 0.0) + DEVIATIONS * math.sqrt(self.variance)


class QuantizeResidualStreams(Pass):
    """Round real numbers to eight bits where projections read them, so that these are integer matrix products, too.

    before   stream -> conv
    after    stream -> FixedPoint -> conv', with conv's weights times the step

    A network with membrane shortcuts (Max-Former) adds up the outputs of batch norms, and some of its projections read
    that sum instead of spikes. The batch norms determine its range without any data: the means and variances of the
    terms add up. The step is the power of two with which 127 steps cover six standard deviations.

    Does not match values that are not made of batch norms, spikes, sums of these, maxima and products with a number,
    such as the means that a classifier reads; nor a batch norm of spikes that the layers that read it take in.

    Refuses
      1. a stream with a reader that is called more than once.
    """

    name = "QuantizeStreams"  # the old name of this pass, which reports keep
    requires = (Stage.CAPTURED, Stage.PRUNED)

    def apply(self, program: Program) -> PassResult:
        self.ranges = integer_ranges(program)
        self.spreads = spreads(program, self.ranges)
        return super().apply(program)

    def match(self, program: Program, node: fx.Node) -> bool:
        if node not in self.spreads or node in self.ranges or not _readers(program, node):
            return False
        return not (_normalizes_integers(program, node, self.ranges) and can_fold_into_consumers(program, node))

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        twice = [str(reader.target) for reader in _readers(program, node) if not program.called_once(reader)]
        return f"{twice[0]} reads it and is called more than once" if twice else None

    def rewrite(self, program: Program, node: fx.Node) -> None:
        step = 2.0 ** math.ceil(math.log2(max(self.spreads[node].reach, 2.0**-64) / LEVELS))
        name, i = "stream_steps", 1
        while hasattr(program.module, name):
            i += 1
            name = f"stream_steps_{i}"
        readers = _readers(program, node)
        rounded_for(program, node, name, FixedPoint(step, LEVELS), readers, readers)


def _readers(program: Program, node: fx.Node) -> list[fx.Node]:
    """Return the projections that read a value and sum up its channels; depthwise ones stay as they are."""
    modules = {user: program.module_of(user) for user in node.users}
    return [user for user, m in modules.items() if ops.is_projection(m) and getattr(m, "groups", 1) == 1]


def spreads(program: Program, ranges: Mapping[fx.Node, IntegerRange]) -> dict[fx.Node, Spread]:
    """Return the spread of the values that batch norms or integer ranges determine; others can be anything."""
    result: dict[fx.Node, Spread] = {}
    for node in program.graph.nodes:
        value_range = ranges.get(node)
        if value_range is None:
            spread = _spread(program, node, result, ranges)
        else:
            spread = Spread(value_range.unit * value_range.low, value_range.unit * value_range.high, 0.0)
        if spread is not None:
            result[node] = spread
    return result


def _normalizes_integers(program: Program, node: fx.Node, ranges: Mapping[fx.Node, IntegerRange]) -> bool:
    """Return whether a node is a batch norm of integers, such as spikes."""
    return ops.is_batch_norm(program.module_of(node)) and node.all_input_nodes[0] in ranges


def _spread(
    program: Program, node: fx.Node, spread_of: dict[fx.Node, Spread], ranges: Mapping[fx.Node, IntegerRange]
) -> Spread | None:
    """Return the spread of a node from those of its inputs, or None."""
    module: Any = program.module_of(node)
    if _normalizes_integers(program, node, ranges):  # rare spikes are many standard deviations from their mean
        scale, shift = scale_and_shift(module)
        before = spread_of[node.all_input_nodes[0]]
        limits = [scale * end + shift for end in (before.low, before.high)]
        return Spread(float(torch.minimum(*limits).min()), float(torch.maximum(*limits).max()), 0.0)
    if ops.is_batch_norm(module):
        shift = torch.zeros(module.num_features) if module.bias is None else module.bias.detach().double()
        scale = torch.ones(module.num_features) if module.weight is None else module.weight.detach().double()
        return Spread(float(shift.min()), float(shift.max()), float(scale.square().max()))
    sources = node.all_input_nodes
    if not sources or any(source not in spread_of for source in sources):
        return None
    first = spread_of[sources[0]]
    if node.target in ops.VIEWS or node.target in (ops.take_block, ops.take_range):
        return first
    if isinstance(module, nn.MaxPool2d):
        return first._replace(high=first.high + POOLED * math.sqrt(first.variance))
    if node.target in (operator.add, operator.sub) and all(isinstance(arg, fx.Node) for arg in node.args):
        second = spread_of[node.args[1]]  # type: ignore[index]
        low, high = (second.low, second.high) if node.target is operator.add else (-second.high, -second.low)
        return Spread(first.low + low, first.high + high, first.variance + second.variance)
    if node.target is operator.mul and len(sources) == 1:
        number: Any = next((arg for arg in node.args if not isinstance(arg, fx.Node)), None)
        if number is not None:
            ends = sorted((first.low * number, first.high * number))
            return Spread(ends[0], ends[1], first.variance * number * number)
    return None


__all__ = ["QuantizeResidualStreams", "Spread", "spreads"]
