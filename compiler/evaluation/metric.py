"""Metrics of the user's own: what the outputs of a network are worth, where they are not class scores."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svitc.errors import InputError, UsageError
from svitc.ir.outputs import restored
from svitc.ir.program import Program
from svitc.support.user_code import import_file, importable

Metric = Callable[[Any, Any], Any]
HINT = "It takes what the model returns for a batch and the targets, and returns a number or one for each image."


def load_metric(name: str) -> Metric:
    """Return the function that ``--metric module:function``, or ``path/to/file.py:function``, names; runs its code.

    Raises:
        UsageError: the name has another form, or there is no such function.
        InputError: the module cannot be imported.
    """
    module_name, _, function_name = name.rpartition(":")
    if not module_name or not function_name:
        raise UsageError(f"--metric {name!r} does not name a function", hint="Write it as module:function.")
    path = Path(module_name)
    is_file = module_name.endswith(".py")
    if is_file and not path.is_file():
        raise UsageError(f"--metric {name}: there is no file {module_name}")
    try:
        with importable(path.absolute().parent if is_file else Path.cwd()):
            module = import_file(path) if is_file else importlib.import_module(module_name)
    except Exception as error:  # the user's code
        raise InputError(f"--metric {name}: {module_name} cannot be imported: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UsageError(f"--metric {name}: {module_name} has no function {function_name}")
    return function


class BatchMetric:
    """A metric of outputs as arrays, in the order of a program's outputs.

    Args:
        metric: the user's function.
        program: a network with the outputs that it takes.
    """

    def __init__(self, metric: Metric, program: Program) -> None:
        self.metric, self.info = metric, program.info
        self.name = getattr(metric, "__name__", type(metric).__name__)

    def __call__(self, outputs: Sequence[np.ndarray], targets: Any) -> float:
        """Return the metric of one batch, the mean where the function gives one number for each image.

        Args:
            outputs: in the order of the program's outputs.
            targets: passed on.

        Raises:
            InputError: the function fails, or does not return finite numbers.
        """
        try:
            with torch.inference_mode():
                value = self.metric(self.tensors(outputs), targets)
            number = float(torch.as_tensor(value, dtype=torch.float64).mean())
        except Exception as error:  # the user's code
            raise InputError(f"the metric {self.name} fails: {type(error).__name__}: {error}", hint=HINT) from error
        if not math.isfinite(number):
            raise InputError(f"the metric {self.name} returns {number}, which is not a finite number", hint=HINT)
        return number

    def tensors(self, outputs: Sequence[np.ndarray]) -> Any:
        """Return outputs as the model returns them."""
        values = tuple(torch.from_numpy(np.ascontiguousarray(output)) for output in outputs)
        return restored(self.info, values if len(values) > 1 else values[0])
