"""What Python code gives: names for policies, paths as text, images in memory; wrong types are refused in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import svitc
from svitc.energy import energy
from svitc.errors import InputError, UsageError

QUICK = {"images": 1, "no_data": "uniform"}
IMAGES, LABELS = np.random.default_rng(0).random((24, 1, 16, 16), dtype=np.float32), np.arange(24) % 10


@pytest.fixture(scope="module")
def done(digits):
    """A compilation whose policy is a name and whose images are a loader."""
    data = DataLoader(TensorDataset(torch.tensor(IMAGES), torch.tensor(LABELS)), batch_size=8)
    return svitc.compile(digits, 0.7, data=data, policy="uniform", sweep_images=8, calibration_images=4, images=1)


def test_a_loader_and_the_name_of_a_policy(done):
    assert done.report["policy"]["policy"] == "uniform" and done.report["accuracy"]["images"] == 24
    assert done.verdict.passed


def test_paths_as_text(done, digits, tmp_path):
    files = done.write(str(tmp_path / "out"))
    assert {file.name for file in files} >= {"model.onnx", "plan.json", "report.html"}
    plan = svitc.Plan.load(str(tmp_path / "out/plan.json"))
    again = svitc.compile(digits, plan=str(tmp_path / "out/plan.json"), **QUICK)
    assert plan.to_json() == done.plan.to_json() == again.plan.to_json()
    assert svitc.verify(done.program, str(tmp_path / "out/model.onnx"), IMAGES[:2]).passed


def test_images_as_text_and_as_arrays(digits, tmp_path):
    np.savez(tmp_path / "digits.npz", images=IMAGES, labels=LABELS)
    stored, given = (svitc.open_data(digits, source) for source in (str(tmp_path / "digits.npz"), (IMAGES, LABELS)))
    assert stored.fingerprint() == given.fingerprint()
    options = svitc.CompileOptions(data=str(tmp_path / "digits.npz"), sweep_file=str(tmp_path / "sweep"), **QUICK)
    compiler = svitc.Compiler(digits, "uniform", options)
    assert compiler.options.data.fingerprint() == given.fingerprint()
    assert compiler.options.sweep_file == tmp_path / "sweep"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": 3}, "an int gives no images"),
        ({"policy": "unifrom"}, "Did you mean uniform?"),
        ({"policy": svitc.Uniform}, r"policy=Uniform\(\) makes one"),
        ({"policy": 3}, "int is not a policy"),
        ({"plan": 3}, "plan is a int, not a plan"),
        ({"plan": "nowhere.json"}, "cannot read the plan nowhere.json"),
        ({"reporter": 3}, "Derive it from svitc.Reporter"),
        ({"sweep_file": 3}, "sweep_file is 3, not a path or None"),
        ({"weights": 8}, "weights is 8, not a text or None"),
        ({"seed": "a"}, "seed is 'a', not a whole number"),
        ({"max_drop": "1%"}, "max_drop is '1%', not a number or None"),
        ({"finetune": True}, "finetune is True, not a whole number"),
        ({"finetune_options": [1]}, "finetune_options is .1., not a dictionary"),
        ({"input_range": 3}, "input_range is 3, not a pair of numbers or None"),
        ({"metric": 3}, "metric is a int, not a function"),
        ({"reparam": "x"}, "reparam 'x' is neither auto nor off"),
        ({"sweep_images": 0}, "sweep_images 0 is not a positive number"),
    ],
)
def test_what_is_wrong_is_said(digits, given, message):
    with pytest.raises((UsageError, InputError), match=message):
        svitc.compile(digits, 0.9, **{**QUICK, "policy": "uniform", **given})


def test_numbers_of_numpy_are_numbers(digits):
    options = svitc.CompileOptions(max_drop=np.float32(0.01), seed=np.int64(3), input_range=[0, np.float64(1)], **QUICK)
    assert svitc.driver.given.given_options(digits, options) is options


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda done: done.write(3), "the output folder is 3, not a path"),
        (lambda done: svitc.load(None), "the checkpoint is None, not a path"),
        (lambda done: svitc.export(done), "a Compiled is not a program\n  It has one"),
        (lambda done: svitc.Compiler(3), "a int is not a program\n  svitc.load"),
        (lambda done: svitc.Compiler(done.program, options={}), "options is a dict"),
        (lambda done: svitc.open_data("model.pt", IMAGES), "a str is not a program"),
        (lambda done: svitc.verify(done.program, 3, IMAGES), "the exported file is 3, not a path"),
        (lambda done: svitc.verify(done.program, "nowhere.onnx", IMAGES), "cannot read nowhere.onnx"),
        (lambda done: svitc.verify(done.program, done.onnx, IMAGES[0]), "images of shape"),
        (lambda done: energy(done.program, "val/"), "a str gives no images\n  Give a batch"),
        (lambda done: energy(done.program, [3]), "images are a int, not a tensor"),
    ],
)
def test_other_calls_say_it_as_well(done, call, message):
    with pytest.raises((UsageError, InputError), match=message):
        call(done)


def test_one_budget_may_be_of_any_real_type_and_several_are_a_front(digits):
    assert 0.6 < svitc.compile(digits, np.float32(0.7), policy="uniform", **QUICK).report["memory"]["ratio"] <= 0.7
    with pytest.raises(UsageError, match="takes one budget") as caught:
        svitc.compile(digits, [0.7, 0.5])
    assert "svitc.front" in str(caught.value.hint)


def test_a_file_with_integer_weights_is_not_compared_with_floats(digits):
    done = svitc.compile(digits, policy="uniform", weights="int8", **QUICK)
    with pytest.raises(InputError, match="weights are .int8., but the program has float ones"):
        svitc.verify(digits, done.onnx, IMAGES[:1])


def test_a_file_of_another_program_is_refused(done, digits):
    with pytest.raises(InputError, match="was not exported from this program") as caught:
        svitc.verify(digits, done.onnx, IMAGES[:1])
    assert "Compiled.program" in str(caught.value.hint)
