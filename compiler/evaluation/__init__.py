"""Accuracy of many pruned and quantized networks on the same images, measured on the ONNX files that would be written.

Imports: ``onnx``, ``passes``, ``analysis``, ``data``, ``planning`` and what is below them.

Start with ``sweep.py``, then ``evaluator.py``; ``store.py`` keeps finished measurements on disk.
"""
