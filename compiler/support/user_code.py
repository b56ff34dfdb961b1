"""Importing Python files of the user: where they find their imports, and where in them an error was raised."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
OURS = (str(Path(__file__).parents[1]), "<frozen")  # svitc's own code, and that of Python without a file


def search_path(file: Path) -> list[str]:
    """Return the folders from which a model file imports: its folder, the parent, and the root of its package."""
    parents = file.absolute().parents
    folders = [parents[0], *parents[1:2], parents[min(_package_depth(file), len(parents) - 1)]]
    return [str(folder) for folder in dict.fromkeys(folders)]


def _package_depth(file: Path) -> int:
    """Count the packages around a file, judging by its relative imports; 0 for a file that has none."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return 0  # the import that follows reports what is wrong
    depth = max((node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), default=0)
    parents = file.absolute().parents
    while 0 < depth < len(parents) - 1 and (parents[depth] / "__init__.py").is_file():
        depth += 1
    return depth


def import_file(file: Path) -> ModuleType:
    """Import a Python file as a module, by its package's name where it has relative imports.

    The folders of ``search_path`` must be on ``sys.path``. Errors of the file's own code are passed on as they are.
    """
    depth = _package_depth(file)
    if depth:
        packages = [parent.name for parent in file.absolute().parents[:depth]]
        return importlib.import_module(".".join([*reversed(packages), file.stem]))
    name = f"{file.stem}_{hashlib.sha256(str(file.absolute()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file.absolute())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module there
    spec.loader.exec_module(module)
    return module


def raised_at(error: BaseException, file: Path | None) -> str | None:
    """Return ``file:line`` of the innermost frame of the user's code, or None if there is none.

    Args:
        error: what was raised.
        file: the user's file, whose folders are searched; None for all code but svitc's and installed packages.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    folders = ("",) if file is None else tuple(search_path(file))
    others = INSTALLED if file is not None else (*INSTALLED, *OURS)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(folders)]
    frames = [f for f in frames if not f.filename.startswith(others) and f.filename != __file__]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Put ``folder`` first on ``sys.path`` for the body of a ``with`` statement."""
    entry = os.fspath(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # the imported code may have changed the path itself
            sys.path.remove(entry)
