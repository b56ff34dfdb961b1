"""What a file is made for: the same network, in operators and types that one of ONNX Runtime's providers has.

Every file runs everywhere and gives the same spikes; a target decides what is fast there, and whether all of it runs
on the device (docs/targets.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from svitc.errors import UsageError


@dataclass(frozen=True)
class Target:
    """How a file is written for one execution provider.

    Attributes:
        name: as ``--target`` takes it.
        opset: version of the default operators. A provider matches a kernel that was registered without a last version
            only with the very version of the operator that it was written for, so newer is not better.
        spike: type of stored spikes, which integer products read.
        most: the largest number of that type; what can exceed it is stored and multiplied as floats.
        hides_scales: whether the scales of integer layers are written behind a DequantizeLinear (stepped.py).
        pads_spikes: whether Pad takes ``spike``.
    """

    name: str
    opset: int
    spike: ir.DataType
    most: int
    hides_scales: bool
    pads_spikes: bool


CPU = Target("cpu", 21, ir.DataType.UINT8, 255, hides_scales=True, pads_spikes=True)
# Kernels of the CUDA provider: MatMulInteger is int8 x int8 alone, DequantizeLinear takes neither uint16 nor int32,
# Pad no integers; and Pad's is that of opset 18, which a later opset's Pad does not match.
CUDA = Target("cuda", 18, ir.DataType.INT8, 127, hides_scales=False, pads_spikes=False)
TARGETS = {each.name: each for each in (CPU, CUDA)}


def target_of(name: str) -> Target:
    """The target of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in TARGETS:
        raise UsageError(f"target {name!r} is not known", hint=f"Targets are {', '.join(TARGETS)}.")
    return TARGETS[name]
