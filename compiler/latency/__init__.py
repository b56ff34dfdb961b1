"""Latency of an exported file: predicted for each layer, measured, and used as a budget.

Imports: ``onnx``, ``passes``, ``planning``, ``data`` and what is below them; not ``bench``.

Start with ``predict.py``; ``budget_search.py`` searches for a
plan whose measured latency meets a budget.
"""
