"""Code that was written for a GPU runs on the CPU, and PyTorch is afterwards as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from svitc.support.cpu_only import on_cpu

CALLS = {
    "cuda": lambda x: x.cuda(),
    "number": lambda x: x.cuda(0, non_blocking=True),
    "to": lambda x: x.to("cuda:1"),
    "to device": lambda x: x.to(torch.device("cuda"), torch.float64),
    "to keyword": lambda x: x.to(device="cuda", dtype=torch.float64),
    "to number": lambda x: x.to(0),
    "zeros": lambda x: torch.zeros(2, device="cuda"),
    "zeros of a number": lambda x: torch.zeros(2, device=0),
    "like": lambda x: torch.ones_like(x, device=torch.device("cuda", 1)),
    "new": lambda x: x.new_zeros(3, device="cuda"),
    "tensor": lambda x: torch.tensor(0.0, device="cuda"),
    "arange": lambda x: torch.arange(3, device=torch.cuda.current_device()),
    "old tensor": lambda x: torch.cuda.FloatTensor([1.0, 2.0]),
    "module": lambda x: nn.Linear(2, 3, device="cuda").cuda().to("cuda").weight,
    "empty": lambda x: torch.empty(2, 2, device="mps"),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_tensor_stays_on_the_cpu(name):
    with on_cpu():
        assert CALLS[name](torch.ones(2)).device.type == "cpu"


def test_values_are_those_of_the_cpu():
    x = torch.arange(4.0)
    with on_cpu():
        assert x.cuda() is x and x.to("cuda") is x
        assert x.to("cuda", torch.int64).dtype == torch.int64
        assert torch.full((2,), 3.0, device="cuda").tolist() == [3, 3]
        assert torch.equal(torch.cat([x.cuda(), x]), torch.cat([x, x]))


def test_streams_and_contexts_do_nothing():
    with on_cpu():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream), torch.cuda.device(0):
            stream.wait_stream(torch.cuda.current_stream())
        torch.cuda.set_device(0)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        assert torch.cuda.current_device() == 0 and torch.cuda.memory_allocated() == 0


def test_pytorch_is_afterwards_as_it_was():
    before = dict(vars(torch.cuda))
    with pytest.raises(KeyError), on_cpu():
        raise KeyError
    assert {name for name, value in vars(torch.cuda).items() if before.get(name) is not value} == set()
    assert torch.zeros(1, device="meta").is_meta
