"""Model files as they were written for packages that are gone: they import and run, and leave no trace."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest
import spikingjelly
import torch
from spikingjelly.activation_based import functional, neuron
from torch import nn

from svitc.errors import InputError, UnsupportedError, UsageError
from svitc.frontends.capture.capture import capture
from svitc.frontends.capture.model_rewrites import reference
from svitc.frontends.compat.import_hooks import compatible, find_factory, import_model_file
from svitc.frontends.compat.stand_ins import StandIn
from svitc.ir.graph import InputSpec
from svitc.ir.ops import is_neuron

OLD = """
import pdb
import torch
import torchinfo
import torch.nn as nn
from functools import partial
from torch._six import inf
from spikingjelly.clock_driven.neuron import MultiStepLIFNode, MultiStepParametricLIFNode
from spikingjelly.clock_driven import layer, functional, surrogate
from spikingjelly.activation_based.neuron import IFNode
from timm.data import IMAGENET_DEFAULT_MEAN
from timm.models import create_model
from timm.models.layers import to_2tuple, trunc_normal_, DropPath
from timm.models.registry import register_model
from timm.models.vision_transformer import PatchEmbed, Block, _cfg
from torchvision import transforms
from einops.layers.torch import Rearrange
from wandb import log
from sibling import WIDTH
from package import *
import matplotlib.pyplot as plt

__all__ = ["tiny"]


class Unused(Block):
    pass


class Tiny(nn.Module):
    def __init__(self, width=WIDTH, T=4, patch_size=2):
        super().__init__()
        self.T, (size, _) = T, to_2tuple(patch_size)
        self.patch = layer.SeqToANNContainer(nn.Conv2d(3, width, size, size), nn.BatchNorm2d(width))
        self.lif = MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy")
        self.plif = MultiStepParametricLIFNode(init_tau=2.0, v_threshold=0.5, backend="cupy", lava_s_cale=1 << 6)
        self.relay = IFNode(step_mode="m", backend="cupy", surrogate_function=surrogate.ATan())
        self.drop = DropPath(0.1)
        self.head = Head(width)
        trunc_normal_(self.head.fc.weight, std=0.02)

    @torch.jit.ignore
    def no_weight_decay(self):
        return {"pos_embed"}

    def forward(self, x):
        x = self.lif(self.patch(x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)))
        return self.head(self.relay(x + self.drop(self.plif(x))).flatten(3).mean(3).mean(0))


@register_model
def tiny(pretrained=False, **kwargs):
    model = Tiny(**kwargs)
    model.default_cfg = _cfg(mean=IMAGENET_DEFAULT_MEAN)
    return model


def again(**kwargs):
    return create_model("tiny", drop_rate=None, **kwargs)


def needs_block(**kwargs):
    return Block(dim=8)


def needs_unused(**kwargs):
    return Unused()


if __name__ == "__main__":
    torchinfo.summary(tiny())
"""
PACKAGE = "import torch.nn as nn\nfrom .head import Head\n__all__ = ['Head']\n"
HEAD = """
import torch.nn as nn


