"""The type of the stored weights: what ``--weights`` asks for, which layers may have fewer bits, the network that has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from svitc.analysis.exactness import narrowable
from svitc.errors import InputError, UsageError
from svitc.ir.program import Program
from svitc.ir.quantized_modules import BITS
from svitc.onnx import target_of
from svitc.passes.pipelines import quantize
from svitc.planning.plan import Plan

WEIGHT_TYPES: dict[str, int | None] = {"fp32": None, "int8": 8, "int4": 4, "int2": 2, "mixed": None}
JOINT = 0.26  # of the fp32 bytes: smaller budgets than int8 alone meets are for channels and bits together


def check_weight_type(name: str) -> None:
    """Raises UsageError where there is no such type."""
    if name not in WEIGHT_TYPES:
        raise UsageError(
            f"weights {name!r} are not a type",
            hint=f"Types are {', '.join(WEIGHT_TYPES)}: ONNX stores 8, 4 and 2 bits.",
        )


def resolve_weight_type(asked: str | None, policy: Any, plan: Plan | None, share: float | None, sampled: bool) -> str:
    """The type of a compilation's weights.

    Args:
        asked: what the user said, if anything.
        plan: that is replayed.
        share: of the original's bytes that may be kept, where there is such a budget.
        sampled: whether there are images that a policy can measure plans on.

    Raises:
        UsageError: a plan or policy that chooses bits and weights of one type, or the other way round.
    """
    if plan is not None and plan.bits:
        if asked not in (None, "mixed", plan.provenance.get("weights")):
            raise UsageError("the plan gives each layer its bits", hint=f"Leave --weights {asked} out.")
        return "mixed"
    if plan is not None:
        return asked or "fp32"
    name = getattr(policy, "name", type(policy).__name__.lower())
    if getattr(policy, "chooses_bits", False):
        if asked not in (None, "mixed"):
            raise UsageError(f"policy {name!r} chooses each layer's bits", hint=f"Leave --weights {asked} out.")
        return "mixed"
    joint = getattr(policy, "joint", False) and sampled
    if asked == "mixed" and not joint:
        raise UsageError(
            f"policy {name!r} does not choose bits", hint="Give --data and --policy auto, qsvit, aq-greedy or aq-beam."
        )
    if asked is None and joint and share is not None and share < JOINT:
        return "mixed"
    return asked or "fp32"


class WeightTypes:
    """Which layers of a program may have which bits.

    Args:
        program: that plans are for.
        weights: a key of TYPES but ``fp32``.
        exclude: globs over layers that stay at 8 bits.
        target, narrowest: of the file.

    Attributes:
        inference: the program, quantized to 8 bits.
        refused: by its passes, with reasons.
        reasons: layer -> why it must stay at 8 bits, or an empty text.
        narrow: layer -> the bits that it may have, ascending.

    Raises:
        UsageError: an excluded layer that does not exist.
    """

    def __init__(
        self,
        program: Program,
        weights: str,
        exclude: Sequence[str] = (),
        target: str = "cpu",
        narrowest: int | None = None,
    ) -> None:
        self.inference, pipeline = quantize(program)
        self.refused = pipeline.refused
        self.weights = weights
        self.reasons = reasons = narrowable(self.inference)
        known = [*reasons, *(m.module for g in program.groups for m in g.members), *(g.name for g in program.groups)]
        for glob in exclude:
            if not any(fnmatchcase(name, glob) for name in known):
                close = get_close_matches(glob, dict.fromkeys(known), 3)
                near = f"The closest are {', '.join(close)}." if close else "svitc inspect lists all."
                raise UsageError(f"{glob!r} matches no group or layer", hint=near)
        least = target_of(target, narrowest).narrowest
        allowed = sorted(each for each in BITS if each >= least)
        self.narrow = {
            layer: allowed
            for layer, reason in reasons.items()
            if not reason and not any(fnmatchcase(layer, glob) for glob in exclude)
        }

    def check(self, bits: Mapping[str, int]) -> None:
        """Raises InputError where a layer is given bits that it cannot have."""
        for layer, each in bits.items():
            reason = self.reasons.get(layer, "it cannot be quantized")
            if each < 8 and reason:
                raise InputError(f"the plan gives {layer} {each} bits, but its weights must stay at 8: {reason}")

    @property
    def same(self) -> dict[str, int]:
        """Every layer's bits where all have the same; empty for int8 and mixed weights."""
        bits = WEIGHT_TYPES[self.weights]
        if bits is None or bits == 8:
            return {}
        return {layer: max(bits, allowed[0]) for layer, allowed in self.narrow.items()}


__all__ = ["JOINT", "WEIGHT_TYPES", "WeightTypes", "check_weight_type", "resolve_weight_type"]
