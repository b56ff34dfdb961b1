"""Whether a written file is the network it should be, neuron by neuron and as a whole.

Imports: ``onnx``, ``passes``, ``analysis``, ``data``, ``ir`` and what is below them.

Start with ``float_check.py`` (float32, within rounding), then ``exact_check.py`` (quantized, bit for bit).
"""
