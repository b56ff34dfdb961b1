"""Exactness: which neurons of a quantized program fire the same in any order of sums; which layers can be narrower."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from svitc.analysis.integer_range import IntegerRange, integer_ranges, runs_in_floats
from svitc.ir import ops
from svitc.ir.graph import describe
from svitc.ir.operators.registry import operator_of
from svitc.ir.outputs import labels, output_values
from svitc.ir.program import Program
from svitc.ir.quantized_modules import EXACT


def inexact(program: Program) -> dict[str, str]:
    """Return the neurons and outputs whose values depend on the order of float sums, each with the reason.

    Outputs are called as ``ir.outputs.labels`` says, ``logits`` where there is one.

    All other neurons fire the same, bit for bit, in a runtime that conforms to IEEE float32: between spikes there
    are only sums of integers below 2^24, and elementwise operations, which have exactly one correctly rounded result.
    """
    ranges = integer_ranges(program)
    why: dict[fx.Node, str] = {}
    inexact_neurons: dict[str, str] = {}
    for node in program.graph.nodes:
        inherited = next((why[source] for source in node.all_input_nodes if source in why), None)
        reason = inherited or _reason_of(program, node, ranges)
        if reason is not None:
            why[node] = reason
            if ops.is_neuron(program.module_of(node)):
                inexact_neurons[str(node.target)] = reason
    outputs = zip(labels(program.info), output_values(program.graph), strict=True)
    return inexact_neurons | {label: why[value] for label, value in outputs if value in why}


def _reason_of(program: Program, node: fx.Node, ranges: dict[fx.Node, IntegerRange]) -> str | None:
    """Return why an operation's result depends on the order of its sum, or None."""
    inputs = node.all_input_nodes
    module: Any = program.module_of(node)
    where = str(node.target) if module is not None else node.meta.get("scope") or "the model"
    if ops.is_projection(module):
        input_range = ranges.get(inputs[0])
        if input_range is None:
            return f"{where} sums real numbers"
        if not ops.is_quantized(module):
            return f"{where} is not quantized"
        largest = int(module.weight.flatten(1).int().abs().sum(1).max()) * input_range.bound
        return None if largest < EXACT else f"{where} could pass 2^24"
    if ops.is_batch_norm(module):
        return f"{where} is a batch norm, which runtimes compute in different ways"
    general = operator_of(node.target)
    if general is not None:
        alike = general.same_bits or general.moves or node in ranges
        return None if alike else f"{general.name} in {where}, which runtimes compute in different ways"
    if isinstance(module, nn.AvgPool2d) or node.target is torch.mean:
        # a mean is exact only where its divisor is a power of two
        return None if node in ranges and _small(ranges[node]) else f"a mean in {where}"
    if node.target in (torch.sum, torch.matmul):
        what = "sum" if node.target is torch.sum else "matrix product"
        if any(source not in ranges for source in inputs):
            return f"a {what} of real numbers in {where}"
        return None if _small(ranges[node]) else f"a {what} in {where} could pass 2^24"
    # everything else between neurons has one correctly rounded result, or copies its input
    if module is not None:
        known = ops.is_neuron(module) or isinstance(module, (nn.MaxPool2d, nn.ZeroPad2d, ops.FixedPoint))
    else:
        known = node.op != "call_function" or node.target in (*ops.ELEMENTWISE, *ops.VIEWS, *_PARTS)
    return None if known else f"runtimes compute {describe(node)} in different ways"


_PARTS = (ops.take_block, ops.take_range)


def _small(value_range: IntegerRange) -> bool:
    return value_range.bound < EXACT


def narrowable(program: Program) -> dict[str, str]:
    """Return the layers of a quantized program, each with why its weights must stay at 8 bits, or an empty text."""
    ranges = integer_ranges(program)
    reasons = {}
    for node in program.graph.nodes:
        module: Any = program.module_of(node)
        if ops.is_quantized(module):
            floats = runs_in_floats(module, ranges.get(node.all_input_nodes[0]))
            reasons[str(node.target)] = "it reads real numbers, or channel by channel" if floats else ""
    return reasons


__all__ = ["inexact", "narrowable"]
