"""What a program holds and does, layer by layer: parameters, stored bytes, multiply-accumulates."""

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
        widths: channels in and out, as text.
        parameters: numbers that train.
        bytes: fp32 bytes when stored with its batch norm folded (a batch norm of its own counts whole).
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
    """Every layer with weights and every matrix product, in order."""
    found = []
    for node in program.graph.nodes:
        module = program.module_of(node)
        if ops.is_projection(module):
            found.append(_projection(program, node, module))
        elif ops.is_batch_norm(module):
            found.append(
                Layer(
                    str(node.target),
                    type(module).__name__,
                    str(module.num_features),
                    _count(module),
                    0,
                    0,
                    _where(node),
                )
            )
        elif node.target is torch.matmul:
            a, b = (
                (program.shape_of(n) for n in node.all_input_nodes[:2])
                if len(node.all_input_nodes) > 1
                else (None, None)
            )
            if a and b:
                macs = math.prod(a) * b[-1] // BATCH_PROBE
                found.append(
                    Layer(
                        node.meta.get("scope") or "",
                        "matmul",
                        f"{a[-2]}x{a[-1]}x{b[-1]}",
                        0,
                        0,
                        macs,
                        _where(node),
                    )
                )
        elif node.op == "get_attr":
            n = math.prod(program.shape_of(node))
            found.append(Layer(str(node.target), "parameter", str(n), n, 4 * n, 0, _where(node)))
    return found


def _projection(program: Program, node: fx.Node, module: nn.Module) -> Layer:
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
    return sum(p.numel() for p in module.parameters())


def _where(node: fx.Node) -> str | None:
    source = node.meta.get("source")
    return "/".join(str(source).split("/")[-2:]) if source else None


def macs(program: Program) -> int:
    """Multiply-accumulates for one image over all time steps."""
    return sum(layer.macs for layer in layers(program))
