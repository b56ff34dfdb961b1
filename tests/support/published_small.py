"""A small model of each published code, of our own definitions, with weights whose every sum is exact in float32."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import nn

from svitc.frontends.published import ESpikeFormer, MetaSpikeFormer, QKFormer, SpikeDrivenTransformer, Spikformer
from svitc.ir.graph import InputSpec


@dataclass
class Small:
    """A small model of each published code.

    Attributes:
        input: without batch.
        last: the layer whose input is looked at.
        digest: as the published code computes it from the same weights and image.
    """

    factory: Callable[..., nn.Module]
    arguments: dict[str, Any]
    input: tuple[int, ...]
    last: str
    digest: tuple[float, ...] = ()

    def build(self, **override: Any) -> nn.Module:
        return self.factory(**{**self.arguments, "num_classes": 3, **override})

    def shallow(self) -> nn.Module:
        """With one block a stage, where there are eight."""
        return self.build(**({"depths": [1, 1]} if self.arguments["depths"] == [6, 2] else {}))


SIZES = {"embed_dims": 32, "num_heads": 2, "depths": 1, "T": 2}
EVENTS = {**SIZES, "in_channels": 2}
STAGES = {"embed_dims": [8, 16, 16, 32], "num_heads": 4, "depths": [6, 2]}
SMALL = {
    "spikformer-imagenet": Small(
        Spikformer,
        {"variant": "imagenet", **SIZES},
        (3, 32, 64),
        "head",
        (49.25, 42.3125, 23.5, 0.8125, -0.421875, 0.59375),
    ),
    "spikformer-cifar": Small(
        Spikformer,
        {"variant": "cifar", **SIZES},
        (3, 8, 16),
        "head",
        (46.3125, 33.3125, 23.625, 1.328125, 0.640625, 0.59375),
    ),
    "spikformer-dvs": Small(
        Spikformer,
        {"variant": "dvs", **EVENTS},
        (2, 2, 128, 128),
        "head",
        (47.984375, 39.4453125, 24.609375, 0.3515625, -0.556640625, 0.2109375),
    ),
    "sdt": Small(
        SpikeDrivenTransformer,
        SIZES,
        (3, 32, 64),
        "head_lif",
        (322.6484375, 282.890625, 59.546875, 0.75, 0.5, 0.75),
    ),
    "sdt-cifar": Small(
        SpikeDrivenTransformer,
        {**SIZES, "pooling_stat": "0011", "mlp_ratio": 1.0},
        (3, 8, 16),
        "head_lif",
        (482.57421875, 413.9609375, 70.4765625, 0.875, 0.625, 0.75),
    ),
    "sdt-plif": Small(
        SpikeDrivenTransformer,
        {**EVENTS, "pooling_stat": "0111", "spike_mode": "plif"},
        (2, 2, 16, 32),
        "head_lif",
        (317.30859375, 297.734375, 66.7265625, 0.75, 0.5, 0.75),
    ),
    "sdt-dvs": Small(
        SpikeDrivenTransformer,
        {**EVENTS, "pooling_stat": "0011", "dvs_mode": True},
        (2, 2, 8, 16),
        "head_lif",
        (277.40234375, 285.12109375, 72.703125, 0.375, 0.25, 0.875),
    ),
    "meta": Small(
        MetaSpikeFormer,
        {**STAGES, "T": 2},
        (3, 32, 64),
        "lif",
        (74.47119140625, 13.11376953125, -10.75927734375, 1.5, -1.0, 1.5),
    ),
    "meta-distilled": Small(
        MetaSpikeFormer,
        {**STAGES, "T": 1, "distilled": True},
        (3, 32, 64),
        "lif",
        (52.834228515625, 6.96240234375, 32.06005859375, 1.75, -1.0, 0.5),
    ),
    "espikeformer": Small(
        ESpikeFormer,
        STAGES,
        (3, 32, 64),
        "spike",
        (64.05859375, 51.666015625, 36.1767578125, -2.0, -4.75, -1.0),
    ),
    "qkformer-imagenet": Small(
        QKFormer,
        {**SIZES, "variant": "imagenet", "depths": [1, 2, 1]},
        (3, 64, 64),
        "head",
        (91.375, 70.5625, 37.96875, 0.265625, -1.1171875, 0.40625),
    ),
    "qkformer-cifar": Small(
        QKFormer,
        {**SIZES, "variant": "cifar", "depths": [1, 1, 1], "num_heads": 8},
        (3, 16, 16),
        "head",
        (94.09375, 76.625, 29.375, 2.9609375, -0.890625, 0.6484375),
    ),
    "qkformer-dvs": Small(
        QKFormer,
        {**EVENTS, "variant": "dvs", "depths": [1, 1], "num_heads": 16},
        (2, 2, 64, 64),
        "head",
        (90.25, 77.6875, 30.1875, 0.796875, 0.9140625, 0.765625),
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
    """Weights of few bits, such that every sum is exact in float32; in eval mode."""
    state = model.state_dict()
    weights, biases = [-1, -1, 0, 1, 2], [0, 0.5, 1]
    if isinstance(model, MetaSpikeFormer | ESpikeFormer):  # in so many layers, what leans to one side saturates
        weights, biases = [-2, -1, 0, 1, 2], [-0.5, 0, 0.5, 1]
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
                tensor.copy_(pick(tensor.shape, name, weights) * scale)
            elif norm or kind == "bias":
                tensor.copy_(pick(tensor.shape, name, [1, 1.5] if kind == "weight" else biases))
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
