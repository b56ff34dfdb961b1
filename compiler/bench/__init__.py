"""Time a compiled file beside other ways to run the same model, in paired rounds.

May import every room but driver and cli. Start reading at ``compare.py``, which chooses what is timed;
``rounds.py`` runs it in turn, ``runners.py`` loads it, and ``worker.py`` gives it a process of its own.
"""
