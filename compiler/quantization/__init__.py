"""Weights in 8, 4 or 2 bits: the integers that represent them, the scale of a channel, and GPTQ rounding.

The functions work on plain tensors; this room imports ``ir``, ``support`` and ``errors`` only. The passes that change
a program are in ``passes/quantization``. Start reading with ``weight_grid``.
"""
