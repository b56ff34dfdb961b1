"""Data from the user's own code, ``module:factory``: a DataLoader, a Dataset, or any iterable of batches.

The code runs unchanged, with the real torchvision and not the stand-ins that old model files get. What it gives is read
as loaders.py says.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType

from svitc.data.loaders import Origin, describe, is_iterable, read_loader, seeded
from svitc.data.sources import OpenedSource
from svitc.errors import SvitcError, UsageError
from svitc.ir.graph import InputSpec
from svitc.support.types import JsonMapping
from svitc.support.user_code import import_file, importable, raised_at, search_path

FORM_HINT = "It is module:factory, such as my_data:val, or path/to/file.py:factory."


def open_factory(
    text: str, spec: InputSpec, info: JsonMapping, limit: int | None, seed: int, unlabeled: bool = False
) -> OpenedSource:
    """Import and call a factory, and keep its images in the order of the sample.

    Args:
        text: ``module:factory`` or ``path/to/file.py:factory``.
        limit: Number of images in a class-balanced sample, taken in one pass; None keeps all.
        seed: Of the sample, and of torch's, numpy's and Python's generators while the loader runs.
        unlabeled: Whether to leave out the labels that it may give.

    Raises:
        UsageError: The file, module or factory does not exist, it raises an error or needs arguments, or it gives
            fewer images than ``limit``.
        InputError: The data are not images that fit the model, or they do not fit on the disk.
    """
    place, _, name = text.rpartition(":")
    folders = search_path(Path(place)) if place.endswith(".py") else [str(Path.cwd())]
    with contextlib.ExitStack() as stack:
        for folder in reversed(folders):
            stack.enter_context(importable(Path(folder)))
        stack.enter_context(seeded(seed))
        module = _import(place)
        file = Path(getattr(module, "__file__", None) or place)
        loader = _call_factory(module, name, text, file)
        return read_loader(loader, Origin(text, f"--data: {text}", file), spec, info, limit, seed, unlabeled)


def _import(place: str) -> ModuleType:
    file = Path(place) if place.endswith(".py") else None
    if file is not None and not file.is_file():
        raise UsageError(f"--data: there is no file {place}", hint=FORM_HINT)
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
    except (Exception, SystemExit) as error:  # the user's module may raise any exception
        where = raised_at(error, file or _file_of(place))
        raise UsageError(f"--data: importing {place} failed: {describe(error)}", where=where) from error


def _file_of(place: str) -> Path:
    with contextlib.suppress(Exception):
        spec = importlib.util.find_spec(place)
        if spec is not None and spec.origin:
            return Path(spec.origin)
    return Path(place)


def _call_factory(module: ModuleType, name: str, text: str, file: Path) -> Iterable[object]:
    """Return the factory's result, or the named object itself where it is a loader already."""
    factory = getattr(module, name, None)
    if factory is not None and not callable(factory) and is_iterable(factory):
        return factory
    if not callable(factory):
        public = {k: v for k, v in vars(module).items() if callable(v) and not k.startswith("_")}
        defined_here = [k for k, v in public.items() if getattr(v, "__module__", None) == module.__name__]
        factories = defined_here or list(public)
        close = get_close_matches(name, factories, 1)
        raise UsageError(
            f"--data: {text.rpartition(':')[0]} has no factory {name}"
            + (f"; the closest is {close[0]}" if close else ""),
            hint=f"It has {', '.join(factories[:12])}." if factories else "It defines no function and no class.",
        )
    try:
        loader = factory()
    except SvitcError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"--data: {name}() failed: {describe(error)}",
            where=raised_at(error, file),
            hint="It is called without arguments." if isinstance(error, TypeError) else None,
        ) from error
    if not is_iterable(loader):
        raise UsageError(
            f"--data: {text} returned a {type(loader).__name__}, which gives no images",
            hint="A torch DataLoader or Dataset, or any iterable of (images, labels).",
        )
    return loader
