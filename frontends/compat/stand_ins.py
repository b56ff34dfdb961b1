"""Stand-in modules for packages that are not installed, and the finder that lets imports find them."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import NoReturn

from torch import nn

from svitc.errors import UnsupportedError
from svitc.frontends.compat.shims import TORCH_SIX, Registry, clock_driven

CLOCK_DRIVEN, ACTIVATION_BASED = "spikingjelly.clock_driven", "spikingjelly.activation_based"
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


class Absent:
    """A name of a missing package: it can be imported, and raises an error only when it is used.

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

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
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
        return lambda function=None, *_, **__: function
    return Absent(path, names)


class StandIn(ModuleType):
    """A module that stands in for one that is not installed."""

    _names: Mapping[str, object]

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        if not self.__name__.startswith(CLOCK_DRIVEN):
            return replacement(f"{self.__name__}.{name}", self._names)
        part = self.__name__[len(CLOCK_DRIVEN) + 1 :]
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
        elif fullname.startswith(f"{CLOCK_DRIVEN}."):
            twin = ACTIVATION_BASED + fullname[len(CLOCK_DRIVEN) :]
            try:
                replaced = importlib.util.find_spec(twin) is not None
            except ImportError:
                replaced = False
        else:
            replaced = fullname in (CLOCK_DRIVEN, "torch._six") or root in TOOLS
        return ModuleSpec(fullname, self, is_package=True) if replaced else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Create the stand-in with the replacements for its package."""
        module = StandIn(spec.name)
        root = spec.name.partition(".")[0]
        module._names = TORCH_SIX if root == "torch" else self.timm if root == "timm" else {}
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: a stand-in has no code."""
