"""What a checkpoint may be, and what is read out of it."""

from __future__ import annotations

import argparse
import json

import pytest
import safetensors.torch
import torch
from spikingjelly.activation_based import model as models
from spikingjelly.activation_based import neuron
from torch import nn

from svitc.driver.load import load
from svitc.errors import InputError, UsageError
from svitc.frontends.capture.capture import capture
from svitc.frontends.checkpoint.load import LoadOptions, load_model
from svitc.ir.graph import InputSpec
from svitc.serialization.writer import to_bytes


@pytest.fixture
def write(tmp_path):
    def write(content, name="model.pt"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


# self-describing


def test_a_self_describing_file_needs_nothing_and_assumes_nothing(write, described, model, logits):
    normalize = {"mean": [0.5, 0.4, 0.3], "std": [1, 2.0, 3]}
    extra = {"normalize": normalize, "classes": ["a", "b", "c"], "metrics": {"top1": 9.5}}
    loaded = load_model(write({**described, **extra}))
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(logits(loaded.model, x), logits(model, x))
    assert logits(model, x).std() > 0
    assert not loaded.model.training
    assert loaded.input == InputSpec((3, 16, 16))
    assert loaded.info["assumptions"] == []
    assert loaded.info["format"] == "self-describing"
    assert {key: loaded.info[key] for key in extra} == extra
    assert loaded.info["arch_args"] == described["arch_args"]
    assert json.loads(json.dumps(loaded.info)) == loaded.info


def test_the_hash_is_of_the_file(write, described):
    import hashlib

    path = write(described)
    assert load_model(path).info["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_nothing_of_the_quick_build_is_left_on_the_meta_device(write, described):
    loaded = load_model(write(described))
    assert {t.device.type for t in tensors(loaded.model)} == {"cpu"}
    assert all(p.requires_grad for p in loaded.model.parameters())  # it still trains


def test_the_users_arguments_override_the_files(write, described, model, logits):
    loaded = load_model(write(described), LoadOptions(arch_args={"num_heads": 8}))
    assert loaded.info["arch_args"]["num_heads"] == 8
    x = torch.rand(2, 3, 16, 16)
    assert not torch.equal(logits(loaded.model, x), logits(model, x))


def test_time_steps_override_the_files_and_are_noted(write, described):
    loaded = load_model(write(described), LoadOptions(time_steps=5))
    assert loaded.model.T == 5
    assert loaded.info["assumptions"] == ["T = 5, as asked; the checkpoint was made for T = 2"]


NEURONS = ["ParametricLIFNode", "IFNode", "ILIFNode", "spikingjelly.activation_based.neuron.LIFNode"]


@pytest.mark.parametrize("name", NEURONS)
def test_a_file_names_neurons_of_the_table(write, small, name):
    kind = getattr(neuron, name.rpartition(".")[2])
    state = models.Spikformer(**small, spiking_neuron=kind).state_dict()
    content = {"state_dict": state, "arch": "spikingjelly.activation_based.model.spikformer:Spikformer"}
    loaded = load_model(write({**content, "arch_args": {**small, "spiking_neuron": name}}))
    kinds = {type(m) for m in loaded.model.modules() if isinstance(m, neuron.BaseNode)}
    assert kinds == {kind}


def test_json_numbers_are_good_enough_for_neurons(write, small):
    state = models.Spikformer(**small).state_dict()
    args = {**small, "v_threshold": 2, "v_reset": None, "tau": 3}
    loaded = load_model(write({"state_dict": state, "arch": "Spikformer", "arch_args": args}))
    node = next(m for m in loaded.model.modules() if isinstance(m, neuron.LIFNode))
    assert (node.v_threshold, node.v_reset, node.tau) == (2.0, None, 3.0)


def test_event_frames_set_the_number_of_time_steps(write, small):
    args = {key: value for key, value in small.items() if key != "T"} | {"in_channels": 2}
    state = models.Spikformer(**args).state_dict()
    content = {"state_dict": state, "arch": "Spikformer", "arch_args": args, "input_shape": (6, 2, 16, 16)}
    loaded = load_model(write(content))
    assert loaded.input.events
    assert (loaded.input.shape, loaded.model.T) == ((6, 2, 16, 16), 6)
    assert load_model(write(content), LoadOptions(time_steps=3)).input.shape == (3, 2, 16, 16)


def test_a_shape_that_nobody_gives_is_that_of_the_factory_and_noted(write, described):
    del described["input_shape"]
    loaded = load_model(write(described))
    assert loaded.input.shape == (3, 16, 16)
    assert len(loaded.info["assumptions"]) == 1
    assert "--input-shape 3,16,16" in loaded.info["assumptions"][0]


# bare


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3, "arch": "spikformer"},
        lambda s: {"model": s, "optimizer": {}},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {k: v for k, v in s.items() if "num_batches_tracked" not in k},
    ],
    ids=["plain", "timm", "model", "module.", "no counters"],
)
def test_a_bare_state_dict_is_recognised_however_it_is_wrapped(write, model, logits, wrap):
    options = LoadOptions(input_shape=(3, 16, 16), time_steps=2, arch_args={"num_heads": 2})
    loaded = load_model(write(wrap(model.state_dict())), options)
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(logits(loaded.model, x), logits(model, x))
    assert loaded.info["format"] == "state_dict"


