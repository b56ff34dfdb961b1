"""Criteria: the importance of each channel of a group. A new one is a function and an entry in CRITERIA:

def first_layer_only(context: Context, group: ChannelGroup) -> np.ndarray:
    ...                                    # [heads, d]; the least important channels are pruned first

CRITERIA["first-layer-only"] = first_layer_only
"""

from __future__ import annotations

import numpy as np

from svitc.ir import ops
from svitc.ir.channel_groups import ChannelGroup
from svitc.passes.policies.criteria.base import Context, consumers, over_group


def _filters(context: Context, group: ChannelGroup, power: int) -> np.ndarray:
    """Return the sum of ``|w| ** power`` over each filter, and over all layers that produce the group."""
    total = np.zeros((group.heads, group.axis.size))
    for member in group.members:
        if member.produces and member.param in ("", "weight"):
            weight, dim = context.parameter(member)
            total = total + over_group(group, dim, weight.abs().double().pow(power).reshape(len(weight), -1).sum(1))
    return total


def l2(context: Context, group: ChannelGroup) -> np.ndarray:
    """Return the L2 norm of the filters of each channel (PrimeSVT: "channel-wise filter pruning by L2 norm")."""
    return np.sqrt(_filters(context, group, 2))


def l1(context: Context, group: ChannelGroup) -> np.ndarray:
    """Return the L1 norm of the filters of each channel."""
    return _filters(context, group, 1)


def bn_scale(context: Context, group: ChannelGroup) -> np.ndarray:
    """Return the sum of absolute scales of the group's batch norms (after Network Slimming, Liu et al., 2017)."""
    total = np.zeros((group.heads, group.axis.size))
    has_batch_norm = False
    for member in group.members:
        norm = context.program.module.get_submodule(member.module) if member.param == "weight" else None
        if norm is not None and ops.is_batch_norm(norm):
            has_batch_norm = True
            scale, dim = context.parameter(member)
            total = total + over_group(group, dim, scale.abs())
    return total if has_batch_norm else l2(context, group)


def random(context: Context, group: ChannelGroup) -> np.ndarray:
    """Return random numbers: the baseline for all other criteria."""
    return context.rng.random((group.heads, group.axis.size))


def taylor(context: Context, group: ChannelGroup) -> np.ndarray:
    """Return the first-order change of the loss without the channel (Molchanov et al., 2019), by surrogate gradients.

    The L2 norm is used for a group without gradients.
    """
    scores = context.measured("taylor").taylor(group)
    return scores if scores is not None else l2(context, group)


def firing(context: Context, group: ChannelGroup) -> np.ndarray:
    """Return the firing rate times the L2 norm of the weights that consume the channel.

    A channel that never fires has no importance.
    """
    rates = context.measured("firing").firing(group)
    total = np.zeros((group.heads, group.axis.size))
    for member in consumers(group):
        weight, dim = context.parameter(member)
        total = total + over_group(group, dim, weight.double().pow(2).reshape(len(weight), -1).sum(1))
    strength = np.sqrt(total) if total.any() else l2(context, group)
    return strength if rates is None else strength * rates
