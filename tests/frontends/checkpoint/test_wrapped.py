"""State dicts as training scripts wrap them: entries in entries, prefixes, averages beside the weights."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from svitc.errors import InputError
from svitc.frontends.checkpoint.load import LoadOptions, load_model

KNOWN = LoadOptions(input_shape=(3, 16, 16), time_steps=2, arch_args={"num_heads": 2})
OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = nn.DataParallel(nn.Conv2d(3, 4, 3))
        self.register_buffer("total_ops", torch.zeros(1))
"""


def averaged(model: nn.Module) -> dict[str, torch.Tensor]:
    return torch.optim.swa_utils.AveragedModel(model).state_dict()


def under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


LOSS = {"criterion.weight": torch.ones(3)}
THOP = {"total_ops": torch.zeros(1), "total_params": torch.zeros(1)}
WRAPPED = {
    "model_state_dict": lambda m: {"model_state_dict": m.state_dict(), "optimizer_state_dict": {"state": {}}},
    "entry in an entry": lambda m: {"model": {"state_dict": m.state_dict(), "epoch": 3}, "epoch": 3},
    "any name": lambda m: {"snn": m.state_dict(), "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    "average of the only kind": averaged,
    "compiled parts": lambda m: {k.replace("blocks.0.", "blocks.0._orig_mod."): v for k, v in m.state_dict().items()},
    "compiled and parallel": lambda m: under("module._orig_mod.", m.state_dict()),
    "Lightning": lambda m: {"state_dict": under("model.", m.state_dict()) | LOSS, "pytorch-lightning_version": "2"},
    "Lightning and compiled": lambda m: {"state_dict": under("net._orig_mod.", m.state_dict()) | LOSS},
    "parallel parts": lambda m: {k.replace("blocks.0.", "blocks.0.module."): v for k, v in m.state_dict().items()},
    "profiled by thop": lambda m: m.state_dict() | under("blocks.0.", THOP) | THOP,
    "average beside it": lambda m: under("model.", m.state_dict()) | under("ema_model.", zeros(m)),
}


def zeros(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: torch.zeros_like(value) for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize("named", [False, True], ids=["bare", "arch"])
def test_weights_are_found_however_they_are_wrapped(tmp_path, model, small, arch, name, named):
    torch.save(WRAPPED[name](model), tmp_path / "m.pt")
    options = LoadOptions(arch=arch, arch_args=small, input_shape=(3, 16, 16)) if named else KNOWN
    loaded = load_model(tmp_path / "m.pt", options)
    state = loaded.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    notes = " ".join(loaded.info["assumptions"])
    assert ("criterion.weight is not of the model" in notes) == ("Lightning" in name)
    assert ("the weights are the entry 'snn'" in notes) == (name == "any name")


AVERAGES = {
    "SpikingJelly's trainer": lambda m, a: {"model": m.state_dict(), "model_ema": averaged(a)},
    "BasicSR": lambda m, a: {"params": m.state_dict(), "params_ema": a.state_dict()},
    "an entry of an entry": lambda m, a: {"model": m.state_dict(), "ema": {"module": a.state_dict(), "updates": 3}},
    "the file itself": lambda m, a: averaged(a),
    "beside it": lambda m, a: {"state_dict": under("model.", m.state_dict()) | under("model_ema.", averaged(a))},
}


@pytest.mark.parametrize("name", AVERAGES)
def test_averages_are_found_where_they_are_asked_for(tmp_path, model, name):
    average = copy.deepcopy(model)
    average.head.weight.data += 1
    torch.save(AVERAGES[name](model, average), tmp_path / "m.pt")
    options = LoadOptions(input_shape=(3, 16, 16), ema=True)
    assert torch.equal(load_model(tmp_path / "m.pt", options).model.head.weight, average.head.weight)


def test_no_average_and_several_weights(tmp_path, model):
    torch.save({"model": model.state_dict()}, tmp_path / "m.pt")
    with pytest.raises(InputError, match="holds no averaged weights"):
        load_model(tmp_path / "m.pt", LoadOptions(ema=True))
    torch.save({"student": model.state_dict(), "teacher": model.state_dict()}, tmp_path / "m.pt")
    with pytest.raises(InputError, match=r"holds weights in several entries \(student, teacher\)"):
        load_model(tmp_path / "m.pt")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Loads a state dict with the user's code."""
    (tmp_path / "wrapped_models.py").write_text(OWN)

    def load(state, name):
        torch.save(state, tmp_path / "m.pt")
        options = LoadOptions(arch=f"{tmp_path}/wrapped_models.py:{name}", input_shape=(3, 8, 8))
        return load_model(tmp_path / "m.pt", options)

    return load


def test_a_model_whose_own_names_have_a_prefix(own):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for prefix in ("model.", "module.model.", "net.model."):
        loaded = own(under(prefix, model.state_dict()), "Net").model
        assert torch.equal(loaded.model[0].weight, model[0].weight)


def test_two_models_in_one_state_dict_are_not_confused(own):
    conv = nn.Conv2d(3, 4, 3).state_dict()
    norm = nn.BatchNorm2d(4).state_dict()
    plain = under("conv.", conv) | under("norm.", norm)
    with pytest.raises(InputError, match=r"several times, under 'student\.' and under 'teacher\.'"):
        own(under("student.", plain) | under("teacher.", {k: v + 1 for k, v in plain.items()}), "Plain")
    loaded = own(under("student.", plain) | under("copy.", plain), "Plain")
    assert torch.equal(loaded.model.conv.weight, conv["weight"])
    loaded = own(under("student.", plain) | under("teacher.", {k: v for k, v in plain.items() if "conv" in k}), "Plain")
    assert torch.equal(loaded.model.conv.weight, conv["weight"])
    with pytest.raises(InputError, match=r"1 of the model's 7 tensors is missing \(conv.bias\)"):
        own(under("net.", {k: v for k, v in plain.items() if k != "conv.bias"}), "Plain")


def test_names_of_the_models_own_are_no_leftovers(own):
    model = nn.Module()
    model.part = nn.DataParallel(nn.Conv2d(3, 4, 3))
    model.register_buffer("total_ops", torch.ones(1))
    loaded = own(model.state_dict(), "Parts").model
    assert torch.equal(loaded.part.module.weight, model.part.module.weight) and loaded.total_ops == 1
    with pytest.raises(InputError, match=r"1 tensor in the file is unknown to the model \(extra.weight\)"):
        own(under("module.", model.state_dict() | {"extra.weight": torch.ones(2)}), "Parts")
