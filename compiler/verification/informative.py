"""Choice of how many images a verification needs: as long as one tells more than those before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from svitc.verification.verdict import Verdict


def informative(inputs: Iterable[torch.Tensor], verdict: Verdict) -> Iterator[torch.Tensor]:
    """Yield batches until every neuron has fired, or until one made none fire that had been silent.

    A batch already compares each layer at thousands of places, and its random spikes make all of a layer's weights
    count. What another one adds is layers that the images so far left silent.

    Args:
        inputs: the batches.
        verdict: that of the batches so far; whoever reads a batch adds it before the next one is read.
    """
    silent = len(verdict.layers) + 1
    for x in inputs:
        yield x
        before, silent = silent, len(verdict.silent)
        if silent in (0, before):
            return


__all__ = ["informative"]
