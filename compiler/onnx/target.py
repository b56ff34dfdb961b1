"""What a file is written for: the operators and types that a runtime has kernels for, and how it keeps spikes exact.

Wherever a file loads, its spikes are to be the same; docs/runtimes.md says where that was tried. The target decides
where it is fast, and whether all of it runs on the device (docs/targets.md). Each target is one table here; the
lowerings read it, and a file is held against it when it is written (declared.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

import onnx_ir as ir

from svitc.errors import UsageError
from svitc.support.names import known

Types = frozenset[ir.DataType]
_FLOAT, _BOOL, _INT64, _INT32 = (getattr(ir.DataType, name) for name in ("FLOAT", "BOOL", "INT64", "INT32"))
_UINT8, _INT8 = ir.DataType.UINT8, ir.DataType.INT8
FLOATS = 0  # the key of files without quantized weights in ``Target.since``


class Form(Enum):
    """How quantized programs are lowered.

    Attributes:
        INTEGER: integer matrix products of bytes, one value for each time step (``unrolled``).
        QDQ: float products behind QuantizeLinear and DequantizeLinear, with time in the batch (``qdq``).
    """

    INTEGER = "MatMulInteger"
    QDQ = "QuantizeLinear and DequantizeLinear"


@dataclass(frozen=True)
class Target:
    """How a file is written for one runtime.

    Attributes:
        name: value of ``--target``.
        runtime: the runtime, in words.
        opset: version of the default-domain operators, the lowest that has them all; files with weights of fewer than
            8 bits need a later one (``WEIGHT_OPSETS``). A newer version is not better: fewer runtimes read it, and a
            kernel that a provider registered without a last version is used only for the exact version of the operator
            that it was written for.
        form: how quantized programs are lowered.
        operators: operators that a file may hold.
        types: element types that a file's values may have.
        limits: operator -> the types that it accepts as its first input, where these are not all of ``types``.
            Operators whose inputs are all constants are computed at load and need no kernel.
        spike: element type of stored spikes, which integer matrix products read.
        spike_max: largest number of that type; counts that can exceed it are stored and multiplied as floats.
        narrowest: smallest number of bits in which a file may store a weight.
        since: number of bits of the weights, ``FLOATS`` for fp32 -> the first version of the runtime that runs such
            files; each was tested.
        exactness: why the runtime gives the spikes of the reference, bit for bit.
        settings: settings of the runtime that exactness depends on.
        hides_scales: whether integer layers' scales are kept from constant folding, so that ONNX Runtime fuses them
            into the product (``UnrolledBuilder.scaled``).
        keeps_functions: whether a neuron is one node, which calls a model-local function. Many runtimes read none.
    """

    name: str
    runtime: str
    opset: int
    form: Form
    operators: frozenset[str]
    types: Types
    spike: ir.DataType
    spike_max: int
    narrowest: int
    since: Mapping[int, str]
    exactness: str
    limits: Mapping[str, Types] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    hides_scales: bool = False
    keeps_functions: bool = False

    def accepts(self, operator: str, dtype: ir.DataType) -> bool:
        """Return whether an operator accepts an element type as its first input."""
        return operator in self.operators and dtype in self.limits.get(operator, self.types)

    @property
    def pads_spikes(self) -> bool:
        """Whether Pad accepts the type ``spike``."""
        return self.accepts("Pad", self.spike)

    @property
    def adds_spikes(self) -> bool:
        """Whether Add and Mul accept the type ``spike``."""
        return self.accepts("Add", self.spike) and self.accepts("Mul", self.spike)


WEIGHT_OPSETS = {4: 21, 2: 25}  # the first opsets with weights of these numbers of bits
# of float files: the forms of all operations in ir/ops.py and ir/operators/registry.py
_FLOAT_OPERATORS = """
    Abs Add And AveragePool BatchNormalization Cast Ceil Clip Col2Im Concat Conv ConvTranspose Cos CumSum Div Einsum Elu
    Erf Exp Expand Floor Gather GatherElements Gemm Greater GreaterOrEqual HardSigmoid HardSwish Identity
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max MaxPool Min Mul Neg Not Or PRelu Pad Pow
    Reciprocal ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Resize
    Round ScatterElements Shape Sigmoid Sign Sin Slice Softmax Softplus Split Sqrt Sub Sum Tanh ThresholdedRelu Tile
    TopK Transpose Where
