"""Criteria: how much each channel of a group matters. A new one is a function and an entry in CRITERIA:

def first_layer_only(about: Context, group: ChannelGroup) -> np.ndarray:
    ...                                    # [heads, d]; the lowest go first

CRITERIA["first-layer-only"] = first_layer_only
"""

from __future__ import annotations

import numpy as np

from svitc.ir import ops
from svitc.ir.channel_groups import ChannelGroup
from svitc.passes.policies.criteria.base import Context, over_group, readers


def _filters(about: Context, group: ChannelGroup, power: int) -> np.ndarray:
    """Sum over all layers that produce the group of ``|w| ** power`` for each filter."""
    total = np.zeros((group.heads, group.axis.size))
    for member in group.members:
        if member.produces and member.param in ("", "weight"):
            weight, dim = about.parameter(member)
            total = total + over_group(group, dim, weight.abs().double().pow(power).reshape(len(weight), -1).sum(1))
    return total


def l2(about: Context, group: ChannelGroup) -> np.ndarray:
    """L2 norm over a group's filters (PrimeSVT: "channel-wise filter pruning by L2 norm")."""
    return np.sqrt(_filters(about, group, 2))


def l1(about: Context, group: ChannelGroup) -> np.ndarray:
    """L1 norm over a group's filters."""
    return _filters(about, group, 1)


def bn_scale(about: Context, group: ChannelGroup) -> np.ndarray:
    """Sum of the absolute scales of the batch norms that the group passes through (after Network Slimming, 2017)."""
    total = np.zeros((group.heads, group.axis.size))
    found = False
    for member in group.members:
        norm = about.program.module.get_submodule(member.module) if member.param == "weight" else None
        if norm is not None and ops.is_batch_norm(norm):
            found = True
            scale, dim = about.parameter(member)
            total = total + over_group(group, dim, scale.abs())
    return total if found else l2(about, group)


def random(about: Context, group: ChannelGroup) -> np.ndarray:
    """No criterion at all: the baseline that the others must beat."""
    return about.rng.random((group.heads, group.axis.size))


def taylor(about: Context, group: ChannelGroup) -> np.ndarray:
    """First-order change of the loss if the channel fell silent, by surrogate gradients (Molchanov et al., 2019)."""
    found = about.measured("taylor").taylor(group)
    return found if found is not None else l2(about, group)


def firing(about: Context, group: ChannelGroup) -> np.ndarray:
    """Firing rate times the L2 norm of what reads the channel: one that never spikes costs nothing to lose."""
    rates = about.measured("firing").firing(group)
    total = np.zeros((group.heads, group.axis.size))
    for member in readers(about, group):
        weight, dim = about.parameter(member)
        total = total + over_group(group, dim, weight.double().pow(2).reshape(len(weight), -1).sum(1))
    strength = np.sqrt(total) if total.any() else l2(about, group)
    return strength if rates is None else strength * rates
