"""Names of packages that are not installed: they do nothing while a model is built, and cannot compute.

A model file imports much that its network does not need: plotting, logging, data sets, kernels for GPUs. Such names can
be imported, passed on, subclassed, used as decorators and called where nothing depends on the result. They are refused,
with the line in the user's code, where they would build a layer or compute with tensors.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from typing import ClassVar, NoReturn

import torch
from torch import fx, nn

from svitc.errors import UnsupportedError
from svitc.frontends.capture.user_line import user_line
from svitc.support.user_code import INSTALLED

# packages that measure, plot, log and configure; no model computes with what they return
TOOLS = (
    *("fvcore", "matplotlib", "ptflops", "seaborn", "tensorboard", "tensorboardX", "thop", "torchinfo"),
    *(
        "torchstat",
        "torchsummary",
        "tqdm",
        "visualizer",
        "wandb",
        "loguru",
        "rich",
        "termcolor",
        "colorama",
        "tabulate",
    ),
    *("colorama", "prettytable", "cv2", "pandas", "mlflow", "neptune", "comet_ml", "swanlab", "hydra", "yacs"),
    *(
        "omegaconf",
        "absl",
        "fire",
        "line_profiler",
        "memory_profiler",
        "icecream",
        "ipdb",
        "IPython",
        "pynvml",
        "plotly",
    ),
)
LAYER_PACKAGES = ("timm",)  # a class of these builds a layer wherever it is called
_OPERATORS = (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "matmul", "rmatmul", "truediv", "rtruediv", "floordiv", "rfloordiv"),
    *(
        "mod",
        "rmod",
        "pow",
        "rpow",
        "neg",
        "pos",
        "abs",
        "and",
        "rand",
        "xor",
        "rxor",
        "invert",
        "lt",
        "le",
        "gt",
        "ge",
    ),
    *("bool", "int", "float", "index", "len", "iter", "contains"),
)


class Absent:
    """A name of a missing package, or what a call of one returned.

    Args:
        path: the dotted name.
        names: replacements for names of the package.
        where: ``file.py:line`` of the call that returned this, or None.
    """

    latest: ClassVar[Absent | None] = None  # the last that a call returned

    def __init__(self, path: str, names: Mapping[str, object], where: str | None = None) -> None:
        self._path, self._names, self._where = path, names, where

    def error(self) -> UnsupportedError:
        """Return the error that the name is needed, here or where it was called."""
        package = self._path.partition(".")[0]
        text = f"{self._path} is used, and {package} is not here: svitc stands in for its names, not for what it does"
        if hasattr(sys.modules.get(package), "__file__"):
            text = f"{self._path} is used, which the installed {package} does not have"
        hint = "Define what the model needs of it in the model's own file."
        return UnsupportedError(text, where=self._where or user_line(), hint=hint)

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return replacement(f"{self._path}.{name}", self._names)

    def __call__(self, *args: object, **kwargs: object) -> object:
        root, _, name = self._path.rpartition(".")
        only = args[0] if len(args) == 1 and not kwargs else None
        if isinstance(only, type):  # a decorator, which registers a class or marks it
            return only
        is_tool = self._path.partition(".")[0] in TOOLS
        if isinstance(only, types.FunctionType) and (is_tool or "regist" in self._path.lower()):
            return only
        builds = _in_constructor_of_a_layer() or (name[:1].isupper() and (_building() or _is_of_layers(root)))
        if not is_tool and (builds or any(map(_is_tensor, [*args, *kwargs.values()]))):
            raise self.error()
        Absent.latest = Absent(f"{self._path.removesuffix('()')}()", {}, user_line())
        return Absent.latest

    def __mro_entries__(self, bases: tuple) -> tuple[type, ...]:
        """Return a base class for a class that derives from this name; only creating an instance is an error."""
        error = self.error

        def init(_: object, *args: object, **kwargs: object) -> None:
            raise error()

        return (type(self._path.rpartition(".")[2], (nn.Module,), {"__init__": init}),)

    def __instancecheck__(self, instance: object) -> bool:
        return False

    def __subclasscheck__(self, subclass: type) -> bool:
        return False

    def __getitem__(self, key: object) -> object:
        return self

    def __setitem__(self, key: object, value: object) -> None: ...

    def __or__(self, other: object) -> object:  # in annotations
        return self

    __ror__ = __or__

    def __fx_create_arg__(self, tracer: object) -> NoReturn:
        """Refuse to be an argument of an operation on traced values."""
        _refusing(self)

    def __enter__(self) -> object:
        return self

    def __exit__(self, *_: object) -> None: ...


def _refusing(self: Absent, *_: object) -> NoReturn:
    self._where = None  # the line that computes with it says more than the one that made it
    raise self.error()


for _name in _OPERATORS:
    setattr(Absent, f"__{_name}__", _refusing)


def replacement(path: str, names: Mapping[str, object]) -> object:
    """Return what replaces a dotted name, looked up by its last part; an ``Absent`` where nothing does."""
    name = path.rpartition(".")[2]
    if name in names:
        return names[name]
    if name.startswith("register_"):  # decorators that only add a function to a registry
        return _register
    return Absent(path, names)


def _register(function: object = None, *_: object, **__: object) -> object:
    """Return what is registered, for a decorator with or without arguments."""
    return function if isinstance(function, type | types.FunctionType) else lambda registered: registered


def _is_tensor(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_tensor, value))
    return isinstance(value, torch.Tensor | fx.Proxy)


def _is_of_layers(path: str) -> bool:
    return path.partition(".")[0] in LAYER_PACKAGES


def _in_constructor_of_a_layer() -> bool:
    """Tell whether an ``nn.Module`` is being initialized."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name == "__init__" and isinstance(frame.f_locals.get("self"), nn.Module):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def _building() -> bool:
    """Tell whether no module of the user is being imported: then a factory or a model is being called."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name == "<module>" and not frame.f_code.co_filename.startswith(INSTALLED):
            return frame.f_globals.get("__name__") == "__main__"
        frame = frame.f_back  # type: ignore[assignment]
    return True
