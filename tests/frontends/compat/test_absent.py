"""Packages that are not installed: model files import them; only computing with them is refused, with the line."""

from __future__ import annotations

import pytest
import torch

from svitc.driver.load import load
from svitc.errors import UnsupportedError
from svitc.frontends.compat.import_hooks import find_factory, import_model_file

MODEL = """
import lz4.frame
import pandas as pd
import tonic
import cupy as cp
import matplotlib
import matplotlib.pyplot as plt
import tonic.transforms as transforms
from braincog.base.node import LIFNode as Other
from mmcv.runner import BaseModule, auto_fp16
from mmseg.models.builder import BACKBONES
from numba import njit
from spikingjelly.activation_based import auto_cuda, cuda_utils, neuron, layer
from spikingjelly.activation_based.neuron import GoneNode
from spikingjelly.cext import functional as gone
from torchvision import transforms as pictures
from torchvision.datasets import CIFAR10
from tqdm import tqdm
from wandb import log
from torch import nn
import torch

try:
    import surely_not_installed
    FAST = True
except ImportError:
    FAST = False

matplotlib.use("Agg")
plt.rcParams["font.size"] = 8
sizes = transforms.Compose([transforms.ToFrame(sensor_size=(2, 34, 34), n_time_bins=4), pictures.ToTensor()])
kernel = cp.RawKernel("code", "name")
writer = log({"a": 1})


@njit(parallel=True)
def unused(x: pd.DataFrame | None) -> "lz4.frame":
    return x


class Data(CIFAR10):
    pass


class Cell(GoneNode):
    pass


@BACKBONES.register_module()
class Net(nn.Module):
    def __init__(self, width=8, how=""):
        super().__init__()
        self.conv, self.lif = layer.Conv2d(3, width, 3, step_mode="m"), neuron.LIFNode(step_mode="m", v_threshold=0.2)
        self.head, self.how = nn.Linear(width, 5), how
        if how == "layer":
            self.other = Other()
        if how == "sub":
            self.other = Cell()
        if how == "module":
            self.other = gone.conv(3, 3)
        self.writer = plt.figure()
        isinstance(self.lif, Other)

    def forward(self, x):
        y = x.unsqueeze(0).repeat(4, 1, 1, 1, 1)
        if self.how == "forward":
            y = auto_cuda.run(y)
        if self.how == "kernel":
            y = y * kernel
        log({"steps": len(y)})
        return self.head(self.lif(self.conv(y)).mean((3, 4))).mean(0)


def build(**kwargs):
    for _ in tqdm(range(2)):
        pass
    return Net(**kwargs)


def absent(**kwargs):
    return cp.model(3)


def in_sequence(**kwargs):
    return nn.Sequential(nn.Identity(), cp.make_layer(3))
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "model_file.py").write_text(MODEL)
    return tmp_path / "model_file.py"


def line_of(text: str) -> int:
    return next(i for i, line in enumerate(MODEL.splitlines(), 1) if text in line)


def test_a_model_that_imports_what_is_not_there_is_loaded(file, tmp_path):
    torch.manual_seed(0)
    torch.save(find_factory(file, "build")().state_dict(), tmp_path / "m.pt")
    program = load(tmp_path / "m.pt", arch=f"{file}:build", input_shape=(3, 8, 8))
    assert len(list(program.neurons())) == 1


def test_imports_that_may_fail_do_fail(file):
    assert import_model_file(file).FAST is False


@pytest.mark.parametrize(
    ("how", "name", "line"),
    [
        ("layer", "braincog.base.node.LIFNode", "self.other = Other()"),
        ("sub", "spikingjelly.activation_based.neuron.GoneNode", "self.other = Cell()"),
        ("module", "spikingjelly.cext.functional.conv", "self.other = gone.conv(3, 3)"),
        ("forward", "spikingjelly.activation_based.auto_cuda.run", "y = auto_cuda.run(y)"),
        ("kernel", r"cupy.RawKernel\(\)", "y * kernel"),
    ],
)
def test_what_would_compute_is_refused_with_its_line(file, tmp_path, how, name, line):
    torch.save(find_factory(file, "build")().state_dict(), tmp_path / "m.pt")
    with pytest.raises(UnsupportedError, match=f"{name} is used") as caught:
        load(tmp_path / "m.pt", arch=f"{file}:build", arch_args={"how": how}, input_shape=(3, 8, 8))
    assert caught.value.where == f"{file}:{line_of(line)}"


@pytest.mark.parametrize(("name", "path"), [("absent", r"cupy.model\(\)"), ("in_sequence", r"cupy.make_layer\(\)")])
def test_what_a_factory_builds_of_it_is_refused(file, name, path):
    with pytest.raises(UnsupportedError, match=f"{path} is used, and cupy is not here") as caught:
        find_factory(file, name)()
    assert str(caught.value.where).startswith(f"{file}:")


def test_a_package_that_is_installed_lacks_a_name(tmp_path):
    (tmp_path / "m.py").write_text("from spikingjelly.cext import f\ndef g(): return f(3)\n")
    with pytest.raises(UnsupportedError, match="which the installed spikingjelly does not have"):
        find_factory(tmp_path / "m.py", "g")()
