"""Images for fine-tuning: read once, one slice held out, the rest in a new order every epoch, and jittered.

All that is random follows from the seed, the epoch and the step alone, so that a resumed run goes on as if it had
never stopped, and every rank draws the same.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

from svitc.errors import InputError, UsageError
from svitc.ir.graph import InputSpec

MEMORY = 4_000_000_000  # bytes of images that are kept; more are read again every epoch
READ = 256
HELD_OUT_SHARE = 0.05


class Data(Protocol):
    """Labelled batches in the program's input layout, in a fixed order.

    Where it has ``labels`` and ``subset(indices)``, another data set of those images in that order, it may be larger
    than memory.
    """

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]: ...

    def __len__(self) -> int: ...


class Images(ABC):
    """Labelled images by number.

    Attributes:
        labels: ``[N]``.
        key: what tells these images from others.
    """

    labels: torch.Tensor
    key: str

    @abstractmethod
    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images in the program's input layout, with their labels; one that cannot be read may be missing."""


class InMemory(Images):
    """All images, float32."""

    def __init__(self, data: Data, spec: InputSpec, step: Callable[[int], None]) -> None:
        self.batch_dim = spec.batch_dim
        self.images = torch.empty(len(data), *spec.shape)
        labels: list[torch.Tensor] = []
        count = 0
        for x, y in data.batches(READ):
            x = x.movedim(spec.batch_dim, 0)
            self.images[count : count + len(x)] = x
            labels.append(y)
            count += len(x)
            step(count)
        if count < 2:
            raise InputError(f"{count} images are too few to fine-tune on", hint="Give more with --train-data.")
        self.images, self.labels = self.images[:count], torch.cat(labels).long()
        few = self.images[:: max(1, count // 64)].contiguous()
        self.key = _key(count, self.labels, few)

    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[indices].movedim(0, self.batch_dim), self.labels[indices]


class Reread(Images):
    """Images that do not fit into memory, read when they are needed."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.labels = torch.as_tensor(data.labels).long()
        few, _ = self.take(torch.arange(0, len(self.labels), max(1, len(self.labels) // 16)))
        self.key = _key(len(self.labels), self.labels, few.contiguous())

    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for x, y in self.data.subset(indices.tolist()).batches(len(indices)):
            return x, y.long()
        raise InputError(f"none of {len(indices)} images of the training data can be read")


def open_images(data: Data, spec: InputSpec, step: Callable[[int], None], memory: int = MEMORY) -> Images:
    """Read all images, or prepare to read them when they are needed.

    Raises:
        InputError: fewer than two images, or too many that cannot be read.
        UsageError: more than fit, and no way to read them out of order.
    """
    size = 4 * len(data) * math.prod(spec.shape)
    if size <= memory:
        return InMemory(data, spec, step)
    if hasattr(data, "subset") and hasattr(data, "labels"):
        return Reread(data)
    raise UsageError(
        f"{len(data)} images take {size / 1e9:.1f} GB, more than is kept in memory, and cannot be read in random order",
        hint="Give fewer images with --limit, or a folder, a .zip or an .npz.",
    )


def _key(count: int, *parts: torch.Tensor) -> str:
    digest = hashlib.sha256(str(count).encode())
    for part in parts:
        digest.update(part.numpy().tobytes())
    return digest.hexdigest()


def split(labels: torch.Tensor, held_out: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices to train on and indices to judge by; the latter are spread evenly over the classes.

    Args:
        held_out: how many at most; at most 5% are taken, but one of each class where that leaves a half to train on.
    """
    count = len(labels)
    generator = torch.Generator().manual_seed(seed)
    members = [torch.nonzero(labels == label)[:, 0] for label in labels.unique()]
    members = [part[torch.randperm(len(part), generator=generator)] for part in members]
    wanted = max(min(held_out, int(count * HELD_OUT_SHARE)), min(len(members), count // 2), 1)
    turns = max(len(part) for part in members)
    chosen = [int(part[turn]) for turn in range(turns) for part in members if turn < len(part)][:wanted]
    judged = torch.tensor(sorted(chosen))
    mask = torch.ones(count, dtype=torch.bool)
    mask[judged] = False
    return torch.nonzero(mask)[:, 0], judged
