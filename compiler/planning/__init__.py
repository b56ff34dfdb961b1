"""Plans and budgets: which elements each group keeps, in how many bits, and what that costs before anything is written.

Imports: ``ir`` and ``errors``.

Start with ``plan.py``.
"""
