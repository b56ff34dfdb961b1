"""Lowering to stock ONNX, and running and measuring the file."""

from .cut import CutNeuron, cut
from .cut_steps import CutSteps, cut_steps
from .lower import INPUT, OUTPUT, lower, node_count, to_bytes, weight_bytes
from .runtime import session
from .target import TARGETS, Target, target_of

__all__ = [
    "INPUT",
    "OUTPUT",
    "TARGETS",
    "CutNeuron",
    "CutSteps",
    "Target",
    "cut",
    "cut_steps",
    "lower",
    "node_count",
    "session",
    "target_of",
    "to_bytes",
    "weight_bytes",
]
