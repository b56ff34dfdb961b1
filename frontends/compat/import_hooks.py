"""Compatibility: unmodified model files import and run, though much of what they import does not exist any more.

Within ``compatible``, and only there, stand-ins are found for what is missing (compat_finder.py), neurons take and
ignore the arguments of old versions, and the file's own folders are on the path. What is installed is never hidden,
but for timm and torchvision, which are not imported at all.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from spikingjelly.activation_based import base, functional, neuron
from torch import nn

from svitc.errors import InputError, SvitcError, UnsupportedError
from svitc.frontends.compat.shims import DROPPED, Registry
from svitc.frontends.compat.stand_ins import Finder, StandIn
from svitc.support.user_code import INSTALLED, import_file, raised_at, search_path

KEPT = ("__main__", "svitc")


@contextlib.contextmanager
def compatible(file: Path | None = None) -> Iterator[Registry]:
    """Old model files can be imported, and their factories called, within.

    Afterwards ``sys.path`` and the import system are as they were, and of ``sys.modules`` nothing is left of the
    stand-ins or of the file's folders. Installed packages that were imported for the first time stay, as many of
    them cannot be imported twice.

    Args:
        file: a model file, whose folder and its parent are searched for what it imports.

    Yields:
        The factories that are registered within.
    """
    folders = search_path(file) if file is not None else []
    registry = Registry()
    path, finders, bytecode = list(sys.path), list(sys.meta_path), sys.dont_write_bytecode
    hidden = _hide(folders)
    before = dict(sys.modules)
    first, last = Finder(registry, folders, first=True), Finder(registry, folders, first=False)
    sys.meta_path[:] = [first, *finders, last]
    sys.path[:0] = folders
    sys.dont_write_bytecode = True  # the user's folders stay as they are
    try:
        with _old_arguments(), warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning, SyntaxWarning):
                warnings.simplefilter("ignore", category)
            yield registry
    finally:
        sys.path[:], sys.meta_path[:], sys.dont_write_bytecode = path, finders, bytecode
        _remove(before, folders)
        sys.modules.update(hidden)


def import_model_file(path: Path, blame: type[SvitcError] = InputError) -> ModuleType:
    """Import a model file with whatever stand-ins it needs.

    Raises:
        SvitcError: of kind ``blame``: there is no such file, it imports a package that nothing stands in for, or
            it raises; with the file and line.
    """
    return _imported(path, blame)[0]


def _imported(path: Path, blame: type[SvitcError]) -> tuple[ModuleType, Registry]:
    if not path.is_file():
        raise blame(f"there is no file {path}")
    with compatible(path) as registry:
        try:
            return import_file(path), registry
        except UnsupportedError as error:
            error.where = error.where or raised_at(error, path)
            raise
        except ModuleNotFoundError as error:
            raise blame(
                f"{path} imports {error.name}, which is not installed and which nothing stands in for",
                where=raised_at(error, path),
                hint="Install it, or take the import out.",
            ) from error
        except (Exception, SystemExit) as error:  # the user's file may raise anything
            raise blame(
                f"importing {path} failed: {type(error).__name__}: {error}", where=raised_at(error, path)
            ) from error


def model_factory(path: Path, name: str, blame: type[SvitcError] = InputError) -> Callable[..., Any]:
    """A factory of a model file: what it registers under a name, or a function or class of that name.

    What is returned calls it with the stand-ins in place, as old arguments and late imports need them.

    Raises:
        SvitcError: of kind ``blame``: as ``import_model_file``, or there is no such factory.
    """
    module, registry = _imported(path, blame)
    factory = registry.factories.get(name) or getattr(module, name, None)
    if not callable(factory):
        there = factories_of(module, registry)
        close = get_close_matches(name, there, 1)
        raise blame(
            f"{path} has no factory {name}" + (f"; the closest is {close[0]}" if close else ""),
            hint=f"It has {', '.join(there[:12])}." if there else "It defines no function and no class.",
        )

    @functools.wraps(factory)
    def build(*args: Any, **kwargs: Any) -> Any:
        with compatible(path):
            return factory(*args, **kwargs)

    return build


def factories_of(module: ModuleType, registry: Registry) -> list[str]:
    """What a model may be made with: registered names first, then the file's own functions, then its layers."""
    own = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }
    functions = [name for name, value in own.items() if inspect.isfunction(value)]
    classes = [name for name, value in own.items() if inspect.isclass(value) and issubclass(value, nn.Module)]
    exported = [name for name in getattr(module, "__all__", ()) if callable(getattr(module, name, None))]
    return list(dict.fromkeys([*registry.factories, *exported, *functions, *classes]))


