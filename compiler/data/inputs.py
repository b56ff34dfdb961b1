"""Inputs of a program: batches of a data set, or random ones where there is none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from svitc.errors import InputError, UsageError
from svitc.ir.program import Program

MAX_BATCH_PIXELS = 224 * 224  # the values of all layers, for two runtimes, then fit into a few gigabytes


class Data(Protocol):
    """Images in the layout of the program's input, with labels unless ``labeled`` is there and says otherwise."""

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield images, ``[N, C, H, W]`` or ``[T, N, C, H, W]``, and their labels, ``[N]``, -1 for no label."""
        ...

    def __len__(self) -> int: ...


def has_labels(data: Data) -> bool:
    """Return whether images have labels; those of a user's own class have, unless it says otherwise."""
    return bool(getattr(data, "labeled", True))


def inputs_of(program: Program, given: Any, batch: int) -> Iterator[torch.Tensor]:
    """Yield the inputs of images that Python code gives, without their labels, in batches.

    Args:
        program: the program that they are for.
        given: a data set; one batch, a tensor or an array; or an iterable of batches, alone or with labels.
        batch: images in a batch of a data set.

    Raises:
        UsageError: it gives no images.
        InputError: the images do not have the shape that the program takes.
    """
    spec = program.input
    if hasattr(given, "batches"):
        given = given.batches(batch)
    elif isinstance(given, torch.Tensor | np.ndarray):
        given = [given]
    if not isinstance(given, Iterable) or isinstance(given, str | bytes | Mapping):
        raise UsageError(
            f"a {type(given).__name__} gives no images",
            hint="Give a batch of them, an iterable of batches, or what svitc.open_data(program, source) returns.",
        )
    for item in given:
        x = item[0] if isinstance(item, tuple | list) and item else item
        x = torch.from_numpy(x) if isinstance(x, np.ndarray) and x.dtype.kind in "fiu" else x
        if not isinstance(x, torch.Tensor):
            raise InputError(f"images are a {type(x).__name__}, not a tensor", hint="Give batches of inputs.")
        if x.ndim <= spec.batch_dim or tuple(x.shape) != spec.batched(x.shape[spec.batch_dim]):
            raise InputError(f"images of shape {list(x.shape)}, but the model takes {list(spec.shape)} and a batch")
        yield x


Logits = TypeVar("Logits", np.ndarray, torch.Tensor)


def time_average(logits: Logits) -> Logits:
    """Return logits ``[N, classes]`` as they are, ``[T, N, classes]`` averaged over time."""
    return logits.mean(0) if logits.ndim == 3 else logits


def top1(logits: np.ndarray) -> np.ndarray:
    """Return the predicted class of each image, ``[N]``.

    Args:
        logits: ``[N, classes]``, or ``[T, N, classes]``, which are averaged over time.
    """
    return time_average(logits).argmax(axis=-1)


def random_inputs(program: Program, images: int, batch: int, seed: int) -> list[torch.Tensor]:
    """Return batches of random inputs: images of standard normal pixels, or event frames of small counts.

    Where the program knows another range of its input, the pixels are uniform in it.

    Args:
        images: Number of images in all.
        batch: Images in one batch; the last may have fewer.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = []
    while images > 0:
        shape = program.input.batched(min(batch, images))
        if (ends := program.info.get("input_range")) is not None:
            x = torch.rand(shape, generator=generator) * (ends["high"] - ends["low"]) + ends["low"]
        else:
            x = torch.randn(shape, generator=generator)
        batches.append(x.abs().floor() if program.input.events else x)
        images -= batch
    return batches


def some_inputs(
    program: Program, data: Data | None, images: int, seed: int, batch: int | None = None
) -> Iterator[torch.Tensor]:
    """Yield the first images of a data set, or random inputs where there is none, in batches that fit into memory.

    Args:
        program: the program that they are for.
        data: the data set.
        images: number of images.
        seed: seed of random inputs.
        batch: the only size that batches may have; then as many more images fill the last one, the first ones again
            where a data set ends. None for any.
    """
    if batch is not None:
        yield from _in_batches_of(batch, program, _some(program, data, -(-images // batch) * batch, seed))
    else:
        yield from _some(program, data, images, seed)


def _in_batches_of(size: int, program: Program, inputs: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield images in batches of one size; the last is filled up with its own images, again and again."""
    axis = program.input.batch_dim
    rest: list[torch.Tensor] = []
    for x in inputs:
        rest.append(x)
        while sum(part.shape[axis] for part in rest) >= size:
            joined = torch.cat(rest, axis)
            yield joined.narrow(axis, 0, size)
            rest = [joined.narrow(axis, size, joined.shape[axis] - size)]
    last = torch.cat(rest, axis) if rest else None
    if last is not None and (count := last.shape[axis]):
        yield last.index_select(axis, torch.arange(size) % count)


def _some(program: Program, data: Data | None, images: int, seed: int) -> Iterator[torch.Tensor]:
    """Yield inputs as ``some_inputs`` does, in batches of any size."""
    pixels = math.prod(program.input.shape[-2:])
    batch = max(1, min(images, MAX_BATCH_PIXELS // pixels))
    if data is None:
        yield from random_inputs(program, images, batch, seed)
        return
    for x, _ in data.batches(batch):
        count = x.shape[program.input.batch_dim]
        yield x.narrow(program.input.batch_dim, 0, min(count, images))
        images -= count
        if images <= 0:
            return
