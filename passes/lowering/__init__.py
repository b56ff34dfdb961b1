"""Passes that only make the exported file faster; the graph that is kept and saved does not see them.

Imports: ``analysis``, ``quantization``, ``ir`` and what is below them.

Start with ``share_views.py``, the shortest.
"""
