"""Frontends: from what a user has (a checkpoint, a model file, an nn.Module) to a program.

Imports: ``ir``, ``support`` and ``errors``; never passes.

Start with ``checkpoint/load.py`` (from a path to a model), then ``capture/capture.py`` (from a model to a program).
"""

from svitc.frontends.checkpoint.load import Loaded, LoadOptions, load_model
from svitc.frontends.checkpoint.save import save

__all__ = ["LoadOptions", "Loaded", "load_model", "save"]
