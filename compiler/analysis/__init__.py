"""Analyses: facts about a program, found without changing it.

Integer ranges (which values are integers, and how large), intervals (lower and upper bounds of each channel), rounding
errors, second moments on calibration images, consumers of channels, layer statistics.

Imports: ``ir`` and what is below it. Never passes, which act on these facts.

Start with ``integer_range.py``, the basis of quantization, then ``intervals.py``.
"""
