"""The float lowering rule of each general operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from svitc.ir.axes import Dims
from svitc.ir.operators.registry import OPERATORS
from svitc.ir.operators.regroup import at_steps, regroup
from svitc.onnx import layout
from svitc.onnx.broadcast import common_layout
from svitc.onnx.builder import Builder, Stored
from svitc.onnx.operators import (
    normalization,
    pointwise,
    products,
    resampling,
    selection,
    several,
    slicing,
    structure,
    time,
)
from svitc.onnx.operators.emitter import Emitter
from svitc.onnx.operators.regroup import at_steps_rule, regroup_rule

Rule = Callable[[Builder, fx.Node, Any], Stored]


def pointwise_rule(form: pointwise.Form) -> Rule:
    """Return the rule of an operator that changes each element alone, in whichever layout its input is stored."""

    def rule(b: Builder, node: fx.Node, _: None) -> Stored:
        x = b.at(node.args[0])
        value = x.value if x.value is not None else b.read(x, x.dims)
        return b.store(form(Emitter(b, x.dims), value, dict(node.kwargs)), x.dims, x.view)

    return rule


def several_rule(form: several.Form) -> Rule:
    """Return the rule of an elementwise operator of several tensors."""

    def rule(b: Builder, node: fx.Node, _: None) -> Stored:
        stored = [b.at(arg) for arg in node.args]
        operand_dims: tuple[Dims, ...]
        if len(stored) == 2:
            dims, operand_dims, view = common_layout(*stored)
        else:
            dims = view = layout.fresh(b.program.type_of(node))
            operand_dims = tuple(s.view for s in stored)
        values = [b.read(s, d) for s, d in zip(stored, operand_dims, strict=True)]
        return b.store(form(Emitter(b, dims, operand_dims), *values, **node.kwargs), dims, view)

    return rule


def shaped_rule(form: structure.Form) -> Rule:
    """Return the rule of an operator that needs its inputs in the program's own dimensions."""

    def rule(b: Builder, node: fx.Node, _: None) -> Stored:
        stored = [b.at(arg) for arg in node.args]
        view = layout.fresh(b.program.type_of(node))
        values = [b.read(s, s.view) for s in stored]
        return b.store(form(Emitter(b, view, [s.view for s in stored]), *values, **node.kwargs), view)

    return rule


OPERATOR_RULES: dict[Callable, Rule] = {
    **{function: pointwise_rule(form) for function, form in pointwise.FORMS.items()},
    **{function: several_rule(form) for function, form in several.FORMS.items()},
    regroup: regroup_rule,
    at_steps: at_steps_rule,
    **slicing.RULES,
    **{function: shaped_rule(form) for function, form in structure.FORMS.items()},
    **time.RULES,
    **normalization.RULES,
    **resampling.RULES,
    **products.RULES,
    **selection.RULES,
}
assert set(OPERATOR_RULES) == set(OPERATORS), "every general operator needs an ONNX form"
