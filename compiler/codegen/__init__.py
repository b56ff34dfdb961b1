"""The program as readable PyTorch source: ``model.py``, which needs torch, spikingjelly and einops, but not svitc.

Imports: ``serialization``, ``ir`` and what is below them.

Start with ``module.py``, then ``operations.py`` (each node as a line) and ``partition.py`` (which parts become a
class).
"""
