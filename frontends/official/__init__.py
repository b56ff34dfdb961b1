"""Own definitions of the published families, so that an official repository's checkpoint needs no model file.

Names of parameters and the numbers that come out are those of the published code; nothing else is.
"""

from svitc.frontends.official.e_spikeformer import ESpikeFormer
from svitc.frontends.official.layouts import Layout, layout, unwrap
from svitc.frontends.official.meta_spikeformer import MetaSpikeFormer
from svitc.frontends.official.published import FACTORIES, PUBLISHED, Published, dead_parameters
from svitc.frontends.official.qkformer import QKFormer
from svitc.frontends.official.spike_driven import SpikeDrivenTransformer
from svitc.frontends.official.spikformer import Spikformer

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
