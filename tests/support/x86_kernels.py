"""ONNX Runtime's kernels for older x86 processors, at full speed on a newer one.

ONNX Runtime chooses its kernels by the features that the instruction ``cpuid`` reports. ``build`` copies the installed
package with every ``cpuid`` replaced by an illegal instruction; a preloaded library (cpuid_mask.c) answers in its
place, with features taken away. Nothing but that answer is emulated.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

MASKS = ("avx2", "avx512")  # AVX2; AVX-512 without VNNI
CPUID, UD2 = b"\x0f\xa2", b"\x0f\x0b"
BEFORE, BEHIND = 256, 18  # bytes to disassemble around a candidate; an instruction has at most 15
TOOLS = ("cc", "objdump", "readelf")
RUN = """
import sys
import numpy, onnxruntime
for path in sys.argv[1:]:
    session = onnxruntime.InferenceSession(path + ".onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: numpy.load(path + ".npy")})
    numpy.savez(path + ".npz", **{o.name: v for o, v in zip(session.get_outputs(), found)})
"""


def unavailable() -> str | None:
    """Why this machine cannot run other processors' kernels, or None."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return "masking processor features works on x86-64 Linux alone"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"masking processor features takes {', '.join(missing)}"
    flags = Path("/proc/cpuinfo").read_text()
    return None if "avx512bw" in flags else "this processor has no AVX-512, whose kernels are to run"


def build(folder: Path) -> Path:
    """Write the masked copy of ONNX Runtime and the library that answers for the processor."""
    spec = find_spec("onnxruntime")
    assert spec is not None and spec.origin is not None
    copy = folder / "onnxruntime"
    shutil.copytree(Path(spec.origin).parent, copy, copy_function=os.symlink, ignore=shutil.ignore_patterns("*.pyc"))
    binary = next(copy.rglob("onnxruntime_pybind11_state*.so"))
    content = bytearray(binary.read_bytes())
    places = cpuids(binary, bytes(content))
    assert places, "no cpuid instruction was found"
    for place in places:
        content[place : place + 2] = UD2
    binary.unlink()
    binary.write_bytes(content)
    source = Path(__file__).with_name("cpuid_mask.c")
    subprocess.run(["cc", "-O2", "-fPIC", "-shared", "-o", folder / "cpuid_mask.so", source], check=True)
    return folder


def cpuids(binary: Path, content: bytes) -> list[int]:
    """Offsets of the instructions ``cpuid``: the same two bytes also occur within longer instructions."""
    heads = subprocess.run(["readelf", "-lW", binary], check=True, capture_output=True, text=True).stdout
    code = re.findall(r"LOAD\s+(0x\w+)\s+(0x\w+)\s+0x\w+\s+(0x\w+)\s+0x\w+\s+R.E", heads)
    places = []
    for start, address, size in ([int(number, 16) for number in segment] for segment in code):
        for match in re.finditer(re.escape(CPUID), content[start : start + size]):
            at = address + match.start()
            span = [f"--start-address={max(address, at - BEFORE)}", f"--stop-address={at + BEHIND}"]
            command = ["objdump", "-d", "--no-show-raw-insn", *span, binary]
            lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            if re.search(rf"^\s*{at:x}:\s+cpuid", lines, re.MULTILINE):
                places.append(start + match.start())
    return places


def run(folder: Path, mask: str, *models: Path) -> None:
    """Run ``<model>.onnx`` on ``<model>.npy`` with a processor's kernels, and write all outputs to ``<model>.npz``."""
    preload = {"LD_PRELOAD": str(folder / "cpuid_mask.so"), "CPUMASK": mask, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-c", RUN, *map(str, models)]
    done = subprocess.run(command, env={**os.environ, **preload}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
