"""What this machine's processor can do."""

from __future__ import annotations

from pathlib import Path

# x86: AVX-512 VNNI, AVX-VNNI, AMX; Arm: dot product, int8 matrix product
DOT_PRODUCTS = {"avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"}


def integer_dot_products(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether it multiplies and adds bytes in one instruction; None where that cannot be told."""
    try:
        text = cpuinfo.read_text()
    except OSError:
        return None
    lines = [line.partition(":")[2] for line in text.splitlines() if line.lower().startswith(("flags", "features"))]
    return bool(DOT_PRODUCTS & set(lines[0].split())) if lines else None
