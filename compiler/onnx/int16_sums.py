"""Static check of a file's integer products: whether sums of two neighbouring products stay within int16.

Kernels for x86 processors without VNNI add these two in int16, which saturates (``quantization/pair_bound.py``). The
largest inputs are derived from the file itself (value_ranges.py), so any machine finds a file that is another network
on such a processor.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import torch

from svitc.onnx.value_ranges import Range, value_ranges
from svitc.quantization.pair_bound import INT16_MAX, largest_pair

PRODUCTS = ("MatMulInteger", "MatMul", "Conv", "ConvInteger")


def beyond_int16(exported: bytes) -> dict[str, str]:
    """Return the integer products of a file that could saturate, by node, each with the sum that it could reach.

    They are the products of uint8 inputs and int8 weights; kernels for other types of operands add in int32.
    ``MatMul`` and ``Conv`` count where both operands come from ``DequantizeLinear``, as runtimes fuse these.
    """
    model = ir.from_proto(onnx.load_from_string(exported))
    ranges = value_ranges(model)
    pairs: dict[ir.Value, float] = {}
    found = {}
    for node in model.graph:
        if node.op_type not in PRODUCTS or node.domain:
            continue
        x, weight = (value if "Integer" in node.op_type else _dequantized(value) for value in node.inputs[:2])
        if x is None or weight is None:
            continue
        inputs, numbers = ranges[x], ranges[weight]
        if inputs.dtype == ir.DataType.INT8 or numbers.dtype == ir.DataType.UINT8:
            continue
        if weight not in pairs:
            pairs[weight] = _largest_pair(weight, numbers, convolution="Conv" in node.op_type)
        total = inputs.high * pairs[weight]
        if total > INT16_MAX:
            found[str(node.name)] = f"{inputs.high:g} x {pairs[weight]:g} is {total:g}, beyond {INT16_MAX}"
    return found


def _dequantized(value: ir.Value | None) -> ir.Value | None:
    """Return the integers that an operand of a product stands for, or None where it is a real number."""
    producer = None if value is None else value.producer()
    while producer is not None and producer.op_type in ("Identity", "MaxPool", "Reshape", "Transpose"):
        producer = None if producer.inputs[0] is None else producer.inputs[0].producer()
    return producer.inputs[0] if producer is not None and producer.op_type == "DequantizeLinear" else None


def _largest_pair(weight: ir.Value, numbers: Range, convolution: bool) -> float:
    """Return the largest magnitude of a sum of two neighbouring weights of one sign."""
    if weight.const_value is None:  # computed: any two of them may be neighbours
        return 2 * max(abs(numbers.low), abs(numbers.high))
    values = torch.from_numpy(weight.const_value.numpy().astype(np.int32))
    matrix = values if convolution else values.transpose(-1, -2).reshape(-1, values.shape[-2])
    return float(largest_pair(matrix).max()) if matrix.numel() else 0.0


__all__ = ["beyond_int16"]
