"""What a file is written for: operators and types that one of ONNX Runtime's providers has kernels for.

Every file runs on every provider and gives the same spikes. The target decides where it is fast, and whether all of it
runs on the device (docs/targets.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx_ir as ir

from svitc.errors import UsageError


@dataclass(frozen=True)
class Target:
    """How a file is written for one execution provider.

    Attributes:
        name: value of ``--target``.
        opset: version of the default-domain operators, the lowest that has them all; files with weights of fewer than
            8 bits need a later one (``WEIGHT_OPSETS``). A newer version is not better: fewer runtimes read it, and a
            kernel that a provider registered without a last version is used only for the exact version of the operator
            that it was written for.
        spike: element type of stored spikes, which integer matrix products read.
        spike_max: largest number of that type; counts that can exceed it are stored and multiplied as floats.
        narrowest: smallest number of bits in which a file may store a weight.
        hides_scales: whether integer layers' scales are kept from constant folding, so that ONNX Runtime fuses them
            into the product (``UnrolledBuilder.scaled``).
        pads_spikes: whether Pad accepts the type ``spike``.
        adds_spikes: whether Add and Mul accept the type ``spike``.
        keeps_functions: whether a neuron is one node, which calls a model-local function. Many runtimes read none.
    """

    name: str
    opset: int
    spike: ir.DataType
    spike_max: int
    narrowest: int
    hides_scales: bool
    pads_spikes: bool
    adds_spikes: bool
    keeps_functions: bool = False


WEIGHT_OPSETS = {4: 21, 2: 25}  # the first opsets with weights of these numbers of bits
# the first version of ONNX Runtime that runs files with weights of this number of bits; each was tested
SINCE = {2: "1.24", 4: "1.23", 8: "1.21"}
FLOATS_SINCE = "1.18"  # the same for files with fp32 weights only
CPU = Target("cpu", 18, ir.DataType.UINT8, 255, narrowest=2, hides_scales=True, pads_spikes=True, adds_spikes=True)
# The CUDA provider has MatMulInteger for int8 x int8 only and no Pad, Add or Mul for 8-bit integers. Its Pad is
# registered for opset 18 and does not match the Pad of a later opset.
CUDA = Target("cuda", 18, ir.DataType.INT8, 127, narrowest=8, hides_scales=False, pads_spikes=False, adds_spikes=False)
TARGETS = {target.name: target for target in (CPU, CUDA)}


def target_of(name: str, narrowest: int | None = None, functions: bool = False) -> Target:
    """Return the target of this name.

    Args:
        name: ``cpu`` or ``cuda``.
        narrowest: store weights in at least this number of bits, for an ONNX Runtime that lacks the narrower types.
        functions: whether a neuron is one node, which calls a model-local function.

    Raises:
        UsageError: the target is unknown, or ONNX cannot store weights in that number of bits.
    """
    if name not in TARGETS:
        raise UsageError(f"target {name!r} is not known", hint=f"Targets are {', '.join(TARGETS)}.")
    target = replace(TARGETS[name], keeps_functions=functions)
    if narrowest is None:
        return target
    if narrowest not in SINCE:
        raise UsageError(
            f"ONNX has no weights of {narrowest} bits",
            hint="; ".join(f"{bits} bits: ONNX Runtime {since} or later" for bits, since in SINCE.items()) + ".",
        )
    return replace(target, narrowest=max(narrowest, target.narrowest))
