"""Lowering of quantized programs to QuantizeLinear and DequantizeLinear, which OpenVINO turns into int8 kernels.

Imports: ``onnx`` and ``unrolled`` beside it, ``analysis``, ``ir`` and what is below them.

Start with ``lower.py``, then ``rules.py``, which has the rules that differ from those of a float file.
"""
