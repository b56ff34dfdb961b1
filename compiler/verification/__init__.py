"""Verification: checks that an exported file computes the same network, neuron by neuron and from end to end.

Imports: ``onnx``, ``passes``, ``analysis``, ``data``, ``ir`` and what is below them.

Start with ``float_check.py`` (float32, within rounding), then ``exact_check.py`` (quantized, bit for bit).
"""
