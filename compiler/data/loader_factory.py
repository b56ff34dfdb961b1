"""Data that the user's own code gives, as ``module:factory``: a DataLoader, a Dataset, or batches of any kind.

The user names the code to run, so that it is run as it is: the real torchvision, none of the stand-ins that old
model files get. It is iterated once. What it gives is kept, no more than the sample that is asked for, so that every
later pass sees the same images however the loader shuffles or augments.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import random
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from svitc.data.arrays import check_range
from svitc.data.sources import Opened
from svitc.data.spill import Spill
from svitc.errors import InputError, SvitcError, UsageError
from svitc.ir.graph import InputSpec
from svitc.support.user_code import import_file, importable, raised_at, search_path

FORM = "It is module:factory, such as my_data:val, or path/to/file.py:factory."
Item = tuple[torch.Tensor, int]  # one image, float32 of the input's shape, and its label


def is_factory(path: Path | str) -> bool:
    """Whether ``--data`` names a factory: ``module:name`` or ``file.py:name``, and no file is called that."""
    place, _, name = str(path).rpartition(":")
    return bool(place) and name.isidentifier() and not Path(path).exists()


def open_factory(text: str, spec: InputSpec, info: Mapping[str, Any], limit: int | None, seed: int) -> Opened:
    """Import and call a factory and keep what it gives, already in the order of the sample.

    Args:
        text: ``module:factory`` or ``path/to/file.py:factory``.
        limit: keep a class-balanced sample of this many, found in one pass.
        seed: of the sample, and of torch's, numpy's and Python's generators while the loader runs.

    Raises:
        UsageError: no such file, module or factory; one that raises or needs arguments; fewer images than ``limit``.
        InputError: what it gives is not labelled images that fit the model, or does not fit on the disk.
    """
    place, _, name = text.rpartition(":")
    folders = search_path(Path(place)) if place.endswith(".py") else [str(Path.cwd())]
    with contextlib.ExitStack() as stack:
        for folder in reversed(folders):
            stack.enter_context(importable(Path(folder)))
        stack.enter_context(_seeded(seed))
        module = _import(place)
        file = Path(getattr(module, "__file__", None) or place)
        given = _given(module, name, text, file)
        reader = _Reader(text, spec, info)
        batches = _guarded(lambda: _iterate(given), text, file)
        return _keep(text, (item for batch in batches for item in reader.items(batch)), info, limit, seed, reader.notes)


def _import(place: str) -> ModuleType:
    file = Path(place) if place.endswith(".py") else None
    if file is not None and not file.is_file():
        raise UsageError(f"--data: there is no file {place}", hint=FORM)
    try:
        return import_file(file) if file is not None else importlib.import_module(place)
    except SvitcError:
        raise
    except ModuleNotFoundError as error:
        if file is None and error.name and f"{place}.".startswith(f"{error.name}."):
            raise UsageError(
                f"--data: there is no module {error.name}",
                hint="Looked for in the current folder and on PYTHONPATH; or give path/to/file.py:factory.",
            ) from error
        where = raised_at(error, file) if file is not None else None
        raise UsageError(
            f"--data: {place} imports {error.name}, which is not installed",
            where=where,
            hint="Install it, or take the import out.",
        ) from error
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        where = raised_at(error, file or _file_of(place))
        raise UsageError(f"--data: importing {place} failed: {_describe(error)}", where=where) from error


def _file_of(place: str) -> Path:
    with contextlib.suppress(Exception):
        spec = importlib.util.find_spec(place)
        if spec is not None and spec.origin:
            return Path(spec.origin)
    return Path(place)


def _given(module: ModuleType, name: str, text: str, file: Path) -> Any:
    """What the factory returns, or the loader itself where the name is one."""
    found = getattr(module, name, None)
    if found is not None and not callable(found) and _iterable(found):
        return found
    if not callable(found):
        public = {k: v for k, v in vars(module).items() if callable(v) and not k.startswith("_")}
        here = [k for k, v in public.items() if getattr(v, "__module__", None) == module.__name__]
        own = here or list(public)
        close = get_close_matches(name, own, 1)
        raise UsageError(
            f"--data: {text.rpartition(':')[0]} has no factory {name}"
            + (f"; the closest is {close[0]}" if close else ""),
            hint=f"It has {', '.join(own[:12])}." if own else "It defines no function and no class.",
        )
    try:
        given = found()
    except SvitcError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"--data: {name}() failed: {_describe(error)}",
            where=raised_at(error, file),
            hint="It is called without arguments." if isinstance(error, TypeError) else None,
        ) from error
    if not _iterable(given):
        raise UsageError(
            f"--data: {text} returned a {type(given).__name__}, which gives no images",
            hint="A torch DataLoader or Dataset, or any iterable of (images, labels).",
        )
    return given


def _iterable(value: Any) -> bool:
    return isinstance(value, Iterable) or (hasattr(value, "__getitem__") and hasattr(value, "__len__"))


def _iterate(given: Any) -> Iterator[Any]:
    # a map-style Dataset is read by number: not all of them raise the IndexError that ends a plain loop
    by_number = hasattr(given, "__getitem__") and hasattr(given, "__len__") and not hasattr(given, "__iter__")
    return (given[index] for index in range(len(given))) if by_number else iter(given)


def _guarded(start: Callable[[], Iterator[Any]], text: str, file: Path) -> Iterator[Any]:
    """Iterate, with what the user's code raises turned into an error that names its line."""
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
                f"--data: {text} failed after {count} batches: {_describe(error)}", where=raised_at(error, file)
            ) from error
        count += 1
        yield batch


