"""The machine, Python and the installed packages: what times depend on, and what a bug report should say."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from svitc.support.hardware import processor
from svitc.support.types import JsonDict

PACKAGES = ("svitc", "torch", "spikingjelly", "onnx", "onnxruntime", "onnxscript", "openvino", "numpy")


def installed(package: str) -> str | None:
    """Return the version of an installed package, without importing it; None if there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment() -> JsonDict:
    """Return the processor and the versions of Python and packages, which times depend on."""
    versions = {package: installed(package) for package in PACKAGES}
    return {
        "python": platform.python_version(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "versions": {package: number for package, number in versions.items() if number is not None},
    }


def one_line() -> str:
    """Return Python, packages and machine in one line, for bug reports; nothing heavy is imported."""
    found = environment()
    versions = {name: number for name, number in found["versions"].items() if name != "svitc"}
    packages = ", ".join(f"{name} {number}" for name, number in versions.items())
    return f"Python {found['python']}, {packages}; {found['processor']}, {os.cpu_count()} cores, {platform.system()}"


__all__ = ["PACKAGES", "environment", "installed", "one_line"]
