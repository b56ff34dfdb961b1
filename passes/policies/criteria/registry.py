"""The criteria by the names that ``--criterion`` takes."""

from __future__ import annotations

from svitc.passes.policies.criteria.base import Criterion
from svitc.passes.policies.criteria.norms import bn_scale, firing, l1, l2, random, taylor
from svitc.passes.policies.criteria.reconstruction import reconstruction

CRITERIA: dict[str, Criterion] = {
    "l2": l2,
    "l1": l1,
    "bn-scale": bn_scale,
    "taylor": taylor,
    "firing": firing,
    "reconstruction": reconstruction,
    "random": random,
}
