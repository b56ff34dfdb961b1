"""Compatibility, imports: stand-ins for packages that are not there, found last and gone afterwards."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

from torch import nn

from svitc.errors import UnsupportedError
from svitc.frontends.compat.shims import TORCH_SIX, Registry, clock_driven

CLOCK_DRIVEN, ACTIVATION_BASED = "spikingjelly.clock_driven", "spikingjelly.activation_based"
# never imported: timm needs torchvision, which rarely goes with the PyTorch that is there
ALWAYS = ("timm", "torchvision")
# what measures, plots and logs, and no forward needs
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
    """Something of a package that is not there: it can be imported and named, and says so when it is used."""

    def __init__(self, path: str, names: dict[str, Any]) -> None:
        self._path, self._names = path, names

    def _refuse(self) -> UnsupportedError:
        package = self._path.partition(".")[0]
        return UnsupportedError(
            f"{self._path} is used, and {package} is not here: svitc stands in for its names, not for what it does",
            hint="Define what the model needs of it in the model's own file.",
        )

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return named(f"{self._path}.{name}", self._names)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise self._refuse()

    def __mro_entries__(self, bases: tuple) -> tuple[type, ...]:
        """A class may derive from it; only an instance is refused."""
        refuse = self._refuse

        def init(_: Any, *args: Any, **kwargs: Any) -> None:
            raise refuse()

        return (type(self._path.rpartition(".")[2], (nn.Module,), {"__init__": init}),)


def named(path: str, names: dict[str, Any]) -> Any:
    """What stands for a dotted name: by its last part, else something absent."""
    name = path.rpartition(".")[2]
    if name in names:
        return names[name]
    if name.startswith("register_"):  # decorators that only enter a function in a list
        return lambda each=None, *_, **__: each
    return Absent(path, names)


class StandIn(ModuleType):
    """A module that is not there."""

    _names: dict[str, Any]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not self.__name__.startswith(CLOCK_DRIVEN):
            return named(f"{self.__name__}.{name}", self._names)
        part = self.__name__[len(CLOCK_DRIVEN) + 1 :]
        if not part:  # a submodule, which is imported in its own right
            raise AttributeError(name)
        module = importlib.import_module(f"{ACTIVATION_BASED}.{part}")
        return getattr(module, name) if hasattr(module, name) else clock_driven(part, name)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds stand-ins.

    Args:
        registry: where the file's factories are registered.
        folders: the user's; a package of theirs is no stand-in's business.
        first: asked before anything that is installed, and for ``ALWAYS`` alone.
    """

    def __init__(self, registry: Registry, folders: Sequence[str], first: bool) -> None:
        self.timm, self.folders, self.first = registry.timm(), list(folders), first

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        root = fullname.partition(".")[0]
        if root in ALWAYS:
            known = sys.modules.get(root)
            real = known is not None and not isinstance(known, StandIn)
            wanted = not (self.first and real) and PathFinder.find_spec(root, self.folders) is None
        elif self.first:
            return None
        elif fullname.startswith(f"{CLOCK_DRIVEN}."):
            twin = ACTIVATION_BASED + fullname[len(CLOCK_DRIVEN) :]
            try:
                wanted = importlib.util.find_spec(twin) is not None
            except ImportError:
                wanted = False
        else:
            wanted = fullname in (CLOCK_DRIVEN, "torch._six") or root in TOOLS
        return ModuleSpec(fullname, self, is_package=True) if wanted else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = StandIn(spec.name)
        root = spec.name.partition(".")[0]
        module._names = TORCH_SIX if root == "torch" else self.timm if root == "timm" else {}
        return module

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""
