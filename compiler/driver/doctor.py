"""What is installed here, and which of svitc's files will be fast on this machine."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import onnxruntime

from svitc.runtimes.registry import RUNTIMES
from svitc.support.environment import environment, installed
from svitc.support.hardware import DOT_PRODUCTS, integer_dot_products, processors
from svitc.support.types import JsonDict

# package -> what works without it, and how to install it
OPTIONAL = {
    "faery": ("recordings of event cameras (AEDAT4, .dat, .raw) cannot be read", "pip install 'svitc[events]'"),
    "onnxscript": ("svitc bench cannot time torch.onnx.export", "pip install onnxscript"),
}


def doctor() -> JsonDict:
    """Return what a bug report should say, and what this machine is good for.

    Returns:
        ``environment`` (processor, cores, versions); ``system``; ``usable_cores``; ``integer_dot_products``, None
        where the system does not tell; ``runtimes``, each with ``version`` or why it is ``missing`` and how to
        ``install`` it; ``providers`` of ONNX Runtime; ``optional`` packages likewise; and ``files``, for each form of
        file whether it is ``fast`` here, and why.
    """
    dots = integer_dot_products()
    return {
        "environment": environment(),
        "system": platform.platform(),
        "usable_cores": processors(),
        "integer_dot_products": dots,
        "runtimes": [_runtime(name) for name in RUNTIMES],
        "providers": onnxruntime.get_available_providers(),
        "optional": [
            {"name": name, "version": installed(name), "missing": without, "install": install}
            for name, (without, install) in OPTIONAL.items()
        ],
        "files": _files(dots, onnxruntime.get_available_providers()),
    }


def _runtime(name: str) -> JsonDict:
    runtime = RUNTIMES[name]
    absent = runtime.missing()
    if absent is not None:
        return {"name": name, "title": runtime.title, "version": None, "missing": absent[0], "install": absent[1]}
    return {"name": name, "title": runtime.title, "version": runtime.version(), "missing": None, "install": None}


def _files(dots: bool | None, providers: Sequence[str]) -> list[JsonDict]:
    """Return a row for each form of file: its options, whether it is fast here (None: not known), and why."""
    instructions = ", ".join(sorted(DOT_PRODUCTS))
    why = {
        True: "this processor multiplies and adds bytes in one instruction",
        False: f"this processor has none of {instructions}; the spikes are the same, the gain is smaller",
        None: f"this system does not tell whether the processor has one of {instructions}",
    }[dots]
    absent = RUNTIMES["openvino"].missing()
    cuda = "CUDAExecutionProvider" in providers
    return [
        {"options": "--weights int8", "fast": dots, "why": why},
        {"options": "--weights int16", "fast": dots, "why": "half as fast as int8, with the accuracy of fp32"},
        {
            "options": "--weights int4, int2 or ternary",
            "fast": dots,
            "why": "as int8: they are widened when the file is loaded",
        },
        {"options": "--weights fp32", "fast": False, "why": "about as fast as a plain export"},
        {
            "options": "--target openvino",
            "fast": dots if absent is None else None,
            "why": why if absent is None else f"OpenVINO cannot be used here: {absent[0]}",
        },
        {
            "options": "--target cuda",
            "fast": None,
            "why": "ONNX Runtime has its CUDA provider; svitc has not been measured there"
            if cuda
            else "this ONNX Runtime has no CUDA provider",
        },
    ]


__all__ = ["doctor"]
