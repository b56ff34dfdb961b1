"""Helpers that know nothing of models: files, time, hardware, statistics, processes and users' code.

This room imports nothing of svitc but ``svitc.errors``, and every other room may import it. The modules do not depend
on one another, so read the one that you need; ``reporter`` and ``atomic_files`` are used the most.
"""
