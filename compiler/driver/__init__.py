"""The driver: what a command does, as functions that a program can call as well.

``compiler.py`` takes one budget through all steps: ``prepare.py`` (what budgets share), ``plan_search.py``, ``apply.py``
and ``report.py``; ``artifacts.py`` writes what comes out. ``load.py`` and ``inspect.py`` are what comes before, and
``output_folder.py`` opens what was written. May import every room but ``cli``. A newcomer starts with
``Compiler.compile``.
"""
