"""Facts about this machine and this process: processors, memory and processor time."""

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
    """Tell whether the processor multiplies and adds bytes in one instruction, which makes int8 matmuls fast.

    Args:
        cpuinfo: the file in which Linux describes the processor.

    Returns:
        None where there is no such file, or none that lists features.
    """
    try:
        text = cpuinfo.read_text()
    except OSError:
        return None
    lines = [line.partition(":")[2] for line in text.splitlines() if line.lower().startswith(("flags", "features"))]
    return bool(DOT_PRODUCTS & set(lines[0].split())) if lines else None


def processors() -> int:
    """Return the number of processors that this process may use."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    return _status("VmRSS") or peak()


def peak(child: int | None = None) -> int:
    """Return the largest resident memory of this process, or of one that it started, so far, in bytes.

    On Linux it counts from the last ``forget_peak``; elsewhere that of another process is not known, and 0.
    """
    high_water = _status("VmHWM", child)  # not ru_maxrss, which starts at the memory of the parent process
    if high_water or child is not None:
        return high_water
    import resource  # noqa: PLC0415  (a module of Unix only)

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Let ``peak`` count from now on; no effect outside Linux."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def seconds_of(process: int) -> float:
    """Return the processor time of another process so far, in seconds; 0 outside Linux."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()  # the name may hold spaces
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _status(key: str, process: int | None = None) -> int:
    """Return an entry of ``/proc/self/status``, or of another process's, in bytes, or 0 where it does not exist."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process or 'self'}/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024
    return 0


def busy_seconds() -> float | None:
    """Return the processor time that all processes have used since the machine started.

    Returns:
        Seconds, summed over processors; None outside Linux.
    """
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
    """Return the name of the processor's model, or its architecture where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()
