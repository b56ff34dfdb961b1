"""Lowering to stock ONNX, and measuring the file.

Imports: ``passes``, ``analysis``, ``quantization``, ``ir`` and what is below them.

Start with ``export.py``, then ``lower.py`` with its rules in ``float_rules.py``; ``unrolled/`` lowers quantized
programs, ``surgery/`` cuts finished files apart.
"""

from svitc.onnx.lower import INPUT, OUTPUT, forget_weights, lower, to_bytes
from svitc.onnx.model_info import node_count, read_structure, weight_bytes
from svitc.onnx.surgery.neuron_split import SplitNeuron, split_neurons
from svitc.onnx.surgery.neuron_split_unrolled import SplitUnrolledNeuron, split_unrolled_neurons
from svitc.onnx.surgery.step_split import SplitStepNeuron, split_step
from svitc.onnx.target import TARGETS, Target, target_of

__all__ = [
    "INPUT",
    "OUTPUT",
    "TARGETS",
    "SplitNeuron",
    "SplitStepNeuron",
    "SplitUnrolledNeuron",
    "Target",
    "forget_weights",
    "lower",
    "node_count",
    "read_structure",
    "split_neurons",
    "split_step",
    "split_unrolled_neurons",
    "target_of",
    "to_bytes",
    "weight_bytes",
]
