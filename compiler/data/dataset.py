"""Images for accuracy, calibration and fine-tuning: what ``--data`` and ``--train-data`` take.

A data set is a folder of class folders, any other folder of images, a .zip of either, a list of files, an .npz, a
recording of events, or the user's own loader as ``module:factory``. Its images have labels or have none. Files are
decoded batch by batch, images in threads where that is faster, so that a data set need not fit into memory.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from svitc.data.arrays import holds_images, open_arrays
from svitc.data.event_files import SUFFIXES as RECORDING_SUFFIXES
from svitc.data.event_files import open_recordings
from svitc.data.event_options import EventOptions
from svitc.data.file_stores import Archive, FileList, FileStore, Folder, OneFile, is_zip
from svitc.data.first_look import EXPECTED_LAYOUT, is_factory
from svitc.data.image_files import open_files
from svitc.data.in_memory import is_array, open_in_memory
from svitc.data.loader_factory import open_factory
from svitc.data.normalization import normalization_remark
from svitc.data.pixels import normalize_, statistics
from svitc.data.sources import (
    OpenedSource,
    Scaling,
    Source,
    UnreadableImage,
    choose_scaling,
    fetch_in_order,
    without_labels,
)
from svitc.errors import InputError, UsageError
from svitc.ir.graph import InputSpec
from svitc.support import human
from svitc.support.types import JsonMapping

__all__ = ["Dataset", "Reading", "is_factory", "load_data", "sample", "split", "unlabeled_dataset"]
MAX_UNREADABLE_SHARE = 0.01  # of the images; more than that is an error
NAMED = 5  # of the images that cannot be read


@dataclass(frozen=True)
class Reading:
    """How the files of a data set become inputs with labels.

    Attributes:
        resize: Scale the shorter side to this many pixels first (bicubic), as is usual for ImageNet.
        crop: Side in pixels of the square that is cut from the center, by default the size of the model's input.
            A square of another size is scaled to the input.
        unlabeled: Ignore labels: folders are no classes, and labels of arrays and factories are not read.
        events: How recordings of events become frames.
    """

    resize: int | None = None
    crop: int | None = None
    unlabeled: bool = False
    events: EventOptions = field(default_factory=EventOptions)


AS_IT_IS = Reading()


@dataclass
class Dataset:
    """Images in the layout of a program's input, with labels or without.

    Attributes:
        name: File or folder name, or the factory.
        labels: Class of each image, int64 ``[N]``; all -1 where there are no labels.
        input: Input of the model that the images are for.
        classes: Class names in the order of the model's head, or None where classes have only numbers.
        mean: Subtracted from the source's pixels, ``[C, 1, 1]``.
        std: Divides them after that, ``[C, 1, 1]``.
        source: Where the images come from.
        scaling: How images come to the size of the model's input.
        indices: Positions of these images in the source, ``[N]``.
        notes: Assumptions, for the user to read.
        unreadable: Names of the images that could not be decoded and were skipped so far.
        labeled: Whether the images have labels.
        whole: Number of images of the data set of which these are a part; None where they are all of it.
    """

    name: str
    labels: np.ndarray
    input: InputSpec
    classes: list[str] | None
    mean: torch.Tensor
    std: torch.Tensor
    source: Source
    scaling: Scaling
    indices: np.ndarray
    notes: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    labeled: bool = True
    whole: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield normalized images and their labels, always in the same order.

        Yields:
            float32 ``[N, C, H, W]`` or ``[T, N, C, H, W]``, and int64 ``[N]``, -1 for no label. Unreadable images
            are left out.

        Raises:
            UsageError: The batch size is not positive.
            InputError: More than 1% of the images are unreadable.
        """
        if batch_size < 1:
            raise UsageError(f"batch size {batch_size} is not a positive number")
        frames: list[np.ndarray] = []
        labels: list[int] = []
        images = fetch_in_order(self.source, self.indices.tolist())
        for image, label in zip(images, self.labels.tolist(), strict=True):
            if isinstance(image, UnreadableImage):
                self._skip(image)
                continue
            frames.append(image)
            labels.append(label)
            if len(frames) == batch_size:
                yield self._stack(frames), torch.tensor(labels)
                frames, labels = [], []
        if frames:
            yield self._stack(frames), torch.tensor(labels)

    def subset(self, indices: Sequence[int] | np.ndarray) -> Dataset:
        """Return a data set of the images at these positions, which count from 0, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        part = replace(self, labels=self.labels[chosen], indices=self.indices[chosen], whole=self.whole or len(self))
        return replace(part, notes=list(self.notes), unreadable=[])

    def fingerprint(self) -> str:
        """Return a SHA-256 of the images, their labels and their preprocessing.

        It does not depend on where the data are stored. Image files count by name and size (in a .zip also by
        checksum), arrays and images of loaders by value. A limit and a seed count by the images that they choose
        and by their order.
        """
        digest = hashlib.sha256()

        def add(data: bytes) -> None:  # with its length, so that two different sequences cannot hash alike
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)

        # the names of the fields of Scaling are part of the hash: renaming one invalidates stored sweeps
        add(repr((self.input.shape, replace(self.scaling, origin=""), self.mean.tolist(), self.std.tolist())).encode())
        add(np.ascontiguousarray(self.labels).tobytes())
        for index in self.indices.tolist():
            add(self.source.fingerprint(index))
        return digest.hexdigest()

    def remarks(self) -> list[str]:
        """Return the notes, and by name some of the images that were left out so far since they cannot be read."""
        if not self.unreadable:
            return list(self.notes)
        names, others = ", ".join(self.unreadable[:NAMED]), len(self.unreadable) - NAMED
        return [*self.notes, f"left out, as they cannot be read: {names}{f' and {others} more' if others > 0 else ''}"]

    def _stack(self, frames: list[np.ndarray]) -> torch.Tensor:
        x = normalize_(self.source.collate(frames), self.mean, self.std)
        return x.transpose(0, 1).contiguous() if self.input.events else x

    def _skip(self, error: UnreadableImage) -> None:
        if error.name not in self.unreadable:
            self.unreadable.append(error.name)
        count = self.whole or len(self)  # one of a small sample may well be one of a hundred of the folder's
        if len(self.unreadable) > MAX_UNREADABLE_SHARE * count:
            examples = ", ".join(self.unreadable[:3])
            raise InputError(
                f"{self.name}: more than 1% of its {count} {self.source.unit}s cannot be read: {examples}",
                hint=f"The last of them: {error}.",
            ) from error


def load_data(
    path: Path | str | object,
    input_spec: InputSpec,
    info: JsonMapping,
    limit: int | None = None,
    seed: int = 0,
    reading: Reading = AS_IT_IS,
) -> Dataset:
    """Open images, with their labels where they have some.

    Pixels are scaled to [0, 1] and normalized with ``info["normalize"]`` where the model has it. Images of
    another size than the model's input are resized: image files are scaled to cover the input and cropped at the
    center, arrays are only scaled, unless ``resize``, ``crop`` or the checkpoint say otherwise. Event frames are
    only normalized; recordings of events are counted into frames. Images from a factory are used unchanged.

    Args:
        path: A folder of class folders (they may lie inside one folder such as train/ or test/), or any other folder
            of images, which then have no labels; a .zip of either; a .txt that lists image files, one in a line,
            which have no labels; an .npz with ``images`` ``[N, C, H, W]``, uint8 or float in [0, 1] (event frames
            ``[N, T, C, H, W]``), and perhaps ``labels`` ``[N]``; or ``module:factory`` or
            ``path/to/file.py:factory``, which is imported and called. For a model that takes event frames, folders,
            archives and lists hold recordings (.npy, .npz, .aedat4, .dat, .raw), and the path of one is enough.
            Or what is in memory: pixels as in an .npz, an array or tensor, a pair ``(images, labels)`` of them, or an
            opened .npz; or a torch DataLoader or Dataset, or any iterable of ``(images, labels)`` or of images, which
            gives normalized float32 as the model takes them and is read once.
        input_spec: Input of the model.
        info: Metadata of the program, of which ``classes``, ``num_classes``, ``normalize``, ``resize`` and
            ``crop_pct`` are read.
        limit: Number of images in a sample, class-balanced where there are labels. Classes take turns, so that a
            smaller sample is the beginning of a larger one. None takes all images.
        seed: Seed of the sample.
        reading: How files become inputs.

    Raises:
        InputError: The file does not exist or holds no images, or labels or sizes do not fit the model.
        UsageError: The limit is not positive or exceeds the number of images, sizes do not fit together, or a
            factory does not exist or fails.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} leaves no images")
    scaling = choose_scaling(input_spec, info, reading.resize, reading.crop)
    if not input_spec.events:
        reading.events.check_unused("the model takes images, not event frames")
    if isinstance(path, str | Path) and not is_factory(path):
        return _sampled(_from_files(Path(path), input_spec, info, scaling, reading), limit, seed)
    if isinstance(path, str | Path):
        reading.events.check_unused(f"{path} gives frames as the model takes them")
        if scaling.asked:
            raise UsageError(
                f"--resize and --crop do not apply to {path}: a factory gives images as the model takes them"
            )
        name, opened = str(path), open_factory(str(path), input_spec, info, limit, seed, reading.unlabeled)
    else:
        reading.events.check_unused("frames in memory are frames already")
        name = type(path).__name__
        opened = open_in_memory(path, input_spec, info, scaling, limit, seed, reading.unlabeled)
        if is_array(path):
            return _sampled(_dataset(name, opened, input_spec, info, scaling), limit, seed)
    # the sample was taken while the factory or the loader ran, which normalizes the images itself
    return _dataset(name, opened, input_spec, {}, Scaling(scaling.size))


