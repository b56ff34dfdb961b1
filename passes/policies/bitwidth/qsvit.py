"""QSViT: quantizing spiking vision transformers (Putra et al., arXiv 2504.00948, IJCNN 2025)."""

from __future__ import annotations

from dataclasses import dataclass

from svitc.passes.policies.bitwidth.search_space import Bits, BitSettings, BitSpace
from svitc.passes.policies.bitwidth.sensitivity import LOWER, Alone, precision
from svitc.passes.policies.policy import Policy
from svitc.passes.policies.problem import Problem
from svitc.planning.plan import Plan


@dataclass
class QSViT(BitSettings, Policy):
    """The published steps.

    Stated by the abstract, and what each became:

    1. "investigate the impact of different precision levels in different network layers": each layer alone at 4 and at
       2 bits, and all layers of each kind, with everything else at 8.
    2. "identify base quantization settings that guide the reduction of bit precision": of each kind the lowest level
       that alone stays inside the tolerance; where together they do not, the kinds that lost the most for what they
       save go back, one level at a time.
    3. "guided quantization from the base settings selects the setting": from there each layer goes one level lower
       where the network stays inside the tolerance, those first that alone lost the least for each byte saved.
    4. "develop the quantized network": the program with these bits, rounded on what the layers read.

    Left open by the paper and decided here: the levels (8, 4 and 2 bits, which ONNX stores), the kinds (patch embedding,
    query, key, value, projection, MLP, head), the order of step 3, and how weights are rounded (passes/round_weights.py).
    Activations are spikes, which lose nothing. Published: 22.75% of memory and 21.33% of power saved within 2.1 points.
    """

    chooses_bits = True
    name = "qsvit"
    tolerance = 0.021

    def plan(self, problem: Problem) -> Plan:
        """The plan.

        Raises:
            UsageError: no images.
            BudgetError: the limit cannot be met within the drop, or no setting is within it.
        """
        space = BitSpace(problem, self)
        alone = precision(space, "qsvit: each layer and kind")
        bits, base = self._base(space, alone)
        bits = self._guided(space, bits, alone)
        dearest = sorted(space.layers, key=lambda layer: -self._price(space, alone, layer, bits[layer]))
        return space.finish(bits, {"base": base}, dearest)

    def _base(self, space: BitSpace, alone: Alone) -> tuple[Bits, dict[str, int]]:
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
            low = [kind for kind, to in base.items() if (kind, to) in alone]
            if point.drop <= space.tolerance or not low:
                return bits, base
            worst = max(low, key=lambda kind: self._price(space, alone, kind, base[kind]))
            base[worst] *= 2

    def _price(self, space: BitSpace, alone: Alone, name: str, to: int) -> float:
        """Divergence for each byte that a layer or kind saves alone; none at 8 bits."""
        if (name, to) not in alone:
            return 0.0
        layers = [name] if name in space.allowed else [n for n in space.layers if space.kinds[n] == name]
        saved = space.cost(space.widest) - space.cost(space.lowered(space.widest, layers, to))
        return float(alone[name, to].divergence) / max(saved, 1)

    def _guided(self, space: BitSpace, bits: Bits, alone: Alone) -> Bits:
        for to in LOWER:
            order = [layer for layer in space.layers if (layer, to) in alone and bits[layer] > to]
            order.sort(key=lambda layer: self._price(space, alone, layer, to))
            for layer in order:
                if space.met(bits):
                    return bits
                trial = space.lowered(bits, [layer], to)
                point = space.points([trial], f"qsvit: {to} bits, layer by layer")[0]
                if point.drop <= space.tolerance:
                    bits = trial
                    space.problem.reporter.decide(f"{layer}: {to} bits, {100 * point.drop:.1f} points lost")
        return bits


__all__ = ["QSViT"]
