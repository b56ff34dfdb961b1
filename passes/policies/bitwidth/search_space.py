"""The search space of policies that choose bits: settings of bits, their cost and their measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from svitc.errors import BudgetError, UsageError
from svitc.ir.layer_roles import layer_kinds
from svitc.passes.policies.ladder import by_step
from svitc.passes.policies.problem import MeasuredAccuracy, Problem
from svitc.passes.policies.search_space import Settings
from svitc.planning.plan import Plan
from svitc.support.types import JsonDict

Bits = dict[str, int]  # layer -> bits, for all layers that may have fewer than 8 bits


@dataclass
class BitSettings(Settings):
    """Settings of policies that choose bits.

    Attributes:
        exclude: globs over ignored layers, which stay at 8 bits.
        refit: how the resulting network is refitted; during the search, weights are only rounded on calibration images.
    """

    refit: str = "batch-norm"
    name = ""
    tolerance = 0.0

    def to_json(self) -> JsonDict:
        """Return the settings as JSON values."""
        return {"exclude": list(self.exclude), "seed": self.seed}


class BitSpace:
    """Settings of bits for one problem.

    Args:
        problem: the problem.
        settings: the settings of the policy.

    Attributes:
        measure: measures plans.
        allowed: layer -> the bits that it may have, ascending.
        kinds: layer -> kind of layer.
        tolerance: the most accuracy that may be lost, a share.

    Raises:
        UsageError: there are no images, no layer may have fewer bits, or ``include`` names channels to prune.
    """

    def __init__(self, problem: Problem, settings: BitSettings) -> None:
        self.problem, self.settings = problem, settings
        self.measure = problem.required_measure(settings.name)
        if settings.include:
            raise UsageError(f"policy {settings.name!r} prunes no channels", hint="Leave --include out; see --exclude.")
        self.allowed = problem.bits or {}
        if not any(min(widths) < 8 for widths in self.allowed.values()):
            raise UsageError("no layer of this model can have fewer than 8 bits", hint="Use --weights int8.")
        self.kinds = layer_kinds(problem.program.module, self.allowed)
        self.tolerance = settings.tolerance if problem.max_drop is None else problem.max_drop

    @property
    def layers(self) -> list[str]:
        """Layers that may have fewer than 8 bits."""
        return list(self.allowed)

    @property
    def widest(self) -> Bits:
        """The setting with 8 bits in every layer."""
        return dict.fromkeys(self.allowed, 8)

    def lowered(self, bits: Mapping[str, int], layers: Sequence[str], to: int) -> Bits:
        """Return a setting with some layers lowered to ``to`` bits, or to the fewest that they may have."""
        return {
            layer: max(min(bits[layer], to), self.allowed[layer][0]) if layer in layers else bits[layer]
            for layer in bits
        }

    def plan(self, bits: Bits) -> Plan:
        """Return the plan of a setting."""
        return Plan({}, bits=dict(bits))

    def cost(self, bits: Bits) -> int:
        """Return the cost of a setting."""
        return self.problem.cost(bits=bits)

    def met(self, bits: Bits) -> bool:
        """Return whether there is a limit that the setting meets."""
        return self.problem.limit is not None and self.cost(bits) <= self.problem.limit

    def points(self, settings: Sequence[Bits], stage: str) -> list[MeasuredAccuracy]:
        """Measure settings on all images."""
        return list(self.measure([self.plan(bits) for bits in settings], "none", stage))

    def filled(self, bits: Bits, order: Sequence[str]) -> Bits:
        """Return a setting with single layers raised again while the limit is met, in an order of layers."""
        limit = self.problem.limit
        for layer in order if limit is not None else ():
            for wider in (b for b in (8, 4) if b > bits[layer]):
                if self.cost(trial := {**bits, layer: wider}) <= (limit or 0):
                    bits = trial
                    break
        return bits

    def finish(self, bits: Bits, about: JsonDict, order: Sequence[str] | None = None) -> Plan:
        """Return the plan of the chosen setting.

        Args:
            bits: the setting.
            about: further entries of the plan's provenance.
            order: the order in which layers are raised while the limit is met; by default the smallest first.

        Raises:
            BudgetError: the setting does not meet the limit, or no setting is within ``max_drop``.
        """
        problem, name = self.problem, self.settings.name
        bits = self.filled(bits, order or sorted(self.layers, key=problem.cost.of))
        full_cost, reached = problem.cost(), self.cost(bits)
        point = self.points([bits], f"{name}: the plan")[0]
        if point.drop > self.tolerance and problem.max_drop is not None:
            raise BudgetError(
                f"8 bits in every layer lose {100 * point.drop:.1f} points, more than the {100 * self.tolerance:g} "
                "allowed",
                hint="Allow more with --max-drop, or measure on more images with --sweep-images.",
            )
        if problem.limit is not None and reached > problem.limit:
            raise BudgetError(
                f"within {100 * self.tolerance:g} points {name} keeps {reached:,} bytes, not the {problem.limit:,} "
                "asked for",
                hint="Allow more with --max-drop, or use --policy auto, which also prunes channels.",
            )
        problem.reporter.decide(
            f"{name}: {reached / full_cost:.1%} of the int8 bytes, {100 * point.drop:.1f} points lost"
        )
        return self.made(bits, about)

    def made(self, bits: Bits, about: JsonDict) -> Plan:
        """Return the plan of a setting with its provenance, ``about`` in it."""
        plan = self.plan(bits)
        name = self.settings.name
        plan.provenance = {"policy": name, "tolerance": self.tolerance, **about, **self.settings.to_json()}
        return plan

    def ladder(self, steps: Sequence[Bits], about: JsonDict) -> list[Plan]:
        """Return some plans of the settings that a search went through, as ``Policy.ladder`` does.

        Args:
            steps: the settings, each smaller than the one before; the first has 8 bits in every layer.
            about: further entries of the plans' provenance.
        """
        distinct = {tuple(bits.values()): bits for bits in steps}
        plans = [self.made(bits, about) for bits in distinct.values()]
        return by_step(self.problem, plans, "none", self.settings.name)


__all__ = ["BitSettings", "BitSpace", "Bits"]
