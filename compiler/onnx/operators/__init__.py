"""ONNX forms of the general operators of ``svitc.ir.operators``, in files of the same names.

Imports: ``ir`` and the builder of the float lowering.

Start with ``registry.py``, which has the rule of each operator; ``emitter.py`` writes the nodes.
"""
