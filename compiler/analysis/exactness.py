"""Quantization: from a program that trains to the integer network that defines what its ONNX file computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from svitc.analysis.integer_range import IntegerRange, integer_ranges, runs_in_floats
from svitc.ir import ops
from svitc.ir.program import Program
from svitc.ir.quantized_modules import EXACT


def inexact(program: Program) -> dict[str, str]:
    """Neurons, and ``logits``, whose values depend on the order of float sums, each with the reason.

    All other neurons fire the same, bit for bit, in every runtime that keeps to IEEE float32: what lies between spikes
    is sums of whole numbers below 2^24, and elementwise operations, which round in one way only.
    """
    known = integer_ranges(program)
    why: dict[fx.Node, str] = {}
    found: dict[str, str] = {}
    for node in program.graph.nodes:
        reason = next((why[each] for each in node.all_input_nodes if each in why), None) or _own(program, node, known)
        if reason is not None:
            why[node] = reason
            if ops.is_neuron(program.module_of(node)):
                found[str(node.target)] = reason
            elif node.op == "output":
                found["logits"] = reason
    return found


def _own(program: Program, node: fx.Node, known: dict[fx.Node, IntegerRange]) -> str | None:
    """Why an operation's result depends on the order of its sum, or None."""
    inputs = node.all_input_nodes
    module: Any = program.module_of(node)
    where = str(node.target) if module is not None else node.meta.get("scope") or "the model"
    if ops.is_projection(module):
        grid = known.get(inputs[0])
        if grid is None:
            return f"{where} sums real numbers"
        if not ops.is_quantized(module):
            return f"{where} is not quantized"
        largest = int(module.weight.flatten(1).int().abs().sum(1).max()) * grid.bound
        return None if largest < EXACT else f"{where} could pass 2^24"
    if ops.is_batch_norm(module):
        return f"{where} is a batch norm, which runtimes compute in different ways"
    if isinstance(module, nn.AvgPool2d) or node.target is torch.mean:
        # a share of a sum: exact only where the divisor is a power of two
        return None if node in known and _small(known[node]) else f"a mean in {where}"
    if node.target in (torch.sum, torch.matmul):
        what = "sum" if node.target is torch.sum else "matrix product"
        if any(each not in known for each in inputs):
            return f"a {what} of real numbers in {where}"
        return None if _small(known[node]) else f"a {what} in {where} could pass 2^24"
    return None


def _small(grid: IntegerRange) -> bool:
    return grid.bound < EXACT


def narrowable(program: Program) -> dict[str, str]:
    """Layers of a quantized program, each with the reason why its weights must stay at 8 bits, or an empty text."""
    known = integer_ranges(program)
    found = {}
    for node in program.graph.nodes:
        module: Any = program.module_of(node)
        if ops.is_quantized(module):
            floats = runs_in_floats(module, known.get(node.all_input_nodes[0]))
            found[str(node.target)] = "it reads real numbers, or channel by channel" if floats else ""
    return found


__all__ = ["inexact", "narrowable"]
