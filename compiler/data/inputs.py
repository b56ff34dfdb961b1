"""Batches to run a network on: images of a data set, or random ones where there is none."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol, TypeVar

import numpy as np
import torch

from svitc.ir.program import Program

PIXELS_AT_ONCE = 224 * 224  # a batch whose values, kept layer by layer for two runtimes, stay within a few gigabytes


class Data(Protocol):
    """Labelled batches in the program's input layout."""

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]: ...

    def __len__(self) -> int: ...


Logits = TypeVar("Logits", np.ndarray, torch.Tensor)


def time_average(logits: Logits) -> Logits:
    """Return logits ``[N, classes]`` as they are, ``[T, N, classes]`` averaged over time."""
    return logits.mean(0) if logits.ndim == 3 else logits


def top1(logits: np.ndarray) -> np.ndarray:
    """Class of each image from ``[N, classes]``, or ``[T, N, classes]`` averaged over time."""
    return time_average(logits).argmax(axis=-1)


def random_inputs(program: Program, images: int, batch: int, seed: int) -> list[torch.Tensor]:
    """Seeded inputs where there is no data: images of standard normal pixels, event frames of small counts."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    while images > 0:
        shape = program.input.batched(min(batch, images))
        x = torch.randn(shape, generator=generator)
        made.append(x.abs().floor() if program.input.events else x)
        images -= batch
    return made


def some_inputs(program: Program, data: Data | None, images: int, seed: int) -> Iterator[torch.Tensor]:
    """The first images of a data set, or random inputs where there is none, in batches that fit."""
    pixels = math.prod(program.input.shape[-2:])
    batch = max(1, min(images, PIXELS_AT_ONCE // pixels))
    if data is None:
        yield from random_inputs(program, images, batch, seed)
        return
    for x, _ in data.batches(batch):
        n = x.shape[program.input.batch_dim]
        yield x.narrow(program.input.batch_dim, 0, min(n, images))
        images -= n
        if images <= 0:
            return
