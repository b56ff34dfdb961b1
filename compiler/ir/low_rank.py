"""Layers of low rank: one convolution as two, through fewer channels.

A convolution with o outputs and i inputs in its window (all taps counted) has o i weights. Where its weights have rank
r, it is a convolution with r outputs, and one over single pixels with o outputs: r (o + i) weights.
"""

from __future__ import annotations

import torch
from torch import nn

from svitc.ir.program import Program


def ranked_layers(program: Program) -> dict[str, int]:
    """Return the layers that may have a low rank, with the largest rank that their weights can have.

    These are convolutions over several pixels that are not grouped and are called once: the others have so few inputs
    for each output that two layers are rarely smaller than one.
    """
    ranks = {}
    for node in program.graph.nodes:
        module = program.module_of(node)
        if isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == 1 and program.called_once(node):
            outputs, inputs = module.weight.flatten(1).shape
            if module.weight[0, 0].numel() > 1 and outputs > 1:
                ranks[str(node.target)] = min(outputs, inputs)
    return ranks


def saves(rank: int, outputs: int, inputs: int) -> bool:
    """Return whether two layers through ``rank`` channels have fewer weights than one."""
    return rank * (outputs + inputs) < outputs * inputs


def nearest(
    weight: torch.Tensor, rank: int, covariance: torch.Tensor | None = None, scale: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the weights of a rank whose outputs differ least from those of given weights.

    Args:
        weight: ``[outputs, inputs]``, float64.
        rank: the rank.
        covariance: of the inputs; by default all are independent and vary alike.
        scale: weight of each output's error, above 0; by default all are alike.

    Source: Eckart and Young, "The approximation of one matrix by another of lower rank", 1936.
    """
    scaled = weight if scale is None else scale[:, None] * weight
    outputs = scaled @ scaled.T if covariance is None else scaled @ covariance @ scaled.T
    basis = torch.linalg.eigh(outputs).eigenvectors[:, -rank:]  # ascending
    result = basis @ (basis.T @ scaled)
    return result if scale is None else result / scale[:, None]


def factors(weight: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return matrices ``[outputs, rank]`` and ``[rank, inputs]`` whose product is nearest to ``weight``, float64."""
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    roots = values[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]
