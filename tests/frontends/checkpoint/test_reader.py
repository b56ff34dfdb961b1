"""Bad input: each mistake gives one error of the right kind, which names the thing and the way out."""

from __future__ import annotations

import os
import pickle
import zipfile
from random import Random

import pytest
import torch
from torch import nn

from svitc.errors import InputError, SvitcError, UsageError
from svitc.frontends.checkpoint.load import LoadOptions, load_model


@pytest.fixture
def refuse(tmp_path):
    """Load a file or content, and return the error's text."""

    def refuse(content, kind=InputError, **options):
        path = content
        if not hasattr(content, "exists"):
            path = tmp_path / "model.pt"
            torch.save(content, path)
        with pytest.raises(kind) as caught:
            load_model(path, LoadOptions(**options))
        assert type(caught.value) is kind
        assert caught.value.hint is not None or "\n" not in str(caught.value)
        return str(caught.value)

    return refuse


# files


def test_files_that_are_no_checkpoint(refuse, tmp_path, described):
    assert "nothing.pt does not exist" in refuse(tmp_path / "nothing.pt")
    torch.save(described, tmp_path / "whole.pt")
    assert "In that folder: whole.pt" in refuse(tmp_path / "nothing.pt")
    assert "There is no folder" in refuse(tmp_path / "nowhere" / "model.pt")
    assert "is a folder, not a checkpoint" in refuse(tmp_path)
    files = {
        "empty": (b"", "is empty"),
        "page": (b"<!DOCTYPE html><html>", r"begins with b'<!DOCTYPE ht'"),
        "pointer": (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        "truncated": (
            (tmp_path / "whole.pt").read_bytes()[:3000],
            "is truncated: its end is missing, after 3,000",
        ),
        "pickle": (pickle.dumps({"a": 1}, protocol=4), "torch did not write"),
    }
    for name, (data, text) in files.items():
        (tmp_path / name).write_bytes(data)
        assert text in refuse(tmp_path / name)


def test_a_damaged_file_is_an_error_and_no_traceback(refuse, tmp_path, described):
    torch.save(described, tmp_path / "whole.pt")
    data = bytearray((tmp_path / "whole.pt").read_bytes())
    at = data.index(b"arch_args")
    data[at - 40 : at] = bytes(40)
    (tmp_path / "bad.pt").write_bytes(data)
    assert "bad.pt" in refuse(tmp_path / "bad.pt")


def test_damage_anywhere_is_refused_or_harmless(tmp_path, described):
    """No exception but ours, whichever bytes are wrong: of the archive, or of the pickle in a sound one."""
    path, random = tmp_path / "model.pt", Random(0)
    torch.save(described, path)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in members if name.endswith("data.pkl"))
    refused = 0
    for turn in range(150):
        if turn % 2:
            path.write_bytes(damage(data, random))
        else:
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in members.items():
                    archive.writestr(name, damage(content, random) if name == pickled else content)
        try:
            load_model(path)
        except SvitcError:
            refused += 1
    assert 75 < refused < 150


def damage(data: bytes, random: Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(random.choice([1, 3, 30])):
        damaged[random.randrange(len(damaged))] = random.randrange(256)
    return bytes(damaged)


def test_zip_files_of_another_sort(refuse, tmp_path):
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("a/b.txt", "x")
    assert "a zip file, but not a PyTorch checkpoint" in refuse(tmp_path / "zip.pt")
    (tmp_path / "x.safetensors").write_bytes(b"\x08\x00\x00")
    assert "not a safetensors file" in refuse(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([1, 2], "holds a list"),
        ({"a": 1, "optimizer": {}}, r"holds no weights \(it has a, optimizer\)"),
        ({"state_dict": {}}, "holds no weights"),
        (torch.zeros(2), "holds a Tensor"),
    ],
)
def test_content_that_is_no_state_dict(tmp_path, content, text):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(InputError, match=text):
        load_model(tmp_path / "model.pt")


