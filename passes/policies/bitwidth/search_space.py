"""What the policies that choose bits share: settings of bits, what they cost, how they are judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from svitc.errors import BudgetError, UsageError
from svitc.passes.policies.bitwidth.layer_roles import layer_kinds
from svitc.passes.policies.problem import Problem
from svitc.passes.policies.search_space import Settings
from svitc.planning.plan import Plan

Bits = dict[str, int]  # layer -> bits, of all layers that may have fewer than 8


@dataclass
class BitSettings(Settings):
    """What policies of bits take.

    Attributes:
        exclude: globs over layers that stay at 8 bits.
        refit: of the network that is built; while they search, rounding's own closed form stands in for it.
    """

    refit: str = "batch-norm"
    chooses_bits = True
    name = ""
    tolerance = 0.0

    def to_json(self) -> dict:
        return {"exclude": list(self.exclude), "seed": self.seed}


class BitSpace:
    """Settings of bits for one problem.

    Raises:
        UsageError: no images, no layer that may have fewer bits, or channels named to be pruned.
    """

    def __init__(self, problem: Problem, settings: BitSettings) -> None:
        self.problem, self.settings = problem, settings
        self.measure: Any = problem.required_measure(settings.name)
        if settings.include:
            raise UsageError(f"policy {settings.name!r} prunes no channels", hint="Leave --include out; see --exclude.")
        self.allowed = problem.bits or {}
        if not any(min(some) < 8 for some in self.allowed.values()):
            raise UsageError("no layer of this model can have fewer than 8 bits", hint="Use --weights int8.")
        self.kinds = layer_kinds(problem.program, self.allowed)
        self.tolerance = settings.tolerance if problem.max_drop is None else problem.max_drop

    @property
    def layers(self) -> list[str]:
        return list(self.allowed)

    @property
    def widest(self) -> Bits:
        return dict.fromkeys(self.allowed, 8)

    def lowered(self, bits: Mapping[str, int], layers: Sequence[str], to: int) -> Bits:
        """With some layers at no more than ``to`` bits, as far as they may."""
        return {
            layer: max(min(bits[layer], to), self.allowed[layer][0]) if layer in layers else bits[layer]
            for layer in bits
        }

    def plan(self, bits: Bits) -> Plan:
        return Plan({}, bits=dict(bits))

    def cost(self, bits: Bits) -> int:
        return self.problem.cost(bits=bits)

    def met(self, bits: Bits) -> bool:
        """Whether there is a limit and it is met."""
        return self.problem.limit is not None and self.cost(bits) <= self.problem.limit

    def points(self, settings: Sequence[Bits], stage: str) -> list[Any]:
        """Measured on all images."""
        return list(self.measure([self.plan(bits) for bits in settings], "none", stage))

    def filled(self, bits: Bits, order: Sequence[str]) -> Bits:
        """What the last step took more than the limit asked for, given back: layers in an order, as far as they go."""
        limit = self.problem.limit
        for layer in order if limit is not None else ():
            for wider in (b for b in (8, 4) if b > bits[layer]):
                if self.cost(trial := {**bits, layer: wider}) <= (limit or 0):
                    bits = trial
                    break
        return bits

    def finish(self, bits: Bits, about: dict[str, Any], order: Sequence[str] | None = None) -> Plan:
        """The plan of the chosen setting.

        Args:
            order: in which layers get bits back that the limit leaves; by default the smallest first.

        Raises:
            BudgetError: it misses the limit, or there is none within the drop.
        """
        problem, name = self.problem, self.settings.name
        bits = self.filled(bits, order or sorted(self.layers, key=problem.cost.of))
        whole, reached = problem.cost(), self.cost(bits)
        found = self.points([bits], f"{name}: the plan")[0]
        if found.drop > self.tolerance and problem.max_drop is not None:
            raise BudgetError(
                f"8 bits in every layer lose {100 * found.drop:.1f} points, more than the {100 * self.tolerance:g} allowed",
                hint="Allow more with --max-drop, or measure on more images with --sweep-images.",
            )
        if problem.limit is not None and reached > problem.limit:
            raise BudgetError(
                f"within {100 * self.tolerance:g} points {name} keeps {reached:,} bytes, not the {problem.limit:,} asked for",
                hint="Allow more with --max-drop, or use --policy auto, which also prunes channels.",
            )
        problem.say(f"{name}: {reached / whole:.1%} of the int8 bytes, {100 * found.drop:.1f} points lost")
        plan = self.plan(bits)
        plan.provenance = {"policy": name, "tolerance": self.tolerance, **about, **self.settings.to_json()}
        return plan


__all__ = ["BitSettings", "BitSpace", "Bits"]
