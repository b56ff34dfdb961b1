"""QuantizeInput: images as whole numbers of steps, so that the first layer's sums are exact, too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from svitc.ir import ops
from svitc.ir.graph import readers_through
from svitc.ir.pass_manager import Pass
from svitc.ir.program import Program, Stage
from svitc.ir.quantized_modules import EXACT, FixedPoint
from svitc.passes.quantization.quantize_weights import LEVELS

STEP = 2.0**-9  # of the image: an eighth of the distance between two of its own 256 levels


RANGE = 4  # normalised pixels lie within +-2.7


COUNTS = 256  # events of a pixel in one frame


class QuantizeInput(Pass):
    """Give the network's input as whole numbers, so that the first layer's sums are exact, too.

    before   x -> conv
    after    x -> FixedPoint -> conv', with conv's weights times the step

    The limit is lowered until no sum of the first layer can pass 2^24.

    Refuses
      1. an input that something else than projections reads;
      2. a layer that is called more than once.
    """

    requires = (Stage.INFERENCE, Stage.INFERENCE)

    def match(self, program: Program, node: fx.Node) -> bool:
        return node.op == "placeholder" and not any(isinstance(program.module_of(u), FixedPoint) for u in node.users)

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        readers = _readers(program, node)
        if any(not ops.is_projection(program.module_of(each)) for each in readers):
            return "something else than a convolution or linear layer reads the image"
        twice = [str(each.target) for each in readers if not program.called_once(each)]
        return f"{twice[0]} reads the image and is called more than once" if twice else None

    def rewrite(self, program: Program, node: fx.Node) -> None:
        terms = max(math.prod(_weight(program, each).shape[1:]) for each in _readers(program, node))
        span = COUNTS if program.input.events else RANGE
        limit = min(int(span / STEP), EXACT // (terms * LEVELS) - 1)
        step = STEP
        while step * limit < span:  # a window of many inputs: coarser steps instead of a narrow range
            step *= 2
        limit = min(limit, int(span / step))
        rounded_for(program, node, "input_steps", FixedPoint(step, limit), list(node.users), _readers(program, node))


def rounded_for(
    program: Program, node: fx.Node, name: str, steps: FixedPoint, users: Sequence[fx.Node], layers: Sequence[fx.Node]
) -> None:
    """Give a value to some of its users in whole numbers of steps, and the step to the weights of the layers behind."""
    program.module.add_submodule(name, steps)
    with program.graph.inserting_after(node):
        made = program.graph.call_module(name, (node,))
    made.meta.update({k: node.meta[k] for k in ("source", "scope", "dims") if k in node.meta})
    for user in users:
        user.replace_input_with(node, made)
    for each in layers:
        layer: Any = program.module_of(each)
        with torch.no_grad():
            layer.weight = nn.Parameter(layer.weight * steps.step, requires_grad=False)


def _readers(program: Program, node: fx.Node) -> list[fx.Node]:
    """Return what reads a value, looking through views and borders of zeros."""

    def is_view(user: fx.Node) -> bool:
        return user.target in ops.VIEWS or isinstance(program.module_of(user), nn.ZeroPad2d)

    return list(readers_through(node, is_view))


def _weight(program: Program, node: fx.Node) -> torch.Tensor:
    module: Any = program.module_of(node)
    return module.weight