# code in files


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_file_runs_no_code(refuse, tmp_path, described):
    ran = tmp_path / "ran"
    text = refuse({**described, "extra": Evil(str(ran))})
    assert "Python must import and call" in text and "mkdir" in text
    assert "--trust-pickle, only if you made the file: unpickling runs any code" in text
    assert not ran.exists()
    with pytest.raises(FileExistsError):  # it would have run
        ran.mkdir()
        pickle.loads(pickle.dumps(Evil(str(ran))))


def test_a_whole_model_needs_trust(refuse):
    assert "call torch.nn.modules.linear.Linear" in refuse(nn.Linear(2, 2))


ARCHS = ["os:system", "posix:Spikformer", "spikingjelly.activation_based.model:MASNN", "own.py:build", ":"]


@pytest.mark.parametrize("arch", ARCHS)
def test_a_file_names_known_factories_only(refuse, described, arch):
    text = refuse({**described, "arch": arch})
    assert f"names the factory {arch!r}, which is not one that a file may name" in text
    assert "--arch" in text


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ({"v_threshold": torch.zeros(1)}, "arch_args.v_threshold is not a plain JSON value"),
        ({"spiking_neuron": "os.system"}, "spiking_neuron 'os.system' is not a neuron that svitc knows"),
        ({"depths": 10**9}, "more blocks than the file has tensors"),
        ({"embed_dims": -16}, "embed_dims of Spikformer must be a positive whole number"),
        ({"T": 2**40}, "in 1,099,511,627,776 time steps (T) claims 3"),
        ({"T": "4"}, "T of Spikformer must be a positive whole number, not '4'"),
        ({"embed_dim": 16}, "takes no argument embed_dim; did you mean embed_dims?"),
        ({"surrogate_function": "ATan"}, "takes no argument surrogate_function"),
        ({"decay_input": "no"}, "decay_input is true or false"),
        ({"num_heads": 5}, "dim 16 should be divided by num_heads 5"),
        ({"num_heads": 0}, "failed: ZeroDivisionError"),
        ({"tau": 0.5}, "failed: AssertionError"),
        ({"embed_dims": 10**6}, "patch_embed.stages.0.conv_bn.block.0.weight is [2, 3, 3, 3] in the file"),
    ],
)
def test_arguments_in_a_file_are_plain_and_bounded(refuse, described, args, text):
    described["arch_args"] |= args
    message = refuse(described)
    assert text in message
    assert "model.pt" in message


def test_a_list_in_itself_is_refused(refuse, described):
    loop: list = []
    loop.append(loop)
    described["arch_args"]["depths"] = loop
    assert "nested too deeply" in refuse(described)


# weights


def test_missing_unexpected_and_misshapen_weights_are_named_together(refuse, described):
    state = described["state_dict"]
    state["head.bais"] = state.pop("head.bias")
    state["head.weight"] = torch.zeros(7, 16)
    text = refuse(described)
    assert "1 of the model's 56 tensors is missing (head.bias; the file has head.bais)" in text
    assert "1 tensor in the file is unknown to the model (head.bais)" in text
    assert "1 tensor is of another shape (head.weight is [7, 16] in the file and [3, 16] in the model)" in text


def test_many_missing_weights_are_counted(refuse, described):
    state = described["state_dict"]
    for key in [k for k in state if k.startswith("blocks.0.attn")]:
        del state[key]
    assert "10 of the model's 56 tensors are missing (blocks.0.attn" in refuse(described)
    assert ", … 7 more)" in refuse(described)


def test_wrong_arguments_show_what_the_weights_are(refuse, described):
    described["arch_args"]["embed_dims"] = 32
    assert 'they are a Spikformer with "embed_dims": 16, "depths": 1, "num_classes": 3' in refuse(described)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_numbers_are_counted(refuse, described, value):
    described["state_dict"]["head.weight"][0, :5] = value
    assert "NaN or infinity in head.weight (5 of 48)" in refuse(described)


def test_large_finite_weights_are_no_infinity(tmp_path, described):
    described["state_dict"]["head.weight"][:] = torch.finfo(torch.float32).max
    torch.save(described, tmp_path / "model.pt")
    assert load_model(tmp_path / "model.pt").model.head.weight.isfinite().all()


