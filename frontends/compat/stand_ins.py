"""Stand-in modules for packages that are not installed, and the finder that lets imports find them."""

from __future__ import annotations

import ast
import importlib
import importlib.abc
import importlib.util
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import ClassVar

from svitc.frontends.compat.absent import Absent, replacement
from svitc.frontends.compat.shims import TORCH_SIX, TQDM, Registry, clock_driven
from svitc.frontends.compat.timm_layers import LAYERS, OF_BLOCKS, TORCHVISION
from svitc.support.user_code import INSTALLED

CLOCK_DRIVEN, ACTIVATION_BASED = "spikingjelly.clock_driven", "spikingjelly.activation_based"
# replaced even if installed: timm needs torchvision, whose version often does not match that of PyTorch
ALWAYS = ("timm", "torchvision")
# replaced wherever they are missing, also where installed packages import them
ANYWHERE = (
    *("apex", "fvcore", "matplotlib", "ptflops", "seaborn", "tensorboard", "tensorboardX", "thop", "torchinfo"),
    *("torchstat", "torchsummary", "tqdm", "visualizer", "wandb"),
)
_MACHINERY = re.compile(r"<frozen importlib\._bootstrap|importlib/__init__\.py$")
VERSION = "1.0.0"  # of every stand-in, for code that asks


class StandIn(ModuleType):
    """A module that stands in for one that is not installed."""

    _names: Mapping[str, object]
    starred: ClassVar[list[str]] = []  # packages of which a file imports *, so that their names are not known

    def __call__(self, *args: object, **kwargs: object) -> object:
        return Absent(self.__name__, self._names)(*args, **kwargs)

    def __mro_entries__(self, bases: tuple) -> tuple[type, ...]:
        return Absent(self.__name__, self._names).__mro_entries__(bases)

    def __getattr__(self, name: str) -> object:
        if name == "__version__":
            return VERSION
        if name == "__all__":
            self.starred.append(self.__name__)
        if name.startswith("__"):
            raise AttributeError(name)
        if not self.__name__.startswith(CLOCK_DRIVEN):
            return replacement(f"{self.__name__}.{name}", self._names)
        part = self.__name__[len(CLOCK_DRIVEN) + 1 :]
        if not part:  # a submodule, which the import system finds by itself
            raise AttributeError(name)
        module = importlib.import_module(f"{ACTIVATION_BASED}.{part}")
        return getattr(module, name) if hasattr(module, name) else clock_driven(part, name)


@cache
def optional_lines(file: str) -> list[range]:
    """Return the lines of a Python file whose imports may fail: in the body of ``try`` with ``except ImportError``."""
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    return [
        range(node.body[0].lineno, (node.body[-1].end_lineno or node.body[-1].lineno) + 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) and any(_catches_imports(handler) for handler in node.handlers)
    ]


def _catches_imports(handler: ast.ExceptHandler) -> bool:
    names = (
        [node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)] if handler.type else ["Exception"]
    )
    return any(name in ("ImportError", "ModuleNotFoundError", "Exception", "BaseException") for name in names)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """The finder and loader of stand-ins, for ``sys.meta_path``.

    Args:
        registry: registry of the model file's factories.
        folders: the user's folders; a package that lies in them is not replaced.
        first: this finder comes before those of installed packages, and only replaces packages of ``ALWAYS``.
    """

    def __init__(self, registry: Registry, folders: Sequence[str], first: bool) -> None:
        self.folders, self.first = list(folders), first
        self.names: dict[str, Mapping[str, object]] = {
            "timm": {**LAYERS, **registry.timm()},
            "torchvision": TORCHVISION,
            "torch": TORCH_SIX,
            "tqdm": TQDM,
        }

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
            replaced = fullname in (CLOCK_DRIVEN, "torch._six") or root in ANYWHERE or self.is_needed()
        return ModuleSpec(fullname, self, is_package=True) if replaced else None

    def is_needed(self) -> bool:
        """Tell whether the import that is under way is in the user's code, and no ``except ImportError`` handles it."""
        frame = sys._getframe(2)
        while frame is not None and (_MACHINERY.search(frame.f_code.co_filename) or frame.f_globals is globals()):
            frame = frame.f_back  # type: ignore[assignment]
        if frame is None:
            return False
        file = frame.f_code.co_filename
        is_users = file.startswith(tuple(folder + os.sep for folder in self.folders)) and not file.startswith(INSTALLED)
        return is_users and not any(frame.f_lineno in lines for lines in optional_lines(file))

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Create the stand-in with the replacements for its package."""
        module = StandIn(spec.name)
        root = spec.name.partition(".")[0]
        module._names = {**self.names.get(root, {}), **(OF_BLOCKS if "efficientnet_blocks" in spec.name else {})}
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: a stand-in has no code."""
