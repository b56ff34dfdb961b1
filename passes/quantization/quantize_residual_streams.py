"""QuantizeResidualStreams: a membrane stream that a matrix product reads, as whole numbers of eight bits."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from svitc.analysis.integer_range import IntegerRange, integer_ranges
from svitc.ir import ops
from svitc.ir.pass_manager import Pass, PassResult
from svitc.ir.program import Program, Stage
from svitc.ir.quantized_modules import FixedPoint
from svitc.passes.quantization.quantize_input import rounded_for
from svitc.passes.quantization.quantize_weights import LEVELS

DEVIATIONS = 6.0  # from the mean; beyond, what is left of a normal distribution is 2e-9
POOLED = 1.5  # deviations that the largest of nine normal numbers lies above their mean, 1.485


class Spread(NamedTuple):
    """Where the channels of a value lie: the least and the largest mean, and the largest variance."""

    low: float
    high: float
    variance: float

    @property
    def reach(self) -> float:
        """The largest magnitude that has to be told apart."""
        return max(-self.low, self.high, 0.0) + DEVIATIONS * math.sqrt(self.variance)


class QuantizeResidualStreams(Pass):
    """Round real numbers to eight bits where projections read them, so that these are integer matrix products, too.

    before   stream -> conv
    after    stream -> FixedPoint -> conv', with conv's weights times the step

    A network with membrane shortcuts (Max-Former) adds up the outputs of batch norms, and some of its projections read
    that sum instead of spikes. Batch norms tell how far it reaches without any data: means and variances of what is
    added up add up. The step is the power of two with which 127 steps are six deviations.

    Not matched is what is not made of batch norms, spikes, sums of these, maxima and products with a number, such as
    the means that a classifier reads. Refuses a stream with a reader that is called more than once.
    """

    name = "QuantizeStreams"  # in reports, which keep the name that they began with
    requires = (Stage.CAPTURED, Stage.PRUNED)

    def apply(self, program: Program) -> PassResult:
        self.known = integer_ranges(program)
        self.spreads = spreads(program, self.known)
        return super().apply(program)

    def match(self, program: Program, node: fx.Node) -> bool:
        return node in self.spreads and node not in self.known and bool(_readers(program, node))

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        twice = [str(each.target) for each in _readers(program, node) if not program.called_once(each)]
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
    """Projections of whole vectors; what works channel by channel stays as it is."""
    modules = {user: program.module_of(user) for user in node.users}
    return [user for user, m in modules.items() if ops.is_projection(m) and getattr(m, "groups", 1) == 1]


def spreads(program: Program, known: Mapping[fx.Node, IntegerRange]) -> dict[fx.Node, Spread]:
    """What batch norms, and the program's grids, tell of its values; one that is missing can be anything."""
    found: dict[fx.Node, Spread] = {}
    for node in program.graph.nodes:
        grid = known.get(node)
        bounds = Spread(grid.unit * grid.low, grid.unit * grid.high, 0.0) if grid is not None else None
        spread = bounds or _spread(program, node, found)
        if spread is not None:
            found[node] = spread
    return found


def _spread(program: Program, node: fx.Node, found: dict[fx.Node, Spread]) -> Spread | None:
    module: Any = program.module_of(node)
    if ops.is_batch_norm(module):
        shift = torch.zeros(module.num_features) if module.bias is None else module.bias.detach().double()
        scale = torch.ones(module.num_features) if module.weight is None else module.weight.detach().double()
        return Spread(float(shift.min()), float(shift.max()), float(scale.square().max()))
    inputs = [found.get(each) for each in node.all_input_nodes]
    if not inputs or None in inputs:
        return None
    first: Any = inputs[0]
    if node.target in ops.VIEWS or node.target in (ops.take_block, ops.take_range):
        return first
    if isinstance(module, nn.MaxPool2d):
        return first._replace(high=first.high + POOLED * math.sqrt(first.variance))
    if (
        node.target in (operator.add, operator.sub)
        and len(node.args) == 2
        and all(isinstance(a, fx.Node) for a in node.args)
    ):
        second: Any = found[node.args[1]]  # type: ignore[index]
        low, high = (second.low, second.high) if node.target is operator.add else (-second.high, -second.low)
        return Spread(first.low + low, first.high + high, first.variance + second.variance)
    if node.target is operator.mul and len(inputs) == 1:
        number: Any = next((each for each in node.args if not isinstance(each, fx.Node)), None)
        if number is not None:
            ends = sorted((first.low * number, first.high * number))
            return Spread(ends[0], ends[1], first.variance * number * number)
    return None


__all__ = ["QuantizeResidualStreams", "Spread", "spreads"]
