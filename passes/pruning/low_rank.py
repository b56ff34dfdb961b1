"""LowRank and SplitLowRank: convolutions whose weights have a low rank become two smaller ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx, nn

from svitc.ir import low_rank
from svitc.ir.pass_manager import Pass, PassResult
from svitc.ir.program import Program, Stage


class LowRank(Pass):
    """Give layers the nearest weights of a rank, without looking at images; RefitConsumers does so with images.

    before   W x
    after    U_r S_r V_r^T x                                U S V^T = W, the r largest singular values are left

    Args:
        ranks: layer -> rank.
    """

    requires = (Stage.PRUNED, Stage.PRUNED)
    values_only = True

    def __init__(self, ranks: Mapping[str, int]) -> None:
        self.ranks = ranks

    def apply(self, program: Program) -> PassResult:
        result = PassResult(self.name)
        for layer, rank in self.ranks.items():
            module = program.module.get_submodule(layer)
            assert isinstance(module, nn.Conv1d | nn.Conv2d)
            weight = module.weight.detach().flatten(1).double()
            if low_rank.saves(rank, *weight.shape):
                with torch.no_grad():
                    module.weight.copy_(low_rank.nearest(weight, rank).reshape(module.weight.shape))
                result.changed.append(layer)
        return result


class SplitLowRank(Pass):
    """Store a layer of a low rank as two layers.

    before   x -> conv[o, 3x3]
    after    x -> conv[r, 3x3] without a bias -> conv[o, 1x1]

    The first is named basis, the second mix.

    Refuses
      1. a layer that channels have left so small that two layers would have no fewer weights.

    Args:
        ranks: layer -> rank.
    """

    requires = (Stage.PRUNED, Stage.PRUNED)

    def __init__(self, ranks: Mapping[str, int]) -> None:
        self.ranks = ranks

    def match(self, program: Program, node: fx.Node) -> bool:
        return node.op == "call_module" and str(node.target) in self.ranks

    def why_not(self, program: Program, node: fx.Node) -> str | None:
        module = program.module_of(node)
        assert isinstance(module, nn.Conv1d | nn.Conv2d)
        shape = module.weight.flatten(1).shape
        return None if low_rank.saves(self.ranks[str(node.target)], *shape) else "one layer is no larger than two"

    def rewrite(self, program: Program, node: fx.Node) -> None:
        layer = str(node.target)
        module = program.module_of(node)
        assert isinstance(module, nn.Conv1d | nn.Conv2d)
        rank, kind = self.ranks[layer], type(module)
        left, right = low_rank.factors(module.weight.detach().flatten(1).double(), rank)
        geometry = (module.kernel_size, module.stride, module.padding, module.dilation)
        basis = kind(module.in_channels, rank, *geometry, bias=False, padding_mode=module.padding_mode)  # type: ignore[arg-type]
        mix = kind(rank, module.out_channels, 1, bias=module.bias is not None)
        with torch.no_grad():
            basis.weight.copy_(right.reshape(basis.weight.shape))
            mix.weight.copy_(left.reshape(mix.weight.shape))
            if mix.bias is not None and module.bias is not None:
                mix.bias.copy_(module.bias)
        owner, _, name = layer.rpartition(".")
        pair = nn.Module()
        pair.add_module("basis", basis.train(module.training))
        pair.add_module("mix", mix.train(module.training))
        setattr(program.module.get_submodule(owner), name, pair)
        with program.graph.inserting_before(node):
            first = program.graph.call_module(f"{layer}.basis", node.args)
            second = program.graph.call_module(f"{layer}.mix", (first,))
        for new in (first, second):
            new.meta.update(
                {k: node.meta[k] for k in ("source", "scope") if k in node.meta}, dims=program.type_of(node)
            )
        node.replace_all_uses_with(second)
        program.graph.erase_node(node)
