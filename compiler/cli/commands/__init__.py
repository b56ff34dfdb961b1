"""One command a file: parse, call the driver, show.

Imports: ``cli`` beside it at module level; what loads torch inside the command.

Start with ``verify.py``, the shortest.
"""
