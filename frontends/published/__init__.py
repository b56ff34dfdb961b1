"""Definitions of the published families, so that a checkpoint of an official repository needs no model file.

Only parameter names and outputs are the same as in the published code. Start reading at ``registry.py``, which lists
the models; ``recognize.py`` tells which of them a checkpoint is of.
"""

from svitc.frontends.published.e_spikeformer import ESpikeFormer
from svitc.frontends.published.meta_spikeformer import MetaSpikeFormer
from svitc.frontends.published.qkformer import QKFormer
from svitc.frontends.published.recognize import Layout, layout, unwrap
from svitc.frontends.published.registry import FACTORIES, PUBLISHED, Published, dead_parameters
from svitc.frontends.published.spike_driven_transformer import SpikeDrivenTransformer
from svitc.frontends.published.spikformer import Spikformer

__all__ = [
    "FACTORIES",
    "PUBLISHED",
    "ESpikeFormer",
    "Layout",
    "MetaSpikeFormer",
    "Published",
    "QKFormer",
    "SpikeDrivenTransformer",
    "Spikformer",
    "dead_parameters",
    "layout",
    "unwrap",
]
