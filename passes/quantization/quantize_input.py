"""QuantizeInput: rounds images to integer numbers of steps, so that the sums of the first layer are exact, too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from svitc.analysis.input_range import COUNTS, PIXELS, SMALL
from svitc.ir import ops
from svitc.ir.graph import readers_through
from svitc.ir.pass_manager import Pass
from svitc.ir.program import Program, Stage
from svitc.ir.quantized_modules import EXACT, FixedPoint
from svitc.passes.quantization.quantize_weights import LEVELS

STEP = 2.0**-9  # of a normalized pixel: an eighth of the distance between two of the image's 256 levels
FINEST = 2.0**-11  # step of a small range, as a share of it


class QuantizeInput(Pass):
    """Round the network's input to integers, so that the sums of the first layer are exact, too.

    before   x -> conv
    after    x -> FixedPoint -> conv', with conv's weights times the step

    The limit is lowered, or the step enlarged, until no sum of the first layer can exceed 2^24.

    Args:
        span: largest magnitude of an input; None for that of normalized pixels, or of counts of events.

    Refuses
      1. an input that something other than projections reads;
      2. a layer that is called more than once.
    """

    requires = (Stage.INFERENCE, Stage.INFERENCE)

    def __init__(self, span: float | None = None) -> None:
        self.span = span

    def match(self, program: Program, node: fx.Node) -> bool:
        return node.op == "placeholder" and not any(
            isinstance(program.module_of(user), FixedPoint) for user in node.users
        )

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        readers = _readers(program, node)
        if any(not ops.is_projection(program.module_of(reader)) for reader in readers):
            return "something else than a convolution or linear layer reads the image"
        twice = [str(reader.target) for reader in readers if not program.called_once(reader)]
        return f"{twice[0]} reads the image and is called more than once" if twice else None

    def rewrite(self, program: Program, node: fx.Node) -> None:
        terms = max(math.prod(_weight(program, reader).shape[1:]) for reader in _readers(program, node))
        span = self.span or (COUNTS if program.input.events else PIXELS)
        step = STEP if span > SMALL else min(STEP, 2.0 ** math.floor(math.log2(span * FINEST)))
        limit = min(int(span / step), EXACT // (terms * LEVELS) - 1)
        while step * limit < span:  # a window of many inputs: coarser steps instead of a narrow range
            step *= 2
        limit = min(limit, int(span / step))
        rounded_for(program, node, "input_steps", FixedPoint(step, limit), list(node.users), _readers(program, node))


def rounded_for(
    program: Program, node: fx.Node, name: str, steps: FixedPoint, users: Sequence[fx.Node], layers: Sequence[fx.Node]
) -> None:
    """Round a value to integer numbers of steps for some of its users, and scale the weights of the layers by the step.

    Args:
        program: the program.
        node: the value.
        name: name of the module that rounds.
        steps: that module.
        users: users of the value that get it rounded.
        layers: layers that read it, perhaps through views, and whose weights are scaled.
    """
    program.module.add_submodule(name, steps)
    with program.graph.inserting_after(node):
        rounded = program.graph.call_module(name, (node,))
    rounded.meta.update({k: node.meta[k] for k in ("source", "scope", "dims") if k in node.meta})
    for user in users:
        user.replace_input_with(node, rounded)
    for reader in layers:
        layer: Any = program.module_of(reader)
        with torch.no_grad():
            layer.weight = nn.Parameter(layer.weight * steps.step, requires_grad=False)


def _readers(program: Program, node: fx.Node) -> list[fx.Node]:
    """Return the nodes that read a value, looking through views and zero padding."""

    def is_view(user: fx.Node) -> bool:
        return user.target in ops.VIEWS or isinstance(program.module_of(user), nn.ZeroPad2d)

    return list(readers_through(node, is_view))


def _weight(program: Program, node: fx.Node) -> torch.Tensor:
    """Return the weight of a layer."""
    module: Any = program.module_of(node)
    return module.weight
