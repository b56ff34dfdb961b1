"""Lowering of quantized programs: integers, channels last, and every time step apart.

Imports: ``onnx`` beside it, ``analysis``, ``ir`` and what is below them.

Start with ``lower.py``, then ``rules.py``, which has one rule for each operation.
"""
