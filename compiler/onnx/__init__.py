"""Lowering to stock ONNX, and running and measuring the file."""

from .cut import CutNeuron, cut
from .lower import INPUT, OUTPUT, lower, node_count, to_bytes, weight_bytes
from .runtime import session

__all__ = [
    "INPUT",
    "OUTPUT",
    "CutNeuron",
    "cut",
    "lower",
    "node_count",
    "session",
    "to_bytes",
    "weight_bytes",
]
