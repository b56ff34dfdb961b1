"""Fine-tuning of a pruned program, with its channel counts and weight bits unchanged.

Imports: ``passes``, ``quantization``, ``ir`` and what is below them.

Start with ``finetune.py``, then ``quantization_aware.py``; ``fast_forward.py`` runs the
same network faster.
"""
