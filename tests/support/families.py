"""Every family, small, and made to fire: a silent network would agree with anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from spikingjelly.activation_based import functional, neuron
from spikingjelly.activation_based.model.maxformer import MaxFormer
from spikingjelly.activation_based.model.qkformer import QKFormer
from spikingjelly.activation_based.model.spike_driven_transformer import SpikeDrivenTransformer
from spikingjelly.activation_based.model.spikformer import Spikformer
from torch import nn

IMAGE = (3, 32, 48)


def spikformer(**k) -> nn.Module:
    size = {
        "img_size_h": 32,
        "img_size_w": 48,
        "patch_size": 4,
        "embed_dims": 32,
        "num_heads": 2,
        "depths": 1,
    }
    return Spikformer(**{"num_classes": 5, **size, **k})


def sdt(**k) -> nn.Module:
    return SpikeDrivenTransformer(**{"num_classes": 5, "embed_dims": 32, "num_heads": 2, "depths": 1, **k})


def qkformer(**k) -> nn.Module:
    return QKFormer(**{"num_classes": 5, "embed_dims": 64, "num_heads": (2, 2, 4), "depths": (1, 1, 1), **k})


def maxformer(**k) -> nn.Module:
    return MaxFormer(**{"num_classes": 5, "embed_dims": 128, "depths": (1, 1, 1), **k})


# name -> (factory, input shape without batch)
FAMILIES = {
    "spikformer": (spikformer, IMAGE),
    "sdt": (sdt, IMAGE),
    "qkformer-token": (qkformer, IMAGE),
    "qkformer-channel": (lambda **k: qkformer(**{"qka_type": "channel", **k}), IMAGE),
    "maxformer": (maxformer, IMAGE),
    "maxformer-cifar": (lambda **k: maxformer(**{"cifar": True, "embed_dims": 64, **k}), IMAGE),
}
NEURONS = {
    "LIF": {"spiking_neuron": neuron.LIFNode},
    "LIF, soft reset": {"spiking_neuron": neuron.LIFNode, "v_reset": None},
    "LIF, input not decayed": {"spiking_neuron": neuron.LIFNode, "decay_input": False, "tau": 3.0},
    "IF": {"spiking_neuron": neuron.IFNode},
    "PLIF": {"spiking_neuron": neuron.ParametricLIFNode},
    "ILIF": {"spiking_neuron": neuron.ILIFNode},
}


def warm(model: nn.Module, shape: Sequence[int] = IMAGE, batches: int = 2) -> nn.Module:
    """Batch-norm statistics from random inputs, with shifts under which most neurons fire; in eval mode.

    Args:
        shape: ``(C, H, W)``, or ``(T, C, H, W)`` for event frames.
    """
    norms = [m for m in model.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    kept = [m.momentum for m in norms]
    for m in norms:
        m.momentum = None  # the average over all batches
        m.reset_running_stats()
        nn.init.uniform_(m.weight, 0.7, 1.5)
        nn.init.uniform_(m.bias, 0.0, 0.8)
    model.train()
    batched = (shape[0], 2, *shape[1:]) if len(shape) == 4 else (2, *shape)
    with torch.no_grad():
        for _ in range(batches):
            functional.reset_net(model)
            model(torch.randn(batched))
    functional.reset_net(model)
    for m, momentum in zip(norms, kept, strict=True):
        m.momentum = momentum
    return model.eval()
