"""What an entry of the zoo is, and how its model is made to fire."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn

from .neurons import Spiking

SEED = 0
WARM_BATCHES = 2
WARM_IMAGES = 4
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
JELLY_NEURONS = (neuron.BaseNode, neuron.PSN, neuron.MaskedPSN, neuron.SlidingPSN)


@dataclass(frozen=True)
class Definition:
    """A published architecture at a small size.

    Attributes:
        build: Returns the model with random weights.
        input: Shape of the input without batch: ``(C, H, W)``, or ``(T, C, H, W)`` for event frames.
        paper: Where it was published.
        batch_first: Whether the model takes event frames as ``[N, T, C, H, W]``.
        obstacle: Why svitc cannot have it, where that is known to stay so; None for all others.
    """

    build: Callable[[], nn.Module]
    input: tuple[int, ...]
    paper: str
    batch_first: bool = False
    obstacle: str | None = None

    @property
    def events(self) -> bool:
        """Whether the input is a sequence of event frames."""
        return len(self.input) == 4

    def images(self, count: int, seed: int = 1) -> torch.Tensor:
        """Return random images, or event counts.

        Args:
            count: Number of images.
            seed: Of the random numbers.

        Returns:
            ``[N, C, H, W]``, or ``[T, N, C, H, W]`` for event frames.
        """
        generator = torch.Generator().manual_seed(seed)
        if self.events:
            steps, *frame = self.input
            return torch.randn(steps, count, *frame, generator=generator).abs().floor()
        return torch.randn(count, *self.input, generator=generator)

    def model(self) -> nn.Module:
        """Return the model in eval mode, with batch-norm statistics under which its neurons fire."""
        torch.manual_seed(SEED)
        return warm(self.build(), self)

    def call(self, model: nn.Module, x: torch.Tensor) -> Any:
        """Return what the model returns for a batch of ``images``."""
        return model(x.transpose(0, 1) if self.batch_first else x)

    def run(self, model: nn.Module, x: torch.Tensor) -> Any:
        """Return the outputs of the eager model, with all membranes reset before and afterwards."""
        functional.reset_net(model)
        with torch.no_grad():
            outputs = self.call(model, x)
        functional.reset_net(model)
        return outputs


def warm(model: nn.Module, definition: Definition) -> nn.Module:
    """Estimate batch-norm statistics on random images, with shifts under which neurons fire as in a trained network."""
    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the average over all batches
        norm.reset_running_stats()
        nn.init.uniform_(norm.weight, 0.8, 1.8)
        nn.init.uniform_(norm.bias, 0.1, 1.1)
    model.train()
    with torch.no_grad():
        for batch in range(WARM_BATCHES):
            functional.reset_net(model)
            definition.call(model, definition.images(WARM_IMAGES, seed=100 + batch))
    functional.reset_net(model)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    return model.eval()


def spiking_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Return the paths and modules of all layers that emit spikes, SpikingJelly's and hand-written ones."""
    layers = [(path, module) for path, module in model.named_modules() if isinstance(module, (*JELLY_NEURONS, Spiking))]
    inner = {id(child) for _, module in layers for child in module.modules() if child is not module}
    return ((path, module) for path, module in layers if id(module) not in inner)


def tensors(outputs: Any, name: str = "output") -> dict[str, torch.Tensor]:
    """Return the tensors in nested tuples, lists and dictionaries, by their paths in them."""
    if isinstance(outputs, torch.Tensor):
        return {name: outputs}
    items = outputs.items() if isinstance(outputs, dict) else enumerate(outputs) if outputs is not None else ()
    return {path: tensor for key, value in items for path, tensor in tensors(value, f"{name}.{key}").items()}
