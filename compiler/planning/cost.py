"""The cost of a program as a linear function of what its groups keep: parameters, or bytes in ONNX."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from svitc.ir import axes
from svitc.ir.axes import Axis, Dims
from svitc.ir.graph import attribute_of
from svitc.ir.program import Program


@dataclass
class Cost:
    """An amount as a sum of products of axis sizes, so that any plan's amount is known at once.

    Attributes:
        constant: what no plan changes.
        terms: (bytes or parameters for each element, leaf axes whose sizes multiply, the layer whose weights they
            are where these may have fewer bits).
        bits: of layers whose weights have fewer bits in every plan that does not say otherwise.
    """

    constant: int = 0
    terms: list[tuple[int, tuple[Axis, ...], str]] = field(default_factory=list)
    bits: dict[str, int] = field(default_factory=dict)

    def add(self, each: int, dims: Dims, layer: str = "") -> None:
        self.terms.append((each, tuple(axis for dim in dims for axis in dim), layer))

    def __call__(self, sizes: Mapping[int, int] | None = None, bits: Mapping[str, int] | None = None) -> int:
        """The amount where the axes with these ids have these sizes and all others their own.

        Args:
            bits: of layers whose weights have fewer than 8; what they fill of a last byte counts as a whole one.
        """
        sizes, narrow = sizes or {}, self.bits | dict(bits or {})
        total = self.constant
        for each, leaves, layer in self.terms:
            for axis in leaves:
                each *= sizes.get(id(axis), axis.size)
            total += -(-each * narrow[layer] // 8) if layer in narrow else each
        return total

    def of(self, layer: str) -> int:
        """The weights of one layer at its own size, in 8 bits."""
        return sum(each * math.prod(axis.size for axis in leaves) for each, leaves, name in self.terms if name == layer)


def parameter_cost(program: Program) -> Cost:
    """Parameters of a program that trains, batch norms included."""
    cost = Cost()
    typed = 0
    seen: set[str] = set()
    named = dict(program.module.named_parameters())
    for node in program.graph.nodes:
        for name, dims in program.parameters_of(node).items():
            path = f"{node.target}.{name}" if name else str(node.target)
            if path in named and path not in seen:
                seen.add(path)
                cost.add(1, dims)
                typed += named[path].numel()
    cost.constant = program.parameter_count() - typed  # a ParametricLIF's one weight, say
    return cost


def byte_cost(program: Program, inference: Program, exported: int) -> Cost:
    """Bytes of the exported file's weights, for any plan over ``program``.

    Args:
        program: the program that plans are for.
        inference: the same program after the inference pipeline, perhaps quantized: its layers are what is stored.
        exported: bytes measured on the export of ``inference``; what types do not explain is constant.
    """
    origin = {str(node.target): program.parameters_of(node) for node in program.graph.nodes}
    cost = Cost()
    seen: set[str] = set()
    for node in inference.graph.nodes:
        if str(node.target) in seen:
            continue
        seen.add(str(node.target))
        for name, dims in inference.parameters_of(node).items():
            known = origin[str(node.target)]
            value = attribute_of(inference.module, f"{node.target}.{name}" if name else str(node.target))
            # folding gives a layer a bias that it did not have, quantizing a scale: one for each of its filters
            layer = str(node.target) if name == "weight" and value.element_size() == 1 else ""
            cost.add(value.element_size(), known[name] if name in known else (known["weight"][0],), layer)
            assert axes.shape(dims) == axes.shape(known.get(name, known["weight"][:1]))
    cost.constant = exported - cost()
    return cost
