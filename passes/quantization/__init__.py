"""Passes that bring a program to integer weights and exact sums.

Imports: ``analysis``, ``quantization``, ``ir`` and what is below them.

Start with ``quantize_weights.py``; ``svitc.passes.pipelines`` says in which order they run.
"""
