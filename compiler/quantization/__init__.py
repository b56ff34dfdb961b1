"""Numbers: weights of 8, 4 or 2 bits, their scales, and rounding that knows what a layer reads.

Imports: ``ir``. What changes a program by these numbers is in ``passes/quantization``.

Start with ``weight_grid.py``, then ``gptq.py`` and ``coordinate_descent.py``; ``grids.py`` recognizes weights that were
trained on a grid.
"""
