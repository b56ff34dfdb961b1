"""Small models whose neurons fire, for the frontends' tests."""

from __future__ import annotations

import pytest
import torch
from spikingjelly.activation_based import functional
from spikingjelly.activation_based.model import Spikformer
from torch import nn

SMALL = {
    "T": 2, "img_size_h": 16, "img_size_w": 16, "patch_size": 4,
    "num_classes": 3, "embed_dims": 16, "num_heads": 2, "depths": 1,
}  # fmt: skip
ARCH = "spikingjelly.activation_based.model:Spikformer"


def enliven(model: nn.Module) -> nn.Module:
    """Weights and statistics at random, such that spikes reach the head: freshly made models are silent."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith("running_mean"):
                tensor.uniform_(-0.5, 0.1)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim > 1:
                tensor.normal_(0, 1.5 / tensor[0].numel() ** 0.5)
    return model.eval()


def logits(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The eager model's output, from rest."""
    functional.reset_net(model)
    with torch.inference_mode():
        y = model(x)
    functional.reset_net(model)
    return y


@pytest.fixture(name="enliven")
def enliven_fixture():
    return enliven


@pytest.fixture(name="logits")
def logits_fixture():
    return logits


@pytest.fixture
def small() -> dict:
    """Arguments of a small Spikformer."""
    return dict(SMALL)


@pytest.fixture
def arch() -> str:
    return ARCH


@pytest.fixture(scope="session")
def model() -> nn.Module:
    """A small Spikformer that fires; not to be changed."""
    torch.manual_seed(0)
    return enliven(Spikformer(**SMALL))


@pytest.fixture
def described(model) -> dict:
    """A self-describing checkpoint of it."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    return {"state_dict": state, "arch": ARCH, "arch_args": dict(SMALL), "input_shape": [3, 16, 16]}
