"""A balanced sample of a loader is taken in one pass."""

from __future__ import annotations

import random
from collections import Counter

from svitc.data import loaders


def test_one_pass_chooses_what_many_would():
    """The sample out of a stream is the one that sorting everything gives, and never more is held."""
    for trial in range(60):
        rng = random.Random(trial)
        labels = [min(rng.randrange(6), rng.randrange(6)) for _ in range(rng.randrange(1, 80))]
        limit = rng.randrange(1, len(labels) + 1)
        turns, held = loaders._BalancedSample(limit, trial), {}
        for index, label in enumerate(labels):
            slot = turns.offer(label)
            if slot is not None:
                held[slot] = index
            assert len(held) <= limit
        keys = random.Random(trial)
        ranked = sorted((keys.random(), index) for index in range(len(labels)))
        rank: Counter[int] = Counter()
        order = []
        for _, index in ranked:
            order.append((rank[labels[index]], labels[index], index))
            rank[labels[index]] += 1
        assert [(held[slot], label) for slot, label in turns.order()] == [
            (index, label) for _, label, index in sorted(order)[:limit]
        ]
