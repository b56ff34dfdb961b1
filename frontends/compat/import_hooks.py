"""The import system for old model files, which run unchanged though many of their imports do not exist any more.

Within ``compatible``, and only there, stand-ins take the place of missing packages (stand_ins.py), neurons accept and
ignore the arguments of old versions, what asks for a GPU gets the CPU, and the folders of the model file are on
``sys.path``. An installed package is always used, except for timm and torchvision, which are never imported.
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

from spikingjelly.activation_based import base, functional, neuron
from torch import nn

from svitc.errors import InputError, SvitcError, UnsupportedError
from svitc.frontends.compat.shims import DROPPED, Registry
from svitc.frontends.compat.stand_ins import Finder, StandIn
from svitc.support.cpu_only import on_cpu
from svitc.support.user_code import INSTALLED, import_file, raised_at, search_path

NEVER_HIDDEN = ("__main__", "svitc")


@contextlib.contextmanager
def compatible(file: Path | None = None) -> Iterator[Registry]:
    """Let old model files be imported, and their factories be called, in the body of a ``with`` statement.

    Afterwards ``sys.path`` and the import system are as before, and ``sys.modules`` has neither the stand-ins nor
    modules from the file's folders. Installed packages that were imported for the first time stay, because many
    of them cannot be imported twice.

    Args:
        file: a model file; its folders are searched for what it imports.

    Yields:
        The registry of the factories that the imported code registers.
    """
    folders = search_path(file) if file is not None else []
    registry = Registry()
    path, finders, bytecode = list(sys.path), list(sys.meta_path), sys.dont_write_bytecode
    hidden = _hide(folders)
    before = dict(sys.modules)
    first, last = Finder(registry, folders, first=True), Finder(registry, folders, first=False)
    sys.meta_path[:] = [first, *finders, last]
    sys.path[:0] = folders
    sys.dont_write_bytecode = True  # write no __pycache__ into the user's folders
    try:
        with on_cpu(), _old_arguments(), warnings.catch_warnings():
            for category in (FutureWarning, DeprecationWarning, SyntaxWarning):
                warnings.simplefilter("ignore", category)
            yield registry
    finally:
        sys.path[:], sys.meta_path[:], sys.dont_write_bytecode = path, finders, bytecode
        _remove(before, folders)
        sys.modules.update(hidden)


def import_model_file(path: Path, blame: type[SvitcError] = InputError) -> ModuleType:
    """Import a model file with the stand-ins that it needs.

    Args:
        blame: class of the error.

    Raises:
        SvitcError: of class ``blame``, with the file and line: there is no such file, it imports a module that is
            not there and has no stand-in, or its code raises an error.
        UnsupportedError: the file uses a stand-in for more than its name.
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
                f"{path} imports {error.name}, which is not installed and has no stand-in in svitc",
                where=raised_at(error, path),
                hint="Install it, or remove the import.",
            ) from error
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise blame(
                f"importing {path} failed: {type(error).__name__}: {error}", where=raised_at(error, path)
            ) from error


def find_factory(path: Path, name: str, blame: type[SvitcError] = InputError) -> Callable[..., object]:
    """Return a factory of a model file: a registered one, or else a function or class of that name.

    The result calls the factory with the stand-ins in place, which old arguments and late imports need.

    Args:
        blame: class of the error.

    Raises:
        SvitcError: of class ``blame``: there is no such factory, or the file cannot be imported
            (see ``import_model_file``).
    """
    module, registry = _imported(path, blame)
    factory = registry.factories.get(name) or getattr(module, name, None)
    if not callable(factory):
        names = factories_of(module, registry)
        close = get_close_matches(name, names, 1)
        raise blame(
            f"{path} has no factory {name}" + (f"; the closest is {close[0]}" if close else ""),
            hint=f"It has {', '.join(names[:12])}." if names else "It defines no function and no class.",
        )

    @functools.wraps(factory)
    def build(*args: object, **kwargs: object) -> object:
        with compatible(path):
            return factory(*args, **kwargs)

    return build


