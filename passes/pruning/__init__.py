"""Passes that carry out a plan, and those that compensate for what it removed.

Imports: ``planning``, ``analysis``, ``ir`` and what is below them.

Start with ``prune.py``.
"""
