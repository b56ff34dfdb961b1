"""What this machine's processor can do."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

# x86: AVX-512 VNNI, AVX-VNNI, AMX; Arm: dot product, int8 matrix product
DOT_PRODUCTS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}
DISTURBED_PROCESSORS = 0.1  # fewer that others keep busy do not change a measurement


def integer_dot_products(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether it multiplies and adds bytes in one instruction; None where that cannot be told."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return None
    lines = [line.partition(":")[2] for line in text.splitlines() if line.lower().startswith(("flags", "features"))]
    return bool(DOT_PRODUCTS & set(lines[0].split())) if lines else None


def processors() -> int:
    """How many processors this process may use."""
    known: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(known(0)) if known is not None else os.cpu_count() or 1


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return _status("VmRSS") or peak()


def peak() -> int:
    """Most resident bytes of this process, since ``forget_peak`` where the system has that."""
    known = _status("VmHWM")  # not ru_maxrss: it begins with the parent's
    if known:
        return known
    import resource  # noqa: PLC0415  (a module of Unix only)

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _status(key: str) -> int:
    """A line of Linux's status of this process in bytes, 0 where there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return 0


def busy_seconds() -> float | None:
    """Processor seconds that all processes together have used, summed over processors; None where nobody says."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _, _, irq, softirq = (int(field) for field in fields[:7])
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None


def disturbed(report: Mapping[str, Any]) -> bool:
    """Return whether other processes took processors that the threads of a measurement needed.

    Args:
        report: with ``other_processes``, how many they kept busy on average, and ``threads``.
    """
    others = report.get("other_processes") or 0.0
    return others > DISTURBED_PROCESSORS and others + report["threads"] > (os.cpu_count() or 1)


def processor() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()
