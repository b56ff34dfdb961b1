"""Passes that only make the exported file faster; the saved graph stays as it was before them.

Imports: ``analysis``, ``quantization``, ``ir`` and what is below them.

Start with ``share_views.py``, the shortest.
"""
