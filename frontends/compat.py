"""Compatibility: unmodified model files import and run, though much of what they import does not exist any more.

Within ``compatible``, and only there, stand-ins are found for what is missing (compat_finder.py), neurons take and
ignore the arguments of old versions, and the file's own folders are on the path. What is installed is never hidden,
but for timm and torchvision, which are not imported at all.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from spikingjelly.activation_based import base, functional, neuron
from torch import nn

from svitc.errors import InputError, SvitcError, UnsupportedError
from svitc.frontends.compat_finder import Finder, StandIn
from svitc.frontends.compat_names import DROPPED, Registry

INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
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


def search_path(file: Path) -> list[str]:
    """Folders that a model file imports from: its own, that one's parent, and the root of its package."""
    parents = file.absolute().parents
    wanted = [parents[0], *parents[1:2], parents[min(_package_depth(file), len(parents) - 1)]]
    return [str(folder) for folder in dict.fromkeys(wanted)]


def _package_depth(file: Path) -> int:
    """How many packages a file is in, going by its relative imports; 0 for a file of its own."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return 0  # importing it says what is wrong
    depth = max((node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), default=0)
    parents = file.absolute().parents
    while 0 < depth < len(parents) - 1 and (parents[depth] / "__init__.py").is_file():
        depth += 1
    return depth


def load(file: Path) -> ModuleType:
    """Import a model file, within ``compatible(file)``; whatever it raises is the caller's to explain."""
    depth = _package_depth(file)
    if depth:
        packages = [parent.name for parent in file.absolute().parents[:depth]]
        return importlib.import_module(".".join([*reversed(packages), file.stem]))
    name = f"{file.stem}_{hashlib.sha256(str(file.absolute()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file.absolute())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


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
            return load(path), registry
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


def raised_at(error: BaseException, file: Path) -> str | None:
    """``file:line`` of the innermost frame in the file's folders, or None."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    folders = tuple(search_path(file))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(folders)]
    frames = [f for f in frames if not f.filename.startswith(INSTALLED) and f.filename != __file__]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


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
