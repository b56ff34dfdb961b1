"""What can be known about a program without changing it.

Integer ranges (which values are whole numbers, and how large), intervals (the least and the most that a channel can
be), rounding errors, the moments of calibration images, consumers of channels, operation counts.

Imports: ``ir`` and what is below it. Never passes, which act on what is found here.

Start with ``integer_range.py``, on which quantization stands, then ``intervals.py``.
"""
