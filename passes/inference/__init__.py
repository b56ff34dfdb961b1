"""Passes that turn a pruned program into one for inference: batch norms are folded, and training is over.

Imports: ``ir`` and what is below it.

Start with ``hoist_repeat.py``, then ``fold_batch_norm.py``.
"""
