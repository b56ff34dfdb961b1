"""Arrays, as from an .npz, with or without labels, and the check of labels that other sources share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from svitc.data.first_look import EXPECTED_LAYOUT, WITHOUT_LABELS, check_label_array, stored_count
from svitc.data.sources import OpenedSource, Scaling, Source, without_labels
from svitc.errors import InputError, SvitcError
from svitc.ir.graph import InputSpec
from svitc.support.limits import check_archive_claim
from svitc.support.types import JsonMapping

MOST_CLASSES = 2**31  # where the model does not tell; larger labels are no classes


class Arrays(Source):
    """Images in memory, ``[N, C, H, W]``, or event frames, ``[N, T, C, H, W]``."""

    def __init__(self, name: str, images: np.ndarray, spec: InputSpec, scaling: Scaling) -> None:
        self.name, self.images, self.scaling = name, images, scaling
        self.events = spec.events
        self.scale = 255 if images.dtype == np.uint8 and not spec.events else 1

    def fetch(self, index: int) -> np.ndarray:
        return self.images[index]

    def collate(self, frames: list[np.ndarray]) -> torch.Tensor:
        x = torch.from_numpy(np.stack(frames).astype(np.float32)).div_(self.scale)
        return x if self.events else self.scaling.array(x, f"an image of {self.name}")

    def holds_bytes(self) -> bool:
        """Return whether every pixel of the first images is that of a byte, ``k`` or ``k / 255``."""
        levels = (np.arange(256) / 255).astype(self.images.dtype)
        return self.scale == 255 or bool(np.isin(self.images[:64], levels).all())

    def fingerprint(self, index: int) -> bytes:
        image = self.images[index]
        return f"{image.dtype} {image.shape} ".encode() + image.tobytes()

    def notes(self) -> list[str]:
        """Return how the images come to the size of the model's input, where that is not theirs."""
        (height, width), size = self.images.shape[-2:], self.scaling.size
        if (height, width) == size and not self.scaling.asked:
            return []
        return [self.scaling.note or f"images of {height}x{width} are scaled to {size[0]}x{size[1]}"]


def open_arrays(
    path: Path, spec: InputSpec, info: JsonMapping, scaling: Scaling, unlabeled: bool = False
) -> OpenedSource:
    """Open an .npz with an array ``images`` and perhaps ``labels``. Pickled objects in it are never read.

    Args:
        unlabeled: Whether to leave out the labels that it may have.

    Raises:
        InputError: It is not an .npz of images, or images or labels do not fit the model.
    """
    name = path.name
    try:
        check_archive_claim(path)
        with np.load(path, allow_pickle=False) as file:
            others = ", ".join(key for key in file.files if key != "images")
            if "images" not in file.files:
                raise InputError(f"{name} has no images (it has {others or 'nothing'})", hint=EXPECTED_LAYOUT)
            labels = file["labels"] if "labels" in file.files and not unlabeled else None
            if isinstance(labels, np.ndarray):  # before the images, which may take long to read
                check_labels(name, labels, stored_count(file), info)
            images = file["images"]
            if not isinstance(images, np.ndarray) or not isinstance(labels, np.ndarray | None):
                raise ValueError("a member of it is no array")  # np.load returns the bytes of what it does not know
    except SvitcError:
        raise
    except Exception as error:  # a damaged archive may raise any exception
        raise InputError(f"{name} is not an .npz of plain arrays: {error}", hint=EXPECTED_LAYOUT) from error
    found = from_arrays(name, images, labels, spec, info, scaling)
    if labels is None and others and not unlabeled:
        note = f"{name} has no array labels (it has images and {others}): its images are used without labels"
        found.notes.append(note)
    return found


def from_arrays(
    name: str, images: np.ndarray, labels: np.ndarray | None, spec: InputSpec, info: JsonMapping, scaling: Scaling
) -> OpenedSource:
    """Check images ``[N, C, H, W]`` or event frames ``[N, T, C, H, W]`` and their labels ``[N]``, and return them.

    Raises:
        InputError: Images or labels do not fit the model, or there are none.
    """
    count = len(images) if images.ndim else 0
    if labels is not None:
        check_labels(name, labels, count, info)
    if not count:
        raise InputError(f"{name} holds no images")
    _check_images(name, images, spec)
    source = Arrays(name, images, spec, scaling)
    notes = source.notes()
    if labels is None:
        return without_labels(source, count, info, notes)
    classes = list(info["classes"]) if info.get("classes") else None
    return OpenedSource(source, labels.astype(np.int64), classes, notes)


def holds_images(path: Path) -> bool:
    """Tell whether an .npz has an array ``images``, as far as its directory can be read."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return "images" in file.files
    except Exception:  # a damaged archive may raise any exception; what reads it next tells
        return False


def check_labels(name: str, labels: np.ndarray, count: int, info: JsonMapping) -> None:
    """Raise InputError unless labels are a class of the model for each of ``count`` images."""
    check_label_array(name, labels, count)
    if count:
        check_range(name, int(labels.min()), int(labels.max()), info)


def class_count(info: JsonMapping) -> int | None:
    """Return the number of the model's classes, or None where nothing tells."""
    return info.get("num_classes") or (len(info["classes"]) if info.get("classes") else None)


def check_range(name: str, low: int, high: int, info: JsonMapping) -> None:
    """Raise InputError unless labels from ``low`` to ``high`` are classes of the model."""
    count = class_count(info)
    if low < 0 or high >= (count or MOST_CLASSES):
        head = f"the model's head has classes 0 to {count - 1}" if count else f"classes go from 0 to {MOST_CLASSES - 1}"
        raise InputError(
            f"{name}: labels go from {low} to {high}, but {head}",
            hint=WITHOUT_LABELS if low < 0 else None,
        )


def _check_images(name: str, images: np.ndarray, spec: InputSpec) -> None:
    """Raise InputError for images whose layout, data type or range does not fit the model."""
    expected, letters = ["N", *spec.shape], "[N, T, C, H, W]" if spec.events else "[N, C, H, W]"
    if images.ndim != len(expected) or images.shape[-3] != spec.shape[-3]:
        channels_last = images.ndim == len(expected) and images.shape[-1] == spec.shape[-3]
        raise InputError(
            f"{name}: images are {list(images.shape)}, but the model takes {expected}, {letters}",
            hint="They look like channels-last images: move the last axis forward." if channels_last else None,
        )
    if not images.size:
        raise InputError(f"{name}: images are {list(images.shape)}, without a pixel")
    if spec.events and images.shape[1:] != spec.shape:
        raise InputError(f"{name}: event frames are {list(images.shape[1:])}, but the model takes {list(spec.shape)}")
    if images.dtype.kind == "f":
        if not np.isfinite(images).all():
            raise InputError(f"{name}: images hold NaN or infinity")
        low, high = float(images.min()), float(images.max())
        if not spec.events and (low < -1e-6 or high > 1 + 1e-6):
            raise InputError(
                f"{name}: images go from {low:g} to {high:g}, not from 0 to 1",
                hint="Arrays are uint8, or floats in [0, 1] before normalization; a loader gives normalized images.",
            )
    elif images.dtype != np.uint8 and not (spec.events and images.dtype.kind in "iu"):
        raise InputError(f"{name}: images are {images.dtype}; they must be uint8, or floats in [0, 1]")
