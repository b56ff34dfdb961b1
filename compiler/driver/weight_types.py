"""Types of the stored weights: choose one for a compilation, and find the layers that may have fewer than 8 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any

from svitc.analysis.exactness import narrowable
from svitc.errors import InputError, UsageError
from svitc.ir.program import Program
from svitc.ir.quantized_modules import BITS, TERNARY, WIDE_BITS
from svitc.onnx import target_of
from svitc.passes.pipelines import quantize
from svitc.passes.policies.policy import Policy
from svitc.planning.plan import Plan
from svitc.support.names import known

WEIGHT_TYPES: dict[str, int | None] = {
    "fp32": None,
    "int16": WIDE_BITS,
    "int8": 8,
    "int4": 4,
    "int2": 2,
    "ternary": TERNARY,
    "mixed": None,
}
# share of the fp32 bytes that weights of int8 need; for smaller budgets, channels and bits are chosen together
MIN_INT8_SHARE = 0.26
# share of all weights that the first layers may hold which int2 and ternary leave at 8 bits: what they get wrong passes
# through all others (docs/bits.md)
FRONT_SHARE = 0.05


def check_weight_type(name: str) -> None:
    """Check the name of a weight type.

    Raises:
        UsageError: there is no such type.
    """
    if name not in WEIGHT_TYPES:
        raise UsageError(
            f"weights {name!r} are not a type",
            hint=f"{known(name, WEIGHT_TYPES, 'Types are')} ONNX stores 8, 4 and 2 bits, ternary in 2, and 16 as "
            "two planes of 8.",
        )


def is_narrow(name: str) -> bool:
    """Return whether a weight type gives all layers that can have them the same few bits, below 8."""
    bits = WEIGHT_TYPES[name]
    return bits is not None and bits < 8


def resolve_weight_type(
    asked: str | None, policy: Policy, plan: Plan | None, share: float | None, sampled: bool
) -> str:
    """Return the type of a compilation's weights.

    Args:
        asked: the type that the user asks for, or None.
        policy: the policy that makes plans.
        plan: the plan that is replayed, or None.
        share: share of the original's bytes that may be kept, or None where bytes are not limited.
        sampled: whether there are images that a policy can measure plans on.

    Raises:
        UsageError: the type does not fit a plan or policy that chooses bits, or one that does not.
    """
    if plan is not None and plan.bits:
        if asked not in (None, "mixed", plan.provenance.get("weights")):
            raise UsageError("the plan gives each layer its bits", hint=f"Leave --weights {asked} out.")
        made = plan.provenance.get("weights")
        return made if made in WEIGHT_TYPES and made != "fp32" else "mixed"
    if plan is not None:
        return asked or "fp32"
    name = policy.name
    if policy.chooses_bits:
        if asked not in (None, "mixed"):
            raise UsageError(f"policy {name!r} chooses each layer's bits", hint=f"Leave --weights {asked} out.")
        return "mixed"
    joint = policy.joint and sampled
    if asked == "mixed" and not joint:
        raise UsageError(
            f"policy {name!r} does not choose bits", hint="Give --data and --policy auto, qsvit, aq-greedy or aq-beam."
        )
    if asked is None and joint and share is not None and share < MIN_INT8_SHARE:
        return "mixed"
    return asked or "fp32"


class WeightTypes:
    """The bits that each layer of a program may have.

    Args:
        program: the program that plans are made for.
        weights: a key of ``WEIGHT_TYPES``, except ``fp32``.
        exclude: globs over ignored layers, which stay at 8 bits.
        target: target of the exported file.
        min_weight_bits: the fewest bits that the file may store weights in.

    Attributes:
        inference: the program, quantized to 8 bits.
        refused: layer -> why a pass of the quantization did not change it.
        reasons: layer -> why it must stay at 8 bits; an empty string if it need not.
        narrow: layer -> the bits that it may have, ascending.
        front: the first layers, which have 8 bits where all others have 2 or are ternary.

    Raises:
        UsageError: a glob of ``exclude`` matches no layer.
    """

    def __init__(
        self,
        program: Program,
        weights: str,
        exclude: Sequence[str] = (),
        target: str = "cpu",
        min_weight_bits: int | None = None,
    ) -> None:
        self.inference, pipeline = quantize(program)
        self.refused = pipeline.refused
        self.weights = weights
        self.reasons = reasons = narrowable(self.inference)
        names = [*reasons, *(m.module for g in program.groups for m in g.members), *(g.name for g in program.groups)]
        for glob in exclude:
            if not any(fnmatchcase(name, glob) for name in names):
                close = get_close_matches(glob, dict.fromkeys(names), 3)
                near = f"The closest are {', '.join(close)}." if close else "svitc inspect lists all."
                raise UsageError(f"{glob!r} matches no group or layer", hint=near)
        min_bits = target_of(target, min_weight_bits).narrowest
        allowed = sorted(bits for bits in BITS if bits >= min_bits)
        self.front = _front(self.inference, [layer for layer, reason in reasons.items() if not reason])
        self.narrow = {
            layer: allowed
            for layer, reason in reasons.items()
            if not reason and not any(fnmatchcase(layer, glob) for glob in exclude)
        }

    def check(self, bits: Mapping[str, int]) -> None:
        """Check the bits of a plan.

        Raises:
            InputError: a layer has bits that it cannot have.
        """
        for layer, width in bits.items():
            reason = self.reasons.get(layer, "it cannot be quantized")
            if width < 8 and reason:
                what = "ternary weights" if width == TERNARY else f"{width} bits"
                raise InputError(f"the plan gives {layer} {what}, but its weights must stay at 8 bits: {reason}")

    @property
    def same(self) -> dict[str, int]:
        """Layer -> bits, where the weight type sets them; empty for int8 and mixed weights."""
        bits = WEIGHT_TYPES[self.weights]
        if bits is None or bits == 8:
            return {}
        if bits == WIDE_BITS:
            return dict.fromkeys(self.reasons, bits)
        # ternary weights stay ternary where the file stores them wider: they are for what reads them, not for bytes
        result = {layer: bits if bits == TERNARY else max(bits, allowed[0]) for layer, allowed in self.narrow.items()}
        return result | dict.fromkeys(self.spared, 8)

    @property
    def spared(self) -> list[str]:
        """The layers that keep 8 bits since they are among the first, where they could be ternary or have 2."""
        if self.weights not in ("int2", "ternary"):
            return []
        front = [layer for layer in self.narrow if layer in self.front]
        return front if self.weights == "ternary" else [layer for layer in front if self.narrow[layer][0] == 2]


def _front(program: Program, layers: Sequence[str]) -> set[str]:
    """Return the first layers of a program that together hold no more than ``FRONT_SHARE`` of the weights of all.

    Args:
        program: the program.
        layers: names of layers in the order of execution.
    """
    modules: list[Any] = [program.module.get_submodule(layer) for layer in layers]
    sizes = [module.weight.numel() for module in modules]
    return {layer for layer, held in zip(layers, accumulate(sizes), strict=True) if held <= FRONT_SHARE * sum(sizes)}


__all__ = ["MIN_INT8_SHARE", "WEIGHT_TYPES", "WeightTypes", "check_weight_type", "is_narrow", "resolve_weight_type"]
