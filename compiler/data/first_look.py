"""What can be said about ``--data`` before a model is loaded, which takes seconds to minutes; none needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from svitc.errors import InputError, SvitcError, UsageError
from svitc.support import human
from svitc.support.limits import check_archive_claim

EXPECTED_LAYOUT = (
    "Expected class folders (cat/1.png, dog/2.png), images without labels in any folder, a .zip of either, a list of "
    "files (.txt), an .npz with images, with or without labels, a recording of events or module:factory."
)
CLASS_NUMBERS = "Give the number of each image's class: labels.argmax(-1)."
WITHOUT_LABELS = "To use the images without labels, give --unlabeled (in Python unlabeled=True)."


def is_factory(path: Path | str) -> bool:
    """Return whether ``--data`` names a factory, ``module:name`` or ``file.py:name``, and not an existing file."""
    place, _, name = str(path).rpartition(":")
    return bool(place) and name.isidentifier() and not Path(path).exists()


def check_source(path: Path) -> None:
    """Check that a source of images is there.

    Args:
        path: a file, a folder, or the name of a factory.

    Raises:
        InputError: there is no such file or folder, or the folder is empty.
        UsageError: it names a factory in a file that does not exist.
    """
    if is_factory(path):
        file = str(path).rpartition(":")[0]
        if file.endswith(".py") and not Path(file).is_file():
            raise UsageError(f"{path} names a factory in {file}, which does not exist")
        return
    if not path.exists():
        raise InputError(f"{path} does not exist", hint=EXPECTED_LAYOUT)
    if path.is_dir() and next(path.iterdir(), None) is None:
        raise InputError(f"{path} is an empty folder", hint=EXPECTED_LAYOUT)


def check_stored_labels(path: Path) -> None:
    """Check the labels of an .npz, without reading its images; any other source has none that could be looked at.

    Raises:
        InputError: there is not one whole number, from 0 on, for each image, or the file would take too much memory.
    """
    if not path.is_file() or path.suffix != ".npz":
        return
    try:
        check_archive_claim(path)
        with np.load(path, allow_pickle=False) as file:
            if not {"images", "labels"} <= set(file.files):
                return
            labels, count = file["labels"], stored_count(file)
    except SvitcError:
        raise
    except Exception:  # a damaged archive may raise any exception; what reads it next says what is wrong
        return
    if not isinstance(labels, np.ndarray):  # np.load returns the bytes of what it does not know
        return
    check_label_array(path.name, labels, count)


def stored_count(file: NpzFile) -> int:
    """Return the number of images in an .npz, without reading them. Any error of a damaged file passes through."""
    assert file.zip is not None  # until it is closed
    with file.zip.open("images.npy") as images:
        version = np.lib.format.read_magic(images)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape = read(images)[0]
    return int(shape[0]) if shape else 0


def is_one_hot(labels: np.ndarray) -> bool:
    """Return whether labels ``[N, classes]`` are rows of a single 1 among zeros."""
    if labels.ndim != 2 or labels.shape[1] < 2 or not len(labels) or labels.dtype.kind not in "biuf":
        return False
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all())


def one_hot_words(shape: Sequence[int]) -> str:
    """Return what one-hot labels of a shape are, for messages."""
    return f"one-hot labels {list(shape)}, not one whole number for each image"


def check_label_array(name: str, labels: np.ndarray, count: int) -> None:
    """Check that labels are classes of images.

    Args:
        name: what messages call the file.
        labels: the labels, which should be integers ``[N]``.
        count: number of images N.

    Raises:
        InputError: there is not one whole number, from 0 on, for each image.
    """
    if is_one_hot(labels):
        raise InputError(f"{name} has {one_hot_words(labels.shape)}", hint=CLASS_NUMBERS)
    if labels.ndim != 1 or len(labels) != count or labels.dtype.kind not in "iu":
        raise InputError(
            f"{name}: labels are {labels.dtype} {list(labels.shape)}, not {human.counted(count, 'whole number')}, "
            "one for each image",
            hint=WITHOUT_LABELS,
        )
    if count and labels.min() < 0:
        raise InputError(
            f"{name}: labels go from {labels.min()} to {labels.max()}, but no class is negative", hint=WITHOUT_LABELS
        )
