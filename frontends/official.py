"""The published models under the name that checkpoints use for them: ``svitc.frontends.official:Spikformer``.

The code is in ``svitc.frontends.published``. Files of users hold this name, so it stays.
"""

from svitc.frontends.published import ESpikeFormer, MetaSpikeFormer, QKFormer, SpikeDrivenTransformer, Spikformer

__all__ = ["ESpikeFormer", "MetaSpikeFormer", "QKFormer", "SpikeDrivenTransformer", "Spikformer"]