def factories_of(module: ModuleType, registry: Registry) -> list[str]:
    """Return the names that can build a model: registered and exported ones, then functions, then layer classes."""
    defined = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }
    functions = [name for name, value in defined.items() if inspect.isfunction(value)]
    classes = [name for name, value in defined.items() if inspect.isclass(value) and issubclass(value, nn.Module)]
    exported = [name for name in getattr(module, "__all__", ()) if callable(getattr(module, name, None))]
    return list(dict.fromkeys([*registry.factories, *exported, *functions, *classes]))


def _folder_of(module: ModuleType | None) -> str | None:
    """Return the folder in which a top-level module was found; None for built-in modules and stand-ins."""
    spec = getattr(module, "__spec__", None)
    if spec is None or isinstance(module, StandIn):
        return None
    places = list(spec.submodule_search_locations or ())
    place = places[0] if places else spec.origin
    return str(Path(place).parent) if isinstance(place, str) and Path(place).is_absolute() else None


def _hide(folders: list[str]) -> dict[str, ModuleType]:
    """Remove modules of other folders that have the name of a file in these folders from ``sys.modules``.

    Returns:
        The removed modules by name, to be put back later.
    """
    names = {entry.stem if entry.suffix == ".py" else entry.name for f in folders for entry in _entries(f)}
    hidden = {}
    for top in {name.partition(".")[0] for name in sys.modules} & names:
        folder = _folder_of(sys.modules.get(top))
        if folder is None or folder in folders or folder.startswith(INSTALLED) or top in NEVER_HIDDEN:
            continue
        package = [name for name in sys.modules if name == top or name.startswith(f"{top}.")]
        hidden.update({name: sys.modules.pop(name) for name in package})
    return hidden


def _entries(folder: str) -> list[Path]:
    """List what can be imported from a folder: Python files, and folders whose name is an identifier."""
    with contextlib.suppress(OSError):
        return [e for e in Path(folder).iterdir() if e.suffix == ".py" or (e.is_dir() and e.name.isidentifier())]
    return []


def _remove(before: dict[str, ModuleType], folders: list[str]) -> None:
    """Remove stand-ins and the user's modules from ``sys.modules`` and from the packages that refer to them.

    Args:
        before: ``sys.modules`` as it was before the import.
        folders: the folders of the user's modules.
    """
    new = {name: module for name, module in sys.modules.items() if before.get(name) is not module}
    user_packages = {name for name in new if "." not in name and _folder_of(new[name]) in folders}
    for name, module in new.items():
        if name in before:
            sys.modules[name] = before[name]
        elif isinstance(module, StandIn) or name.partition(".")[0] in user_packages:
            del sys.modules[name]
            parent_name, _, last = name.rpartition(".")
            parent = sys.modules.get(parent_name)
            if parent is not None and vars(parent).get(last) is module:
                delattr(parent, last)


@contextlib.contextmanager
def _old_arguments() -> Iterator[None]:
    """Let SpikingJelly's neurons accept, and ignore, arguments that only old versions have."""
    classes = [
        value
        for value in vars(neuron).values()
        if isinstance(value, type) and issubclass(value, base.MemoryModule) and "__init__" in vars(value)
    ]
    constructors = {cls: vars(cls)["__init__"] for cls in dict.fromkeys(classes)}
    for cls, init in constructors.items():
        cls.__init__ = _ignoring_old_arguments(init)  # type: ignore[misc]
    added = not hasattr(functional, "set_backend")
    if added:
        functional.set_backend = lambda *_, **__: None
    try:
        yield
    finally:
        for cls, init in constructors.items():
            cls.__init__ = init  # type: ignore[misc]
        if added:
            del functional.set_backend


def _ignoring_old_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Wrap a constructor so that it ignores those of ``DROPPED`` that it does not have."""
    ignored = [name for name in DROPPED if name not in inspect.signature(init).parameters]

    @functools.wraps(init)
    def tolerant(self: nn.Module, *args: object, **kwargs: object) -> None:
        init(self, *args, **{key: value for key, value in kwargs.items() if key not in ignored})

    return tolerant
