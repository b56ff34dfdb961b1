"""What a checkpoint says of its classes, its images and its results, checked against the model."""

from __future__ import annotations

from typing import TypeGuard

from svitc.errors import InputError
from svitc.frontends.checkpoint.model_factory import check_json
from svitc.frontends.checkpoint.reader import Contents
from svitc.support.types import Json, JsonDict


def metrics(value: object) -> Json:
    """Return the metrics in a file, or None where they are not JSON: they are information only, so that is no error."""
    try:
        return check_json(value, "metrics")
    except InputError:
        return None


def _is_number_list(value: object, count: int) -> TypeGuard[list[float]]:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
    )


def labels(contents: Contents, num_classes: int | None, channels: int, source: str) -> JsonDict:
    """Return what a checkpoint says of its classes and of the scaling of its images, as entries of ``Loaded.info``.

    Args:
        num_classes: outputs of the model's head, None where they are not known.
        channels: channels of the model's input.
        source: name of the file, for messages.

    Raises:
        InputError: the names of classes or the normalization do not fit the model.
    """
    result: JsonDict = {}
    classes, count = contents.classes, num_classes
    if classes is not None:
        if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
            raise InputError(f"{source}: classes is not a list of names")
        if len(set(classes)) != len(classes) or (count is not None and len(classes) != count):
            raise InputError(f"{source}: classes has {len(set(classes))} names, but the head has {count}")
        result["num_classes"] = len(classes)
    normalize = contents.normalize
    if normalize is not None:
        normalize = check_json(normalize, f"{source}: normalize")
        mean, std = (normalize.get("mean"), normalize.get("std")) if isinstance(normalize, dict) else (None, None)
        if not _is_number_list(mean, channels) or not _is_number_list(std, channels) or min(std) <= 0:
            raise InputError(
                f'{source}: normalize is not {{"mean": […], "std": […]}} of {channels} numbers, std above 0'
            )
    scaling = {"resize": contents.resize, "crop_pct": contents.crop_pct}  # checked when data are loaded
    result |= {key: value for key, value in scaling.items() if value is not None}
    return result | {"normalize": normalize, "classes": None if classes is None else list(classes)}
