"""Cost of a plan, in bytes of the exported file or in parameters, computed without building the pruned model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from svitc.ir import axes
from svitc.ir.axes import Axis, Dims
from svitc.ir.graph import attribute_of
from svitc.ir.low_rank import saves
from svitc.ir.program import Program
from svitc.ir.quantized_modules import BITS


@dataclass
class Cost:
    """A sum of products of axis sizes, which gives the cost of any plan at once.

    Attributes:
        constant: the part that no plan changes.
        terms: one tuple for each parameter: bytes (or 1, for counting) per element, the leaf axes whose sizes
            multiply to the number of elements, and the layer, empty unless its weights may have fewer bits.
        bits: layer -> bits of a weight, unless the plan sets them.
        narrowest: the fewest bits that the file stores a weight in; ternary weights take two.
        matrices: layer -> bytes (or 1) per weight, and the leaf axes of its outputs, and of the rest.
    """

    constant: int = 0
    terms: list[tuple[int, tuple[Axis, ...], str]] = field(default_factory=list)
    bits: dict[str, int] = field(default_factory=dict)
    narrowest: int = min(BITS)
    matrices: dict[str, tuple[int, tuple[Axis, ...], tuple[Axis, ...]]] = field(default_factory=dict)

    def add(self, unit: int, dims: Dims, layer: str = "") -> None:
        """Add a parameter: ``unit`` bytes (or 1) for each element of ``dims``."""
        self.terms.append((unit, tuple(axis for dim in dims for axis in dim), layer))

    def add_matrix(self, unit: int, dims: Dims, layer: str) -> None:
        """Note the weights of a layer, which have been added, so that they may have a low rank."""
        first, *rest = (tuple(dim) for dim in dims)
        self.matrices[layer] = unit, first, tuple(axis for dim in rest for axis in dim)

    def __call__(
        self,
        sizes: Mapping[int, int] | None = None,
        bits: Mapping[str, int] | None = None,
        ranks: Mapping[str, int] | None = None,
    ) -> int:
        """Return the cost of a plan.

        Args:
            sizes: id of an axis -> its size after pruning; other axes keep their size.
            bits: layer -> bits of a weight, for layers with fewer than 8; a partly filled last byte counts as one.
            ranks: layer -> rank of its weights.
        """
        sizes, narrow = sizes or {}, self.bits | dict(bits or {})
        total = self.constant
        for unit, leaves, layer in self.terms:
            amount = unit * math.prod(sizes.get(id(axis), axis.size) for axis in leaves)
            total += -(-amount * max(narrow[layer], self.narrowest) // 8) if layer in narrow else amount
        for layer, rank in (ranks or {}).items():
            unit, *sides = self.matrices[layer]
            outputs, inputs = (math.prod(sizes.get(id(axis), axis.size) for axis in side) for side in sides)
            if saves(rank, outputs, inputs):
                total -= unit * (outputs * inputs - rank * (outputs + inputs))
        return total

    def of(self, layer: str) -> int:
        """Return the bytes of one layer's weights before pruning, in 8 bits."""
        return sum(unit * math.prod(axis.size for axis in leaves) for unit, leaves, name in self.terms if name == layer)


def parameter_cost(program: Program) -> Cost:
    """Return the cost of plans in parameters, those of batch norms included.

    Args:
        program: the program before batch norms are folded.
    """
    cost = Cost()
    counted = 0
    seen: set[str] = set()
    named = dict(program.module.named_parameters())
    for node in program.graph.nodes:
        for name, dims in program.parameters_of(node).items():
            path = f"{node.target}.{name}" if name else str(node.target)
            if path in named and path not in seen:
                seen.add(path)
                cost.add(1, dims)
                if name == "weight" and len(dims) > 1:
                    cost.add_matrix(1, dims, str(node.target))
                counted += named[path].numel()
    cost.constant = program.parameter_count() - counted  # parameters without axes, such as a ParametricLIF's weight
    return cost


def byte_cost(program: Program, inference: Program, exported: int) -> Cost:
    """Return the cost of plans in bytes of the exported file's weights.

    Args:
        program: the program that plans are made for.
        inference: the same program after the inference pipeline, perhaps quantized; its layers are those stored.
        exported: bytes of weights in the exported file of ``inference``; those that no axis explains are constant.
    """
    origin = {str(node.target): program.parameters_of(node) for node in program.graph.nodes}
    cost = Cost()
    seen: set[str] = set()
    for node in inference.graph.nodes:
        if str(node.target) in seen:
            continue
        seen.add(str(node.target))
        for name, dims in inference.parameters_of(node).items():
            before = origin[str(node.target)]
            value = attribute_of(inference.module, f"{node.target}.{name}" if name else str(node.target))
            # folding may add a bias to a layer, and quantizing adds a scale: one element for each output channel
            layer = str(node.target) if name == "weight" and value.element_size() == 1 else ""
            cost.add(value.element_size(), before[name] if name in before else (before["weight"][0],), layer)
            if name == "weight" and len(dims) > 1:
                cost.add_matrix(value.element_size(), before[name], str(node.target))
            assert axes.shape(dims) == axes.shape(before[name] if name in before else before["weight"][:1])
    cost.constant = exported - cost()
    return cost
