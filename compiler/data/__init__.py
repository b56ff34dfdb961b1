"""Images, with labels or without: folders, archives, lists, arrays, or the user's own loader, read one batch at a time.

Imports: ``ir``, ``support`` and ``errors``. It stands below ``frontends`` and knows no model.

Start with ``dataset.py``, then ``sources.py``.
"""
