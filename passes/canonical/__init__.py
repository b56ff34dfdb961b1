"""Passes that bring every captured program to one form before pruning; all of them are lossless.

Imports: ``analysis``, ``planning``, ``ir`` and what is below them, and ``passes.pruning``.

Start with ``merge_views.py``, the shortest.
"""
