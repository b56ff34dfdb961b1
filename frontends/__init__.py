"""Frontends: from what a user has (a checkpoint, a model file, an nn.Module) to a program."""

from svitc.frontends.checkpoint.load import Loaded, LoadOptions, load_model
from svitc.frontends.checkpoint.save import save

__all__ = ["LoadOptions", "Loaded", "load_model", "save"]
