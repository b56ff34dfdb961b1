"""What a person sees of each command's result: from the report's plain values to tables on a terminal.

Imports: ``cli.terminal`` and small modules without torch. A view computes nothing.

Start with ``inspect.py``.
"""
