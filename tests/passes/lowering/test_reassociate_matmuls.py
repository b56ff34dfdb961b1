"""ReassociateMatmuls: the cheaper order, the same bits; and every reason to leave it."""

from __future__ import annotations

import operator

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

from support.programs import frames, lif, steps, view, written
from svitc.analysis.integer_range import integer_ranges
from svitc.ir import ops
from svitc.ir.program import Program
from svitc.ir.quantized_modules import EXACT
from svitc.passes import ReassociateMatmuls


class Attention(nn.Module):
    """Queries and keys of ``narrow`` channels, values of ``wide`` ones, over 48 tokens."""

    def __init__(self, what, narrow: int = 4, wide: int = 8, real: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.what, self.real = what, real
        self.convs = nn.ModuleList(nn.Conv2d(3, n, 3, padding=1) for n in (narrow, narrow, wide))
        self.lifs = nn.ModuleList([lif(), lif(), neuron.IFNode(step_mode="m")])
        self.last, self.head = lif(), nn.Linear(48, 5)

    def forward(self, x):
        found = []
        for i, conv in enumerate(self.convs):
            s = steps(conv(frames(3.0 * x)))
            found.append(view(s if self.real and i == 1 else self.lifs[i](s), "t b c y x -> t b (y x) c"))
        q, k, v = found
        y = self.what(q, view(k, "t b n c -> t b c n"), v)
        return self.head(torch.mean(view(y, "t b n c -> t b c n"), dim=(0, 2), keepdim=False))


def first(q, k, v):
    return torch.matmul(torch.matmul(q, k), v)


def last(q, k, v):
    return torch.matmul(q, torch.matmul(k, v))


def order(program: Program) -> str:
    """How the products nest."""
    names = dict(zip((n for n in program.graph.nodes if ops.is_neuron(program.module_of(n))), "qkv", strict=False))

    def show(node) -> str:
        if node in names or isinstance(program.module_of(node), nn.Conv2d):
            return names.get(node, "x")
        if node.target is torch.matmul:
            return f"({show(node.args[0])} {show(node.args[1])})"
        return show(node.all_input_nodes[0])

    return show(next(iter(reversed(program.graph.nodes))))


def shapes(program: Program) -> list[tuple[int, ...]]:
    return [program.shape_of(n) for n in program.graph.nodes if n.target is torch.matmul]


def turned(program: Program) -> ReassociateMatmuls:
    """Run on ``program``; same bits, and nothing for a second run."""
    x = torch.randn(program.input.batched(2), generator=torch.Generator().manual_seed(0))
    want = program(x)
    each = ReassociateMatmuls()
    each(program)
    assert torch.equal(program(x), want) and bool(want.any())
    text = str(program)
    assert each(program).changed == [] and str(program) == text, "a second run changes nothing"
    return each


@pytest.mark.parametrize(
    ("what", "narrow", "wide", "before", "after"),
    [
        (first, 4, 8, "((q k) v)", "(q (k v))"),  # 48 x 48 between, or 4 x 8
        (last, 4, 8, "(q (k v))", "(q (k v))"),
        (last, 60, 70, "(q (k v))", "((q k) v)"),  # 48 x 48, or 60 x 70
        (first, 60, 70, "((q k) v)", "((q k) v)"),
        (first, 48, 48, "((q k) v)", "((q k) v)"),  # equal: as it is
        (last, 48, 48, "(q (k v))", "(q (k v))"),
    ],
)
def test_the_cheaper_order(what, narrow, wide, before, after):
    program = written(Attention(what, narrow, wide))
    assert order(program) == before
    result = ReassociateMatmuls().apply(program.copy())
    assert result.changed == (["matmul in the model"] if before != after else []) and not result.refused
    bound = next(grid.bound for node, grid in reversed(integer_ranges(program).items()) if node.target is torch.matmul)
    turned(program)
    assert order(program) == after
    inner = (narrow, wide) if after == "(q (k v))" else (48, 48)
    assert shapes(program) == [(4, 3, *inner), (4, 3, 48, wide)]
    known = integer_ranges(program)
    found = [known[n].bound for n in program.graph.nodes if n.target is torch.matmul]
    assert found[-1] == bound == 48 * narrow and found[0] == (48 if after == "(q (k v))" else narrow)


def test_longer_chains():
    program = written(Attention(lambda q, k, v: torch.matmul(torch.matmul(torch.matmul(q, k), q), torch.matmul(k, v))))
    before = sum(a[-1] * a[-2] for a in shapes(program))
    turned(program)
    assert sum(a[-1] * a[-2] for a in shapes(program)) < before


def test_refuses_a_first_product_with_another_reader():
    def two(q, k, v):
        scores = torch.matmul(q, k)
        return operator.add(torch.matmul(scores, v), torch.sum(scores, dim=(3,), keepdim=True))

    program = written(Attention(two))
    each = turned(program)
    assert each(program).refused == {"matmul in the model": "its first product has another reader"}


def test_refuses_the_square_of_a_product():
    program = written(Attention(lambda q, k, v: torch.matmul(p := torch.matmul(q, k), p)))
    assert turned(program)(program).refused == {"matmul in the model": "its first product has another reader"}


REASON = "its factors are not whole numbers, so that the order changes the rounding"


def test_refuses_real_factors():
    program = written(Attention(first, real=True))
    assert turned(program)(program).refused == {"matmul in the model": REASON}
    assert order(program) == "((q x) k)", "two neurons and a convolution"


def test_refuses_a_factor_that_is_no_power_of_two():
    program = written(Attention(lambda q, k, v: torch.matmul(torch.matmul(q, k * 0.3), v)))
    assert turned(program)(program).refused == {"matmul in the model": REASON}
    program = written(Attention(lambda q, k, v: torch.matmul(torch.matmul(q, k * 0.25), v)))
    assert not turned(program)(program).refused and order(program) == "(q (k v))"


def test_a_product_in_between_is_no_chain():
    program = written(Attention(lambda q, k, v: torch.matmul(torch.matmul(q, k) * 0.25, v)))
    each = turned(program)
    assert not each(program).refused and order(program) == "((q k) v)"


@pytest.mark.parametrize(("levels", "goes"), [(44, True), (45, False)])
def test_refuses_sums_that_could_pass_2_to_the_24(levels, goes):
    """4 channels, 48 tokens, three factors up to ``levels``, each."""

    class Levels(Attention):
        def __init__(self) -> None:
            super().__init__(first)
            self.lifs = nn.ModuleList(ops.IntegerSpike(levels) for _ in range(3))

    program = written(Levels())
    assert (4 * 48 * levels**3 < EXACT) == goes
    each = turned(program)
    assert each(program).refused == ({} if goes else {"matmul in the model": REASON})
    assert order(program) == ("(q (k v))" if goes else "((q k) v)")
