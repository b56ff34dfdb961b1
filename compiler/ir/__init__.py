"""The program: a ``torch.fx`` graph of a closed list of operations, with an axis type on every value.

Imports: ``errors`` only.

Start with ``ops.py`` (what a graph may hold) and ``axes.py`` (what a type is), then ``type_inference.py`` with its
rules in ``function_rules.py`` and ``module_rules.py``, and ``program.py``. ``pass_manager.py`` is what a pass sees.
"""
