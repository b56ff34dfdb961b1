"""Labelled images for accuracy, calibration and fine-tuning: what ``--data`` and ``--train-data`` take.

A folder of class folders, a .zip of one, an .npz, or the user's own loader as ``module:factory``. Image files are
decoded batch by batch, in threads where that is faster, so that a data set need not fit into memory.
"""

from __future__ import annotations

import hashlib
import random
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svitc.data.arrays import open_arrays
from svitc.data.image_files import Archive, Folder, open_files
from svitc.data.loader_factory import is_factory, open_factory
from svitc.data.sources import LAYOUT, Opened, Scaling, Source, Unreadable, in_order, scaling
from svitc.errors import InputError, UsageError
from svitc.ir.graph import InputSpec

__all__ = ["Dataset", "is_factory", "load_data", "split"]
UNREADABLE = 0.01  # more than this share of unreadable images is an error


@dataclass
class Dataset:
    """Labelled images in the layout of a program's input.

    Attributes:
        name: the file or folder, or the factory.
        labels: of every image, int64 ``[N]``.
        classes: names in the order of the model's head, or None where there are only numbers.
        mean: subtracted from what the source gives, ``[C, 1, 1]``.
        std: divides it then, ``[C, 1, 1]``.
        source: gives the images.
        indices: which of the source's images these are, ``[N]``.
        notes: what was assumed, for the user to read.
        unreadable: names of the images that could not be decoded and were skipped, as far as read.
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

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Normalised float32 ``[N, C, H, W]`` or ``[T, N, C, H, W]`` with labels ``[N]``, in a fixed order.

        Raises:
            InputError: more than 1% of the images are unreadable.
        """
        if batch_size < 1:
            raise UsageError(f"batch size {batch_size} is not a positive number")
        frames: list[Any] = []
        labels: list[int] = []
        images = in_order(self.source, self.indices.tolist())
        for image, label in zip(images, self.labels.tolist(), strict=True):
            if isinstance(image, Unreadable):
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
        """The images of these numbers, from 0, in this order."""
        chosen = np.asarray(indices, dtype=np.int64)
        return replace(
            self, labels=self.labels[chosen], indices=self.indices[chosen], notes=list(self.notes), unreadable=[]
        )

    def fingerprint(self) -> str:
        """A sha256 of the images and of what becomes of them: the same for the same data, wherever they are.

        Of image files only names, labels and sizes are looked at (in a .zip the checksums too), of arrays and
        loaders the values. A limit and a seed count by the images that they choose, and by their order.
        """
        digest = hashlib.sha256()

        def add(data: bytes) -> None:  # with its length, so that nothing can run into what follows
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)

        add(repr((self.input.shape, replace(self.scaling, origin=""), self.mean.tolist(), self.std.tolist())).encode())
        add(np.ascontiguousarray(self.labels).tobytes())
        for index in self.indices.tolist():
            add(self.source.mark(index))
        return digest.hexdigest()

    def _stack(self, frames: list[Any]) -> torch.Tensor:
        x = self.source.collate(frames).sub_(self.mean).div_(self.std)
        return x.transpose(0, 1).contiguous() if self.input.events else x

    def _skip(self, error: Unreadable) -> None:
        if error.name not in self.unreadable:
            self.unreadable.append(error.name)
        if len(self.unreadable) > UNREADABLE * len(self):
            shown = ", ".join(self.unreadable[:3])
            raise InputError(
                f"{self.name}: more than 1% of its {len(self)} images cannot be read: {shown}",
                hint=f"The last of them: {error}.",
            ) from error


