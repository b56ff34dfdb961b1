"""Cutting finished files: at their neurons, to verify layers one by one, or behind some neurons, to compute the rest.

Imports: ``onnx`` beside it, and ``errors``.

Start with ``neuron_split.py``.
"""
