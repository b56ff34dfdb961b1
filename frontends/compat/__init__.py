"""Stand-ins by which unmodified model files of official repositories import and run.

Imports: ``support`` and ``errors``; no other frontend.

Start with ``import_hooks.py``; ``shims.py`` lists what stands for what.
"""
