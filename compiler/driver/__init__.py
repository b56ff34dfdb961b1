"""The driver: what each command does, as functions that other programs can call.

``compiler.py`` takes one budget through all steps: ``prepare.py`` (what all budgets share), ``plan_search.py``,
``apply.py`` and ``report.py``; ``artifacts.py`` writes the output folder, and ``output_folder.py`` opens it.
``load.py`` loads a checkpoint and ``inspect.py`` describes it.

Imports: everything but ``cli``.

Start with ``Compiler.compile``.
"""
