"""Safetensors under any name, in folders, and in shards."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch

from svitc.driver.load import load
from svitc.errors import InputError
from svitc.frontends.checkpoint.load import LoadOptions, load_model

OPTIONS = LoadOptions(input_shape=(3, 16, 16), time_steps=2, arch_args={"num_heads": 2})


@pytest.fixture
def same(model):
    """Load a path, and compare its weights with the model's."""

    def same(path):
        loaded = load_model(path, OPTIONS).model.state_dict()
        return all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())

    return same


@pytest.mark.parametrize("name", ["model.safetensors", "weights", "pytorch_model.bin", "x.pt"])
def test_the_name_does_not_matter(tmp_path, model, same, name):
    safetensors.torch.save_file(model.state_dict(), tmp_path / name, metadata={"format": "pt"})
    assert same(tmp_path / name)
    torch.save(model.state_dict(), tmp_path / "torch.safetensors")
    assert same(tmp_path / "torch.safetensors")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_folder_of_hugging_face(tmp_path, model, same, metadata):
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors", metadata=metadata)
    assert same(tmp_path)
    program = load(tmp_path, input_shape=(3, 16, 16), time_steps=2)
    assert program.info["format"] == "state_dict"


@pytest.fixture
def shards(tmp_path, model):
    """Three shards and their index."""
    state = model.state_dict()
    names, where = list(state), {}
    for i in range(3):
        part = {key: state[key] for key in names[i::3]}
        safetensors.torch.save_file(part, tmp_path / f"model-{i + 1:05}-of-00003.safetensors")
        where |= dict.fromkeys(part, f"model-{i + 1:05}-of-00003.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return tmp_path


def test_shards_are_read_together(shards, same):
    for path in (shards, shards / "model.safetensors.index.json", shards / "model-00002-of-00003.safetensors"):
        assert same(path)
    notes = load_model(shards, OPTIONS).info["assumptions"]
    assert "the weights are those of 3 shards (model-00001-of-00003.safetensors, …)" in notes


def test_the_hash_is_of_all_shards(shards, model):
    before = load_model(shards, OPTIONS).info["sha256"]
    last = shards / "model-00003-of-00003.safetensors"
    state = safetensors.torch.load_file(last)
    safetensors.torch.save_file({key: value + 1 for key, value in state.items()}, last)
    assert load_model(shards, OPTIONS).info["sha256"] != before


def test_shards_of_torch(tmp_path, model, same):
    state = model.state_dict()
    names = list(state)
    for i in range(2):
        torch.save({key: state[key] for key in names[i::2]}, tmp_path / f"pytorch_model-{i + 1:05}-of-00002.bin")
    assert same(tmp_path / "pytorch_model-00001-of-00002.bin")


def test_shards_that_are_not_all_there(shards):
    (shards / "model-00002-of-00003.safetensors").unlink()
    text = r"is shard 1 of 3 of a checkpoint, and 1 of them is not beside it \(model-00002-of-00003.safetensors\)"
    with pytest.raises(InputError, match=text) as caught:
        load_model(shards / "model-00001-of-00003.safetensors")
    assert "merge the shards" in caught.value.hint
    with pytest.raises(InputError, match="is the index of 3 shards, and 1 of them is not beside it"):
        load_model(shards)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "has no weight_map"),
        ("not json", "has no weight_map"),
        ('{"weight_map": 3}', "has no weight_map"),
        ('{"weight_map": {}}', "names no shards"),
        ('{"weight_map": {"a": "../x"}}', "names '../x', which is not a file beside it"),
        ('{"weight_map": {"a": "b.safetensors"}}', "1 of them is not beside it"),
        ('{"weight_map": {"a": "model.safetensors.index.json"}}', "names itself as a shard"),
        ('{"weight_map": {"a": "' + "b" * 5000 + '"}}', "1 of them is not beside it"),
    ],
)
def test_an_index_that_is_none(tmp_path, text, message):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=message):
        load_model(tmp_path / "model.safetensors.index.json")


def test_a_name_in_two_shards(shards, model):
    first = shards / "model-00001-of-00003.safetensors"
    safetensors.torch.save_file(model.state_dict(), first)
    with pytest.raises(InputError, match="which another shard holds, too"):
        load_model(shards)
