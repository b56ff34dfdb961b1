"""Own definitions of the published families: names, sizes, numbers, and how a bare checkpoint is recognised."""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.model import maxformer, qkformer, spike_driven_transformer, spikformer
from torch import nn
from torch.nn import functional as F

from svitc.errors import InputError, UnsupportedError
from svitc.frontends.capture import capture
from svitc.frontends.official import (
    FACTORIES,
    PUBLISHED,
    ESpikeFormer,
    MetaSpikeFormer,
    QKFormer,
    SpikeDrivenTransformer,
    Spikformer,
    dead_parameters,
    layout,
    unwrap,
)
from svitc.frontends.official.common import BorderNorm, RepConv
from svitc.program import InputSpec


@dataclass
class Small:
    """A small model of each published code.

    Attributes:
        input: without batch.
        keys: some of its checkpoint's, with shapes.
        logits: of the first image, as the published code computes them from ``fill``'s weights and ``images``.
    """

    factory: Callable[..., nn.Module]
    arguments: dict[str, Any]
    input: tuple[int, ...]
    keys: dict[str, tuple[int, ...]] = field(default_factory=dict)
    logits: tuple[float, ...] = ()

    def build(self, **override: Any) -> nn.Module:
        return self.factory(**{**self.arguments, "num_classes": 3, **override})


SIZES = {"embed_dims": 32, "num_heads": 2, "depths": 1, "T": 2}
EVENTS = {**SIZES, "in_channels": 2}
STAGES = {"embed_dims": [8, 16, 16, 32], "num_heads": 4, "depths": [6, 2]}
SMALL = {
    "spikformer-imagenet": Small(Spikformer, {"variant": "imagenet", **SIZES}, (3, 32, 64)),
    "spikformer-cifar": Small(Spikformer, {"variant": "cifar", **SIZES}, (3, 8, 16)),
    "spikformer-dvs": Small(Spikformer, {"variant": "dvs", **EVENTS}, (2, 2, 128, 128)),
    "sdt": Small(SpikeDrivenTransformer, SIZES, (3, 32, 64)),
    "sdt-cifar": Small(
        SpikeDrivenTransformer, {**SIZES, "pooling_stat": "0011", "mlp_ratio": 1.0}, (3, 8, 16)
    ),
    "sdt-plif": Small(
        SpikeDrivenTransformer, {**EVENTS, "pooling_stat": "0111", "spike_mode": "plif"}, (2, 2, 16, 32)
    ),
    "sdt-dvs": Small(
        SpikeDrivenTransformer, {**EVENTS, "pooling_stat": "0011", "dvs_mode": True}, (2, 2, 8, 16)
    ),
    "meta": Small(MetaSpikeFormer, {**STAGES, "T": 2}, (3, 32, 64)),
    "meta-distilled": Small(MetaSpikeFormer, {**STAGES, "T": 1, "distilled": True}, (3, 32, 64)),
    "espikeformer": Small(ESpikeFormer, STAGES, (3, 32, 64)),
    "qkformer-imagenet": Small(
        QKFormer, {**SIZES, "variant": "imagenet", "depths": [1, 2, 1]}, (3, 32, 64)
    ),
    "qkformer-cifar": Small(
        QKFormer, {**SIZES, "variant": "cifar", "depths": [1, 1, 1], "num_heads": 8}, (3, 8, 16)
    ),
    "qkformer-dvs": Small(
        QKFormer, {**EVENTS, "variant": "dvs", "depths": [1, 1], "num_heads": 16}, (2, 2, 32, 64)
    ),
}


def pick(shape: torch.Size, name: str, choices: list[float]) -> torch.Tensor:
    """Numbers that are the same wherever they are made."""
    i = torch.arange(shape.numel(), dtype=torch.int64) + zlib.crc32(name.encode())
    for factor in (2654435761, 40503):
        i = (i * factor) % 2**31
        i = i ^ (i >> 13)
    return torch.tensor(choices)[i % len(choices)].reshape(shape)


def fill(model: nn.Module) -> nn.Module:
    """Weights of few bits, such that every sum is exact in float32 on any machine; in eval mode."""
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            owner, _, kind = name.rpartition(".")
            norm = f"{owner}.running_var" in state
            if kind == "running_mean":
                tensor.zero_()
            elif kind == "running_var":
                tensor.fill_(1 - 1e-5)  # eps makes it 1
            elif tensor.ndim > 1 and kind == "weight":
                scale = 2.0 ** -round(torch.tensor(float(tensor[0].numel())).sqrt().log2().item())
                tensor.copy_(pick(tensor.shape, name, [-1, -1, 0, 1, 2]) * scale)
            elif norm or kind == "bias":
                tensor.copy_(pick(tensor.shape, name, [1, 1.5] if kind == "weight" else [0, 0.25, 0.5]))
    return model.eval()


def images(small: Small, batch: int) -> torch.Tensor:
    """The first of two images."""
    spec = InputSpec(small.input)
    x = pick(torch.Size(spec.batched(2)), "images", [-0.5, 0, 0.5, 1, 1.5, 2])
    return x.narrow(spec.batch_dim, 0, batch)


def run(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    functional.reset_net(model)
    with torch.inference_mode():
        y = model(x)
    functional.reset_net(model)
    return y
