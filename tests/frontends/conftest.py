"""Small models whose neurons fire, for the frontends' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from spikingjelly.activation_based.model import Spikformer
from torch import nn

from support.published_small import run
from svitc.frontends.published import PUBLISHED

SMALL = {
    "T": 2,
    "img_size_h": 16,
    "img_size_w": 16,
    "patch_size": 4,
    "num_classes": 3,
    "embed_dims": 16,
    "num_heads": 2,
    "depths": 1,
}
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


@pytest.fixture(name="enliven")
def enliven_fixture():
    return enliven


@pytest.fixture(name="logits")
def logits_fixture():
    return run


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


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Models so small run fastest in one, above all where other tests run beside them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def on_meta() -> dict[str, nn.Module]:
    """Every published model, without memory."""
    with torch.device("meta"):
        return {name: published.build() for name, published in PUBLISHED.items()}
