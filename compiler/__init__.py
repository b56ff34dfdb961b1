"""svitc: a compiler for spiking vision transformers.

    program = svitc.load("model.pt")              # or svitc.capture(model, example_input)
    print(program)                                # the typed graph
    for group in program.groups: ...              # what is coupled, what is prunable and why not
    done = svitc.compile(program, budget=0.78)
    done.write(Path("out"))

Names are imported on first use, so that ``svitc --help`` does not wait for PyTorch. ``__version__`` is the version in
setup.cfg, as the installed package states it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; at run time __getattr__ imports the same names from _HOME
    from svitc.driver.artifacts import Compiled
    from svitc.driver.compile import compile
    from svitc.driver.compiler import Compiler
    from svitc.driver.front import Front, front
    from svitc.driver.given import open_data
    from svitc.driver.load import capture, load
    from svitc.driver.options import CompileOptions
    from svitc.driver.sensitivity import Sensitivity, sensitivity
    from svitc.driver.stream import Stream
    from svitc.driver.verify_file import verify
    from svitc.errors import SvitcError
    from svitc.frontends import save
    from svitc.ir.graph import InputSpec
    from svitc.ir.pass_manager import Pass, PassResult, Pipeline
    from svitc.ir.program import Program, Stage
    from svitc.onnx.export import export
    from svitc.passes.policies.policy import Policy
    from svitc.passes.policies.uniform import Uniform
    from svitc.planning.plan import Plan
    from svitc.support.reporter import Reporter

    __version__: str
    Options = CompileOptions  # the name before 0.2

_HOME = {
    "load": "driver.load",
    "open_data": "driver.given",
    "front": "driver.front",
    "Front": "driver.front",
    "sensitivity": "driver.sensitivity",
    "Sensitivity": "driver.sensitivity",
    "compile": "driver.compile",
    "Compiled": "driver.artifacts",
    "Compiler": "driver.compiler",
    "CompileOptions": "driver.options",
    "export": "onnx.export",
    "save": "frontends",
    "capture": "driver.load",
    "Program": "ir.program",
    "InputSpec": "ir.graph",
    "Stage": "ir.program",
    "Stream": "driver.stream",
    "Pass": "ir.pass_manager",
    "PassResult": "ir.pass_manager",
    "Pipeline": "ir.pass_manager",
    "Plan": "planning.plan",
    "Policy": "passes.policies.policy",
    "Reporter": "support.reporter",
    "Uniform": "passes.policies.uniform",
    "verify": "driver.verify_file",
    "SvitcError": "errors",
}
_OLD_NAMES = {"Options": "CompileOptions"}  # still importable
_OLD_MODULES = {"ops": "ir.ops"}  # documented before 0.2, reached as attributes
__all__ = [
    "CompileOptions",
    "Compiled",
    "Compiler",
    "Front",
    "InputSpec",
    "Pass",
    "PassResult",
    "Pipeline",
    "Plan",
    "Policy",
    "Program",
    "Reporter",
    "Sensitivity",
    "Stage",
    "Stream",
    "SvitcError",
    "Uniform",
    "capture",
    "compile",
    "export",
    "front",
    "load",
    "open_data",
    "save",
    "sensitivity",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use.

    Raises:
        AttributeError: there is no such name.
    """
    if name == "__version__":
        from importlib.metadata import version

        return version("svitc")
    name = _OLD_NAMES.get(name, name)
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _OLD_MODULES:
        return importlib.import_module(f"{__name__}.{_OLD_MODULES[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
