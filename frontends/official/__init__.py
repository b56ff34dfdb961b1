"""Own definitions of the published families, so that an official repository's checkpoint needs no model file.

Names of parameters and the numbers that come out are those of the published code; nothing else is.
"""

from .e_spikeformer import ESpikeFormer
from .layouts import Layout, layout, unwrap
from .meta_spikeformer import MetaSpikeFormer
from .published import FACTORIES, PUBLISHED, Published, dead_parameters
from .qkformer import QKFormer
from .spike_driven import SpikeDrivenTransformer
from .spikformer import Spikformer

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
