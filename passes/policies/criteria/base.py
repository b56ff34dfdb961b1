"""The context of a criterion: a program, and its statistics on calibration images."""

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
    """What a criterion may use.

    Attributes:
        program: the original.
        rng: a seeded random generator.
        calibrating: returns statistics of the original on images; None without data.
    """

    program: Program
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    calibrating: Callable[[], Calibration] | None = None

    def measured(self, criterion: str) -> Calibration:
        """Return statistics of the original on images.

        Args:
            criterion: name of the criterion, for the message.

        Raises:
            UsageError: there are no images.
        """
        if self.calibrating is None:
            raise UsageError(f"criterion {criterion!r} looks at images", hint="Give --data.")
        return self.calibrating()

    @functools.cached_property
    def _nodes(self) -> dict[str, fx.Node]:
        """Layer -> the first node that calls it."""
        return {str(n.target): n for n in reversed(self.program.graph.nodes)}

    def parameter(self, member: Member) -> tuple[torch.Tensor, Dim]:
        """Return a member's parameter, with the group's dimension moved to the front, and that dimension's axes."""
        node = self._nodes[member.module]
        name = f"{member.module}.{member.param}".rstrip(".")
        dim = self.program.parameters_of(node)[member.param][member.dim]
        return attribute_of(self.program.module, name).detach().movedim(member.dim, 0), dim


# returns the importance of each channel, [heads, channels of a head]; the least important channels are pruned first
Criterion = Callable[[Context, ChannelGroup], np.ndarray]


def consumers(group: ChannelGroup) -> Iterator[Member]:
    """Yield the members of a group that are weights of layers which consume its channels."""
    for member in group.members:
        if member.param == "weight" and member.dim == 1 and not member.produces:
            yield member


def over_group(group: ChannelGroup, dim: Dim, values: torch.Tensor) -> np.ndarray:
    """Sum values along a dimension over all axes but the group's.

    Args:
        group: the channel group.
        dim: axes of the dimension.
        values: one value for each element of the dimension.

    Returns:
        ``[heads, channels of a head]``.
    """
    return over_channels(values.reshape([axis.size for axis in dim]), dim, group)
