"""Passes that turn a program into one of integer weights and exact sums.

Imports: ``analysis``, ``quantization``, ``ir`` and what is below them.

Start with ``quantize_weights.py``; ``svitc.passes.pipelines`` has the order in which they run.
"""
