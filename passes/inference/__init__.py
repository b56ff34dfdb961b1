"""Passes that make a pruned program cheaper to run and end its training: it has no batch norms behind them.

Imports: ``ir`` and what is below it.

Start with ``hoist_repeat.py``, then ``fold_batch_norm.py``.
"""
