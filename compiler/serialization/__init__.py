"""The program as one safetensors file, data and never code, and back from a file that nobody vouches for.

Imports: ``ir`` and ``errors``.

Start with ``writer.py``; ``layer_schema.py`` is the closed table of layers.
"""
