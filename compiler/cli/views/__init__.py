"""The results of commands as tables on a terminal, one file for each command.

A view gets the values of a report and computes nothing.

Imports: ``cli.terminal`` and small modules that do not load torch.

Start with ``inspect.py``.
"""
