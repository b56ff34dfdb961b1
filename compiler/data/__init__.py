"""Labeled images for accuracy, calibration and fine-tuning, and random inputs where there are none.

May import errors, support and ir. Start reading at ``dataset.py``: ``load_data`` opens a folder, a .zip, an .npz or the
user's own loader as a ``Dataset``.
"""
