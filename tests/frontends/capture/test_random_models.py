"""Random models of everything that is supported: captured, pruned, exported and quantized, each as the eager model."""

from __future__ import annotations

import pytest
import torch

from support.random_checks import check_model

SEEDS = range(10)  # benchmarks/random_models.py tries a thousand


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_model_is_never_another_network(seed):
    torch.manual_seed(0)
    check_model(seed)