def test_a_float64_weight_beyond_float32_is_too_large(refuse, described):
    described["state_dict"]["head.bias"] = torch.tensor([-1e300, 0, 0], dtype=torch.float64)
    text = refuse(described)
    assert "head.bias holds float64 numbers up to 1e+300, too large for float32" in text and "diverged" not in text
    described["state_dict"]["head.bias"] = torch.tensor([float("inf"), 0, 0], dtype=torch.float64)
    assert "NaN or infinity in head.bias (1 of 3)" in refuse(described)


def test_weights_of_another_kind(refuse, described):
    state = described["state_dict"]
    weight = state["head.weight"]
    for value, text in {
        "int8": (weight.to(torch.int8), "head.weight holds int8, where the model has real numbers"),
        "complex": (weight.to(torch.complex64), "head.weight is not a dense tensor of numbers (complex64"),
        "sparse": (weight.to_sparse(), "not a dense tensor of numbers (float32, torch.sparse_coo"),
        "claim": (torch.zeros(1).expand(10**12), "head.weight claims 1000000000000 numbers, which the file"),
        "text": ("hello", "entry head.weight is a str, not a tensor"),
    }.values():
        state["head.weight"] = value
        assert text in refuse(described)
    state["head.weight"] = weight
    state["blocks.0.mlp.fc1.1.running_var"][3] = -1
    assert "blocks.0.mlp.fc1.1.running_var has a negative variance" in refuse(described)


# shapes, time steps, labels


def test_shapes_that_do_not_fit(refuse, described):
    text = refuse({**described, "input_shape": [1, 16, 16]})
    assert "the input shape 1,16,16 does not fit model.pt, whose weights take 3 channels" in text
    assert "Give --input-shape 3,16,16." in text
    assert "whose weights take 3 channels" in refuse(described, UsageError, input_shape=(1, 16, 16))
    for shape in ("3,16,16", [16, 16], [3, 0, 16], [3, 16, 16.0], 5):
        assert "is not the shape of an input" in refuse({**described, "input_shape": shape})
    assert "is not the shape of an input" in refuse(described, UsageError, input_shape=(16, 16))


def test_time_steps_that_disagree(refuse, described):
    text = refuse({**described, "input_shape": [9, 3, 16, 16]})
    assert "arch_args says T = 2, but input_shape has 9 time steps" in text
    text = refuse(described, UsageError, time_steps=5, arch_args={"T": 6})
    assert text == "the number of time steps is 5 in --time-steps, but 6 in --arch-args"
    text = refuse(described, UsageError, time_steps=5, input_shape=(4, 3, 16, 16))
    assert text == "the number of time steps is 5 in --time-steps, but 4 in --input-shape"
    assert "not a positive number" in refuse(described, UsageError, time_steps=0)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("classes", ["a", "b"], "classes has 2 names, but the head has 3"),
        ("classes", ["a", "a", "b"], "classes has 2 names, but the head has 3"),
        ("classes", 3, "classes is not a list of names"),
        ("normalize", {"mean": [0.5], "std": [0.5]}, "of 3 numbers"),
        ("normalize", {"mean": [0, 0, 0], "std": [1, 0, 1]}, "std above 0"),
        ("normalize", {"mean": [0, 0, 0]}, "normalize is not"),
        ("normalize", {"mean": [0, 0, float("nan")], "std": [1, 1, 1]}, "not a plain JSON value"),
        ("arch_args", [1], "arch_args is not an object"),
    ],
)
def test_what_a_file_says_of_itself_must_fit(refuse, described, key, value, text):
    assert text in refuse({**described, key: value})


def test_arguments_that_are_no_json_object(refuse, described):
    assert "--arch-args is not a JSON object" in refuse(described, UsageError, arch_args=[1])
    text = refuse(described, UsageError, arch_args={"embed_dims": {1}})
    assert "--arch-args.embed_dims is not a plain JSON value" in text
