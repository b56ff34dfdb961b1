"""Lowering to stock ONNX, and running and measuring the file."""

from svitc.onnx.lower import INPUT, OUTPUT, lower, to_bytes
from svitc.onnx.model_info import node_count, weight_bytes
from svitc.onnx.runtime import session
from svitc.onnx.surgery.neuron_split import CutNeuron, cut
from svitc.onnx.surgery.neuron_split_unrolled import CutSteps, cut_steps
from svitc.onnx.target import TARGETS, Target, target_of

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
