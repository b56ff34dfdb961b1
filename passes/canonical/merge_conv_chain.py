"""MergeConvChain: convolutions in a row, a RepConv say, become one where that is smaller or faster."""

from __future__ import annotations

import logging
from typing import Any

from torch import fx

from svitc.ir.pass_manager import Pass
from svitc.ir.program import Program, Stage
from svitc.passes.canonical.conv_chain import Row

log = logging.getLogger("svitc")


class MergeConvChain(Pass):
    """Re-parameterise a row of convolutions, with batch norms and zeros between them, as one dense convolution.

    before   x -> conv a, 1x1 -> zero_pad -> batch_norm -> conv d, depthwise 3x3 -> conv p, 1x1 -> reader
    after    x -> conv w, 3x3, padded -> reader

        batch_norm(y) = y * s + t, one of each for a channel
        w[o, i] = sum over c of p[o, c] * d[c] * s[c] * a[c, i]
        bias[o] = bias_p[o] + sum over c of p[o, c] * (bias_d[c] + t[c] * sum of d[c])

    computed in float64, rounded once. The border comes out right since ``a`` has no bias: zeros around what it
    makes are what it makes of zeros around ``x``, and the batch norm treats both alike. Batch norms behind the
    last convolution stay, for FoldBatchNorm.

    It pays rarely: a dense 3x3 holds 9 * i * o weights, the row i * c + 9 * c + c * o, which is less unless c is
    several times wider than the narrower end. So it is decided before pruning, at the sizes at hand, whether the
    inner channels go at once or are a group to prune.

    Refuses
      1. a layer that is called more than once;
      2. two windows: both must have been slid;
      3. zeros that are padded after a bias or shift, which would have to end at the border, or after a window;
      4. zeros on one side only;
      5. what is neither smaller nor faster as one, or smaller but slower, or faster but larger.
    """

    requires = (Stage.CAPTURED, Stage.PRUNED)

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}  # what was merged, by its last convolution -> what that saves

    def match(self, program: Program, node: fx.Node) -> bool:
        """The last of at least two convolutions."""
        return Row.ending_at(program, node) is not None

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        row = _row(program, node)
        return row.impossible() or (None if _pays(row) else _figures(row))

    def rewrite(self, program: Program, node: fx.Node) -> None:
        row = _row(program, node)
        self.reasons[str(node.target)] = _figures(row)
        owner, _, name = str(node.target).rpartition(".")
        setattr(program.module.get_submodule(owner), name, row.merged())
        node.args = (row.nodes[0].args[0],)
        for each in reversed(row.nodes[:-1]):
            program.graph.erase_node(each)


def _row(program: Program, node: fx.Node) -> Row:
    row = Row.ending_at(program, node)
    assert row is not None
    return row


def _pays(row: Row) -> bool:
    """Whether one convolution is smaller or faster, and neither larger nor slower."""
    apart, one = row.apart(), row.together()
    return one != apart and all(a <= b for a, b in zip(one, apart, strict=True))


def _figures(row: Row) -> str:
    (stored, work), (one_stored, one_work) = row.apart(), row.together()
    kernel = "x".join(str(k) for k in row.window.kernel_size)
    return (
        f"{one_stored:,} bytes as one {kernel} convolution, {stored:,} as a row of them;"
        f" {one_work:,} multiply-accumulates an image as one, {work:,} as a row"
    )


def reparameterize(program: Program) -> tuple[Program, dict[str, dict[str, Any]]]:
    """A program in which every row of convolutions is one where that pays, and what was decided for each.

    Returns:
        A copy, or the program itself where nothing pays; and the last convolution of each row ->
        ``{"merged": bool, "why": sentence}``.
    """
    merge = MergeConvChain()
    if not any(merge.match(program, node) for node in program.graph.nodes):
        return program, {}
    result = merge(twin := program.copy())
    decided = {place: {"merged": False, "why": why} for place, why in result.refused.items()}
    decided |= {place: {"merged": True, "why": merge.reasons[place]} for place in result.changed}
    for place, each in decided.items():
        log.info("reparam: %s %s: %s", place, "is one" if each["merged"] else "stays a row", each["why"])
    return (twin if result.changed else program), decided
