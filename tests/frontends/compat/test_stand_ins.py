"""Stand-ins for what a model file imports and is not installed: an error only where a model needs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

from svitc.errors import InputError, UnsupportedError
from svitc.frontends.capture.capture import capture
from svitc.frontends.compat.import_hooks import compatible, find_factory, import_model_file
from svitc.ir.graph import InputSpec

HEAD = """
import torch
from torch import nn
"""
TOP = (
    HEAD
    + """
import absent_tool
import absent_tool.deep.er as er
from absent_tool import thing, jit, MODELS
from absent_tool.sub import Base, Kind as K
from mmengine.model import BaseModule
from mmdet.registry import MODELS as DETECTORS
from mmseg.models.builder import BACKBONES
from braincog.base.node.node import *
from braincog.model_zoo.base_module import BaseModule as BrainModule
from spikingjelly.activation_based.auto_cuda.neuron_kernel import Kernel
from spikingjelly.activation_based import neuron_kernel, cuda_utils
from spikingjelly.datasets.dvs128_gesture import DVS128Gesture

logger = thing.get_logger(__name__, level=absent_tool.INFO)
logger.info("imported")
DEFAULT = absent_tool.defaults.width()
SIZE = er.size


def configured():
    return absent_tool.config(1)


CONFIG = configured()


@jit
def helper(x):
    return x + 1


@jit(parallel=True)
def other(x: "K | None") -> K[int]:
    return x


@MODELS.register_module()
@DETECTORS.register_module(name="net")
@BACKBONES.register_module
class Net(BaseModule):
    kernel = Kernel
    act = absent_tool.act(approximate=True)

    def __init__(self, width: K | None = None):
        super().__init__(init_cfg=None)
        self.fc = nn.Linear(4, 3)
        assert not isinstance(self.fc, Base)

    def forward(self, x):
        return other(helper(self.fc(x.flatten(1))))


class Brain(BrainModule):
    def __init__(self, step=4, node=LIFNode):
        super().__init__(step)


class Derived(Base):
    pass


class Uses(nn.Module):
    def forward(self, x):
        return er.normalize(x)


def needs_thing():
    return nn.Sequential(thing(3))


def needs_kernel():
    return neuron_kernel.MultiStep(4)


def needs_node():
    return LIFNode(2.0)
"""
)


def written(folder: Path, text: str) -> Path:
    """Write a model file."""
    (folder / "m.py").write_text(text)
    return folder / "m.py"


def line_of(text: str, part: str) -> int:
    """Return the number of the last line that contains ``part``."""
    return max(i for i, line in enumerate(text.splitlines(), 1) if part in line)


def test_calls_and_decorators_at_the_top_of_a_file_work(tmp_path):
    model = find_factory(written(tmp_path, TOP), "Net")().eval()
    program = capture(model, InputSpec((1, 2, 2)))
    x = torch.randn(2, 1, 2, 2)
    assert torch.equal(program(x), model.fc(x.flatten(1)) + 1)


USES = {
    "needs_thing": ("absent_tool.thing is used, and absent_tool is not here", "nn.Sequential(thing(3))"),
    "Derived": ("absent_tool.sub.Base is used, and absent_tool is not here", None),
    "Brain": ("braincog.model_zoo.base_module.BaseModule is used, and braincog is not", "super().__init__(step)"),
    "needs_node": ("braincog.base.node.node.LIFNode is used, and braincog is not here", "return LIFNode(2.0)"),
    "needs_kernel": (
        "spikingjelly.activation_based.neuron_kernel.MultiStep is used, and the spikingjelly that is installed does "
        "not have it",
        "neuron_kernel.MultiStep(4)",
    ),
}


@pytest.mark.parametrize("name", USES)
def test_a_constructor_that_needs_what_is_missing_is_refused_with_its_line(tmp_path, name):
    message, part = USES[name]
    file = written(tmp_path, TOP)
    with pytest.raises(UnsupportedError, match=message) as caught:
        find_factory(file, name)()
    if part is not None:
        assert caught.value.where == f"{file}:{line_of(TOP, part)}"


def test_a_forward_that_needs_what_is_missing_is_refused_with_its_line(tmp_path):
    file = written(tmp_path, TOP)
    with pytest.raises(UnsupportedError, match=r"absent_tool.deep.er.normalize is used") as caught:
        capture(find_factory(file, "Uses")(), InputSpec((1, 2, 2)))
    assert caught.value.where == f"{file}:{line_of(TOP, 'er.normalize(x)')}"


GUARDED = (
    HEAD
    + """
import contextlib
import importlib.util

try:
    import surely_missing
except ImportError:
    surely_missing = None
try:
    from surely_missing.sub import thing
except Exception:
    thing = 1
with contextlib.suppress(ImportError):
    import surely_missing as again
HAS = importlib.util.find_spec("surely_missing") is not None
"""
)


def test_an_import_that_may_fail_fails(tmp_path):
    module = import_model_file(written(tmp_path, GUARDED))
    assert module.surely_missing is None and module.thing == 1 and not module.HAS and not hasattr(module, "again")


def test_a_package_further_up_in_the_repository_is_the_users_own(tmp_path):
    folder = tmp_path / "repository" / "a" / "b" / "c"
    folder.mkdir(parents=True)
    package = tmp_path / "repository" / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("import surely_missing\nWIDTH = 7\n")
    outside = tmp_path / "outside_package"
    outside.mkdir()
    (outside / "__init__.py").write_text("")
    (tmp_path / "repository" / "setup.py").write_text("")
    file = written(folder, "from own_package.part import WIDTH\nimport outside_package\n")
    module = import_model_file(file)
    assert module.WIDTH == 7
    assert not isinstance(getattr(module.outside_package, "__file__", None), str), "the search ends with the repository"


def test_neurons_of_the_kernels_for_gpus():
    with compatible():
        from spikingjelly.cext.neuron import MultiStepIFNode, MultiStepParametricLIFNode

        relay = MultiStepIFNode(v_threshold=0.5, detach_reset=True)
        assert type(relay) is neuron.IFNode and relay.step_mode == "m" and relay.v_threshold == 0.5
        assert type(MultiStepParametricLIFNode(init_tau=3.0)) is neuron.ParametricLIFNode


@pytest.mark.parametrize(
    "text",
    [
        "from spikingjelly.cext.neuron import MultiStepNothing\n",
        "from spikingjelly.clock_driven.neuron import MultiStepNothing\n",
    ],
)
def test_a_neuron_that_never_was_is_refused_at_import(tmp_path, text):
    with pytest.raises(InputError, match="cannot import name 'MultiStepNothing'") as caught:
        import_model_file(written(tmp_path, text))
    assert caught.value.where == f"{tmp_path}/m.py:1"


def test_star_imports_of_old_neurons():
    with compatible():
        scope: dict = {}
        exec("from spikingjelly.clock_driven.layer import *", scope)
        assert issubclass(scope["SeqToANNContainer"], nn.Module)
