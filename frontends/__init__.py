"""Frontends: from what a user has (a checkpoint, a model file, an nn.Module) to a program."""

from .checkpoint import Loaded, LoadOptions, load_model
from .save import save

__all__ = ["LoadOptions", "Loaded", "load_model", "save"]
