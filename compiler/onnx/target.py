"""What a file is made for: the same network, in operators and types that one of ONNX Runtime's providers has.

Every file runs everywhere and gives the same spikes; a target decides what is fast there, and whether all of it runs
on the device (docs/targets.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from svitc.errors import UsageError


@dataclass(frozen=True)
class Target:
    """How a file is written for one execution provider.

    Attributes:
        name: as ``--target`` takes it.
        opset: version of the default operators; files with weights of 2 bits have ``INT2_OPSET``. A provider matches a
            kernel that was registered without a last version only with the very version of the operator that it was
            written for, so newer is not better.
        spike: type of stored spikes, which integer products read.
        most: the largest number of that type; what can exceed it is stored and multiplied as floats.
        narrowest: the fewest bits that a file may store weights in.
        hides_scales: whether the scales of integer layers are kept from being folded (unrolled/builder.py).
        pads_spikes: whether Pad takes ``spike``.
        adds_spikes: whether Add and Mul do.
    """

    name: str
    opset: int
    spike: ir.DataType
    most: int
    narrowest: int
    hides_scales: bool
    pads_spikes: bool
    adds_spikes: bool


INT2_OPSET = 25
SINCE = {2: "1.24", 4: "1.23", 8: "1.21"}  # the first ONNX Runtime that runs files of so many bits; all were tried
FLOATS_SINCE = "1.18"  # that runs files of fp32 weights
CPU = Target("cpu", 21, ir.DataType.UINT8, 255, narrowest=2, hides_scales=True, pads_spikes=True, adds_spikes=True)
# Kernels of the CUDA provider: MatMulInteger is int8 x int8 alone, Pad, Add and Mul take no bytes; and Pad's is that of
# opset 18, which a later opset's Pad does not match.
CUDA = Target("cuda", 18, ir.DataType.INT8, 127, narrowest=8, hides_scales=False, pads_spikes=False, adds_spikes=False)
TARGETS = {each.name: each for each in (CPU, CUDA)}


def target_of(name: str, narrowest: int | None = None) -> Target:
    """The target of this name.

    Args:
        narrowest: store weights in no fewer bits, for an ONNX Runtime that lacks the type.

    Raises:
        UsageError: there is no such target, or no such type.
    """
    if name not in TARGETS:
        raise UsageError(f"target {name!r} is not known", hint=f"Targets are {', '.join(TARGETS)}.")
    found = TARGETS[name]
    if narrowest is None:
        return found
    if narrowest not in SINCE:
        raise UsageError(
            f"ONNX has no weights of {narrowest} bits",
            hint="; ".join(f"{bits} bits: ONNX Runtime {since} or later" for bits, since in SINCE.items()) + ".",
        )
    return replace(found, narrowest=max(narrowest, found.narrowest))
