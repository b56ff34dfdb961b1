"""Programs as readable PyTorch source: ``model.py``, which needs torch, spikingjelly and einops, but not svitc.

Imports: ``serialization``, ``ir`` and what is below them.

Start with ``module.py``, then ``operations.py`` (nodes as statements) and ``partition.py`` (which parts of a model
become a class).
"""
