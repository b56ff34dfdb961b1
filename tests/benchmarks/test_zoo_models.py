"""The definitions of the zoo: each is built, runs, and fires everywhere; a silent model would prove little."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from zoo_models import FILES, ZOO
from zoo_models.definition import spiking_layers, tensors

IMAGES = 5  # differs from every number of time steps
LEAST = 22  # published architectures beyond the families that svitc knows
KNOWN = {"spikformer", "sdt", "meta-spikeformer", "e-spikeformer", "qkformer", "maxformer"}


@pytest.fixture(params=ZOO)
def name(request) -> Iterator[str]:
    yield request.param


def spikes_of(model: nn.Module) -> dict[str, list[torch.Tensor]]:
    """Return a dictionary that receives what each spiking layer emits, by its path."""
    emitted: dict[str, list[torch.Tensor]] = {path: [] for path, _ in spiking_layers(model)}
    for path, layer in spiking_layers(model):
        layer.register_forward_hook(
            lambda _, __, spikes, path=path: emitted[path].append(spikes[0] if isinstance(spikes, tuple) else spikes)
        )
    return emitted


def test_the_zoo_is_large_enough():
    assert len(ZOO) >= LEAST and not KNOWN & set(ZOO)
    assert len(ZOO) == sum(len(file.ZOO) for file in FILES), "two definitions have the same name"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.__name__)
def test_every_file_names_its_paper(file):
    assert re.search(r'"[^"]{10,}"', file.__doc__.replace("\n", " ")), "no title"
    assert re.search(r"20[12]\d|arXiv:", file.__doc__), "neither a year nor an identifier"


def test_every_neuron_fires_and_none_always(name):
    definition = ZOO[name]
    model = definition.model()
    emitted = spikes_of(model)
    definition.run(model, definition.images(IMAGES))
    assert len(emitted) >= 3
    rates = {path: torch.cat([s.ne(0).float().flatten() for s in spikes]).mean() for path, spikes in emitted.items()}
    assert not [path for path, rate in rates.items() if rate == 0], "silent"
    assert not [path for path, rate in rates.items() if rate == 1], "always on"


def test_outputs_depend_on_the_image_alone(name):
    """Membranes are reset between runs, and the images of a batch are independent of each other."""
    definition = ZOO[name]
    model, x = definition.model(), definition.images(IMAGES)
    first, second = (tensors(definition.run(model, x)) for _ in range(2))
    alone = tensors(definition.run(model, x[:, :1] if definition.events else x[:1]))
    assert first and all(torch.equal(first[key], second[key]) for key in first)
    for key, value in first.items():
        batch = value.shape.index(IMAGES)
        assert value.isfinite().all() and value.float().std() > 0.01
        torch.testing.assert_close(alone[key], value.narrow(batch, 0, 1), rtol=1e-4, atol=1e-4)
