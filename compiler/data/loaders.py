"""The user's own data: a DataLoader, a Dataset, or any iterable of batches, read once and kept.

The requested sample is kept, so that every later pass sees the same images however the loader shuffles or augments.
"""

from __future__ import annotations

import contextlib
import random
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch

from svitc.data.arrays import check_range, class_count
from svitc.data.first_look import CLASS_NUMBERS, is_one_hot, one_hot_words
from svitc.data.sources import NO_LABEL, OpenedSource, without_labels
from svitc.data.spill import Spill
from svitc.errors import InputError, SvitcError, UsageError
from svitc.ir.graph import InputSpec
from svitc.support import human
from svitc.support.types import JsonMapping
from svitc.support.user_code import raised_at

Item = tuple[torch.Tensor, int]  # one image, float32 of the input's shape, and its label, or NO_LABEL


class Origin(NamedTuple):
    """Where batches come from, for messages.

    Attributes:
        name: what the data are called.
        subject: begins the message where the user's code fails.
        file: the user's file, so that the message can name the line; None where any line may be meant.
    """

    name: str
    subject: str
    file: Path | None


def read_loader(
    loader: Iterable[object],
    origin: Origin,
    spec: InputSpec,
    info: JsonMapping,
    limit: int | None,
    seed: int,
    unlabeled: bool = False,
) -> OpenedSource:
    """Read a loader once, and keep its images in the order of the sample.

    Args:
        loader: gives images as the model takes them: batches or single ones, with labels or without.
        origin: where it comes from.
        spec: Input of the model.
        info: Metadata of the program, of which ``classes`` and ``num_classes`` are read.
        limit: Number of images in a class-balanced sample; None keeps all.
        seed: Of the sample.
        unlabeled: Whether to leave out the labels that it may give.

    Raises:
        UsageError: The loader fails, or gives fewer images than ``limit``.
        InputError: The data are not images that fit the model, or they do not fit on the disk.
    """
    parser = BatchParser(origin.name, spec, info, unlabeled)
    batches = with_user_errors(lambda: iterate(loader), origin)
    return collect(origin.name, (item for batch in batches for item in parser.items(batch)), info, limit, seed, parser)


def is_iterable(value: object) -> TypeGuard[Iterable[object]]:
    """Return whether a value gives others one by one, as loaders and map-style Datasets do."""
    return isinstance(value, Iterable) or (hasattr(value, "__getitem__") and hasattr(value, "__len__"))


def iterate(loader: Iterable[object]) -> Iterator[object]:
    """Begin to iterate over a loader or a map-style Dataset."""
    # a map-style Dataset is read by number: not all of them raise the IndexError that ends a plain loop
    numbered: Any = loader
    if hasattr(loader, "__getitem__") and hasattr(loader, "__len__") and not hasattr(loader, "__iter__"):
        return (numbered[index] for index in range(len(numbered)))
    return iter(loader)


def with_user_errors(start: Callable[[], Iterator[object]], origin: Origin) -> Iterator[object]:
    """Iterate, and turn exceptions of the user's code into a UsageError that names its line."""
    count, batches = 0, None
    while True:
        try:
            batches = start() if batches is None else batches
            batch = next(batches)
        except StopIteration:
            return
        except SvitcError:
            raise
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"{origin.subject} failed after {human.counted(count, 'batch')}: {describe(error)}",
                where=raised_at(error, origin.file),
            ) from error
        count += 1
        yield batch


