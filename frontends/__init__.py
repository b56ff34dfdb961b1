"""Frontends turn a checkpoint, a model file or an nn.Module into a program.

May import errors, support, ir and serialization. Start reading at ``checkpoint/load.py``, which finds the model that a
checkpoint is of, and ``capture/capture.py``, which records the model as a program.
"""

from svitc.frontends.checkpoint.load import Loaded, LoadOptions, load_model
from svitc.frontends.checkpoint.save import save

__all__ = ["LoadOptions", "Loaded", "load_model", "save"]
