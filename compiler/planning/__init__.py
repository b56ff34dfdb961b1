"""Plans: what a compressed model keeps, what it costs in bytes or parameters, and the budget that it has to meet.

This room imports ``ir``, ``support`` and ``errors`` only; policies, which choose plans, are above it. Start reading
with ``plan``, then ``cost``.
"""
