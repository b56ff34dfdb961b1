"""Lowering of quantized programs: integers, channels last, unrolled over the time steps.

Imports: ``onnx`` beside it, ``analysis``, ``ir`` and what is below them.

Start with ``lower.py``, then ``rules.py``, which has one rule for each operation.
"""