def describe(error: BaseException) -> str:
    """Return an exception in one line."""
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:  # a DataLoader's worker sends its whole traceback along
        return text.splitlines()[-1]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class BatchParser:
    """Reader that splits batches into images, with their labels, and checks them against the model.

    Attributes:
        labeled: Whether the images have labels; None until a batch shows it.
        time_first: Whether event frames come as ``[T, N, ...]``; None until a batch shows it.
        seen: Number of batches so far.
        notes: Assumptions, for the user to read.
    """

    def __init__(self, text: str, spec: InputSpec, info: JsonMapping, unlabeled: bool = False) -> None:
        self.text, self.spec, self.info, self.unlabeled = text, spec, info, unlabeled
        self.labeled: bool | None = None
        self.time_first: bool | None = None
        self.seen = 0
        self.notes: list[str] = []

    def items(self, batch: object) -> Iterator[Item]:
        """Yield the images of a batch, or the single image that it is. Raises InputError."""
        self.seen += 1
        values, targets = self._parts(batch)
        if self.labeled not in (None, targets is not None):
            raise self._wrong(
                f"has {'no ' if self.labeled else ''}labels, unlike those before it",
                hint="To use all images without labels, give --unlabeled (unlabeled=True).",
            )
        self.labeled = targets is not None
        if targets is None:
            yield from ((image, NO_LABEL) for image in self._unlabeled(self._images(values)).float())
            return
        images = self._images(values)
        labels = self._labels(targets, images.dim() == len(self.spec.shape))
        if labels.dim() == 0:
            labels, images = labels[None], images[None]
        if labels.dim() != 1 or not len(labels):
            raise self._wrong(f"has labels {list(labels.shape)}, not one number for each image")
        images = self._images_first(images, len(labels))
        check_range(f"{self.text}: batch {self.seen}", int(labels.min()), int(labels.max()), self.info)
        yield from zip(images.float(), labels.tolist(), strict=True)

    def _parts(self, batch: object) -> tuple[object, object]:
        """Return the images and the labels of a batch, None for no labels. Raises InputError."""
        if isinstance(batch, torch.Tensor | np.ndarray):
            return batch, None
        if isinstance(batch, tuple | list) and (len(batch) in (1, 2) or (self.unlabeled and batch)):
            return batch[0], None if self.unlabeled or len(batch) == 1 else batch[1]
        actual = f"{len(batch)} values" if isinstance(batch, tuple | list) else human.article(type(batch).__name__)
        raise self._wrong(f"is {actual}, not (images, labels) or images alone")

    def _unlabeled(self, images: torch.Tensor) -> torch.Tensor:
        """Return a batch of images without labels, or a single one, as ``[N, *shape]``. Raises InputError."""
        shape = tuple(self.spec.shape)
        if tuple(images.shape) == shape:
            images = images[None]
        time_first = self.spec.events and images.shape[:1] == shape[:1] and tuple(images.shape[2:]) == shape[1:]
        images_first = tuple(images.shape[1:]) == shape
        count = images.shape[1] if time_first and not images_first else (*images.shape, 0)[0]
        return self._images_first(images, count)

    def _wrong(self, problem: str, hint: str | None = None) -> InputError:
        return InputError(f"{self.text}: batch {self.seen} {problem}", hint=hint)

    def _labels(self, value: object, single: bool) -> torch.Tensor:
        """Return the labels of a batch, or of a single image. Raises InputError where they are no whole numbers."""
        try:
            labels = torch.as_tensor(value).detach().cpu()
        except Exception as error:  # a batch may hold anything
            raise self._wrong(f"has labels of type {type(value).__name__}, not whole numbers") from error
        one_row = single and labels.shape == (class_count(self.info),)  # not the classes of a batch, such as [0, 1]
        rows = labels[None] if one_row else labels
        if not labels.is_complex() and is_one_hot(rows.double().numpy()):
            raise self._wrong(f"has {one_hot_words(labels.shape)}", hint=CLASS_NUMBERS)
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise self._wrong(f"has labels of type {labels.dtype}, not whole numbers")
        return labels.long()

    def _images(self, value: object) -> torch.Tensor:
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise self._wrong(
                f"has images of type {kind}, not tensors", hint="Convert and normalize them in the loader."
            )
        counts = self.spec.events and value.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
        if value.dtype not in (torch.float32, torch.float64) and not counts:
            raise self._wrong(
                f"has images of {str(value.dtype).removeprefix('torch.')}, not float32",
                hint="A loader gives what the model is given: normalized float32.",
            )
        value = value.detach().cpu()
        if not counts and not torch.isfinite(value).all():
            raise self._wrong("holds NaN or infinity")
        return value

    def _images_first(self, images: torch.Tensor, count: int) -> torch.Tensor:
        """Return a batch of ``count`` images as ``[N, *shape]``. Raises InputError where it has another shape."""
        shape, actual = tuple(self.spec.shape), tuple(images.shape)
        images_first = actual == (count, *shape)
        time_first = self.spec.events and actual == (shape[0], count, *shape[1:])
        if images_first and time_first:  # N = T: as in earlier batches, or else as in most loaders
            if self.time_first is None:
                note = f"event frames of {self.text} are taken as [N, T, C, H, W]"
                self.notes += [] if note in self.notes else [note]
            return images.transpose(0, 1) if self.time_first else images
        if not images_first and not time_first:
            expected = "[N, T, C, H, W] or [T, N, C, H, W]" if self.spec.events else "[N, C, H, W]"
            of = f" for {human.counted(count, 'label')}" if self.labeled else ""
            raise self._wrong(f"has images {list(actual)}{of}, but the model takes {list(shape)}, {expected}")
        if (self.notes and time_first) or self.time_first not in (None, time_first):
            raise self._wrong(
                "puts time and batch in another order than those before it",
                hint="Where a batch has as many images as time steps, the order cannot be seen: change the batch size.",
            )
        self.time_first = time_first
        self.notes.clear()
        return images.transpose(0, 1) if time_first else images


