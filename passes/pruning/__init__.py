"""Passes that carry out a plan, and those that make up for what it removed.

Imports: ``planning``, ``analysis``, ``ir`` and what is below them.

Start with ``prune.py``.
"""