def _describe(error: BaseException) -> str:
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:  # a DataLoader's worker sends its whole traceback along
        return text.splitlines()[-1]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


class _Reader:
    """Takes batches, or single images, apart and checks them against the model."""

    def __init__(self, text: str, spec: InputSpec, info: Mapping[str, Any]) -> None:
        self.text, self.spec, self.info = text, spec, info
        self.time_first: bool | None = None
        self.seen = 0
        self.notes: list[str] = []

    def items(self, batch: Any) -> Iterator[Item]:
        """Raises InputError."""
        self.seen += 1
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            got = f"{len(batch)} values" if isinstance(batch, tuple | list) else f"a {type(batch).__name__}"
            raise self._wrong(f"is {got}, not (images, labels)")
        labels = self._labels(batch[1])
        images = self._images(batch[0])
        if labels.dim() == 0:
            labels, images = labels[None], images[None]
        if labels.dim() != 1 or not len(labels):
            raise self._wrong(f"has labels {list(labels.shape)}, not one number for each image")
        images = self._fitted(images, len(labels))
        check_range(f"{self.text}: batch {self.seen}", int(labels.min()), int(labels.max()), self.info)
        yield from zip(images.float(), labels.tolist(), strict=True)

    def _wrong(self, what: str, hint: str | None = None) -> InputError:
        return InputError(f"{self.text}: batch {self.seen} {what}", hint=hint)

    def _labels(self, value: Any) -> torch.Tensor:
        try:
            labels = torch.as_tensor(value).detach().cpu()
        except Exception as error:  # anything may be in there
            raise self._wrong(f"has labels of type {type(value).__name__}, not whole numbers") from error
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise self._wrong(f"has labels of type {labels.dtype}, not whole numbers")
        return labels.long()

    def _images(self, value: Any) -> torch.Tensor:
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise self._wrong(
                f"has images of type {kind}, not tensors", hint="Convert and normalise them in the factory."
            )
        counts = self.spec.events and value.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
        if value.dtype not in (torch.float32, torch.float64) and not counts:
            raise self._wrong(
                f"has images of {str(value.dtype).removeprefix('torch.')}, not float32",
                hint="A factory gives what the model is given: normalised float32.",
            )
        value = value.detach().cpu()
        if not counts and not torch.isfinite(value).all():
            raise self._wrong("holds NaN or infinity")
        return value

    def _fitted(self, images: torch.Tensor, count: int) -> torch.Tensor:
        """``[N, *shape]`` as the model takes it."""
        shape, found = tuple(self.spec.shape), tuple(images.shape)
        usual = found == (count, *shape)
        turned = self.spec.events and found == (shape[0], count, *shape[1:])
        if usual and turned:  # as many images as time steps: as before, or else as most loaders do
            if self.time_first is None:
                note = f"event frames of {self.text} are taken as [N, T, C, H, W]"
                self.notes += [] if note in self.notes else [note]
            return images.transpose(0, 1) if self.time_first else images
        if not usual and not turned:
            wanted = "[N, T, C, H, W] or [T, N, C, H, W]" if self.spec.events else "[N, C, H, W]"
            raise self._wrong(
                f"has images {list(found)} for {count} labels, but the model takes {list(shape)}, {wanted}"
            )
        if (self.notes and turned) or self.time_first not in (None, turned):
            raise self._wrong(
                "puts time and batch in another order than those before it",
                hint="Where a batch has as many images as time steps, the order cannot be seen: change the batch size.",
            )
        self.time_first = turned
        self.notes.clear()
        return images.transpose(0, 1) if turned else images


