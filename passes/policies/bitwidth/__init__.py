"""Policies that choose the bits of each layer's weights.

Imports: ``passes.policies`` beside it, ``planning``, ``quantization``, ``ir`` and what is below them.

Start with ``qsvit.py``; ``search_space.py`` is shared by all of them.
"""
