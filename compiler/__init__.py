"""svitc: a compiler for spiking vision transformers.

    program = svitc.load("model.pt")
    print(program)                                # the typed graph
    for group in program.groups: ...              # what is coupled, what is prunable and why not
    done = svitc.compile(program, budget=0.78)
    done.write(Path("out"))

Names are imported on first use, so that ``svitc --help`` does not wait for PyTorch.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "load": "driver.load",
    "compile": "driver.compiler",
    "Compiled": "driver.artifacts",
    "Compiler": "driver.compiler",
    "CompileOptions": "driver.options",
    "export": "onnx.export",
    "save": "frontends",
    "capture": "frontends.capture.capture",
    "Program": "ir.program",
    "InputSpec": "ir.graph",
    "Stage": "ir.program",
    "Pass": "ir.pass_manager",
    "PassResult": "ir.pass_manager",
    "Pipeline": "ir.pass_manager",
    "Plan": "planning.plan",
    "Policy": "passes.policies.policy",
    "Reporter": "support.reporter",
    "Uniform": "passes.policies.uniform",
    "verify": "verification.float_check",
    "SvitcError": "errors",
}
_OLD_NAMES = {"Options": "CompileOptions"}  # still importable
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    name = _OLD_NAMES.get(name, name)
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
