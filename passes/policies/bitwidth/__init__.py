"""Policies that choose the bits of each layer's weights.

Imports: ``passes.policies`` beside it, ``planning``, ``quantization``, ``ir`` and what is below them.

Start with ``qsvit.py``; ``search_space.py`` is what all of them share.
"""
