"""Benchmark of a compiled file against other runtimes, which take turns in one run (``svitc bench``).

Imports: ``onnx``, ``frontends``, ``serialization`` and what is below them; not ``driver``.

Start with ``compare.py``, then ``runners.py`` (what can be timed), ``worker.py`` (each in a process of its own) and
``rounds.py`` (the order of the runs, and the statistics).
"""
