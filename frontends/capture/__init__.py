"""Capture a model's ``forward`` as a canonical program.

May import errors, support and ir. Start reading at ``capture.py``: ``tracer.py`` records the raw graph, and
``canonicalize.py`` rewrites it into canonical operations with the handlers of ``op_handlers.py``.
"""
