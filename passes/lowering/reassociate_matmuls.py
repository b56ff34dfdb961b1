"""ReassociateMatmuls: computes a chain of two matrix products in the order that takes fewer multiplications."""

from __future__ import annotations

import einops
import torch
from torch import fx

from svitc.analysis.integer_range import integer_ranges
from svitc.ir.pass_manager import Pass, PassResult
from svitc.ir.program import Program, Stage
from svitc.ir.quantized_modules import EXACT


class ReassociateMatmuls(Pass):
    """Compute attention without softmax in the cheaper order; for integers the result is the same, bit for bit.

    before   (q k) v
    after    q (k v)          where k v is smaller than q k, and the other way round

    Refuses
      1. a first product with another reader, which is needed anyway;
      2. factors that are not integers, or sums that could pass 2^24, where the order changes the rounding.
    """

    requires = (Stage.INFERENCE, Stage.EXPORTABLE)

    def apply(self, program: Program) -> PassResult:
        result = PassResult(self.name)
        while (place := self._turn_one(program, result.refused)) is not None:  # ends, since each turn saves products
            result.changed.append(place)
        return result

    def _turn_one(self, program: Program, refused: dict[str, str]) -> str | None:
        """Change the order of the first chain where that is cheaper and exact.

        Args:
            program: the program.
            refused: cleared, then place -> reason for the chains that were left.

        Returns:
            the place of the chain, or None if none was changed.
        """
        refused.clear()
        ranges = integer_ranges(program)
        for node in program.graph.nodes:
            if node.target is not torch.matmul:
                continue
            left, right = node.args
            for inner, left_first in ((left, True), (right, False)):
                if inner.target is not torch.matmul:
                    continue
                a, b = inner.args
                chain = (a, b, right) if left_first else (left, a, b)
                if self._cost(program, chain, left_first) <= self._cost(program, chain, not left_first):
                    continue
                place = f"matmul in {node.meta.get('scope') or 'the model'}"
                if len(inner.users) > 1 or left is right:
                    refused[place] = "its first product has another reader"
                elif node not in ranges or ranges[node].bound >= EXACT or any(factor not in ranges for factor in chain):
                    refused[place] = "its factors are not whole numbers, so that the order changes the rounding"
                else:
                    self._turn(program, node, chain, left_first)
                    program.graph.erase_node(inner)
                    return place
                break
        return None

    def _cost(self, program: Program, chain: tuple[fx.Node, ...], left_first: bool) -> int:
        """Return the multiplications for ``(a b) c`` or ``a (b c)``."""
        (m, k), n, p = program.shape_of(chain[0])[-2:], program.shape_of(chain[1])[-1], program.shape_of(chain[2])[-1]
        return m * k * n + m * n * p if left_first else k * n * p + m * k * p

    def _turn(self, program: Program, node: fx.Node, chain: tuple[fx.Node, ...], left_first: bool) -> None:
        """Replace ``(a b) c`` with ``a (b c)``, or the other way round; ``left_first`` is the order so far."""
        a, b, c = chain
        with program.graph.inserting_before(node):
            inner = program.graph.call_function(torch.matmul, (b, c) if left_first else (a, b))
        inner.meta.update({k: node.meta[k] for k in ("source", "scope") if k in node.meta})
        x, y = (a, b) if not left_first else (b, c)
        lead = program.type_of(x)[:-1]
        inner.meta["dims"] = (*lead, program.type_of(y)[-1])
        node.args = (a, inner) if left_first else (inner, c)


def cheaper_orders(program: Program) -> list[bool]:
    """Return for each product of a product and a third factor whether the order that it has is the cheaper one."""
    cost, orders = ReassociateMatmuls()._cost, []
    for node in program.graph.nodes:
        if node.target is torch.matmul:
            left, right = node.args
            for inner, left_first in (
                (_behind_equal_views(program, left), True),
                (_behind_equal_views(program, right), False),
            ):
                if inner.target is torch.matmul:
                    chain = (*inner.args, right) if left_first else (left, *inner.args)
                    orders.append(cost(program, chain, left_first) <= cost(program, chain, not left_first))
    return orders


def _behind_equal_views(program: Program, node: fx.Node) -> fx.Node:
    """Return what a node is a view of, as long as the view has the same shape."""
    while node.target is einops.rearrange and program.shape_of(node) == program.shape_of(node.all_input_nodes[0]):
        node = node.all_input_nodes[0]
    return node


__all__ = ["ReassociateMatmuls", "cheaper_orders"]
