"""The context of a criterion: a program, and what calibration images tell of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import fx

from svitc.analysis.calibration import Calibration, over_channels
from svitc.errors import UsageError
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


def over_group(group: ChannelGroup, dim: Dim, values: torch.Tensor) -> np.ndarray:
    return over_channels(values.reshape([axis.size for axis in dim]), dim, group)
