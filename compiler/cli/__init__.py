"""The command line: options, commands and what they print.

Imports: every other room; no room imports it. Modules that load torch are imported inside the commands, so that
``svitc --help`` answers at once.

Start with ``main.py``, then ``commands/compile.py``. Options that commands share are in ``options.py``, tables in
``views/``.
"""
