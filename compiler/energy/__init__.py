"""Energy of one image: operations and memory accesses, counted on real spikes and priced by a table.

Imports: ``passes``, ``analysis``, ``data``, ``quantization``, ``ir`` and what is below them.

Start with ``estimate.py``; ``operation_counts.py`` and ``memory_traffic.py`` count, ``cost_table.py`` prices.
"""

from svitc.energy.estimate import Energy, energy

__all__ = ["Energy", "energy"]
