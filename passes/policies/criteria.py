"""Criteria: how much each channel of a group matters. A new one is a function and an entry in CRITERIA."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from svitc import axes, ops
from svitc.axes import Dim
from svitc.coupling import ChannelGroup, Member
from svitc.infer import attribute_of
from svitc.program import Program

Criterion = Callable[[Program, ChannelGroup, np.random.Generator], np.ndarray]


def per_channel(group: ChannelGroup, dim: Dim, values: torch.Tensor) -> np.ndarray:
    """Sums of ``values`` (one for each element of ``dim``) as ``[heads, d]``."""
    grid = values.double().cpu().numpy().reshape([axis.size for axis in dim])
    order = [i for i, axis in enumerate(dim) if axis is group.head_axis] + [
        i for i, axis in enumerate(dim) if axis is group.axis
    ]
    rest = tuple(i for i in range(len(dim)) if i not in order)
    summed = (
        grid.transpose(*order, *rest).sum(axis=tuple(range(len(order), len(dim)))) if rest else grid.transpose(order)
    )
    return np.broadcast_to(summed.reshape(-1, group.axis.size), (group.heads, group.axis.size))


def _filters(program: Program, group: ChannelGroup, power: int) -> np.ndarray:
    """Sum over all layers that produce the group of ``|w| ** power`` for each filter."""
    total = np.zeros((group.heads, group.axis.size))
    types = {str(n.target): program.parameters_of(n) for n in program.graph.nodes if "params" in n.meta}
    for member in group.members:
        if not member.produces or member.param not in ("", "weight"):
            continue
        name = f"{member.module}.{member.param}".rstrip(".")
        weight = attribute_of(program.module, name).detach().movedim(member.dim, 0)
        dim = types[member.module][member.param][member.dim]
        total = total + per_channel(
            group,
            dim,
            weight.abs().double().pow(power).flatten(1).sum(1) if weight.ndim > 1 else weight.abs().double().pow(power),
        )
    return total


def l2(program: Program, group: ChannelGroup, rng: np.random.Generator) -> np.ndarray:
    """L2 norm over a group's filters (PrimeSVT: "channel-wise filter pruning by L2 norm")."""
    return np.sqrt(_filters(program, group, 2))


def l1(program: Program, group: ChannelGroup, rng: np.random.Generator) -> np.ndarray:
    """L1 norm over a group's filters."""
    return _filters(program, group, 1)


def bn_scale(program: Program, group: ChannelGroup, rng: np.random.Generator) -> np.ndarray:
    """Sum of the absolute scales of the batch norms that the group passes through (after Network Slimming, 2017)."""
    total = np.zeros((group.heads, group.axis.size))
    types = {str(n.target): program.parameters_of(n) for n in program.graph.nodes if "params" in n.meta}
    found = False
    for member in group.members:
        norm = program.module.get_submodule(member.module) if member.param == "weight" else None
        if norm is not None and ops.is_batch_norm(norm):
            found = True
            total = total + per_channel(group, types[member.module]["weight"][0], norm.weight.detach().abs())  # type: ignore[operator, union-attr]
    return total if found else l2(program, group, rng)


def random(program: Program, group: ChannelGroup, rng: np.random.Generator) -> np.ndarray:
    """No criterion at all: the baseline that the others must beat."""
    return rng.random((group.heads, group.axis.size))


CRITERIA: dict[str, Criterion] = {"l2": l2, "l1": l1, "bn-scale": bn_scale, "random": random}

__all__ = ["CRITERIA", "Criterion", "Member", "axes", "nn", "per_channel"]
