"""Models with several outputs, or with one that is not class scores, from capture to the output folder."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import svitc
from support import several
from support.shell import run
from svitc import runtimes
from svitc.data.dataset import load_data
from svitc.driver.load import check_capture
from svitc.errors import InputError, UsageError
from svitc.frontends.capture.model_rewrites import reference
from svitc.onnx.export import export
from svitc.passes.pipelines import quantize
from svitc.passes.pruning.prune import Prune
from svitc.verification.exact_check import verify_exact
from svitc.verification.float_check import verify

NAMES = {
    "Single": ["logits"],
    "Tuple": ["output_0", "output_1"],
    "Maps": ["x_2", "spikes", "head", "output_7.0"],
    "OverTime": [f"output_{t}" for t in range(several.T)],
    "Aliases": ["output_0", "output_1.again", "output_1.spikes.0", "output_1.spikes.1", "output_2"],
    "Named": ["boxes", "scores"],
    "Detection": ["maps.0", "maps.1", "maps.2", "boxes"],
    "Dense": ["logits"],
}


def noise(seed: int = 0, images: int = 2) -> torch.Tensor:
    return torch.randn(several.IMAGE.batched(images), generator=torch.Generator().manual_seed(seed))


def source_of(folder):
    spec = importlib.util.spec_from_file_location("written", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load()


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_network_returns_what_the_model_returns(name):
    model = several.build(name)
    program = several.program_of(model)
    x = noise(images=3)
    assert check_capture(model, program) == 0 and program.output_names == NAMES[name]
    result = program(x)
    assert several.same(result, model.eval()(x)) or several.same(result, reference(model, program, x))
    assert all(torch.equal(a, b) for a, b in zip(program.outputs(x), several.tensors_of(result), strict=True))


@pytest.mark.parametrize("weights", ["fp32", "int8"])
@pytest.mark.parametrize("budget", [0.78, 1.0])
@pytest.mark.parametrize("name", NAMES)
def test_every_file_returns_what_the_program_returns(name, budget, weights, tmp_path):
    program = several.program_of(several.build(name))
    limit = budget if weights == "fp32" else budget / 3
    done = svitc.compile(program, limit, weights=weights, no_data="uniform", remove_dead_channels="off")
    assert done.verdict.passed and done.report["memory"]["ratio"] <= limit
    assert (done.program.parameter_count() < program.parameter_count()) == (budget < 1) or weights == "int8"
    done.write(tmp_path)
    x = noise(1)
    expected = done.program(x)
    loaded = svitc.load(tmp_path)
    assert several.same(loaded(x), expected) and loaded.output_names == NAMES[name]
    assert several.same(source_of(tmp_path)(x), expected)
    session = runtimes.session(tmp_path / "model.onnx")
    assert session.output_names == NAMES[name]
    for ours, theirs in zip(several.arrays(expected), session.run(None, {"image": x.numpy()}), strict=True):
        assert theirs.shape == ours.shape and np.allclose(ours, theirs, atol=1e-4) and ours.std() > 0


@pytest.mark.parametrize("name", ["Maps", "Aliases", "Detection", "Dense", "Named"])
def test_a_pruned_network_is_the_masked_one(name):
    """Every output of the network without channels equals that of the network whose channels are silenced."""
    program = several.program_of(several.build(name))
    free = [group for group in program.groups if group.frozen is None]
    keep = {group.name: np.arange(group.size).reshape(1, -1) % 3 > 0 for group in free}
    masked, pruned = program.copy(), program.copy()
    Prune(svitc.Plan(keep))(pruned)
    for group in free:
        gone = torch.from_numpy(~keep[group.name][0])
        for member in group.members:
            module = masked.module.get_submodule(member.module)
            if member.dim == 0 and member.param in ("weight", "bias", "running_mean"):
                with torch.no_grad():
                    getattr(module, member.param)[gone] = 0
    x = noise(2)
    masked.module.double(), pruned.module.double()
    for a, b in zip(masked.outputs(x.double()), pruned.outputs(x.double()), strict=True):
        assert abs(a - b).max() <= 1e-9
    assert any(group.size for group in free)


@pytest.mark.parametrize("name", ["Tuple", "Maps", "Detection"])
def test_a_wrong_output_is_found(name):
    """Each output is compared: swapping two, or doubling one alone, does not pass."""
    program = several.program_of(several.build(name))
    file = onnx.load_from_string(export(program))
    for i, output in enumerate(file.graph.output):
        wrong = onnx.ModelProto()
        wrong.CopyFrom(file)
        producer = next(node for node in wrong.graph.node if output.name in node.output)
        producer.output[list(producer.output).index(output.name)] = "single"
        wrong.graph.node.append(onnx.helper.make_node("Add", ["single", "single"], [output.name]))
        verdict = verify(program, wrong.SerializeToString(), [noise()])
        assert verdict.first_divergence == f"output {output.name}" and not verdict.passed
        beyond = [part.values_beyond_rounding > 0 for part in verdict.outputs]
        assert beyond == [k == i for k in range(len(beyond))]


def test_a_wrong_output_of_an_int8_file_is_found():
    program = several.program_of(several.build("Maps"))
    final = quantize(program)[0]
    file = onnx.load_from_string(export(final))
    assert verify_exact(final, file.SerializeToString(), [noise()]).passed
    producer = next(node for node in file.graph.node if "spikes" in node.output)
    producer.output[0] = "single"
    file.graph.node.append(onnx.helper.make_node("Add", ["single", "single"], ["spikes"]))
    verdict = verify_exact(final, file.SerializeToString(), [noise()])
    assert verdict.first_divergence == "output spikes"


def test_a_file_with_other_outputs_is_refused():
    program, other = (several.program_of(several.build(name)) for name in ("Tuple", "Single"))
    with pytest.raises(InputError, match="has the outputs logits, the program output_0, output_1"):
        verify(program, export(other), [noise()])


def test_the_class_scores_among_several_outputs_are_compared():
    program = several.program_of(several.build("Maps"))
    verdict = verify(program, export(program), [noise(images=4)])
    assert verdict.to_json()["top1_agreement"] == 1 and [o["name"] for o in verdict.to_json()["outputs"]] == [
        f"output {name}" for name in NAMES["Maps"]
    ]
    dense = several.program_of(several.build("Dense"))
    assert verify(dense, export(dense), [noise()]).to_json()["top1_agreement"] is None


def images_file(folder, labels: bool):
    rng = np.random.default_rng(0)
    extra = {"labels": rng.integers(0, 5, 80)} if labels else {}
    np.savez(folder / "images.npz", images=(rng.random((80, 3, 16, 16)) * 255).astype(np.uint8), **extra)
    return folder / "images.npz"


def agreement(outputs, targets):
    return (outputs.argmax(1) == targets.argmax(1)).double().mean((1, 2))


@pytest.mark.parametrize("labels", [False, True])
def test_dense_maps_are_compiled_on_images(labels, tmp_path):
    """The policy auto chooses by relative errors, and the report has them in place of an accuracy."""
    program = several.program_of(several.build("Dense"))
    data = load_data(images_file(tmp_path, labels), program.input, program.info)
    done = svitc.compile(program, 0.7, data=data)
    report = done.report
    assert done.verdict.passed and report["policy"]["policy"] == "auto" and report["memory"]["ratio"] <= 0.7
    assert report["accuracy"]["images"] == 0 and report["agreement"] is None and report["prediction"] is None
    error = report["outputs"]["relative_errors"]["logits"]
    uniform = svitc.compile(program, 0.7, data=data, policy=svitc.Uniform()).report["outputs"]
    assert 0 < error < uniform["relative_errors"]["logits"] and report["outputs"]["metric"] is None
    assert any("accuracy needs" in text for text in report["decisions"]) == labels
    assert any("relative squared error" in text for text in report["decisions"])


def test_a_metric_is_reported_and_bounds_the_drop(tmp_path):
    program = several.program_of(several.build("Dense"))
    data = load_data(images_file(tmp_path, False), program.input, program.info)
    done = svitc.compile(program, data=data, max_drop=0.1, metric=agreement)
    metric = done.report["outputs"]["metric"]
    assert metric["name"] == "agreement" and metric["original"] == 1 and 0 < metric["drop"] < 0.15
    assert done.report["memory"]["ratio"] < 1
    assert any("max-drop bounds what the metric loses: at most 0.1" in text for text in done.report["decisions"])


def test_class_scores_among_other_outputs_have_an_accuracy(tmp_path):
    program = several.program_of(several.build("Maps"))
    data = load_data(images_file(tmp_path, True), program.input, program.info)
    report = svitc.compile(program, 0.8, data=data).report
    assert report["accuracy"]["images"] == 56
    assert list(report["outputs"]["relative_errors"]) == NAMES["Maps"]


def test_a_single_output_of_classes_reports_as_before(tmp_path):
    program = several.program_of(several.build("Single"))
    data = load_data(images_file(tmp_path, False), program.input, program.info)
    report = svitc.compile(program, 0.8, data=data).report
    assert "outputs" not in report and "outputs" not in report["verify"] and report["agreement"]["images"] == 56


def test_fine_tuning_of_other_outputs_is_refused(tmp_path):
    program = several.program_of(several.build("Tuple"))
    data = load_data(images_file(tmp_path, True), program.input, program.info)
    with pytest.raises(UsageError, match="trains class scores alone, and the model returns output_0, output_1"):
        svitc.compile(program, 0.8, data=data, train_data=data, finetune=1)


def test_the_command_takes_a_metric(tmp_path, capsys):
    checkpoint = tmp_path / "model.pt"
    torch.save(several.build("Dense").state_dict(), checkpoint)
    (tmp_path / "metrics.py").write_text("def mean(outputs, targets):\n    return outputs.mean()\n")
    arguments: list[object] = ["compile", checkpoint, "--budget", "0.8", "--out", tmp_path / "out"]
    arguments += ["--arch", f"{Path(several.__file__)}:Dense", "--input-shape", "3,16,16"]
    arguments += ["--data", images_file(tmp_path, False), "--metric", f"{tmp_path}/metrics.py:mean"]
    code, shown, errors = run(capsys, *arguments)
    assert code == 0, errors
    shown = " ".join(shown.split())
    assert "mean on 56 images" in shown and "relative error of logits" in shown and "same class" not in shown
