"""What a command does: load, search a plan, apply it, lower, verify, report and write.

Imports: every room but ``cli`` and ``bench``.

Start with ``compiler.py``; ``load.py`` is what comes before it, ``artifacts.py`` and ``report.py`` what comes out.
"""
