"""Which tokens run: those where the stream is largest on images."""

from __future__ import annotations

import pytest
import torch

from support.serialized import canonicalised
from svitc.errors import UsageError
from svitc.ir.token_stages import token_stages
from svitc.passes.policies.tokens import choose_tokens, token_scores


def test_tokens_with_the_largest_stream_run():
    program = canonicalised("spikformer")
    stages = token_stages(program)
    x = torch.rand(3, *program.input.shape)
    seen = {}
    with torch.no_grad():
        for node in program.graph.nodes:
            if node.op == "placeholder":
                seen[node] = x
            elif node is stages[0].nodes[0]:
                break
            elif node.op == "call_module":
                seen[node] = program.module_of(node)(*(seen[arg] for arg in node.args))
            else:
                seen[node] = node.target(*(seen.get(arg, arg) for arg in node.args), **node.kwargs)
    program.reset()
    want = seen[stages[0].entry].abs().flatten(3).sum((0, 1, 2))
    assert torch.allclose(token_scores(program, stages, x)[0].float(), want)
    chosen = choose_tokens(program, x, 0.25)
    assert set(chosen) == {stage.name for stage in stages}
    (positions,) = set(chosen.values())
    assert len(positions) == 24 and positions == tuple(sorted(positions))
    rest = [p for p in range(96) if p not in positions]
    assert want[list(positions)].min() >= want[rest].max()


def test_all_tokens_are_no_choice():
    program = canonicalised("spikformer")
    assert choose_tokens(program, torch.rand(1, *program.input.shape), 1.0) == {}
    with pytest.raises(UsageError, match="no share"):
        choose_tokens(program, torch.rand(1, *program.input.shape), 0.0)
