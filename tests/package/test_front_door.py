"""The front door: names on first use, the same for editors; one version; old names that still work."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import svitc
from support.paths import DIGITS


def shown_to_editors() -> dict[str, str]:
    """The names in the TYPE_CHECKING block of the front door, and the module below svitc that each comes from."""
    tree = ast.parse(Path(str(svitc.__file__)).read_text())
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    imports = [n for n in block.body if isinstance(n, ast.ImportFrom)]
    return {alias.name: str(n.module).removeprefix("svitc.") for n in imports for alias in n.names}


def test_editors_see_what_is_imported_at_run_time():
    assert shown_to_editors() == svitc._HOME
    assert sorted(svitc.__all__) == sorted(svitc._HOME)


def test_the_package_is_what_is_installed():
    spec = importlib.util.find_spec("svitc")
    assert spec is not None and Path(str(spec.origin)).name == "__init__.py"
    assert {"load", "compile", "save", "Pass"} <= set(dir(svitc))


def test_it_gives_functions_and_classes_whatever_is_imported():
    import svitc.cli.main

    for name in svitc.__all__:
        assert callable(getattr(svitc, name)), name


def test_the_version_is_that_of_the_installed_package():
    assert svitc.__version__ == version("svitc")


@pytest.mark.parametrize(("old", "new"), [("Options", "CompileOptions")])
def test_old_names_still_work(old, new):
    assert getattr(svitc, old) is getattr(svitc, new)


def test_old_keywords_still_work():
    program = svitc.load(DIGITS, fix=True)
    done = svitc.compile(program, 0.9, clean="off", narrowest=8, images=1, no_data="uniform")
    assert done.report["policy"]["clean"] == "off" and done.verdict.passed


def test_documented_addresses_of_before_still_work():
    from svitc.energy import energy
    from svitc.frontends.official import Spikformer
    from svitc.ir import ops
    from svitc.passes.policies import Uniform

    assert svitc.ops is ops and svitc.Uniform is Uniform
    assert callable(energy) and callable(Spikformer)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        svitc.nothing  # noqa: B018


def test_it_opens_without_torch():
    code = "import sys, svitc, svitc.cli.main; svitc.__version__; print(sorted({'torch', 'onnx'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