class Head(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        return self.fc(x)
"""


@pytest.fixture
def model_file(tmp_path) -> Path:
    """``repository/models/old.py``, with a sibling and a package beside its folder."""
    folder = tmp_path / "repository" / "models"
    (folder.parent / "package").mkdir(parents=True)
    folder.mkdir()
    (folder / "old.py").write_text(OLD)
    (folder / "sibling.py").write_text("WIDTH = 8\n")
    (folder.parent / "package" / "__init__.py").write_text(PACKAGE)
    (folder.parent / "package" / "head.py").write_text(HEAD)
    return folder / "old.py"


@pytest.fixture(autouse=True)
def no_trace(tmp_path):
    """Whatever a test does, it leaves imports as they were."""
    modules, path, finders = dict(sys.modules), list(sys.path), list(sys.meta_path)
    init, bytecode = neuron.LIFNode.__init__, sys.dont_write_bytecode
    yield
    assert {name for name in modules if sys.modules.get(name) is not modules[name]} == set()
    new = {name: module for name, module in sys.modules.items() if name not in modules}
    places = {name: (getattr(m, "__file__", None), list(getattr(m, "__path__", ()))) for name, m in new.items()}
    assert not any(isinstance(module, StandIn) for module in new.values())
    assert {name for name, place in places.items() if str(tmp_path) in str(place)} == set()
    assert (sys.path, sys.meta_path, sys.dont_write_bytecode) == (path, finders, bytecode)
    assert neuron.LIFNode.__init__ is init and not hasattr(functional, "set_backend")
    assert not hasattr(spikingjelly, "clock_driven")
    assert list(tmp_path.rglob("__pycache__")) == []


@pytest.mark.parametrize("name", ["tiny", "again", "Tiny"])
def test_an_old_model_file_runs(model_file, name):
    torch.manual_seed(0)
    model = find_factory(model_file, name)(T=3).eval()
    assert [type(m) for m in (model.lif, model.plif, model.relay)] == [
        neuron.LIFNode,
        neuron.ParametricLIFNode,
        neuron.IFNode,
    ]
    assert all(is_neuron(m) and m.step_mode == "m" for m in (model.lif, model.plif, model.relay))
    assert model.lif.tau == 2.0 and model.lif.detach_reset and model.plif.v_threshold == 0.5
    assert "plif.w" in model.state_dict()
    spec = InputSpec((3, 8, 6))
    program = capture(model, spec)
    x = torch.randn(spec.batched(2))
    assert torch.equal(program(x), reference(model, program, x))


def test_the_module_itself(model_file):
    module = import_model_file(model_file)
    with compatible(model_file):
        assert module.Tiny().head.fc.in_features == 8
        assert module.create_model("tiny", width=4).default_cfg["mean"] == (0.485, 0.456, 0.406)
    assert module.inf == float("inf") and module.Rearrange.__module__.startswith("einops")
    assert module.__name__ not in sys.modules


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_what_nothing_stands_for_says_so_when_it_is_used(model_file):
    for name in ("needs_block", "needs_unused"):
        with pytest.raises(UnsupportedError, match=r"timm.models.vision_transformer.Block is used, and timm is not"):
            find_factory(model_file, name)()


def test_names_of_two_files_do_not_meet(model_file):
    other = model_file.parent / "other.py"
    other.write_text(OLD.replace("self.head = Head(width)", "self.head = Head(width); self.other = True"))
    first, second = find_factory(model_file, "again"), find_factory(other, "again")
    assert not hasattr(first(), "other") and second().other


def test_a_module_of_that_name_elsewhere_is_neither_used_nor_lost(model_file, tmp_path, monkeypatch):
    (tmp_path / "sibling.py").write_text("WIDTH = 99\n")
    monkeypatch.syspath_prepend(tmp_path)
    elsewhere = importlib.import_module("sibling")
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    assert import_model_file(model_file).WIDTH == 8
    assert sys.modules.pop("sibling") is elsewhere


def test_what_is_installed_is_not_hidden(tmp_path, monkeypatch):
    """A package that works is used; one in the user's own folder, too, even where stand-ins come first."""
    real = tmp_path / "site" / "torchinfo.py"
    real.parent.mkdir()
    real.write_text("summary = 'real'\n")
    monkeypatch.syspath_prepend(real.parent)
    (tmp_path / "timm.py").write_text("create_model = 'own'\n")
    (tmp_path / "m.py").write_text("from torchinfo import summary\nfrom timm import create_model\n")
    module = import_model_file(tmp_path / "m.py")
    assert (module.summary, module.create_model) == ("real", "own")
    del sys.modules["torchinfo"]
    shutil.rmtree(tmp_path / "site" / "__pycache__", ignore_errors=True)


def test_relative_imports(tmp_path):
    package = tmp_path / "pack" / "inner"
    package.mkdir(parents=True)
    (tmp_path / "pack" / "__init__.py").write_text("")
    (tmp_path / "pack" / "width.py").write_text("WIDTH = 3\n")
    (package / "model.py").write_text("from ..width import WIDTH\nfrom .part import part\n")
    (package / "part.py").write_text("def part(): return 1\n")
    module = import_model_file(package / "model.py")
    assert module.WIDTH == 3 and module.part() == 1
    assert module.__name__ == "pack.inner.model"


BROKEN = {
    "import helper.part\n": (r"importing .* failed: ZeroDivisionError", 2),
    "try:\n    import surely_not_installed\nexcept ValueError:\n    pass\n": (
        r"imports surely_not_installed, which is not installed and has no stand-in",
        2,
    ),
    "\nraise ValueError('no luck')\n": (r"importing .* failed: ValueError: no luck", 2),
    "def f(:\n": (r"SyntaxError", 1),
    "import sys\nsys.exit(3)\n": (r"SystemExit: 3", 2),
    "from spikingjelly.clock_driven.neuron import MultiStepNothing\n": (
        r"ImportError: cannot import name 'MultiStepN",
        1,
    ),
    "from spikingjelly.clock_driven import nothing\n": (r"ImportError: cannot import name 'nothing'", 1),
    "import spikingjelly.clock_driven.nothing\n": (r"imports spikingjelly.clock_driven.nothing, which is not", 1),
    "import timm\nfor size in timm.models.sizes:\n    pass\n": (r"timm.models.sizes is used, and timm is not here", 2),
    "import helper\n": (r"importing .* failed: ZeroDivisionError", 2),
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_file_that_cannot_be_imported(tmp_path, text):
    message, line = BROKEN[text]
    (tmp_path / "broken.py").write_text(text)
    (tmp_path / "helper.py").write_text("\n1 / 0\n")
    with pytest.raises((InputError, UnsupportedError), match=message) as caught:
        import_model_file(tmp_path / "broken.py")
    name = "helper" if "helper" in text else "broken"
    assert caught.value.where == f"{tmp_path}/{name}.py:{line}"


def test_a_factory_that_does_not_exist(model_file, tmp_path):
    with pytest.raises(UsageError, match="has no factory tinny; the closest is tiny") as caught:
        find_factory(model_file, "tinny", UsageError)
    assert caught.value.hint == "It has tiny, again, needs_block, needs_unused, Unused, Tiny."
    with pytest.raises(InputError, match="there is no file"):
        import_model_file(tmp_path / "nothing.py")
    (tmp_path / "empty.py").write_text("WIDTH = 3\n")
    with pytest.raises(InputError, match="has no factory WIDTH") as caught:
        find_factory(tmp_path / "empty.py", "WIDTH")
    assert caught.value.hint == "It defines no function and no class."


def test_old_names_of_neurons():
    with compatible():
        from spikingjelly.clock_driven import layer, surrogate
        from spikingjelly.clock_driven.neuron import IFNode, MultiStepIFNode, MultiStepLIFNode

        functional.set_backend(nn.Identity(), "cupy")
        assert MultiStepIFNode(1.0, None, backend="cupy").v_reset is None
        lif = MultiStepLIFNode(3.0, False, 0.5, 0.0, surrogate.ATan(), True, "torch", 64)
        assert (lif.tau, lif.decay_input, lif.v_threshold, lif.detach_reset) == (3.0, False, 0.5, True)
        assert isinstance(lif, MultiStepLIFNode) and not isinstance(nn.Identity(), MultiStepLIFNode)
        assert not isinstance(neuron.LIFNode(), MultiStepLIFNode), "a neuron of single steps"
        assert IFNode is neuron.IFNode and layer.MultiStepDropout(0.2).step_mode == "m"

        class Own(MultiStepLIFNode):
            def __init__(self):
                super().__init__(tau=4.0, backend="cupy")

        own = Own()
        assert type(own) is Own and own.tau == 4.0 and own.step_mode == "m" and not is_neuron(own)
        assert isinstance(own, MultiStepLIFNode) and not isinstance(lif, Own)


def test_stochastic_depth():
    with compatible():
        layers = importlib.import_module("timm.layers")
    torch.manual_seed(0)
    x, drop = torch.ones(64, 3), layers.DropPath(0.25)
    rows = drop.train()(x)
    assert {round(v, 6) for v in rows.flatten().tolist()} == {0, 1.333333} and (rows == rows[:, :1]).all()
    assert torch.equal(drop.eval()(x), x) and torch.equal(layers.drop_path(x, 0.0, training=True), x)
