"""The user's own code: --arch module:factory or path/to/file.py:factory."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from svitc.errors import InputError, UsageError
from svitc.frontends.checkpoint import model_factory
from svitc.frontends.checkpoint.load import LoadOptions, load_model

OWN = """
import sibling_of_own
from torch import nn

class Net(nn.Module):
    def __init__(self, width: int = 4, time_steps: int = 4, img_size=16):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.again = nn.Conv2d(3, width, 3)
        self.again.weight = self.conv.weight
        self.steps = time_steps

    def forward(self, x):
        return self.conv(x)

def build(**kwargs):
    return Net(**kwargs)

def broken():
    raise RuntimeError("no luck")

def number():
    return 3

ready = Net(5)
value = 7
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Loads weights of width 4 with the user's code, in a current folder that has it."""
    (tmp_path / "own_code.py").write_text(OWN)
    (tmp_path / "sibling_of_own.py").write_text("")
    (tmp_path / "needs_more.py").write_text("import os\nimport surely_not_installed\n")
    (tmp_path / "wrong.py").write_text("def f(:\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    conv = nn.Conv2d(3, 4, 3)
    state = {f"{name}.{key}": value for name in ("conv", "again") for key, value in conv.state_dict().items()}
    torch.save(state, tmp_path / "weights.pt")
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield lambda arch, **options: load_model(tmp_path / "weights.pt", LoadOptions(arch=arch, **options))
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize("place", ["own_code", "own_code.py", "./own_code.py"])
def test_a_module_or_a_file(own, place):
    path = list(sys.path)
    loaded = own(f"{place}:Net", arch_args={"width": 4})
    assert loaded.model.again.weight is loaded.model.conv.weight  # what was shared still is
    assert torch.equal(loaded.model.conv.weight, torch.load("weights.pt")["conv.weight"])
    assert loaded.info["assumptions"] == [
        "input shape = 3,16,16 (the factory's image size); override with --input-shape 3,16,16"
    ]
    assert loaded.info["arch"] == f"{place}:Net"
    assert sys.path == path


def test_time_steps_go_to_the_factorys_own_argument(own):
    assert own("own_code:Net", time_steps=7).model.steps == 7
    with pytest.raises(UsageError, match="broken takes no number of time steps"):
        own("own_code:broken", time_steps=7)
    with pytest.raises(UsageError, match="is 7 in --time-steps, but 3 in --arch-args"):
        own("own_code:Net", time_steps=7, arch_args={"time_steps": 3})


def test_a_model_that_is_there_already(own):
    with pytest.raises(InputError, match=r"is \[4, 3, 3, 3\] in the file and \[5, 3, 3, 3\] in the model"):
        own("own_code:ready", input_shape=(3, 8, 8))
    with pytest.raises(UsageError, match="is a model, not a factory"):
        own("own_code:ready", arch_args={"width": 4})


@pytest.mark.parametrize(
    ("arch", "text"),
    [
        ("own_code", "does not name a factory"),
        ("own_code:", "does not name a factory"),
        ("not_there:build", "there is no module not_there"),
        ("not_there.at_all:build", "there is no module not_there"),
        ("missing.py:build", "there is no file missing.py"),
        ("own_code:biuld", "has no factory biuld; the closest is build\n  It has Net, build, broken, number"),
        ("own_code:value", "has no factory value"),
        ("own_code:number", "returned a int, not a torch.nn.Module"),
        ("own_code:broken", r"broken\(\) failed: RuntimeError: no luck"),
        ("needs_more:f", "needs_more imports surely_not_installed, which is not .*\n  at .*needs_more.py:2"),
        ("needs_more.py:f", "needs_more.py has no factory f"),
        ("wrong.py:f", "importing wrong.py failed: SyntaxError: .*\n  at .*wrong.py:1"),
        ("leaves:f", "importing leaves failed: SystemExit: 3\n  at .*leaves.py:1"),
        ("spikingjelly.activation_based.model:Spikfomer", "the closest is Spikformer"),
    ],
)
def test_what_cannot_be_imported_or_called(own, arch, text):
    with pytest.raises(UsageError, match=text):
        own(arch)


def test_arguments_that_the_factory_does_not_take(own):
    with pytest.raises(UsageError, match="unexpected keyword argument 'widht'; did you mean width?") as caught:
        own("own_code:Net", arch_args={"widht": 4})
    assert "Its signature is Net(width=4, time_steps=4, img_size=16)." in str(caught.value)


def test_weights_of_another_width(own):
    with pytest.raises(InputError, match=r"weights.pt does not fit Net: 4 tensors are of another shape") as caught:
        own("own_code:Net", arch_args={"width": 6})
    assert "Check --arch-args" in str(caught.value)


def test_an_input_shape_that_nothing_tells(own):
    with pytest.raises(UsageError, match="nothing says what shape of input own_code:build takes") as caught:
        own("own_code:build")
    assert "such as 3,224,224 (its first convolution takes 3 channels)" in str(caught.value)


def test_a_known_factory_that_the_user_names_gets_no_guesses(tmp_path, described, small):
    torch.save(described["state_dict"], tmp_path / "bare.pt")
    options = LoadOptions(arch=described["arch"], arch_args=small)
    assert load_model(tmp_path / "bare.pt", options).info["assumptions"] == [
        "input shape = 3,16,16 (the image size of its factory); override with --input-shape 3,16,16"
    ]
    with pytest.raises(InputError, match="does not fit spikformer_s") as caught:
        load_model(tmp_path / "bare.pt", LoadOptions(arch="spikformer_s"))
    assert 'they are a Spikformer with "embed_dims": 16' in str(caught.value)
    with pytest.raises(UsageError, match="spikformer_s takes no argument embed_dims"):
        load_model(tmp_path / "bare.pt", LoadOptions(arch="spikformer_s", arch_args={"embed_dims": 16}))


def test_the_users_factory_replaces_a_files_and_its_arguments(tmp_path, own):
    state = torch.load("weights.pt")
    about = {"arch": "own_code:Net", "arch_args": {"width": 4}, "input_shape": [3, 9, 9]}
    torch.save({"state_dict": state, **about}, "d.pt")
    with pytest.raises(InputError, match="not one that a file may name"):
        load_model(tmp_path / "d.pt")
    # the user vouches for the same factory: the file's arguments hold
    loaded = load_model(tmp_path / "d.pt", LoadOptions(arch="own_code:Net"))
    assert (loaded.info["arch_args"], loaded.input.shape) == ({"width": 4}, (3, 9, 9))
    other = load_model(tmp_path / "d.pt", LoadOptions(arch="own_code:build"))
    assert other.info["arch_args"] == {}


@pytest.mark.parametrize("name", ["T", "time_step", "timestep", "time_steps", "timesteps", "num_steps", "step"])
def test_every_name_of_the_number_of_time_steps(tmp_path, name):
    text = f"from torch import nn\nclass Net(nn.Linear):\n    def __init__(self, {name}=4):\n"
    (tmp_path / "timed.py").write_text(text + f"        super().__init__(2, 2)\n        self.steps = {name}\n")
    model, arguments = model_factory.build_custom(f"{tmp_path}/timed.py:Net", {}, 7)
    assert model.steps == 7 and arguments[name] == 7
    model, _ = model_factory.build_custom(f"{tmp_path}/timed.py:Net", {}, None, saved_steps=6)
    assert model.steps == 6
    with pytest.raises(UsageError, match=f"--time-steps says 7, and --arch-args says {name} = 3"):
        model_factory.build_custom(f"{tmp_path}/timed.py:Net", {name: 3}, 7)
