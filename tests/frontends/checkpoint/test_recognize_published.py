"""Checkpoints and model files of the published repositories: they load as they are, and say what is wrong if not."""

from __future__ import annotations

import argparse
import inspect
import json
import pathlib
import sys
from typing import Any

import pytest
import torch
from torch import nn

from svitc.driver.load import check_capture, load
from svitc.errors import InputError, SvitcError, UnsupportedError, UsageError
from svitc.frontends.checkpoint.load import LoadOptions, load_model
from svitc.frontends.published import ESpikeFormer, MetaSpikeFormer, QKFormer, SpikeDrivenTransformer, Spikformer

SIZES: dict[str, Any] = {"embed_dims": 32, "depths": 1, "num_classes": 3}
STAGES: dict[str, Any] = {"embed_dims": [8, 16, 16, 32], "num_heads": 8, "depths": [1, 1], "num_classes": 3}
# a small model of each published code, and its input
SMALL: dict[str, tuple[type[nn.Module], dict[str, Any], tuple[int, ...]]] = {
    "spikformer": (Spikformer, {**SIZES, "num_heads": 2}, (3, 16, 32)),
    "spikformer-cifar": (Spikformer, {**SIZES, "num_heads": 2, "variant": "cifar"}, (3, 8, 16)),
    "spikformer-dvs": (
        Spikformer,
        {**SIZES, "num_heads": 2, "variant": "dvs", "in_channels": 2, "tokens": 4},
        (3, 2, 32, 32),
    ),
    "sdt": (SpikeDrivenTransformer, {**SIZES, "num_heads": 2}, (3, 32, 32)),
    "sdt-dvs": (
        SpikeDrivenTransformer,
        {**SIZES, "num_heads": 2, "in_channels": 2, "pooling_stat": "0011", "dvs_mode": True},
        (3, 2, 8, 16),
    ),
    "meta": (MetaSpikeFormer, STAGES, (3, 32, 32)),
    "meta-distilled": (MetaSpikeFormer, {**STAGES, "distilled": True}, (3, 32, 32)),
    "espikeformer": (ESpikeFormer, STAGES, (3, 32, 32)),
    "qkformer": (QKFormer, {**SIZES, "num_heads": 2, "variant": "imagenet", "depths": [1, 1, 1]}, (3, 32, 64)),
    "qkformer-dvs": (
        QKFormer,
        {**SIZES, "num_heads": 16, "variant": "dvs", "depths": [1, 1], "in_channels": 2},
        (3, 2, 32, 32),
    ),
}
STEPS = 3

