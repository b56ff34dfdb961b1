"""From a file to a model with its weights: read safely, recognized by its names and shapes, or built by a factory.

Imports: ``frontends.published``, ``frontends.compat`` and what is below ``frontends``.

Start with ``load.py``, then ``reader.py``.
"""
