"""Stand-in modules for packages that are not installed, and the finder that lets imports find them."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.abc
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn

from torch import nn

from svitc.errors import UnsupportedError
from svitc.frontends.compat.shims import OPENMMLAB, TORCH_SIX, Registry, clock_driven
from svitc.support.user_code import INSTALLED

CLOCK_DRIVEN, ACTIVATION_BASED = "spikingjelly.clock_driven", "spikingjelly.activation_based"
CEXT = "spikingjelly.cext"  # kernels for GPUs, whose neurons are those of clock_driven
# replaced even if installed: timm needs torchvision, whose version often does not match that of PyTorch
ALWAYS = ("timm", "torchvision")
# packages that measure, plot and log; no model's forward needs them
TOOLS = (
    "apex",
    "fvcore",
    "matplotlib",
    "ptflops",
    "seaborn",
    "tensorboard",
    "tensorboardX",
    "thop",
    "torchinfo",
    "torchstat",
    "torchsummary",
    "tqdm",
    "visualizer",
    "wandb",
)


def parents_of(name: str) -> list[str]:
    """Return the packages around a dotted name, from the outermost one."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _at_top(frame: FrameType) -> bool:
    """Return whether a frame runs the body of a module or of a class."""
    return frame.f_code.co_name == "<module>" or "__qualname__" in frame.f_locals


@functools.cache
def _guards(file: Path) -> list[tuple[int, int]]:
    """Return the lines, first and last, of what a file tries although it may fail."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8", errors="replace"))
    except (OSError, SyntaxError, ValueError):
        return []
    tried = [node.body for node in ast.walk(tree) if isinstance(node, ast.Try) and node.handlers]
    return [(body[0].lineno, body[-1].end_lineno or body[-1].lineno) for body in tried]


def _is_guarded(file: Path, line: int) -> bool:
    """Return whether a line of a file stands in a ``try`` with ``except``, so that an import there may fail."""
    return any(first <= line <= last for first, last in _guards(file))


class Absent:
    """A name of a missing package: it can be imported, and raises an error only when a model is built of it or calls it.

    Args:
        path: the dotted name.
        names: replacements for names of the package.
    """

    def __init__(self, path: str, names: Mapping[str, object]) -> None:
        self._path, self._names = path, names

    def _error(self) -> UnsupportedError:
        package = self._path.partition(".")[0]
        return UnsupportedError(
            f"{self._path} is used, and {package} is not here: svitc stands in for its names, not for what it does",
            hint="Define what the model needs of it in the model's own file.",
        )

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return replacement(f"{self._path}.{name}", self._names)

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Return what a call at the top of a module needs, such as a decorator; raise an error in a function."""
        if _at_top(sys._getframe(1)):
            decorated = args[0] if len(args) == 1 and not kwargs else None
            is_definition = inspect.isfunction(decorated) or inspect.isclass(decorated)
            return decorated if is_definition else Absent(f"{self._path}()", self._names)
        raise self._error()

    def __iter__(self) -> NoReturn:
        raise self._error()

    def __mro_entries__(self, bases: tuple) -> tuple[type, ...]:
        """Return a base class for a class that derives from this name; only creating an instance is an error."""
        error = self._error

        def init(_: object, *args: object, **kwargs: object) -> None:
            raise error()

        return (type(self._path.rpartition(".")[2], (nn.Module,), {"__init__": init}),)


def replacement(path: str, names: Mapping[str, object]) -> object:
    """Return what replaces a dotted name, looked up by its last part; an ``Absent`` where nothing does."""
    name = path.rpartition(".")[2]
    if name in names:
        return names[name]
    if name.startswith("register_"):  # decorators that only add a function to a registry
        return lambda function=None, *_, **__: function if callable(function) else lambda decorated: decorated
    return Absent(path, names)


class StandIn(ModuleType):
    """A module that stands in for one that is not installed."""

    _names: Mapping[str, object]

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        package = next((p for p in (CLOCK_DRIVEN, CEXT) if self.__name__.startswith(p)), None)
        if package is None:
            return replacement(f"{self.__name__}.{name}", self._names)
        part = self.__name__[len(package) + 1 :]
        if not part:  # a submodule, which the import system finds by itself
            raise AttributeError(name)
        module = importlib.import_module(f"{ACTIVATION_BASED}.{part}")
        return getattr(module, name) if hasattr(module, name) else clock_driven(part, name)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The finder and loader of stand-ins, for ``sys.meta_path``.

    Args:
        registry: registry of the model file's factories.
        folders: the user's folders; a package that lies in them is not replaced.
        first: this finder comes before those of installed packages, and only replaces packages of ``ALWAYS``.
    """

    def __init__(self, registry: Registry, folders: Sequence[str], first: bool) -> None:
        self.timm, self.folders, self.first = registry.timm(), list(folders), first

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a stand-in, or None where the module is not to be replaced."""
        root = fullname.partition(".")[0]
        if root in ALWAYS:
            imported = sys.modules.get(root)
            real = imported is not None and not isinstance(imported, StandIn)
            replaced = not (self.first and real) and PathFinder.find_spec(root, self.folders) is None
        elif self.first:
            return None
        elif fullname.startswith((f"{CLOCK_DRIVEN}.", f"{CEXT}.")):
            package = CEXT if fullname.startswith(CEXT) else CLOCK_DRIVEN
            twin = ACTIVATION_BASED + fullname[len(package) :]
            try:
                replaced = importlib.util.find_spec(twin) is not None
            except ImportError:
                replaced = False
            replaced = replaced or self._is_needed(fullname)
        else:
            replaced = fullname in (CLOCK_DRIVEN, CEXT, "torch._six") or root in TOOLS or self._is_needed(fullname)
        return ModuleSpec(fullname, self, is_package=True) if replaced else None

    def _is_needed(self, fullname: str) -> bool:
        """Return whether the user's code imports a module that nobody has, and does not prepare for that."""
        if any(isinstance(sys.modules.get(parent), StandIn) for parent in parents_of(fullname)):
            return True
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if frame is None or frame.f_code.co_filename.startswith(INSTALLED):
            return False
        file = Path(frame.f_code.co_filename)
        is_users = file.is_file() and any(file.is_relative_to(folder) for folder in self.folders)
        top = fullname.partition(".")[0]
        own = any((Path(folder) / top).is_dir() or (Path(folder) / f"{top}.py").is_file() for folder in self.folders)
        return is_users and not own and not _is_guarded(file, frame.f_lineno)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Create the stand-in with the replacements for its package."""
        module = StandIn(spec.name)
        root = spec.name.partition(".")[0]
        module._names = TORCH_SIX if root == "torch" else self.timm if root == "timm" else OPENMMLAB
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: a stand-in has no code."""
