"""General operators: activations, comparisons, concatenation and others that real models call between their neurons.

Imports: ``axes`` and ``graph``.

Start with ``table.py`` (what an operator consists of) and ``registry.py`` (all of them). To support another one, write
it in the file of its group, its ONNX form in the file of the same name in ``svitc.onnx.operators``, and the handler of
the calls that become it in ``svitc.frontends.capture``.
"""
