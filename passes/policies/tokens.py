"""The choice of tokens: which positions run through the blocks, by what the stream holds there on images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from svitc.errors import InputError, UsageError
from svitc.ir.axes import Kind
from svitc.ir.program import Program
from svitc.ir.token_stages import TokenStage, token_stages

REFERENCE_BATCH = 16  # images of 64x64 pixels at once


def check_share(share: float) -> None:
    """Check how many tokens are to run.

    Raises:
        UsageError: it is no share.
    """
    if not 0 < share <= 1:
        raise UsageError(
            f"{share:g} is no share of the tokens", hint="--tokens 0.5 lets half of the tokens run, 1 lets all."
        )


def choose_tokens(program: Program, inputs: torch.Tensor, share: float) -> dict[str, tuple[int, ...]]:
    """Return a share of the tokens for every stage of a program: those where the stream is largest on images.

    In a spiking network the residual stream counts spikes, or holds currents. The magnitude at the first stage of each
    region, averaged over images, steps and channels, orders the positions; ties go to the first.

    Args:
        program: the program; not changed.
        inputs: images in the program's input layout.
        share: of the tokens of each stage, above 0 and up to 1; at least one token runs.

    Returns:
        stage -> positions, ascending; empty where all run.

    Raises:
        InputError: the program has no stages that tokens can leave out.
    """
    check_share(share)
    stages = token_stages(program)
    if not stages:
        raise InputError(
            "no tokens of this model can be pruned: no blocks around a residual stream compute each token alone",
            hint="Leave --tokens out. Convolutions over several pixels need all of them.",
        )
    if share == 1:
        return {}
    chosen: dict[int, tuple[int, ...]] = {}
    for region, scores in token_scores(program, stages, inputs).items():
        count = max(1, round(share * len(scores)))
        order = torch.sort(scores, descending=True, stable=True).indices
        chosen[region] = tuple(sorted(order[:count].tolist()))
    return {stage.name: chosen[stage.region] for stage in stages}


def token_scores(program: Program, stages: Sequence[TokenStage], inputs: torch.Tensor) -> dict[int, torch.Tensor]:
    """Return the score of every token, ``[tokens]``, by region."""
    first: dict[int, fx.Node] = {}
    for stage in stages:
        first.setdefault(stage.region, stage.entry)
    streams = _Streams(program, set(first.values()))
    spec = program.input
    program.module.eval()
    for batch in inputs.split(spec.at_once(REFERENCE_BATCH), spec.batch_dim):
        program.reset()
        with torch.inference_mode():
            streams.run(batch)
    program.reset()
    return {region: streams.sums[node] for region, node in first.items()}


class _Streams(fx.Interpreter):
    """Runs a program, and adds up the magnitudes of some of its values for each token.

    Attributes:
        sums: node -> sum for each token, ``[tokens]``, in float64.
    """

    def __init__(self, program: Program, nodes: set[fx.Node]) -> None:
        super().__init__(program.module)
        self.program, self.nodes = program, nodes
        self.sums: dict[fx.Node, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and look at its value."""
        value = super().run_node(n)
        if n in self.nodes:
            leaves = [axis for dim in self.program.type_of(n) for axis in dim]
            shape = [-1 if axis.kind == Kind.BATCH else axis.size for axis in leaves]
            others = [i for i, axis in enumerate(leaves) if axis.kind != Kind.PIXEL]
            total = value.abs().double().reshape(shape).sum(others).reshape(-1)
            self.sums[n] = self.sums.get(n, torch.zeros(())) + total
        return value


__all__ = ["check_share", "choose_tokens", "token_scores"]