def _home(module: ModuleType | None) -> str | None:
    """The folder in which a top-level module was found; None for one that is built in or made up."""
    spec = getattr(module, "__spec__", None)
    if spec is None or isinstance(module, StandIn):
        return None
    places = list(spec.submodule_search_locations or ())
    place = places[0] if places else spec.origin
    return str(Path(place).parent) if isinstance(place, str) and Path(place).is_absolute() else None


def _hide(folders: list[str]) -> dict[str, ModuleType]:
    """Take out of ``sys.modules`` what another folder's files left there under names that these folders have."""
    names = {entry.stem if entry.suffix == ".py" else entry.name for f in folders for entry in _entries(f)}
    hidden = {}
    for top in {name.partition(".")[0] for name in sys.modules} & names:
        home = _home(sys.modules.get(top))
        if home is None or home in folders or home.startswith(INSTALLED) or top in KEPT:
            continue
        mine = [name for name in sys.modules if name == top or name.startswith(f"{top}.")]
        hidden.update({name: sys.modules.pop(name) for name in mine})
    return hidden


def _entries(folder: str) -> list[Path]:
    with contextlib.suppress(OSError):
        return [e for e in Path(folder).iterdir() if e.suffix == ".py" or (e.is_dir() and e.name.isidentifier())]
    return []


def _remove(before: dict[str, ModuleType], folders: list[str]) -> None:
    """Take stand-ins and the user's modules out again, from ``sys.modules`` and from the packages that hold them."""
    new = {name: module for name, module in sys.modules.items() if before.get(name) is not module}
    theirs = {name for name in new if "." not in name and _home(new[name]) in folders}
    for name, module in new.items():
        if name in before:
            sys.modules[name] = before[name]
        elif isinstance(module, StandIn) or name.partition(".")[0] in theirs:
            del sys.modules[name]
            owner, _, last = name.rpartition(".")
            holder = sys.modules.get(owner)
            if holder is not None and vars(holder).get(last) is module:
                delattr(holder, last)


@contextlib.contextmanager
def _old_arguments() -> Iterator[None]:
    """SpikingJelly's neurons take, and ignore, arguments that old versions had and this one does not."""
    kinds = [
        kind
        for kind in vars(neuron).values()
        if isinstance(kind, type) and issubclass(kind, base.MemoryModule) and "__init__" in vars(kind)
    ]
    plain = {kind: vars(kind)["__init__"] for kind in dict.fromkeys(kinds)}
    for kind, init in plain.items():
        kind.__init__ = _without(init)  # type: ignore[misc]
    added = not hasattr(functional, "set_backend")
    if added:
        functional.set_backend = lambda *_, **__: None
    try:
        yield
    finally:
        for kind, init in plain.items():
            kind.__init__ = init  # type: ignore[misc]
        if added:
            del functional.set_backend


def _without(init: Callable[..., None]) -> Callable[..., None]:
    gone = [name for name in DROPPED if name not in inspect.signature(init).parameters]

    @functools.wraps(init)
    def tolerant(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **{key: value for key, value in kwargs.items() if key not in gone})

    return tolerant