def test_what_the_user_says_is_no_longer_an_assumption(write, model):
    path = write(model.state_dict())
    before = " ".join(load_model(path).info["assumptions"])
    assert all(word in before for word in ("num_heads", "T =", "patch_size", "input shape", "neurons"))
    args = {"num_heads": 2, "patch_size": 4, "spiking_neuron": "LIFNode"}
    args |= {"img_size_h": 16, "img_size_w": 16}
    loaded = load_model(path, LoadOptions(arch_args=args, time_steps=2))
    assert loaded.info["assumptions"] == []
    assert loaded.input.shape == (3, 16, 16)


def test_time_steps_come_from_a_training_scripts_options(write, model):
    content = {"model": model.state_dict(), "args": argparse.Namespace(time_step=6, lr=0.1), "model_ema": {}}
    loaded = load_model(write(content))
    assert loaded.model.T == 6
    assert not any("T =" in note for note in loaded.info["assumptions"])
    assert any("EMA" in note for note in loaded.info["assumptions"])


def test_a_scripts_own_meaning_of_our_keys_is_ignored(write, model):
    loaded = load_model(write({"state_dict": model.state_dict(), "classes": 10, "normalize": True}))
    assert (loaded.info["classes"], loaded.info["normalize"]) == (None, None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_widened_exactly_and_noted(write, described, dtype):
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in described["state_dict"].items()}
    loaded = load_model(write({**described, "state_dict": state}))
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert all(torch.equal(v.float(), state[k].float()) for k, v in loaded.model.state_dict().items())
    assert loaded.info["assumptions"] == [f"weights stored as {str(dtype)[6:]} are computed in float32"]


def test_weights_that_share_memory_in_the_file_are_apart_in_the_model(write, described):
    state = described["state_dict"]
    shared = torch.rand(2, 3)
    state["head.bias"], state["patch_embed.stages.0.conv_bn.block.1.bias"] = shared[0], shared[1, :2]
    loaded = load_model(write(described))
    pointers = [t.untyped_storage().data_ptr() for t in tensors(loaded.model)]
    assert len(set(pointers)) == len(pointers)


def test_safetensors_are_a_bare_state_dict(tmp_path, model):
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors", LoadOptions(input_shape=(3, 16, 16)))
    assert torch.equal(loaded.model.head.weight, model.head.weight)


# pickles


def test_a_trusted_pickle_is_a_whole_model(write, model, logits):
    options = LoadOptions(trust_pickle=True, input_shape=(3, 16, 16), time_steps=3)
    loaded = load_model(write(model), options)
    assert loaded.info["format"] == "pickle"
    assert loaded.model.T == 3
    model.T, before = 3, model.T
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(logits(loaded.model, x), logits(model, x))
    model.T = before


def test_trust_changes_nothing_for_a_file_that_needs_none(write, described):
    assert load_model(write(described), LoadOptions(trust_pickle=True)).info["format"] == "self-describing"


def test_a_pickled_model_does_not_tell_its_input(write, model):
    with pytest.raises(UsageError, match="nothing says what shape of input model.pt takes") as caught:
        load_model(write(model), LoadOptions(trust_pickle=True))
    assert "--input-shape C,H,W, such as 3,224,224 (its first convolution takes 3 channels)" in str(caught.value)


# programs


def test_load_captures(write, described, model, logits):
    program = load(write(described))
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(program(x), logits(model, x))
    assert program.info["format"] == "self-describing"


def test_an_output_folder_is_a_program(tmp_path, model):
    program = capture(model, InputSpec((3, 16, 16)), {"classes": ["a", "b", "c"]})
    (tmp_path / "model.safetensors").write_bytes(to_bytes(program))
    assert load(tmp_path).info["classes"] == ["a", "b", "c"]
    with pytest.raises(InputError, match="is a program of svitc, not a checkpoint"):
        load(tmp_path / "model.safetensors")
