"""The commands, one in each file: parse the options, call the driver, show the result.

Imports: the rest of ``cli`` at the top of a file; modules that load torch only inside the commands.

Start with ``verify.py``, the shortest.
"""
