"""Files cut apart: at their neurons, to verify each layer alone, or behind some of them, to compute only the rest.

Imports: ``onnx`` beside it, and ``errors``.

Start with ``neuron_split.py``.
"""
