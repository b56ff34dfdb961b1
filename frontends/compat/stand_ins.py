"""Stand-in modules for packages that are not installed, and the finder that lets imports find them."""

from __future__ import annotations

import ast
import builtins
import contextlib
import functools
import importlib
import importlib.abc
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn

from torch import nn

from svitc.errors import UnsupportedError
from svitc.frontends.compat.shims import OPENMMLAB, TORCH_SIX, Registry, clock_driven
from svitc.frontends.compat.timm_layers import OF_BLOCKS, TORCHVISION
from svitc.support.user_code import INSTALLED

CLOCK_DRIVEN, ACTIVATION_BASED = "spikingjelly.clock_driven", "spikingjelly.activation_based"
CEXT = "spikingjelly.cext"  # kernels for GPUs, whose neurons are those of clock_driven
# replaced even if installed: timm needs torchvision, whose version often does not match that of PyTorch
ALWAYS = ("timm", "torchvision")
DATA = "spikingjelly.datasets"  # needs torchaudio, too; no model needs it
OPENMM = ("mmcls", "mmcv", "mmdet", "mmengine", "mmpretrain", "mmseg")
PROJECT_FILES = (".git", "setup.py", "pyproject.toml", "requirements.txt")  # found in the root of a repository
MAX_PARENTS = 6  # folders above a model file in which its repository's packages are searched for
_COMPAT = str(Path(__file__).parent) + os.sep
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


@functools.cache
def _parsed(file: Path) -> ast.Module:
    """Return the syntax tree of a file, an empty one where it has none."""
    try:
        return ast.parse(file.read_text(encoding="utf-8", errors="replace"))
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


@functools.cache
def _guards(file: Path) -> list[tuple[int, int]]:
    """Return the lines, first and last, of what a file tries although it may fail."""

    def suppresses(node: ast.With) -> bool:
        calls = [item.context_expr.func for item in node.items if isinstance(item.context_expr, ast.Call)]
        return any(ast.unparse(call).rpartition(".")[2] == "suppress" for call in calls)

    nodes = list(ast.walk(_parsed(file)))
    tried = [node.body for node in nodes if isinstance(node, ast.Try) and node.handlers]
    tried += [node.body for node in nodes if isinstance(node, ast.With) and suppresses(node)]
    return [(body[0].lineno, body[-1].end_lineno or body[-1].lineno) for body in tried]


def _is_guarded(file: Path, line: int) -> bool:
    """Return whether a line of a file stands in a ``try`` with ``except``, so that an import there may fail."""
    return any(first <= line <= last for first, last in _guards(file))


def _at_top(frame: FrameType | None) -> bool:
    """Return whether a frame runs while a module is imported: its body, a class body, or a function that they call."""
    while frame is not None and not frame.f_code.co_filename.startswith(_COMPAT):
        if frame.f_code.co_name == "<module>" or "__qualname__" in frame.f_locals:
            return True
        if frame.f_code.co_name in ("forward", "__call__"):
            return False
        frame = frame.f_back
    return False