def collect(
    text: str, items: Iterable[Item], info: JsonMapping, limit: int | None, seed: int, reader: BatchParser
) -> OpenedSource:
    """Keep all images, or a sample of ``limit``, class-balanced where there are labels."""
    spill, sample = Spill(text), _BalancedSample(limit, seed)
    for image, label in items:
        slot = sample.offer(label)
        if slot is not None:
            spill.put(slot, image)
    if not sample.seen:
        raise InputError(f"{text} gives no images")
    if limit is not None and sample.seen < limit:
        raise UsageError(f"--limit {limit} is more than the {sample.seen} images of {text}")
    chosen = sample.order()
    spill.slots = [slot for slot, _ in chosen]
    if not reader.labeled:
        return without_labels(spill, len(chosen), info, list(reader.notes))
    classes = list(info["classes"]) if info.get("classes") else None
    return OpenedSource(spill, np.array([label for _, label in chosen], dtype=np.int64), classes, list(reader.notes))


class _BalancedSample:
    """A class-balanced sample taken in one pass, which never holds more than ``limit`` images.

    Each class is shuffled by drawing a random key for every image; then classes take turns: the image of rank r in
    class c comes at (r, c). Further images only push an image back, so that one beyond ``limit`` never returns.

    Attributes:
        kept: Class -> (key, slot) of its images in the sample, sorted.
        arrived: (slot, label) of all images, where there is no limit.
        last: The last (rank, class) in the sample.
        seen: Number of images offered.
        filled: Number of slots in use.
    """

    def __init__(self, limit: int | None, seed: int) -> None:
        self.limit, self.random = limit, random.Random(seed)
        self.kept: dict[int, list[tuple[float, int]]] = {}
        self.arrived: list[tuple[int, int]] = []
        self.last = (-1, -1)
        self.seen = self.filled = 0

    def offer(self, label: int) -> int | None:
        """Return the slot for an image, which replaces the image there, or None where it is not in the sample."""
        self.seen += 1
        if self.limit is None:
            self.arrived.append((self.filled, label))
            self.filled += 1
            return self.filled - 1
        members, key = self.kept.setdefault(label, []), self.random.random()
        rank = bisect(members, (key, -1))
        if self.filled < self.limit:
            slot = self.filled
            self.filled += 1
            self.last = max(self.last, (len(members), label))
        elif (len(members), label) > self.last:  # the class is full: the image replaces its last one, or is left out
            if rank == len(members):
                return None
            slot = members.pop()[1]
        else:
            slot = self.kept[self.last[1]].pop()[1]
            rank = min(rank, len(members))
        members.insert(rank, (key, slot))
        if self.filled == self.limit:
            self.last = max((len(images) - 1, label) for label, images in self.kept.items())
        return slot

    def order(self) -> list[tuple[int, int]]:
        """Return (slot, label) of the images kept: as they came, or in the order in which classes take turns."""
        if self.limit is None:
            return self.arrived
        turns = sorted(
            (rank, label, slot) for label, members in self.kept.items() for rank, (_, slot) in enumerate(members)
        )
        return [(slot, label) for _, label, slot in turns]


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, numpy's and torch's generators, and restore their states afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
