"""Random pruning plans, and models whose neurons fire."""

from __future__ import annotations

import numpy as np
import torch

from svitc.planning.plan import Plan


def liven(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Batch-norm statistics and scales under which neurons fire, some often and some never."""
    for module in model.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            with torch.no_grad():
                module.weight.uniform_(0.5, 2.5, generator=generator)
                module.bias.uniform_(-0.3, 1.0, generator=generator)
                module.running_mean.normal_(0, 0.1, generator=generator)
                module.running_var.uniform_(0.05, 0.5, generator=generator)


def random_plan(program, rng: np.random.Generator) -> Plan:
    """Any legal plan: each group at a random width, each head its own dimensions, sometimes whole heads gone."""
    heads_kept: dict[int, np.ndarray] = {}
    keep = {}
    for group in program.groups:
        if group.frozen is not None or rng.random() < 0.15:
            continue
        width = int(rng.integers(1, group.axis.size + 1)) if group.whole_heads is None else group.axis.size
        mask = np.zeros((group.heads, group.axis.size), dtype=bool)
        for row in mask:
            row[rng.permutation(group.axis.size)[:width]] = True
        keep[group.name] = mask
    for group in program.groups:  # heads go in every group that shares them, or in none
        if group.head_axis is None:
            continue
        key = id(group.head_axis)
        if key not in heads_kept:
            sharing = [g for g in program.groups if g.head_axis is group.head_axis]
            drop = rng.random() < 0.3 and all(g.name in keep for g in sharing)
            chosen = np.ones(group.heads, dtype=bool)
            if drop and group.heads > 1:
                chosen[rng.permutation(group.heads)[: int(rng.integers(1, group.heads))]] = False
            heads_kept[key] = chosen
        if group.name in keep:
            keep[group.name] &= heads_kept[key][:, None]
    return Plan(keep)


def kept(program, node, masks, value: np.ndarray) -> np.ndarray:
    """The elements of a node's value that its groups keep, flat; each head may keep its own dimensions."""
    leaves = [axis for dim in program.type_of(node) for axis in dim]
    grid = np.ones([axis.size for axis in leaves], dtype=bool)
    for group in program.groups:
        at = [i for i, axis in enumerate(leaves) if axis is group.axis or axis is group.head_axis]
        if at:
            chosen = group.mask(tuple(leaves[i] for i in at), masks[group.name])
            shape = [leaves[i].size if i in at else 1 for i in range(len(leaves))]
            grid &= chosen.reshape(shape)
    return value.reshape(grid.shape)[grid]
