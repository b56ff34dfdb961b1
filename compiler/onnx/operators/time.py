"""ONNX forms of the operators that combine time steps."""

from __future__ import annotations

import torch
from torch import fx

from svitc.ir.graph import attribute_of
from svitc.ir.operators import time
from svitc.onnx import layout
from svitc.onnx.builder import Builder, Stored


def mix_steps(b: Builder, node: fx.Node, _: None) -> Stored:
    """Lower to a product of the weights ``[T, T]`` and all steps ``[T, (rest)]``, to which the bias is added."""
    stored = b.at(node.args[0])
    view = layout.fresh(b.program.type_of(node))
    flat = (view[0], layout.flat(view[1:]))
    x = b.read(stored, (stored.view[0], layout.flat(stored.view[1:])))
    weight, bias = (_parameter(b, arg) for arg in node.args[1:])
    weighted = b.op("MatMul", [b.weight(f"{node.name}.weight", weight), x], flat, helper="mixed")
    steps = bias.reshape(-1, 1).expand(len(weight), 1)
    return b.store(b.op("Add", [weighted, b.weight(f"{node.name}.bias", steps)], flat), flat, view)


def _parameter(b: Builder, node: object) -> torch.Tensor:
    assert isinstance(node, fx.Node)
    return attribute_of(b.program.module, str(node.target)).detach()


RULES = {time.mix_steps: mix_steps}