def load_data(
    path: Path | str,
    input_spec: InputSpec,
    info: Mapping[str, Any],
    limit: int | None = None,
    seed: int = 0,
    *,
    resize: int | None = None,
    crop: int | None = None,
) -> Dataset:
    """Open labelled images.

    Pixels are scaled to [0, 1] and normalised with ``info["normalize"]``, where the model has it. An image
    file of another size than the model's input is scaled to cover it and cropped at its centre, an array is
    scaled, unless ``resize``, ``crop`` or the checkpoint say otherwise. Event frames are only normalised.
    What a factory gives is taken as it is.

    Args:
        path: a folder of class folders or a .zip of one (inside one train/ or test/, say), or an .npz with
            ``images`` ``[N, C, H, W]``, uint8 or float in [0, 1] (event frames ``[N, T, C, H, W]``), and
            ``labels`` ``[N]``; or ``module:factory`` or ``path/to/file.py:factory``, which is run.
        info: of the program: ``classes``, ``num_classes``, ``normalize``, ``resize`` and ``crop_pct`` are used.
        limit: take a class-balanced sample of this many. Classes take turns, so that a smaller sample is the
            beginning of a larger one.
        seed: of the sample.
        resize: scale the shorter side to this many pixels first, bicubic, as is usual for ImageNet.
        crop: cut a square of this side from the centre, by default the model's input; scaled to that if it differs.

    Raises:
        InputError: not such a file, no images, labels or sizes that do not fit the model.
        UsageError: a limit that is not positive or that is more than there is; sizes that make no sense;
            a factory that is not there or fails.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} leaves no images")
    scale = scaling(input_spec, info, resize, crop)
    if is_factory(path):
        if scale.asked:
            raise UsageError(
                f"--resize and --crop do not apply to {path}: a factory gives images as the model takes them"
            )
        name, scale = str(path), Scaling(scale.size)
        opened = open_factory(name, input_spec, info, limit, seed)
        mean, std = _statistics({}, input_spec)
    else:
        path = Path(path)
        name, opened = path.name, _open(path, input_spec, info, scale)
        mean, std = _statistics(info, input_spec)
    data = Dataset(
        name,
        opened.labels,
        input_spec,
        opened.classes,
        mean,
        std,
        opened.source,
        scale,
        np.arange(len(opened.labels)),
        opened.notes,
    )
    if limit is None or is_factory(path):
        return data
    if limit > len(data):
        raise UsageError(f"--limit {limit} is more than the {len(data)} images of {path}")
    return data.subset(_balanced(data.labels, limit, seed))


def split(dataset: Dataset, count: int, seed: int = 0) -> tuple[Dataset, Dataset]:
    """A class-balanced sample of ``count`` images, to be held out, and all others in their order.

    Raises:
        UsageError: not at least one image on either side.
    """
    if not 0 < count < len(dataset):
        raise UsageError(f"{count} images cannot be held out of the {len(dataset)} of {dataset.name}")
    held = _balanced(dataset.labels, count, seed)
    rest = np.setdiff1d(np.arange(len(dataset)), held)
    return dataset.subset(held), dataset.subset(rest)


def _open(path: Path, spec: InputSpec, info: Mapping[str, Any], scale: Scaling) -> Opened:
    try:
        if path.is_dir():
            return open_files(path.name, Folder(path), spec, info, scale)
        if not path.is_file():
            raise InputError(f"{path} does not exist", hint=LAYOUT)
        if path.suffix == ".npz":
            return open_arrays(path, spec, info, scale)
        if zipfile.is_zipfile(path):
            return open_files(path.name, Archive(path), spec, info, scale)
        raise InputError(f"{path} is neither a folder, nor a .zip, nor an .npz of images", hint=LAYOUT)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _statistics(info: Mapping[str, Any], spec: InputSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation ``[C, 1, 1]`` of the normalisation; 0 and 1 where the model has none."""
    stated = info.get("normalize") or {"mean": [0.0] * spec.shape[-3], "std": [1.0] * spec.shape[-3]}
    mean, std = (torch.tensor(stated[key], dtype=torch.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    return mean, std


def _balanced(labels: np.ndarray, limit: int, seed: int) -> list[int]:
    """A class-balanced sample: each class is shuffled, then classes take turns."""
    generator = random.Random(seed)
    members = {label: np.flatnonzero(labels == label).tolist() for label in np.unique(labels).tolist()}
    for indices in members.values():
        generator.shuffle(indices)
    turns = max(len(indices) for indices in members.values())
    chosen = [indices[turn] for turn in range(turns) for indices in members.values() if turn < len(indices)]
    return chosen[:limit]
