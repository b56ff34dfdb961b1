"""Criteria: in which order the channels of a group go.

Imports: ``analysis``, ``ir`` and what is below them.

Start with ``base.py`` and ``norms.py``; ``registry.py`` holds the names that ``--criterion`` takes.
"""