def _keep(
    text: str, items: Iterable[Item], info: Mapping[str, Any], limit: int | None, seed: int, notes: list[str]
) -> Opened:
    """Keep all, or the first ``limit`` of the order in which classes take turns, each shuffled."""
    spill, labels = Spill(text), _Turns(limit, seed)
    for image, label in items:
        slot = labels.offer(label)
        if slot is not None:
            spill.put(slot, image)
    if not labels.seen:
        raise InputError(f"{text} gives no images")
    if limit is not None and labels.seen < limit:
        raise UsageError(f"--limit {limit} is more than the {labels.seen} images of {text}")
    chosen = labels.order()
    spill.slots = [slot for slot, _ in chosen]
    classes = list(info["classes"]) if info.get("classes") else None
    return Opened(spill, np.array([label for _, label in chosen], dtype=np.int64), classes, list(notes))


class _Turns:
    """A class-balanced sample out of one pass, of at most ``limit`` at any time.

    Each class is shuffled by drawing a key for every image, then classes take turns: the image of rank r in class c
    comes at (r, c). More images only ever push an image back, so that one beyond ``limit`` never comes back in.
    """

    def __init__(self, limit: int | None, seed: int) -> None:
        self.limit, self.random = limit, random.Random(seed)
        self.kept: dict[int, list[tuple[float, int]]] = {}  # class -> (key, slot), sorted
        self.arrived: list[tuple[int, int]] = []
        self.last = (-1, -1)  # the last (rank, class) of those kept
        self.seen = self.filled = 0

    def offer(self, label: int) -> int | None:
        """The slot to put this image into, in place of what is there; None to leave it."""
        self.seen += 1
        if self.limit is None:
            self.arrived.append((self.filled, label))
            self.filled += 1
            return self.filled - 1
        own, key = self.kept.setdefault(label, []), self.random.random()
        rank = bisect(own, (key, -1))
        if self.filled < self.limit:
            slot = self.filled
            self.filled += 1
            self.last = max(self.last, (len(own), label))
        elif (len(own), label) > self.last:  # the class has its share: the image replaces its last one, or goes
            if rank == len(own):
                return None
            slot = own.pop()[1]
        else:
            slot = self.kept[self.last[1]].pop()[1]
            rank = min(rank, len(own))
        own.insert(rank, (key, slot))
        if self.filled == self.limit:
            self.last = max((len(images) - 1, label) for label, images in self.kept.items())
        return slot

    def order(self) -> list[tuple[int, int]]:
        """(slot, label) of what was kept: as it came, or in the order of the turns."""
        if self.limit is None:
            return self.arrived
        turns = sorted((rank, label, slot) for label, own in self.kept.items() for rank, (_, slot) in enumerate(own))
        return [(slot, label) for _, label, slot in turns]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Whatever the loader draws, it draws the same every time; afterwards the generators are as they were."""
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
