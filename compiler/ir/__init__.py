"""Intermediate representation: a ``torch.fx`` graph of canonical operations, with an axis type on every value.

Imports: ``support`` and ``errors`` only.

Start with ``ops.py`` (the operations that a graph may contain) and ``axes.py`` (the types), then ``type_inference.py``
with its rules in ``function_rules.py`` and ``module_rules.py``, and ``program.py``. ``pass_manager.py`` is the
interface for passes.
"""
