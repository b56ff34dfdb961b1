"""Criteria: the importance of each channel of a group, which decides what is pruned first.

Imports: ``analysis``, ``ir`` and what is below them.

Start with ``base.py`` and ``norms.py``; ``registry.py`` holds the names that ``--criterion`` takes.
"""