def unlabeled_dataset(
    name: str, source: Source, count: int, spec: InputSpec, info: JsonMapping, notes: Sequence[str] = ()
) -> Dataset:
    """Return a data set of ``count`` images without labels, which a source gives in the size of the model's input.

    Args:
        name: What messages call the images.
        source: Gives the images by number, in [0, 1] or as event frames.
        count: Number of images.
        spec: Input of the model.
        info: Metadata of the program, of which ``classes`` and ``normalize`` are read; ``{}`` for images that are
            normalized already.
        notes: Assumptions, for the user to read.
    """
    scaling = Scaling((spec.shape[-2], spec.shape[-1]))
    return _dataset(name, without_labels(source, count, info, list(notes)), spec, info, scaling)


def sample(dataset: Dataset, count: int, seed: int = 0) -> Dataset:
    """Return a class-balanced sample; of images without labels, any sample.

    A smaller sample is the beginning of a larger one.
    """
    return dataset.subset(_balanced_sample(dataset.labels, count, seed))


def split(dataset: Dataset, count: int, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Hold out a sample of ``count`` images, class-balanced where there are labels.

    Returns:
        The held-out images, and all others in their order.

    Raises:
        UsageError: One of the two sides would be empty.
    """
    if not 0 < count < len(dataset):
        raise UsageError(f"{human.counted(count, 'image')} cannot be held out of the {len(dataset)} of {dataset.name}")
    held_out = _balanced_sample(dataset.labels, count, seed)
    remaining = np.setdiff1d(np.arange(len(dataset)), held_out)
    return dataset.subset(held_out), dataset.subset(remaining)


def _from_files(path: Path, spec: InputSpec, info: JsonMapping, scaling: Scaling, reading: Reading) -> Dataset:
    """Return all images of a folder, a list, an archive or a file, with a note on a normalization that is wrong."""
    if spec.events:
        opened = _open_events(path, spec, info, reading.events, reading.unlabeled)
    else:
        opened = _open(path, spec, info, scaling, reading.unlabeled)
    dataset = _dataset(path.name, opened, spec, info, scaling)
    remark = None if spec.events else normalization_remark(opened.source, dataset.mean, dataset.std)
    if remark is not None:
        dataset.notes.append(remark)
    return dataset


def _sampled(dataset: Dataset, limit: int | None, seed: int) -> Dataset:
    """Return a class-balanced sample of ``limit`` images, or all. Raises UsageError where there are fewer."""
    if limit is None:
        return dataset
    if limit > len(dataset):
        raise UsageError(f"--limit {limit} is more than the {len(dataset)} images of {dataset.name}")
    return sample(dataset, limit, seed)


def _dataset(name: str, opened: OpenedSource, spec: InputSpec, info: JsonMapping, scaling: Scaling) -> Dataset:
    """Return all images of a source, to be normalized as ``info`` says."""
    mean, std = statistics(info, spec.shape[-3])
    return Dataset(
        name,
        opened.labels,
        spec,
        opened.classes,
        mean,
        std,
        opened.source,
        scaling,
        np.arange(len(opened.labels)),
        opened.notes,
        labeled=opened.labeled,
    )


def _open(path: Path, spec: InputSpec, info: JsonMapping, scaling: Scaling, unlabeled: bool) -> OpenedSource:
    """Open images."""
    try:
        if path.is_file() and path.suffix == ".npz":
            return open_arrays(path, spec, info, scaling, unlabeled)
        store = _store(path)
        if store is None:
            raise InputError(
                f"{path} is neither a folder, nor a .zip, nor an .npz of images, nor a list (.txt)",
                hint=EXPECTED_LAYOUT,
            )
        return open_files(path.name, store, spec, info, scaling, unlabeled)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _open_events(
    path: Path, spec: InputSpec, info: JsonMapping, options: EventOptions, unlabeled: bool
) -> OpenedSource:
    """Open event frames, or recordings that become some."""
    try:
        if path.is_file() and path.suffix == ".npz" and holds_images(path):
            options.check_unused(f"{path.name} holds frames already")
            return open_arrays(path, spec, info, Scaling((spec.shape[-2], spec.shape[-1])), unlabeled)
        recording = path.is_file() and path.suffix.lower() in RECORDING_SUFFIXES
        store = OneFile(path) if recording else _store(path)
        if store is None:
            raise InputError(
                f"{path} is neither a recording ({', '.join(RECORDING_SUFFIXES)}), nor a folder, a .zip or a list "
                "(.txt) of recordings, nor an .npz of event frames",
                hint=EXPECTED_LAYOUT,
            )
        return open_recordings(path.name, store, spec, info, options, unlabeled)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _store(path: Path) -> FileStore | None:
    """Return the files that a folder, a list or an archive names; None where the path is none of them.

    Raises:
        InputError: Nothing is there, or it is damaged.
        OSError: It cannot be read.
    """
    if path.is_dir():
        return Folder(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist", hint=EXPECTED_LAYOUT)
    if path.suffix == ".txt":
        return FileList(path)
    return Archive(path) if is_zip(path) else None


def _balanced_sample(labels: np.ndarray, limit: int, seed: int) -> list[int]:
    """Return the positions of a class-balanced sample: each class is shuffled, then classes take turns.

    Images without labels are one class.
    """
    generator = random.Random(seed)
    members = {label: np.flatnonzero(labels == label).tolist() for label in np.unique(labels).tolist()}
    for indices in members.values():
        generator.shuffle(indices)
    turns = max(len(indices) for indices in members.values())
    chosen = [indices[turn] for turn in range(turns) for indices in members.values() if turn < len(indices)]
    return chosen[:limit]
