"""Fine-tuning of a pruned program, at its widths and its bits.

Imports: ``passes``, ``quantization``, ``ir`` and what is below them.

Start with ``finetune.py``, then ``quantization_aware.py``; ``fast_forward.py`` is the same network, laid out for speed.
"""
