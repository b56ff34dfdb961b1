"""From an ``nn.Module`` to a program: ``forward`` is recorded once, on shapes alone, and rewritten into canonical form.

Imports: ``ir``, ``support`` and ``errors``; no other frontend.

Start with ``capture.py``; ``op_handlers.py`` has one handler for each operation that a model may call.
"""