class _Missing:
    """What is imported and missing: an error only when a model is built of it or calls it.

    Attributes:
        path: the dotted name.
        names: replacements for names of the package.
    """

    path: str
    names: Mapping[str, object]

    def error(self, frame: FrameType) -> UnsupportedError:
        """Return the error for the use of this name in the line that a frame runs."""
        package = self.path.partition(".")[0]
        if package in ALWAYS or PathFinder.find_spec(package) is None:
            why = f"{package} is not here: svitc stands in for its names, not for what it does"
        else:
            why = f"the {package} that is installed does not have it"
        return UnsupportedError(
            f"{self.path} is used, and {why}",
            where=f"{frame.f_code.co_filename}:{frame.f_lineno}",
            hint="Define what the model needs of it in the model's own file.",
        )

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") or name in ("path", "names"):
            raise AttributeError(name)
        return replacement(f"{self.path}.{name}", self.names)

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Return what a call needs while a module is imported, such as a decorator; raise an error later."""
        if not _at_top(sys._getframe(1)):
            raise self.error(sys._getframe(1))
        decorated = args[0] if len(args) == 1 and not kwargs else None
        is_definition = inspect.isfunction(decorated) or inspect.isclass(decorated)
        return decorated if is_definition else Absent(f"{self.path}()", self.names)

    def __iter__(self) -> NoReturn:
        raise self.error(sys._getframe(1))

    def __getitem__(self, key: object) -> object:
        """Return this name, for annotations such as ``Name[int]``."""
        return self

    def __or__(self, other: object) -> object:
        """Return this name, for annotations such as ``Name | None``."""
        return self

    __ror__ = __or__

    def __instancecheck__(self, instance: object) -> bool:
        """Return False: nothing is an instance of what is not there."""
        return False

    def __mro_entries__(self, bases: tuple) -> tuple[type, ...]:
        """Return a base class for a class that derives from this name; only creating an instance is an error."""
        error = self.error

        def init(_: object, *args: object, **kwargs: object) -> None:
            raise error(sys._getframe(1))

        return (type(self.path.rpartition(".")[2], (nn.Module,), {"__init__": init}),)


class Absent(_Missing):
    """A name of a missing package.

    Args:
        path: the dotted name.
        names: replacements for names of the package.
    """

    def __init__(self, path: str, names: Mapping[str, object]) -> None:
        self.path, self.names = path, names


def replacement(path: str, names: Mapping[str, object]) -> object:
    """Return what replaces a dotted name, looked up by its last part; an ``Absent`` where nothing does."""
    name = path.rpartition(".")[2]
    if name in names:
        return names[name]
    if name.startswith("register_"):  # decorators that only add a function to a registry
        return lambda function=None, *_, **__: function if callable(function) else lambda decorated: decorated
    return Absent(path, names)


class StandIn(_Missing, ModuleType):
    """A module that stands in for one that is not installed."""

    def __getattr__(self, name: str) -> object:
        if name == "__all__":
            return self._wanted(sys._getframe(1))
        if name == "__version__":
            return "0"
        package = _old_package(self.path)
        if package is None or name.startswith("__"):
            return super().__getattr__(name)
        part = self.path[len(package) + 1 :]
        if not part:  # a submodule, which the import system finds by itself
            raise AttributeError(name)
        twin = importlib.util.find_spec(f"{ACTIVATION_BASED}.{part}")
        if twin is None:
            return replacement(f"{self.path}.{name}", self.names)
        module = importlib.import_module(twin.name)
        return getattr(module, name) if hasattr(module, name) else clock_driven(part, name)

    def _wanted(self, frame: FrameType | None) -> list[str]:
        """Return the names for ``from … import *``: those that the importing file uses and does not define."""
        package = _old_package(self.path)
        if package is not None:
            module = importlib.import_module(ACTIVATION_BASED + self.path[len(package) :])
            return [name for name in vars(module) if not name.startswith("_")]
        while frame is not None and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if frame is None:
            return []
        names = [node for node in ast.walk(_parsed(Path(frame.f_code.co_filename))) if isinstance(node, ast.Name)]
        stored = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
        used = {node.id for node in names} - stored - vars(builtins).keys() - frame.f_globals.keys()
        return sorted(used - _bound(Path(frame.f_code.co_filename)))


@functools.cache
def _bound(file: Path) -> set[str]:
    """Return the names that definitions, imports and arguments of a file bind."""
    bound: set[str] = set()
    for node in ast.walk(_parsed(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return bound


def _old_package(fullname: str) -> str | None:
    """Return the old package of SpikingJelly around a module, or None."""
    return next((p for p in (CLOCK_DRIVEN, CEXT) if fullname == p or fullname.startswith(f"{p}.")), None)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The finder and loader of stand-ins, for ``sys.meta_path``.

    Args:
        registry: registry of the model file's factories.
        folders: the user's folders; a package that lies in them is not replaced. Further folders of the same
            repository are added when a package of it is imported.
        first: this finder comes before those of installed packages, and only replaces packages of ``ALWAYS``.
    """

    def __init__(self, registry: Registry, folders: list[str], first: bool) -> None:
        self.timm, self.folders, self.first = registry.timm(), folders, first

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a stand-in, or None where the module is not to be replaced."""
        root = fullname.partition(".")[0]
        always = DATA if f"{fullname}.".startswith(f"{DATA}.") else root if root in ALWAYS else None
        if always is not None:
            imported = sys.modules.get(always)
            real = imported is not None and not isinstance(imported, StandIn)
            replaced = not (self.first and real) and PathFinder.find_spec(root, self.folders) is None
        elif self.first:
            return None
        elif fullname in (CLOCK_DRIVEN, CEXT, "torch._six") or root in TOOLS:
            replaced = True
        elif _old_package(fullname) is not None:
            replaced = self._is_old(fullname)
        elif any(isinstance(sys.modules.get(parent), StandIn) for parent in parents_of(fullname)):
            replaced = True
        else:
            importer = self._importer()
            own = self._own_package(fullname, importer) if importer is not None else None
            if own is not None:
                return own
            replaced = importer is not None and not self._is_own(root)
        return ModuleSpec(fullname, self, is_package=True) if replaced else None

    def _is_old(self, fullname: str) -> bool:
        """Return whether a module of an old package is one that SpikingJelly 2 has, or of kernels for GPUs."""
        package = _old_package(fullname) or ""
        with contextlib.suppress(ImportError):
            if importlib.util.find_spec(ACTIVATION_BASED + fullname[len(package) :]) is not None:
                return True
        return package == CEXT and fullname.count(".") == CEXT.count(".") + 1

    def _importer(self) -> Path | None:
        """Return the user's file that runs an import statement which must not fail, or None."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and "importlib" in frame.f_code.co_filename:
            if "importlib.util" in frame.f_code.co_filename or "importlib/util" in frame.f_code.co_filename:
                return None  # ``importlib.util.find_spec``, which asks whether a package is there
            frame = frame.f_back
        if frame is None or frame.f_code.co_filename.startswith((*INSTALLED, _COMPAT)):
            return None
        file = Path(frame.f_code.co_filename)
        return file if file.is_file() and not _is_guarded(file, frame.f_lineno) else None

    def _is_own(self, root: str) -> bool:
        """Return whether the user's folders have a package or module of this name."""
        return any((Path(f) / root).is_dir() or (Path(f) / f"{root}.py").is_file() for f in self.folders)

    def _own_package(self, fullname: str, importer: Path) -> ModuleSpec | None:
        """Return the spec of a package that lies further up in the repository of the importing file."""
        if "." in fullname:
            return None
        for folder in importer.absolute().parents[:MAX_PARENTS]:
            if (folder / fullname / "__init__.py").is_file():
                self.folders.append(str(folder))
                return PathFinder.find_spec(fullname, [str(folder)])
            if any((folder / name).exists() for name in PROJECT_FILES):
                break
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Create the stand-in with the replacements for its package."""
        module = StandIn(spec.name)
        root = spec.name.partition(".")[0]
        module.path = spec.name
        packages = {"torch": TORCH_SIX, "timm": self.timm, "torchvision": TORCHVISION}
        module.names = {**packages, **dict.fromkeys(OPENMM, OPENMMLAB)}.get(root, {})
        if "efficientnet_blocks" in spec.name:
            module.names = {**module.names, **OF_BLOCKS}
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: a stand-in has no code."""