FILE = """
import torch
import torch.nn as nn
import torchinfo
from functools import partial
from spikingjelly.clock_driven.neuron import MultiStepLIFNode
from timm.models.layers import to_2tuple, trunc_normal_, DropPath
from timm.models.registry import register_model
from timm.models.vision_transformer import _cfg
from parts import Mlp

class Small(nn.Module):
    def __init__(self, width=8, num_classes=3, T=4, drop_path_rate=0.1):
        super().__init__()
        self.T = T
        self.conv = nn.Conv2d(3, width, kernel_size=to_2tuple(2), stride=2)
        self.bn = nn.BatchNorm2d(width)
        self.lif = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")
        self.drop = DropPath(drop_path_rate)
        self.mlp = Mlp(width)
        self.together = MultiStepLIFNode(tau=2.0, backend="cupy")
        self.mixed = False
        self.head = nn.Linear(width, num_classes)
        trunc_normal_(self.head.weight, std=0.02)

    def forward(self, x):
        x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        T, B, C, H, W = x.shape
        x = self.bn(self.conv(x.flatten(0, 1)))
        x = self.lif(x.reshape(T, B, -1, H // 2, W // 2))
        x = x + self.drop(self.mlp(x))
        if self.mixed:
            x = self.together(x.flatten(0, 1)).reshape(T, B, -1, H // 2, W // 2)
        return self.head(x.flatten(3).mean(3).mean(0))

@register_model
def small(pretrained=False, **kwargs):
    model = Small(**kwargs)
    model.default_cfg = _cfg()
    return model

@register_model
def mixed(pretrained=False, **kwargs):
    model = Small(**kwargs)
    model.mixed = True
    return model

class Fixed(Small):
    def __init__(self):
        super().__init__(T=1)
"""
PARTS = """
import torch.nn as nn
from spikingjelly.clock_driven.neuron import MultiStepLIFNode

class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Conv2d(width, width, 1)
        self.lif = MultiStepLIFNode(tau=2.0, backend="cupy")

    def forward(self, x):
        return self.lif(self.fc(x.flatten(0, 1)).unflatten(0, x.shape[:2]))
"""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def write(tmp_path):
    def write(content, name="model.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def built(enliven):
    """A small model of a published code that fires, and its input."""

    def built(name: str) -> tuple[nn.Module, tuple[int, ...]]:
        kind, arguments, shape = SMALL[name]
        torch.manual_seed(0)
        steps = {} if kind is ESpikeFormer else {"T": STEPS}
        return enliven(kind(**arguments, **steps)), shape

    return built


@pytest.fixture
def repository(tmp_path):
    """``models/model.py`` in the manner of the published repositories, with a sibling."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "model.py").write_text(FILE)
    (folder / "parts.py").write_text(PARTS)
    before, path, finders = dict(sys.modules), list(sys.path), list(sys.meta_path)
    yield folder / "model.py"
    assert (sys.path, sys.meta_path) == (path, finders)
    new = {name: getattr(module, "__file__", None) for name, module in sys.modules.items() if name not in before}
    assert not [name for name in new if name.startswith(("timm", "spikingjelly.clock_driven", "torchinfo"))]
    assert not [name for name, file in new.items() if str(tmp_path) in str(file)]
    assert all(sys.modules.get(name) is module for name, module in before.items())


@pytest.fixture
def state(repository, enliven):
    """Weights for it, made without its code."""
    torch.manual_seed(0)
    shapes = {"conv": (8, 3, 2, 2), "mlp.fc": (8, 8, 1, 1), "head": (3, 8)}
    state = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    state |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}
    return state | {f"bn.{key}": value for key, value in enliven(nn.BatchNorm2d(8)).state_dict().items()}


def refused(path: pathlib.Path, kind: type[SvitcError] = InputError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        load_model(path, LoadOptions(**options))
    return str(caught.value)


# checkpoints without a model file


@pytest.mark.parametrize("name", SMALL)
def test_a_bare_checkpoint_is_loaded_and_captured_exactly(write, built, logits, name):
    model, shape = built(name)
    said = {"time_steps": STEPS, "num_heads": SMALL[name][1]["num_heads"], "lr": 0.1}
    said |= {key: SMALL[name][1][key] for key in ("pooling_stat", "dvs_mode") if key in SMALL[name][1]}
    path = write({"state_dict": model.state_dict(), "epoch": 3, "args": argparse.Namespace(**said)})
    options = {"arch_args": {"num_heads": SMALL[name][1]["num_heads"]}, "input_shape": shape}
    options["fix"] = name.startswith("qkformer")
    program = load(path, **options)  # which checks the capture against the eager model
    x = torch.randn(program.input.batched(2))
    assert program.input.shape == shape
    assert torch.equal(program(x), logits(model, x)) and program(x).abs().sum() > 0
    assert program.info["arch"] == f"svitc.frontends.official:{type(model).__name__}"
    assert program.info["format"] == "state_dict" and program.info["num_classes"] == 3
    assert json.loads(json.dumps(program.info)) == program.info
    assumed = " ".join(program.info["assumptions"])
    assert not any(word in assumed for word in ("T =", "input shape", "num_heads"))


def test_qkformer_is_refused_for_its_own_mistake_unless_fixed(write, built, logits):
    """A bare checkpoint is what the published code computes; --rewrite-model makes it what the paper means."""
    model, shape = built("qkformer")
    path, options = write({"model": model.state_dict()}), {"input_shape": shape, "arch_args": {"num_heads": 2, "T": 3}}
    loaded = load_model(path, LoadOptions(**options))
    x = torch.randn(2, *shape)
    assert torch.equal(logits(loaded.model, x[:1]), logits(model, x[:1]))
    assert not torch.equal(logits(loaded.model, x), logits(model, x)), "neighbours count"
    with pytest.raises(UnsupportedError, match="run together .*so that an image's result depends on its") as caught:
        load(path, **options)
    assert "stage3.0.attn.proj_lif" in str(caught.value) and "--rewrite-model splits time from batch" in str(
        caught.value
    )
    program = load(path, **options, rewrite_model=True)
    assert torch.equal(program(x), logits(model, x)) and program.info["fixed"] == ["stage3.0.attn.proj_lif"]
    assert any("run together in the model's code, are split" in note for note in program.info["assumptions"])
    program = load(path, input_shape=shape, arch_args={**options["arch_args"], "official_bug": False})
    assert torch.equal(program(x), logits(model, x))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "arch": "spikformer", "version": 2, "optimizer": {}},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}, "scaler": {}},
        lambda s: {k: v for k, v in s.items() if "num_batches_tracked" not in k},
    ],
    ids=["plain", "timm", "module.", "no counters"],
)
def test_however_it_is_wrapped(write, built, logits, wrap):
    model, shape = built("spikformer-cifar")
    options = LoadOptions(input_shape=shape, time_steps=STEPS, arch_args={"num_heads": 2})
    loaded = load_model(write(wrap(model.state_dict())), options)
    assert {t.device.type for t in [*loaded.model.parameters(), *loaded.model.buffers()]} == {"cpu"}
    x = torch.rand(2, *shape)
    assert torch.equal(logits(loaded.model, x), logits(model, x))
    assert loaded.info["arch_args"]["T"] == STEPS and loaded.info["arch_args"]["variant"] == "cifar"


def test_what_nobody_says_is_assumed_aloud_until_somebody_does(write, built):
    model, _ = built("spikformer-cifar")
    path = write({"model": model.state_dict(), "args": argparse.Namespace(T=6, img_size=16)})
    loaded = load_model(path)
    assert loaded.model.T == 6 and loaded.input.shape == (3, 16, 16)
    assert [note.partition(" =")[0] for note in loaded.info["assumptions"]] == ["num_heads"]
    loaded = load_model(path, LoadOptions(arch_args={"num_heads": 4, "T": 2}))
    assert loaded.info["assumptions"] == []
    assert (loaded.model.T, loaded.model.block[0].attn.num_heads) == (2, 4)
    loaded = load_model(write(model.state_dict()))
    assert any("override with --time-steps" in note for note in loaded.info["assumptions"])


def test_averaged_weights(write, built):
    model, shape = built("spikformer-cifar")
    last = model.state_dict()
    averaged = {f"module.{key}": value + 1 if key == "head.bias" else value for key, value in last.items()}
    path = write({"state_dict": last, "state_dict_ema": averaged, "args": argparse.Namespace(T=2)})
    without = load_model(path, LoadOptions(input_shape=shape))
    with_ema = load_model(path, LoadOptions(input_shape=shape, ema=True))
    assert torch.equal(with_ema.model.head.bias, without.model.head.bias + 1)
    assert with_ema.model.T == 2
    assert any("--ema" in note for note in without.info["assumptions"])
    assert not any("EMA" in note for note in with_ema.info["assumptions"])
    for content in (last, {"model": last}):
        assert "holds no averaged weights (it has" in (text := refused(write(content, "bare.pth"), ema=True))
        assert "Leave out --ema" in text and "bare.pth" in text


def test_a_file_may_name_our_own_definitions(write, built):
    model, shape = built("espikeformer")
    content = {"state_dict": model.state_dict(), "arch": "svitc.frontends.official:ESpikeFormer"}
    content |= {"arch_args": SMALL["espikeformer"][1], "input_shape": list(shape)}
    loaded = load_model(write(content))
    assert loaded.info["format"] == "self-describing" and loaded.info["assumptions"] == []
    assert "ESpikeFormer has no time steps" in refused(write(content), UsageError, time_steps=4)
    content["arch_args"] = {**content["arch_args"], "depths": [10**9, 1]}
    assert "more blocks than the file has tensors" in refused(write(content))


# model files


@pytest.mark.parametrize("factory", ["small", "Small"])
def test_an_unmodified_model_file(write, repository, state, logits, factory):
    path = write({"model": state, "args": argparse.Namespace(T=2)})
    options = {"arch": f"{repository}:{factory}", "input_shape": (3, 4, 6)}
    assert load_model(path, LoadOptions(**options)).model.T == 2
    loaded = load_model(path, LoadOptions(**options, time_steps=5, arch_args={"drop_path_rate": 0.2}))
    assert loaded.model.T == 5 and loaded.info["arch_args"] == {"drop_path_rate": 0.2}
    program = load(path, **options, time_steps=5)
    x = torch.randn(2, 3, 4, 6)
    assert torch.equal(program(x), logits(loaded.model, x)) and program(x).abs().sum() > 0


def test_time_steps_are_set_where_no_argument_sets_them(write, repository, state):
    options = LoadOptions(arch=f"{repository}:Fixed", input_shape=(3, 4, 6), time_steps=5)
    assert load_model(write(state), options).model.T == 5


def test_a_forward_may_import_too(write, repository, state):
    inside = """
    def forward(self, x):
        import torchinfo
        from timm.models.layers import to_2tuple
        from parts import Mlp
        assert to_2tuple(2) == (2, 2) and Mlp.__name__ == "Mlp"
"""
    repository.write_text(FILE.replace("\n    def forward(self, x):\n", inside))
    program = load(write(state), arch=f"{repository}:small", input_shape=(3, 4, 6))
    assert sum(1 for _ in program.neurons()) == 2  # and all is gone again: the fixture looks


def test_time_and_batch_run_together_are_split_where_asked(write, repository, state, logits):
    path, options = write(state), {"arch": f"{repository}:mixed", "input_shape": (3, 4, 6)}
    with pytest.raises(UnsupportedError, match="an image's result depends on its neighbors") as caught:
        load(path, **options)
    assert "--rewrite-model splits time from batch" in str(caught.value)
    program = load(path, **options, rewrite_model=True)
    model = load_model(path, LoadOptions(**options)).model
    assert check_capture(model, program) == 0.0
    x = torch.randn(3, 3, 4, 6)
    alone = torch.cat([logits(model, each[None]) for each in x])
    torch.testing.assert_close(program(x), alone, rtol=0, atol=1e-6)  # a batch is summed in another order
    assert any("run together in the model's code" in note for note in program.info["assumptions"])


# bad input


@pytest.mark.parametrize(
    ("text", "factory", "message"),
    [
        (
            "\nraise ValueError('no luck')",
            "small",
            r"importing .*model.py failed: ValueError: no luck\n  at .*model.py:2",
        ),
        (
            "import surely_not_installed",
            "small",
            r"model.py has no factory small\n  It defines no function and no class",
        ),
        (FILE, "smal", r"has no factory smal; the closest is small\n  It has small, mixed, Small, Fixed\."),
    ],
)
def test_model_files_that_cannot_be_used(write, repository, state, text, factory, message):
    repository.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_model(write(state), LoadOptions(arch=f"{repository}:{factory}"))


def test_what_a_stand_in_cannot_do_is_said(write, repository, state):
    repository.write_text("from timm.models.vision_transformer import Block\ndef small():\n    return Block(dim=8)\n")
    with pytest.raises(UnsupportedError, match="Block is used, and timm is not here"):
        load_model(write(state), LoadOptions(arch=f"{repository}:small"))


def test_weights_of_another_family_say_which(write, repository, built):
    model, _ = built("qkformer")
    text = refused(write(model.state_dict()), arch=f"{repository}:small", input_shape=(3, 4, 6))
    assert "does not fit small: 8 of the model's 11 tensors are missing" in text
    assert 'a published QKFormer (imagenet) with "embed_dims": 32, "depths": [1, 1, 1]' in text
    text = refused(write(model.state_dict()), arch="qkformer_10_384")  # SpikingJelly's, of other names
    assert "By their names and shapes they are a published QKFormer (imagenet)" in text


def test_names_that_do_not_match_show_the_closest(write, repository, state):
    renamed = {key.replace("mlp.fc", "mlp.fc1"): value for key, value in state.items()}
    text = refused(write(renamed), arch=f"{repository}:small", input_shape=(3, 4, 6))
    assert "2 of the model's 11 tensors are missing (mlp.fc.weight, mlp.fc.bias" in text
    assert "; the file has mlp.fc1.weight, mlp.fc1.bias)" in text
    assert "2 tensors in the file are unknown to the model" in text


def test_nearly_a_published_layout(write, built):
    state = built("spikformer")[0].state_dict()
    del state["head.weight"], state["head.bias"]
    text = refused(write(state), UnsupportedError)
    assert "look most like the published spikformer_8_384 (Spikformer), which would have head.bias, head.weight" in text
    state = built("meta")[0].state_dict()
    del state["head.bias"]
    assert "1 of the model's" in (text := refused(write(state))) and "is missing (head.bias)" in text


class Options:
    """What a training script might keep its options in."""


def test_options_that_safe_loading_refuses(write, built):
    state = built("spikformer-cifar")[0].state_dict()
    inner = argparse.Namespace(model="spikformer", opt="adamw", output_dir=Options())
    for args in (Options(), inner):
        text = refused(write({"model": state, "optimizer": {"state": {}}, "epoch": 1, "args": args}))
        assert "is refused for its entry 'args', the training script's options" in text
        assert inspect.getmodule(Options).__name__ in text and "Options" in text
        assert "Nothing was run." in text and "del checkpoint['args']" in text
    text = refused(write({"model": {**state, "extra": Options()}, "args": argparse.Namespace(T=2)}))
    assert "is more than weights" in text
