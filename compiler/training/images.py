"""Images for fine-tuning: read once, kept in memory where they fit, and split into training and held-out images.

The split follows from the seed alone, so that a resumed run and all ranks use the same one.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch

from svitc.errors import InputError, UsageError
from svitc.ir.graph import InputSpec
from svitc.support import human

MAX_CACHE_BYTES = 4_000_000_000  # larger data sets are read again every epoch
READ_BATCH_IMAGES = 256
HELD_OUT_SHARE = 0.05


class Data(Protocol):
    """A data set: batches in the program's input layout, in a fixed order, with labels, or -1 in place of each.

    A data set that does not fit into memory must be ``IndexedData``.
    """

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield images and their labels ``[N]``."""
        ...

    def __len__(self) -> int: ...


@runtime_checkable
class IndexedData(Data, Protocol):
    """A data set whose images can be read in any order.

    Attributes:
        labels: class of each image, ``[N]``; -1 for no label.
    """

    labels: Sequence[int] | torch.Tensor

    def subset(self, indices: Sequence[int]) -> Data:
        """Return a data set of these images, in this order."""
        ...


class Images(ABC):
    """Images that are looked up by index, with their labels.

    Attributes:
        labels: ``[N]``, -1 for no label.
        key: digest of labels and some images, which identifies the data.
    """

    labels: torch.Tensor
    key: str

    @abstractmethod
    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images in the program's input layout, and their labels; images that cannot be read may be missing."""


class InMemory(Images):
    """Images that are all kept in memory, in float32."""

    def __init__(self, data: Data, spec: InputSpec, step: Callable[[int], None]) -> None:
        self.batch_dim = spec.batch_dim
        self.images = torch.empty(len(data), *spec.shape)
        labels: list[torch.Tensor] = []
        count = 0
        for x, y in data.batches(READ_BATCH_IMAGES):
            x = x.movedim(spec.batch_dim, 0)
            self.images[count : count + len(x)] = x
            labels.append(y)
            count += len(x)
            step(count)
        if count < 2:
            few = human.subject(count, "image")
            raise InputError(f"{few} too few to fine-tune on", hint="Give more with --train-data.")
        self.images, self.labels = self.images[:count], torch.cat(labels).long()
        sample = self.images[:: max(1, count // 64)].contiguous()
        self.key = _key(count, self.labels, sample)

    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Images``."""
        return self.images[indices].movedim(0, self.batch_dim), self.labels[indices]


class Reread(Images):
    """Images that do not fit into memory and are read when they are needed."""

    def __init__(self, data: IndexedData) -> None:
        self.data = data
        self.labels = torch.as_tensor(data.labels).long()
        sample, _ = self.take(torch.arange(0, len(self.labels), max(1, len(self.labels) // 16)))
        self.key = _key(len(self.labels), self.labels, sample.contiguous())

    def take(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See ``Images``."""
        for x, y in self.data.subset(indices.tolist()).batches(len(indices)):
            return x, y.long()
        raise InputError(f"none of {len(indices)} images of the training data can be read")


def open_images(data: Data, spec: InputSpec, step: Callable[[int], None], memory: int = MAX_CACHE_BYTES) -> Images:
    """Read all images, or prepare to read them when they are needed.

    Args:
        data: the data set.
        spec: the model's input.
        step: called with the number of images read so far.
        memory: bytes of images that may be kept in memory.

    Raises:
        InputError: fewer than two images, or too many that cannot be read.
        UsageError: the images do not fit into memory and cannot be read in random order.
    """
    size = 4 * len(data) * math.prod(spec.shape)
    if size <= memory:
        return InMemory(data, spec, step)
    if isinstance(data, IndexedData):
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
    """Split images into training images and held-out images, the latter balanced over the classes.

    Args:
        labels: class of each image, ``[N]``.
        held_out: largest number of held-out images. At most 5% of the images are held out, but at least one of each
            class where that leaves half of the images for training.
        seed: seed of the choice.

    Returns:
        Indices of the training images, and indices of the held-out images, both ascending.
    """
    count = len(labels)
    generator = torch.Generator().manual_seed(seed)
    members = [torch.nonzero(labels == label)[:, 0] for label in labels.unique()]
    members = [indices[torch.randperm(len(indices), generator=generator)] for indices in members]
    target = max(min(held_out, int(count * HELD_OUT_SHARE)), min(len(members), count // 2), 1)
    rounds = max(len(indices) for indices in members)
    chosen = [int(indices[i]) for i in range(rounds) for indices in members if i < len(indices)][:target]
    held_out_indices = torch.tensor(sorted(chosen))
    mask = torch.ones(count, dtype=torch.bool)
    mask[held_out_indices] = False
    return torch.nonzero(mask)[:, 0], held_out_indices
