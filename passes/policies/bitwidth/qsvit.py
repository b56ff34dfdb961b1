"""QSViT: quantizing spiking vision transformers (Putra et al., arXiv 2504.00948, IJCNN 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from svitc.passes.policies.bitwidth.search_space import Bits, BitSettings, BitSpace
from svitc.passes.policies.bitwidth.sensitivity import LOWER_BITS, Alone, precision
from svitc.passes.policies.policy import Policy
from svitc.passes.policies.problem import Problem
from svitc.planning.plan import Plan


@dataclass
class QSViT(BitSettings, Policy):
    """The published steps.

    The steps that the abstract states, and how they are implemented here:

    1. "investigate the impact of different precision levels in different network layers": each layer, and each kind of
       layer, is measured alone at 4 and at 2 bits, with all other layers at 8 bits.
    2. "identify base quantization settings that guide the reduction of bit precision": each kind of layer gets the
       fewest bits that alone stay within the tolerance. Where the combination does not, the kinds with the highest
       loss per saved byte are raised again, one level at a time.
    3. "guided quantization from the base settings selects the setting": from there on, each layer is lowered by one
       level where the network stays within the tolerance, first the layers with the least loss per saved byte.
    4. "develop the quantized network": the program with these bits, whose weights are rounded on calibration images.

    The paper leaves open, and this implementation decides: the levels (8, 4 and 2 bits, which ONNX can store), the
    kinds (patch embedding, query, key, value, projection, MLP, head), the order of step 3, and how weights are rounded
    (passes/quantization/round_weights.py). Activations are spikes and need no quantization. Published: 22.75% of memory
    and 21.33% of power saved within 2.1 points.
    """

    chooses_bits = True
    name = "qsvit"
    tolerance = 0.021

    def plan(self, problem: Problem) -> Plan:
        """See ``Policy``.

        Raises:
            UsageError: no images.
            BudgetError: the limit cannot be met within ``max_drop``, or no setting is within it.
        """
        space = BitSpace(problem, self)
        alone = precision(space, "qsvit: each layer and kind")
        bits, base = self._base(space, alone)
        bits = [bits, *self._guided(space, bits, alone)][-1]
        by_price = sorted(space.layers, key=lambda layer: -self._price(space, alone, layer, bits[layer]))
        return space.finish(bits, {"base": base}, by_price)

    def ladder(self, problem: Problem) -> list[Plan]:
        """See ``Policy``: to the base setting kind by kind, the cheapest first, and then the steps of the search."""
        space = BitSpace(problem, self)
        alone = precision(space, "qsvit: each layer and kind")
        bits, base = self._base(space, alone)
        steps = [space.widest]
        for kind in sorted(base, key=lambda kind: self._price(space, alone, kind, base[kind])):
            layers = [layer for layer in space.layers if space.kinds[layer] == kind]
            steps.append(space.lowered(steps[-1], layers, base[kind]))
        return space.ladder([*steps, *self._guided(space, bits, alone)], {"base": base})

    def _base(self, space: BitSpace, alone: Alone) -> tuple[Bits, dict[str, int]]:
        """Return the base setting, as layer -> bits and as kind -> bits."""
        base = dict.fromkeys(dict.fromkeys(space.kinds.values()), 8)
        for (name, to), point in alone.items():
            if name in base and point.drop <= space.tolerance:
                base[name] = min(base[name], to)
        while True:
            bits = space.widest
            for kind, to in base.items():
                bits = space.lowered(bits, [n for n in space.layers if space.kinds[n] == kind], to)
            point = space.points([bits], "qsvit: base settings")[0]
            shown = ", ".join(f"{kind} {to}" for kind, to in base.items())
            space.problem.reporter.decide(f"base settings {shown}: {100 * point.drop:.1f} points lost")
            lowered_kinds = [kind for kind, to in base.items() if (kind, to) in alone]
            if point.drop <= space.tolerance or not lowered_kinds:
                return bits, base
            costliest = max(lowered_kinds, key=lambda kind: self._price(space, alone, kind, base[kind]))
            base[costliest] *= 2

    def _price(self, space: BitSpace, alone: Alone, name: str, to: int) -> float:
        """Return the divergence per saved byte of a layer or kind alone; 0 at 8 bits."""
        if (name, to) not in alone:
            return 0.0
        layers = [name] if name in space.allowed else [n for n in space.layers if space.kinds[n] == name]
        saved = space.cost(space.widest) - space.cost(space.lowered(space.widest, layers, to))
        return float(alone[name, to].divergence) / max(saved, 1)

    def _guided(self, space: BitSpace, bits: Bits, alone: Alone) -> list[Bits]:
        """Lower single layers, from the base setting on, while the network stays within the tolerance.

        Returns:
            The settings on the way, without the base setting.
        """
        taken: list[Bits] = []
        for to in LOWER_BITS:
            order = [layer for layer in space.layers if (layer, to) in alone and bits[layer] > to]
            order.sort(key=lambda layer: self._price(space, alone, layer, to))
            for layer in order:
                if space.met(bits):
                    return taken
                trial = space.lowered(bits, [layer], to)
                point = space.points([trial], f"qsvit: {to} bits, layer by layer")[0]
                if point.drop <= space.tolerance:
                    bits = trial
                    taken.append(bits)
                    space.problem.reporter.decide(f"{layer}: {to} bits, {100 * point.drop:.1f} points lost")
        return taken


__all__ = ["QSViT"]
