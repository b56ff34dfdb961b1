"""The time of an exported file: predicted layer by layer, measured, and met as a budget.

Imports: ``onnx``, ``passes``, ``planning``, ``data`` and what is below them; not ``bench``.

Start with ``predict.py``; ``budget_search.py`` prunes until the measured time is met.
"""
