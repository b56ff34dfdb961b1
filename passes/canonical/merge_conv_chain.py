"""MergeConvChain: replaces a chain of convolutions, such as a RepConv, with one where that is smaller or faster."""

from __future__ import annotations

import logging

from torch import fx

from svitc.ir.pass_manager import Pass
from svitc.ir.program import Program, Stage
from svitc.passes.canonical.conv_chain import ConvChain
from svitc.support.types import JsonDict

log = logging.getLogger("svitc")


class MergeConvChain(Pass):
    """Re-parameterize a chain of convolutions, batch norms and zero padding as one dense convolution.

    before   x -> conv a, 1x1 -> zero_pad -> batch_norm -> conv d, depthwise 3x3 -> conv p, 1x1 -> reader
    after    x -> conv w, 3x3, padded -> reader

        batch_norm(y) = y * s + t, for each channel
        w[o, i] = sum over c of p[o, c] * d[c] * s[c] * a[c, i]
        bias[o] = bias_p[o] + sum over c of p[o, c] * (bias_d[c] + t[c] * sum of d[c])

    computed in float64, rounded once. The border is exact since ``a`` has no bias: padding its output with zeros equals
    padding ``x`` with zeros, and the batch norm treats both alike. Batch norms after the last convolution stay, for
    FoldBatchNorm.

    Merging rarely pays: a dense 3x3 has 9 * i * o weights, the chain i * c + 9 * c + c * o, which is less unless c is
    several times wider than the narrower end. So the choice is made before pruning, at the current sizes: either the
    inner channels disappear at once, or they are a group to prune.

    Refuses
      1. a layer that is called more than once;
      2. two windows, since one convolution slides only one;
      3. zero padding after a bias or shift, which would have to stop at the border, or after a window;
      4. zero padding on one side only;
      5. a merge that is neither smaller nor faster, or smaller but slower, or faster but larger.
    """

    requires = (Stage.CAPTURED, Stage.PRUNED)

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}  # last convolution of a merged chain -> what the merge saves

    def match(self, program: Program, node: fx.Node) -> bool:
        """Return whether a node is the last convolution of a chain of at least two."""
        return ConvChain.ending_at(program, node) is not None

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        chain = _chain(program, node)
        return chain.impossible() or (None if _pays(chain) else _figures(chain))

    def rewrite(self, program: Program, node: fx.Node) -> None:
        chain = _chain(program, node)
        self.reasons[str(node.target)] = _figures(chain)
        owner, _, name = str(node.target).rpartition(".")
        setattr(program.module.get_submodule(owner), name, chain.merged())
        node.args = (chain.nodes[0].args[0],)
        for inner in reversed(chain.nodes[:-1]):
            program.graph.erase_node(inner)


def _chain(program: Program, node: fx.Node) -> ConvChain:
    """Return the chain that ends at a node that matches."""
    chain = ConvChain.ending_at(program, node)
    assert chain is not None
    return chain


def _pays(chain: ConvChain) -> bool:
    """Return whether one convolution is smaller or faster, and neither larger nor slower."""
    cost_apart, cost_merged = chain.apart(), chain.together()
    return cost_merged != cost_apart and all(
        merged <= apart for merged, apart in zip(cost_merged, cost_apart, strict=True)
    )


def _figures(chain: ConvChain) -> str:
    """Return the sizes and costs of both forms as a sentence."""
    (stored_bytes, macs), (merged_bytes, merged_macs) = chain.apart(), chain.together()
    kernel = "x".join(str(k) for k in chain.window.kernel_size)
    return (
        f"{merged_bytes:,} bytes as one {kernel} convolution, {stored_bytes:,} as a row of them;"
        f" {merged_macs:,} multiply-accumulates an image as one, {macs:,} as a row"
    )


def reparameterize(program: Program) -> tuple[Program, dict[str, JsonDict]]:
    """Merge every chain of convolutions where that pays.

    Returns:
        a copy, or the program itself where nothing pays; and the last convolution of each chain ->
        ``{"merged": bool, "why": sentence}``.
    """
    merge = MergeConvChain()
    if not any(merge.match(program, node) for node in program.graph.nodes):
        return program, {}
    result = merge(twin := program.copy())
    decisions = {place: {"merged": False, "why": why} for place, why in result.refused.items()}
    decisions |= {place: {"merged": True, "why": merge.reasons[place]} for place in result.changed}
    for place, decision in decisions.items():
        log.info("reparam: %s %s: %s", place, "is one" if decision["merged"] else "stays a row", decision["why"])
    return (twin if result.changed else program), decisions