"""
FLOAT_OPERATORS = frozenset(_FLOAT_OPERATORS.split())
_FLOAT_TYPES: Types = frozenset({_FLOAT, _BOOL, _INT64, _INT32})

CPU = Target(
    name="cpu",
    runtime="ONNX Runtime on the processor",
    opset=18,
    form=Form.INTEGER,
    operators=FLOAT_OPERATORS | {"DequantizeLinear", "MatMulInteger", "QuantizeLinear"},
    types=_FLOAT_TYPES | {_UINT8, _INT8},
    spike=_UINT8,
    spike_max=255,
    narrowest=2,
    since={FLOATS: "1.15", 8: "1.21", 4: "1.23", 2: "1.24"},
    exactness="integer products, and float operations on whole numbers below 2^24",
    hides_scales=True,
)
# The CUDA provider has MatMulInteger for int8 x int8 only and no Pad, Add or Mul for 8-bit integers. Its Pad is
# registered for opset 18 and does not match the Pad of a later opset.
CUDA = replace(
    CPU,
    name="cuda",
    runtime="ONNX Runtime's CUDA provider",
    types=_FLOAT_TYPES | {_INT8},
    limits={
        "Add": _FLOAT_TYPES,  # of its kernels for bytes, no release was tried
        "MatMulInteger": frozenset({_INT8}),
        "Pad": frozenset({_FLOAT, _BOOL}),
    },
    spike=_INT8,
    spike_max=127,
    narrowest=8,
    exactness="the same, with TF32 and other algorithms for convolutions switched off",
    settings={"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"},
    hides_scales=False,
)
# OpenVINO runs products of integers as floats, and those behind QuantizeLinear and DequantizeLinear as integers.
OPENVINO = replace(
    CPU,
    name="openvino",
    runtime="OpenVINO",
    opset=21,  # with 18, ONNX Runtime 1.21 makes QGemm nodes of products without zero points, and cannot run them
    form=Form.QDQ,
    operators=FLOAT_OPERATORS | {"DequantizeLinear", "QuantizeLinear"},
    narrowest=4,  # it does not read INT2
    since=dict.fromkeys((FLOATS, 8, 4), "2026.4"),
    exactness="whole numbers below 2^24 behind QuantizeLinear, whose sums are exact as integers and as floats; without "
    "ACCURACY, OpenVINO computes in bfloat16 where the processor has it, and quantizes activations",
    settings={"EXECUTION_MODE_HINT": "ACCURACY"},
    hides_scales=False,
)
WEB = replace(
    CPU,
    name="web",
    runtime="onnxruntime-web (WebAssembly)",
    since=dict.fromkeys((FLOATS, 8, 4, 2), "1.30"),
)
TARGETS = {target.name: target for target in (CPU, CUDA, OPENVINO, WEB)}
SINCE = {bits: CPU.since[bits] for bits in (2, 4, 8)}
FLOATS_SINCE = CPU.since[FLOATS]


def target_of(name: str, narrowest: int | None = None, functions: bool = False) -> Target:
    """Return the target of this name.

    Args:
        name: a key of ``TARGETS``.
        narrowest: store weights in at least this number of bits, for a runtime that lacks the narrower types.
        functions: whether a neuron is one node, which calls a model-local function.

    Raises:
        UsageError: the target is unknown, or ONNX cannot store weights in that number of bits.
    """
    if name not in TARGETS:
        raise UsageError(f"target {name!r} is not known", hint=known(name, TARGETS, "Targets are"))
    target = replace(TARGETS[name], keeps_functions=functions)
    if narrowest is None:
        return target
    if narrowest not in SINCE:
        raise UsageError(
            f"ONNX has no weights of {narrowest} bits",
            hint="; ".join(f"{bits} bits: ONNX Runtime {since} or later" for bits, since in SINCE.items()) + ".",
        )
    return replace(target, narrowest=max(narrowest, target.narrowest))
