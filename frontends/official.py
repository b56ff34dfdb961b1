"""The published models, at the address by which checkpoints name them: ``svitc.frontends.official:Spikformer``.

The code is in ``svitc.frontends.published``. This address is in files that users have, so it stays.
"""

from svitc.frontends.published import ESpikeFormer, MetaSpikeFormer, QKFormer, SpikeDrivenTransformer, Spikformer

__all__ = ["ESpikeFormer", "MetaSpikeFormer", "QKFormer", "SpikeDrivenTransformer", "Spikformer"]
