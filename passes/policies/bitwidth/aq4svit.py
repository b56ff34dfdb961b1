"""AQ4SViT: automated quantization with a search gating policy (arXiv 2606.15523, 2026)."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from dataclasses import dataclass

from svitc.ir.layer_roles import blocks, stages
from svitc.passes.policies.bitwidth.drift_gate import DriftGate
from svitc.passes.policies.bitwidth.search_space import Bits, BitSettings, BitSpace
from svitc.passes.policies.bitwidth.sensitivity import LOWER_BITS
from svitc.passes.policies.policy import Policy
from svitc.passes.policies.problem import Problem
from svitc.planning.plan import Plan


@dataclass
class AQGreedy(BitSettings, Policy):
    """Greedy search from the network to its stages, its blocks, and single layers.

    A setting assigns bits to every layer. The abstract states: a search over settings under an accuracy constraint,
    with a gate on the drift of membrane potentials; greedy search is fast. Others report: the search goes from the
    network to stages to blocks, and uses a mini-batch before the full data. Decided here: after blocks come single
    layers; units that save the most go first; the bits of a unit are lowered to 4, then to 2, where the gate passes the
    setting. The settings that pass the gate on one level are combined and measured on all images; where the combination
    loses too much, bisection finds the longest sequence of them that does not. Published: up to 82.5% of memory saved
    within 1.5 points.

    Attributes:
        gate: whether to use the gate; without it, every setting is measured on all images.
    """

    gate: bool = True
    chooses_bits = True
    name = "aq-greedy"
    tolerance = 0.015

    def plan(self, problem: Problem) -> Plan:
        """See ``Policy``.

        Raises:
            UsageError: no images.
            BudgetError: the limit cannot be met within ``max_drop``, or no setting is within it.
        """
        space = BitSpace(problem, self)
        gate = DriftGate(space, on=self.gate)
        return space.finish(self.search(space, gate)[-1], {"search": gate.to_json()})

    def ladder(self, problem: Problem) -> list[Plan]:
        """See ``Policy``: settings that the search went through."""
        space = BitSpace(problem, self)
        gate = DriftGate(space, on=self.gate)
        return space.ladder(self.search(space, gate), {"search": gate.to_json()})

    def search(self, space: BitSpace, gate: DriftGate) -> list[Bits]:
        """Return the settings that the search went through; the last one is its result."""
        steps = [space.widest]
        for level, units in levels(space).items():
            if space.met(steps[-1]):
                break
            steps += self.descend(space, gate, steps[-1], level, units)
        space.problem.reporter.decide(
            f"{self.name}: {gate.by_drift} settings turned away by drift, {gate.by_mini_batch} by a mini-batch,"
            f" {gate.measured} measured"
        )
        return steps

    def descend(self, space: BitSpace, gate: DriftGate, bits: Bits, level: str, units: list[list[str]]) -> list[Bits]:
        """Lower the bits of the units of one level, one after another, as far as the tolerance allows.

        Args:
            space: the settings.
            gate: rejects settings before they are measured on all images.
            bits: the setting to start from.
            level: name of the level, for messages.
            units: units of the level, each a list of layers.

        Returns:
            The settings on the way, each with one more unit lowered; the last one is within the tolerance. None where
            no unit can be lowered.
        """
        taken: list[Bits] = []
        stage = f"{self.name}: {level}"
        left = [(unit, to) for unit in units for to in LOWER_BITS]
        while left and not space.met(bits):
            steps = self._steps(space, gate, bits, left, stage)
            kept = len(steps)
            if gate.on and steps and not gate.within(steps[-1][0], stage):
                # the last setting loses too much: search for the first one that does
                kept = bisect_left(steps, True, hi=len(steps) - 1, key=lambda step: not gate.within(step[0], stage))
            if kept:
                bits = steps[kept - 1][0]
                taken += [step[0] for step in steps[:kept]]
            if kept == len(steps):
                break
            # the first setting that loses too much: give up its unit, and try the later ones again
            unit = left[steps[kept][1]][0]
            left = [step for step in left[steps[kept][1] :] if step[0] is not unit]
        return taken

    def _steps(
        self, space: BitSpace, gate: DriftGate, bits: Bits, left: list[tuple[list[str], int]], stage: str
    ) -> list[tuple[Bits, int]]:
        """Return settings that pass the gate, each with one more unit lowered, with the positions of these units.

        Args:
            space: the settings.
            gate: rejects settings.
            bits: the setting to start from.
            left: units that are not tried yet, with the bits to lower them to.
            stage: name of the stage for progress reports.
        """
        steps: list[tuple[Bits, int]] = []
        given_up: list[str] = []
        for at, (unit, to) in enumerate(left):
            current = steps[-1][0] if steps else bits
            if space.met(current):
                break
            trial = space.lowered(current, unit, to)
            if unit is given_up or trial == current:
                continue
            if gate.passes(trial) if gate.on else gate.within(trial, stage):
                steps.append((trial, at))
            else:
                given_up = unit
        return steps


@dataclass
class AQBeam(BitSettings, Policy):
    """Beam search: the best few settings of each depth, each with one unit lowered further.

    The abstract states: beam search is wider than greedy search, saves up to 90% within 1.5 points and takes 4.5 times
    as long. Decided here: it starts from the result of the greedy search on the network and its stages. Each step
    lowers one block or layer by one level. Of the settings that pass the gate, the beam keeps those with the least
    divergence on a mini-batch per saved byte, and the best of them within the tolerance on all images is remembered.
    The search ends where no setting passes the gate.

    Attributes:
        width: number of settings in the beam.
        children: number of settings of each depth that are measured on the mini-batch, those with the least drift per
            saved byte.
    """

    width: int = 3
    children: int = 6
    chooses_bits = True
    name = "aq-beam"
    tolerance = 0.015

    def plan(self, problem: Problem) -> Plan:
        """See ``AQGreedy``."""
        space = BitSpace(problem, self)
        gate = DriftGate(space)
        return space.finish(self.search(space, gate)[-1], {"search": gate.to_json(), "width": self.width})

    def ladder(self, problem: Problem) -> list[Plan]:
        """See ``Policy``: settings that the search went through."""
        space = BitSpace(problem, self)
        gate = DriftGate(space)
        return space.ladder(self.search(space, gate), {"search": gate.to_json(), "width": self.width})

    def search(self, space: BitSpace, gate: DriftGate) -> list[Bits]:
        """Return the settings that the search went through; the last one is its result."""
        greedy = AQGreedy(exclude=self.exclude, seed=self.seed)
        steps, units = [space.widest], levels(space)
        for level in ("network", "stages"):
            if not space.met(steps[-1]):
                steps += greedy.descend(space, gate, steps[-1], level, units[level])
        beam = steps[-1:]
        while not space.met(steps[-1]):
            following = self._next(space, gate, beam, [*units["blocks"], *units["layers"]])
            if not following:
                break
            accepted = next((bits for bits in following if gate.within(bits, "aq-beam")), None)
            if accepted is not None:  # otherwise the gate has a new bound, and passes other settings next time
                steps += [accepted] if space.cost(accepted) < space.cost(steps[-1]) else []
                beam = [bits for bits in following if gate.passes(bits)]
        space.problem.reporter.decide(
            f"aq-beam: {gate.by_drift} settings turned away by drift, {gate.by_mini_batch} by a mini-batch,"
            f" {gate.measured} measured"
        )
        return steps

    def _next(self, space: BitSpace, gate: DriftGate, beam: list[Bits], units: list[list[str]]) -> list[Bits]:
        """Return the next beam, best setting first.

        Args:
            space: the settings.
            gate: rejects settings.
            beam: the current beam.
            units: units whose bits may be lowered, each a list of layers.
        """
        full_cost = space.cost(space.widest)
        candidates: dict[tuple[int, ...], Bits] = {}
        for bits in beam:
            for unit in units:
                highest = max(bits[layer] for layer in unit)
                trial = space.lowered(bits, unit, max(highest // 2, 2))
                if trial != bits:
                    candidates[tuple(trial.values())] = trial

        def saved(bits: Bits) -> int:
            return max(full_cost - space.cost(bits), 1)

        drifts = {key: gate.drift(bits) for key, bits in candidates.items()}
        order = sorted(candidates, key=lambda key: drifts[key] / saved(candidates[key]))
        passing = (candidates[key] for key in order if gate.passes(candidates[key]))
        kept = list(itertools.islice(passing, self.children))
        return sorted(kept, key=lambda bits: gate.glance(bits).divergence / saved(bits))[: self.width]


def levels(space: BitSpace) -> dict[str, list[list[str]]]:
    """Return level -> its units, those with the most bytes first; units of a higher level are not repeated."""
    layers = space.layers
    by_level: dict[str, list[list[str]]] = {}
    seen: set[tuple[str, ...]] = set()
    for name, units in (
        ("network", [layers]),
        ("stages", stages(layers)),
        ("blocks", blocks(layers)),
        ("layers", [[layer] for layer in layers]),
    ):
        new_units = [unit for unit in units if tuple(unit) not in seen]
        seen.update(tuple(unit) for unit in new_units)
        by_level[name] = sorted(new_units, key=lambda unit: -sum(space.problem.cost.of(layer) for layer in unit))
    return by_level


__all__ = ["AQBeam", "AQGreedy"]
