"""Images that are in memory already, as Python code has them: arrays of pixels, or loaders and data sets of torch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, TypeGuard

import numpy as np
import torch

from svitc.data.arrays import from_arrays
from svitc.data.loaders import Origin, is_iterable, read_loader, seeded
from svitc.data.sources import OpenedSource, Scaling
from svitc.errors import InputError, UsageError
from svitc.ir.graph import InputSpec
from svitc.support import human
from svitc.support.types import JsonMapping

ACCEPTED = (
    "Accepted are a path, as of the command line; pixels as an array or tensor, uint8 or in [0, 1], alone or as "
    "(images, labels); and images as the model takes them: a torch DataLoader or Dataset, or any iterable of "
    "(images, labels) or of images."
)
Arrays = tuple[np.ndarray, np.ndarray | None]  # images, and their labels where they have some


def open_in_memory(
    given: object,
    spec: InputSpec,
    info: JsonMapping,
    scaling: Scaling,
    limit: int | None,
    seed: int,
    unlabeled: bool = False,
) -> OpenedSource:
    """Open images that are not files.

    Args:
        given: arrays, which hold pixels as an .npz does, or a loader, which gives images as the model takes them.
        spec: Input of the model.
        info: Metadata of the program, of which ``classes`` and ``num_classes`` are read.
        scaling: How arrays come to the size of the model's input.
        limit: Number of images in a class-balanced sample of a loader, which is read once; None keeps all.
        seed: Of the sample, and of torch's, numpy's and Python's generators while a loader runs.
        unlabeled: Whether to leave out the labels.

    Raises:
        UsageError: It is neither, the loader fails or gives fewer images than ``limit``.
        InputError: Images or labels do not fit the model.
    """
    arrays = as_arrays(given, spec)
    if arrays is not None:
        images, labels = arrays
        return from_arrays(kind(given), images, None if unlabeled else labels, spec, info, scaling)
    if not is_iterable(given) or isinstance(given, Mapping | str | bytes | type):
        raise UsageError(f"{_article(given)} gives no images", hint=ACCEPTED)
    if scaling.asked:
        raise UsageError(
            f"resize and crop do not apply to {kind(given)}: a loader gives images as the model takes them"
        )
    name = kind(given)
    with seeded(seed):
        try:
            return read_loader(given, Origin(name, f"the {name}", None), spec, info, limit, seed, unlabeled)
        except InputError as error:
            error.hint = error.hint or ACCEPTED
            raise


def kind(given: object) -> str:
    """Return what messages call images in memory: their type."""
    return type(given).__name__


def is_array(given: object) -> bool:
    """Return whether images in memory are arrays of pixels, which are normalized, and not a loader."""
    return _is_array(given) or isinstance(given, Mapping) or _pair(given) is not None


def as_arrays(given: object, spec: InputSpec) -> Arrays | None:
    """Return the images and labels of arrays, tensors, ``(images, labels)`` or an opened .npz; None for a loader.

    Raises:
        UsageError: A mapping has no ``images``.
    """
    if isinstance(given, Mapping):
        if "images" not in given:
            names = ", ".join(map(str, list(given)[:5])) or "nothing"
            raise UsageError(f"{_article(given)} has no images (it has {names})", hint=ACCEPTED)
        labels = given.get("labels")
        return _array(given["images"]), None if labels is None else _array(labels)
    if _is_array(given):
        return _array(given), None
    return _pair(given)


def _pair(given: object) -> Arrays | None:
    """Return ``(images, labels)`` where a tuple or list is that, each an array or a list; otherwise None.

    Labels of two dimensions are no images, which have three at least, but perhaps one-hot: the check of labels tells.
    """
    if not isinstance(given, tuple | list) or len(given) != 2:
        return None
    images, labels = given
    listed = isinstance(labels, list | tuple) and all(isinstance(label, int | np.integer) for label in labels)
    if not listed and not (_is_array(labels) and labels.ndim in (1, 2)):
        return None
    several = isinstance(images, list | tuple) and len(images) > 0 and all(map(_is_array, images))
    return (_array(images), _array(labels)) if several or _is_array(images) else None


def _is_array(value: object) -> TypeGuard[np.ndarray | torch.Tensor]:
    return isinstance(value, np.ndarray | torch.Tensor)


def _array(value: Any) -> np.ndarray:
    """Return a tensor, an array, or a list of them, as an array.

    Raises:
        UsageError: A list holds arrays of different shapes.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, list | tuple):
        value = [part.detach().cpu().numpy() if isinstance(part, torch.Tensor) else part for part in value]
    with contextlib.suppress(ValueError):
        return np.asarray(value)
    raise UsageError("the images of a list have different shapes", hint=ACCEPTED)


def _article(given: object) -> str:
    """Return what a value is, with its article."""
    return human.article(f"{given.__name__} class" if isinstance(given, type) else kind(given))


__all__ = ["ACCEPTED", "is_array", "open_in_memory"]
