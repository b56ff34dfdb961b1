"""Reductions over the time steps so far: a state that each step adds to."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
from torch import fx

from svitc.ir import ops
from svitc.ir.axes import Dims
from svitc.onnx.builder import Builder, Stored
from svitc.onnx.states import AFTER, batch_first

_FORMS = {"largest": ("Max", -math.inf), "smallest": ("Min", math.inf)}  # operator, and what changes no number


def running_reduction(b: Builder, node: fx.Node, module: ops.RunningReduction) -> Stored:
    """Lower a running reduction of a value that is stored whole."""
    x = b.at(node.args[0])
    own = batch_first(x.dims)
    return b.store(reduced_so_far(b, str(node.target), module.kind, b.read(x, own), own), own, x.view)


def reduced_so_far(b: Builder, path: str, kind: str, value: ir.Value, dims: Dims) -> ir.Value:
    """Emit a state that is joined with a value, and return what the steps so far reduce to.

    The sum over the steps is formed in their order, as the file for all steps at once does, and the mean is its product
    with 1 / steps, which rounds as that file's constant.

    Args:
        b: builder that the nodes are emitted to.
        path: path of the reduction.
        kind: its kind.
        value: the step's value.
        dims: its layout, with the batch first.
    """
    op_type, initial = _FORMS.get(kind, ("Add", 0.0))
    limits = np.finfo(np.float32)
    state = b.state(path, dims, float(np.clip(initial, limits.min, limits.max)))
    total = b.op(op_type, [state.before, value], dims)
    state.after = total
    total.name = f"{AFTER}{path}"
    return b.op("Mul", [total, b.share_of_steps(len(dims))], dims, helper="mean") if kind == "mean" else total


__all__ = ["reduced_so_far", "running_reduction"]
