"""Layer statistics: parameters, stored bytes and multiply-accumulates of each layer of a program."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx, nn

from svitc.ir import axes, ops
from svitc.ir.graph import BATCH_PROBE
from svitc.ir.program import Program


@dataclass(frozen=True)
class Layer:
    """One layer or matrix product.

    Attributes:
        name: path of the layer, or scope of the product.
        kind: class or function name.
        widths: input and output channels, as text.
        parameters: number of trainable parameters.
        bytes: stored size in fp32 once its batch norm is folded; a batch norm itself counts 0.
        macs: multiply-accumulates for one image over all time steps.
        where: ``file.py:line`` of the user's model.
    """

    name: str
    kind: str
    widths: str
    parameters: int
    bytes: int
    macs: int
    where: str | None


def layers(program: Program) -> list[Layer]:
    """Return every layer with weights and every matrix product, in order of execution."""
    result = []
    for node in program.graph.nodes:
        module = program.module_of(node)
        if ops.is_projection(module):
            result.append(_projection(program, node, module))
        elif ops.is_batch_norm(module):
            kind, width = type(module).__name__, str(module.num_features)
            result.append(Layer(str(node.target), kind, width, _count(module), 0, 0, _where(node)))
        elif node.target is torch.matmul:
            if len(node.all_input_nodes) > 1:
                a, b = (program.shape_of(operand) for operand in node.all_input_nodes[:2])
                macs = math.prod(a) * b[-1] // BATCH_PROBE
                sizes = f"{a[-2]}x{a[-1]}x{b[-1]}"
                result.append(Layer(node.meta.get("scope") or "", "matmul", sizes, 0, 0, macs, _where(node)))
        elif node.op == "get_attr":
            n = math.prod(program.shape_of(node))
            result.append(Layer(str(node.target), "parameter", str(n), n, 4 * n, 0, _where(node)))
    return result


def _projection(program: Program, node: fx.Node, module: nn.Module) -> Layer:
    """Return the statistics of a convolution or linear layer."""
    weight, bias = module.weight, module.bias
    assert isinstance(weight, torch.Tensor)
    out = math.prod(program.shape_of(node)) // BATCH_PROBE
    dims = program.parameters_of(node)["weight"]
    followed = any(ops.is_batch_norm(program.module_of(user)) for user in node.users)
    stored = weight.numel() + (weight.shape[0] if bias is not None or followed else 0)
    return Layer(
        str(node.target),
        type(module).__name__,
        f"{axes.size(dims[1]) * (getattr(module, 'groups', 1))}->{axes.size(dims[0])}",
        _count(module),
        4 * stored,
        out * math.prod(weight.shape[1:]),
        _where(node),
    )


def _count(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(p.numel() for p in module.parameters())


def _where(node: fx.Node) -> str | None:
    """Return the last folder, file and line of the code that a node comes from."""
    source = node.meta.get("source")
    return "/".join(str(source).split("/")[-2:]) if source else None


def macs(program: Program) -> int:
    """Return the multiply-accumulates for one image over all time steps."""
    return sum(layer.macs for layer in layers(program))
