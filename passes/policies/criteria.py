"""Criteria: how much each channel of a group matters. A new one is a function and an entry in CRITERIA:

def first_layer_only(about: Context, group: ChannelGroup) -> np.ndarray:
    ...                                    # [heads, d]; the lowest go first

CRITERIA["first-layer-only"] = first_layer_only
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import fx

from svitc.analysis.calibration import Calibration, over_channels
from svitc.errors import UsageError
from svitc.ir import ops
from svitc.ir.axes import Dim
from svitc.ir.channel_groups import ChannelGroup, Member
from svitc.ir.graph import attribute_of
from svitc.ir.program import Program


@dataclass
class Context:
    """What a criterion may look at.

    Attributes:
        program: the original.
        rng: seeded.
        calibrating: gives what the original does on images; None without data.
    """

    program: Program
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    calibrating: Callable[[], Calibration] | None = None

    def measured(self, criterion: str) -> Calibration:
        """Raises UsageError where there are no images."""
        if self.calibrating is None:
            raise UsageError(f"criterion {criterion!r} looks at images", hint="Give --data.")
        return self.calibrating()

    @functools.cached_property
    def _nodes(self) -> dict[str, fx.Node]:
        """The first node that calls each layer."""
        return {str(n.target): n for n in reversed(self.program.graph.nodes)}

    def parameter(self, member: Member) -> tuple[torch.Tensor, Dim]:
        """A member's parameter with the group's dimension first, and that dimension."""
        node = self._nodes[member.module]
        name = f"{member.module}.{member.param}".rstrip(".")
        dim = self.program.parameters_of(node)[member.param][member.dim]
        return attribute_of(self.program.module, name).detach().movedim(member.dim, 0), dim


Criterion = Callable[[Context, ChannelGroup], np.ndarray]


def readers(about: Context, group: ChannelGroup) -> Iterator[Member]:
    """Projections that read the group, one member each."""
    for member in group.members:
        if member.param == "weight" and member.dim == 1 and not member.produces:
            yield member


def _over(group: ChannelGroup, dim: Dim, values: torch.Tensor) -> np.ndarray:
    return over_channels(values.reshape([axis.size for axis in dim]), dim, group)


def _filters(about: Context, group: ChannelGroup, power: int) -> np.ndarray:
    """Sum over all layers that produce the group of ``|w| ** power`` for each filter."""
    total = np.zeros((group.heads, group.axis.size))
    for member in group.members:
        if member.produces and member.param in ("", "weight"):
            weight, dim = about.parameter(member)
            total = total + _over(group, dim, weight.abs().double().pow(power).reshape(len(weight), -1).sum(1))
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
            total = total + _over(group, dim, scale.abs())
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
        total = total + _over(group, dim, weight.double().pow(2).reshape(len(weight), -1).sum(1))
    strength = np.sqrt(total) if total.any() else l2(about, group)
    return strength if rates is None else strength * rates


from svitc.passes.policies.reconstruction import reconstruction  # noqa: E402  a criterion long enough for its own file

CRITERIA: dict[str, Criterion] = {
    "l2": l2,
    "l1": l1,
    "bn-scale": bn_scale,
    "taylor": taylor,
    "firing": firing,
    "reconstruction": reconstruction,
    "random": random,
}
