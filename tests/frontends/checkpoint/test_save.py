"""Save: what is written is read back as the same model, or refused when it would not be."""

from __future__ import annotations

import copy

import pytest
import torch
from spikingjelly.activation_based import model as models
from spikingjelly.activation_based import neuron, surrogate

from svitc.errors import OutputError, UsageError
from svitc.frontends.checkpoint.load import load_model
from svitc.frontends.checkpoint.save import save


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"spiking_neuron": neuron.ParametricLIFNode, "v_threshold": 0.75},
        {"spiking_neuron": neuron.IFNode, "v_reset": None},
        {"spiking_neuron": neuron.ILIFNode, "surrogate_function": surrogate.MultiLevelSpikeCount(3)},
    ],
    ids=["LIF", "PLIF", "IF", "ILIF"],
)
def test_saved_and_loaded_is_the_same_model(tmp_path, small, arch, own, enliven, logits):
    model = enliven(models.Spikformer(**small, **own))
    normalize = {"mean": [0.1] * 3, "std": [0.2] * 3}
    about = {"classes": ["x", "y", "z"], "normalize": normalize, "metrics": {"top1": 50.0}}
    save(model, tmp_path / "m.pt", arch=arch, arch_args={**small, **own}, input_shape=(3, 16, 16), **about)
    loaded = load_model(tmp_path / "m.pt")
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(logits(loaded.model, x), logits(model, x))
    assert logits(model, x).std() > 0
    assert str(loaded.model) == str(model)
    assert {key: loaded.info[key] for key in about} == about
    assert loaded.info["assumptions"] == []
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]


def test_tuples_become_lists(tmp_path, enliven):
    args = {"embed_dims": 16, "num_heads": (1, 2, 4), "depths": (1, 1, 1), "num_classes": 3}
    model = models.QKFormer(**args)
    save(model, tmp_path / "m.pt", arch="QKFormer", arch_args=args, input_shape=[3, 32, 32])
    assert load_model(tmp_path / "m.pt").info["arch_args"]["num_heads"] == [1, 2, 4]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ({"num_heads": 4}, "num_heads=4.*num_heads=2"),
        ({"T": 3}, "T=3.*T=2"),
        ({"v_threshold": 0.5}, "v_threshold=0.5"),
        ({"spiking_neuron": neuron.IFNode}, "IFNode.*LIFNode"),
        ({"embed_dims": 32}, "does not fit Spikformer with these arch_args"),
        ({"embed_dim": 16}, "takes no argument embed_dim"),
        ({"spiking_neuron": neuron.QIFNode}, "arch_args.spiking_neuron is not a plain JSON value"),
        ({"surrogate_function": surrogate.ATan()}, "arch_args.surrogate_function is not a plain JSON value"),
    ],
)
def test_arguments_of_another_model_are_refused(tmp_path, model, small, arch, args, text):
    with pytest.raises(UsageError, match=text):
        save(model, tmp_path / "m.pt", arch=arch, arch_args=small | args, input_shape=(3, 16, 16))
    assert not list(tmp_path.iterdir())


def test_a_surrogate_function_of_binary_spikes_does_not_matter(tmp_path, small, arch):
    model = models.Spikformer(**small, surrogate_function=surrogate.ATan())
    save(model, tmp_path / "m.pt", arch=arch, arch_args=small, input_shape=(3, 16, 16))
    assert load_model(tmp_path / "m.pt").info["arch_args"] == small


def test_the_number_of_an_integer_neurons_levels_does(tmp_path, small, arch):
    own = {"spiking_neuron": neuron.ILIFNode}
    model = models.Spikformer(**small, **own, surrogate_function=surrogate.MultiLevelSpikeCount(8))
    with pytest.raises(UsageError, match="is another model"):
        save(model, tmp_path / "m.pt", arch=arch, arch_args=small | own, input_shape=(3, 16, 16))


def test_values_that_are_not_json_and_shapes_that_are_none(tmp_path, model, small, arch):
    shape, metrics = (3, 16, 16), {"loss": torch.ones(1)}
    with pytest.raises(UsageError, match="metrics.loss is not a plain JSON value"):
        save(model, tmp_path / "m.pt", arch=arch, arch_args=small, input_shape=shape, metrics=metrics)
    with pytest.raises(UsageError, match="neither C,H,W nor T,C,H,W"):
        save(model, tmp_path / "m.pt", arch=arch, arch_args=small, input_shape=(16, 16))
    with pytest.raises(UsageError, match="does not name a factory"):
        save(model, tmp_path / "m.pt", arch="my_model", arch_args=small, input_shape=(3, 16, 16))


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, model, small, arch):
    (tmp_path / "m.pt").mkdir()
    (tmp_path / "m.pt" / "old").write_text("old")
    with pytest.raises(OutputError):
        save(model, tmp_path / "m.pt", arch=arch, arch_args=small, input_shape=(3, 16, 16))
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt"]
    assert (tmp_path / "m.pt" / "old").read_text() == "old"


def test_what_only_matters_in_training_does_not_matter(tmp_path, small, arch, enliven, logits):
    model = enliven(models.Spikformer(**small))
    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None
    for module in model.modules():
        if isinstance(module, neuron.BaseNode):
            module.detach_reset, module.store_v_seq = not module.detach_reset, True
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.4
    save(model, tmp_path / "m.pt", arch=arch, arch_args=small, input_shape=(3, 16, 16))
    x = torch.rand(2, 3, 16, 16)
    loaded = load_model(tmp_path / "m.pt").model
    for module in model.modules():
        if isinstance(module, neuron.BaseNode):
            module.store_v_seq = False
    assert torch.equal(logits(loaded, x), logits(model, x))
    norms[0].eps = 0.1
    with pytest.raises(UsageError, match="is another model"):
        save(model, tmp_path / "n.pt", arch=arch, arch_args=small, input_shape=(3, 16, 16))


def test_a_layer_too_many_is_another_model(tmp_path, model, small, arch):
    model = copy.deepcopy(model)  # which other tests share
    model.add_module("after", torch.nn.ReLU())
    with pytest.raises(UsageError, match=r"is another model.*and this one .*ReLU"):
        save(model, tmp_path / "m.pt", arch=arch, arch_args=small, input_shape=(3, 16, 16))
