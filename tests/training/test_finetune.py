"""Fine-tuning: it learns, is never worse than its start, resumes to the same weights, and stops with a message."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import neuron, surrogate

from support.families import FAMILIES, NEURONS, spikformer
from support.finetuned import CLASSES, OPTIONS, Blobs, finetune, halved, program_of, same, small, weights_of
from svitc.errors import InputError, OutputError, UsageError
from svitc.ir.graph import InputSpec
from svitc.ir.pass_manager import Pipeline
from svitc.passes import HoistRepeat, MergeViews
from svitc.passes.pipelines import inference_passes
from svitc.support.distributed import DistributedContext, RankError
from svitc.training import finetune as finetuning
from svitc.training import images
from svitc.training.augment import augment, parse_augmentations, seeded_generator
from svitc.training.fast_forward import FastForward, neuron_constants, spikes
from svitc.training.images import split


@pytest.fixture(scope="module")
def teacher():
    return small()


@pytest.fixture(scope="module")
def student(teacher):
    return halved(teacher)


def test_it_learns_at_the_pruned_widths_and_leaves_its_arguments_alone(student, teacher):
    before = {name: value.clone() for name, value in weights_of(student).items()}
    original = {name: value.clone() for name, value in weights_of(teacher).items()}
    seen = []
    done = finetune(
        student, teacher, Blobs(), **{**OPTIONS, "distil": 0.0, "epochs": 6}, progress=lambda *a: seen.append(a)
    )
    report = json.loads(json.dumps(done.report))
    assert same(before, weights_of(student)) and same(original, weights_of(teacher))
    assert {n: v.shape for n, v in weights_of(done.program).items()} == {n: v.shape for n, v in before.items()}
    assert done.program.stage == student.stage
    losses = [epoch["loss"] for epoch in report["history"]]
    assert losses[-1] < 0.85 * losses[0]
    assert report["best_accuracy"] == max([report["start_accuracy"], *(e["accuracy"] for e in report["history"])])
    assert report["images"] + report["held_out"] == 96 and report["epochs"] == 6
    assert report["history"][0]["lr"] > report["history"][-1]["lr"]
    tune = [(done, of) for stage, done, of in seen if stage == "finetune"]
    assert tune == sorted(tune) and tune[-1][0] == tune[-1][1] and len(tune) == 6 * (report["images"] // 16)


def test_it_is_never_worse_than_its_start(student, teacher, monkeypatch):
    # a learning rate that destroys the network, and a start that nothing beats
    done = finetune(student, teacher, Blobs(), **{**OPTIONS, "epochs": 2, "lr": 30.0, "distil": 1.0})
    report = done.report
    if report["chosen_epoch"] == 0:
        assert same(weights_of(done.program), weights_of(student))
    assert report["best_accuracy"] >= report["start_accuracy"]


def test_resumed_runs_end_in_the_same_weights(student, teacher, tmp_path):
    options = {**OPTIONS, "augment": "auto"}
    whole = finetune(student, teacher, Blobs(), **options, checkpoint=tmp_path / "whole.pt")

    class Killed(Exception):
        pass

    file = tmp_path / "part.pt"
    steps = whole.report["images"] // 16

    def kill(stage, done, of):
        if stage == "finetune" and done > steps * 16 + 40:
            raise Killed

    with pytest.raises(Killed):
        finetune(student, teacher, Blobs(), **options, checkpoint=file, progress=kill)
    assert torch.load(file, weights_only=True)["epoch"] == 1
    resumed = finetune(student, teacher, Blobs(), **options, checkpoint=file, resume=True)
    assert same(weights_of(whole.program), weights_of(resumed.program))
    last = [torch.load(path, weights_only=True)["weights"] for path in (file, tmp_path / "whole.pt")]
    assert same(*last)
    assert [p.name for p in tmp_path.iterdir()] != [] and not list(tmp_path.glob(".svitc-*"))
    strip = [{k: v for k, v in e.items() if k != "seconds"} for e in resumed.report["history"]]
    assert strip == [{k: v for k, v in e.items() if k != "seconds"} for e in whole.report["history"]]
    again = finetune(student, teacher, Blobs(), **options, checkpoint=file, resume=True)  # nothing left to do
    assert same(weights_of(again.program), weights_of(whole.program))

    with pytest.raises(InputError, match="lr was 0.005, now 0.01"):
        finetune(student, teacher, Blobs(), **{**options, "lr": 0.01}, checkpoint=file, resume=True)
    with pytest.raises(InputError, match="the data differs"):
        finetune(student, teacher, Blobs(seed=1), **options, checkpoint=file, resume=True)
    with pytest.raises(InputError, match="the student differs"):
        finetune(teacher, teacher, Blobs(), **options, checkpoint=file, resume=True)
    content = file.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"not a checkpoint"):
        file.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged|no checkpoint"):
            finetune(student, teacher, Blobs(), **options, checkpoint=file, resume=True)
    state = torch.load(tmp_path / "whole.pt", weights_only=True)
    next(iter(state["weights"].values())).view(-1)[0] += 1
    torch.save(state, file)
    with pytest.raises(InputError, match="digest"):
        finetune(student, teacher, Blobs(), **options, checkpoint=file, resume=True)
    torch.save({"state_dict": {}}, file)
    with pytest.raises(InputError, match="no checkpoint"):
        finetune(student, teacher, Blobs(), **options, checkpoint=file, resume=True)


def test_a_loss_that_turns_nan_stops_with_the_place_and_the_way_out(student, teacher, tmp_path):
    class Poisoned(Blobs):
        def __init__(self):
            super().__init__()
            self.x[5::6] = float("nan")

    file = tmp_path / "tune.pt"
    with pytest.raises(UsageError, match=r"epoch 1 of 3, step \d of 5") as caught:
        finetune(student, teacher, Poisoned(), **OPTIONS, checkpoint=file)
    assert "--lr 0.00125" in str(caught.value) and "No epoch was finished" in str(caught.value)

    def poison(stage, done, of):  # the second epoch's weights
        if stage == "finetune" and done == (5 + 1) * 16:
            run.trained.get_parameter("head.weight").data.fill_(float("nan"))

    made = finetuning._Run.__init__

    def remember(self, *args, **kwargs):
        nonlocal run
        run = self
        made(self, *args, **kwargs)

    run = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning._Run, "__init__", remember)
        with pytest.raises(UsageError, match="epoch 2 of 3, step 2") as caught:
            finetune(student, teacher, Blobs(), **OPTIONS, checkpoint=file, progress=poison)
    assert str(file) in str(caught.value) and "Of 1 finished epochs" in str(caught.value)
    assert torch.load(file, weights_only=True)["epoch"] == 1


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"batch": 1},
        {"distil": 1.5},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"temperature": -1.0},
        {"augment": "blur"},
        {"resume": True},
    ],
    ids=str,
)
def test_options_that_make_no_sense(student, teacher, options):
    with pytest.raises(UsageError):
        finetune(student, teacher, Blobs(), **{**OPTIONS, **options})


def test_bad_places_and_data(student, teacher, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        finetune(student, teacher, Blobs(), **OPTIONS, checkpoint=tmp_path / "file" / "tune.pt")
    with pytest.raises(InputError, match="too few"):
        finetune(student, teacher, Blobs(1), **OPTIONS)
    folded = student.copy()
    Pipeline(inference_passes())(folded)
    with pytest.raises(UsageError, match="no longer trains"):
        finetune(folded, teacher, Blobs(), **OPTIONS)


def test_images_beyond_memory_are_read_again(student, teacher, monkeypatch):
    class Large(Blobs):
        def __init__(self):
            super().__init__()
            self.labels = self.y.numpy()

        def subset(self, indices):
            part = Large()
            part.x, part.y = self.x[indices], self.y[indices]
            return part

    options = {**OPTIONS, "epochs": 1}
    kept = finetune(student, teacher, Blobs(), **options)
    monkeypatch.setattr(images.open_images, "__defaults__", (1000,))
    again = finetune(student, teacher, Large(), **options)
    assert same(weights_of(kept.program), weights_of(again.program))
    with pytest.raises(UsageError, match="in random order"):
        finetune(student, teacher, Blobs(), **options)


def test_event_frames_and_one_channel():
    shape = (2, 2, 16, 16)
    events = program_of(
        spikformer(T=2, in_channels=2, img_size_h=16, img_size_w=16, embed_dims=16, num_classes=CLASSES), shape
    )
    done = finetune(events, events, Blobs(40, shape), epochs=1, batch=8)
    assert done.report["settings"]["augment"] == "none"
    assert parse_augmentations("auto", InputSpec((1, 8, 8))) == () and parse_augmentations(
        "auto", InputSpec((3, 8, 8))
    ) == (
        "flip",
        "crop",
    )
    assert parse_augmentations("none", InputSpec((3, 8, 8))) == () and parse_augmentations(
        "crop", InputSpec(shape)
    ) == ("crop",)


@pytest.mark.parametrize(
    ("count", "held_out", "wanted"), [(1000, 2000, 50), (1000, 20, 20), (20, 2000, 4), (5, 9, 2), (2, 9, 1)]
)
def test_the_held_out_slice_is_balanced_and_apart(count, held_out, wanted):
    labels = torch.arange(count) % 4
    train, judged = split(labels, held_out, seed=3)
    assert len(judged) == wanted and len(train) + len(judged) == count
    assert not set(train.tolist()) & set(judged.tolist())
    assert torch.bincount(labels[judged], minlength=4).max() <= -(-wanted // 4)
    assert torch.equal(judged, split(labels, held_out, seed=3)[1])


def test_jitter_is_the_same_for_any_share_of_the_batch():
    x = torch.arange(8 * 3 * 16 * 24.0).reshape(8, 3, 16, 24) + 1
    whole = augment(x, ("flip", "crop"), seeded_generator(0, 1, 2), 0, 8)
    parts = [augment(x[i : i + 4], ("flip", "crop"), seeded_generator(0, 1, 2), i, 8) for i in (0, 4)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, augment(x, ("flip", "crop"), seeded_generator(0, 1, 3), 0, 8))
    flipped = augment(x, ("flip",), seeded_generator(5), 0, 8)
    assert {bool(torch.equal(a, b)) for a, b in zip(flipped, x, strict=True)} == {True, False}
    frames = x.unsqueeze(0).expand(2, *x.shape)
    moved = augment(frames, ("flip", "crop"), seeded_generator(0, 1, 2), 0, 8, batch_dim=1)
    assert torch.equal(moved[0], whole) and torch.equal(moved[1], whole)


NODES = {
    "hard": {"tau": 2.0},
    "detached": {"tau": 2.0, "detach_reset": True},
    "soft": {"tau": 3.0, "v_reset": None},
    "soft, detached": {"tau": 3.0, "v_reset": None, "detach_reset": True},
    "reset to 0.2, not decayed": {"tau": 2.5, "v_reset": 0.2, "decay_input": False, "v_threshold": 0.7},
    "reset to -0.3": {"tau": 2.5, "v_reset": -0.3, "detach_reset": True},
    "atan": {"tau": 2.0, "surrogate_function": surrogate.ATan(), "detach_reset": True},
    "erf": {"tau": 2.0, "surrogate_function": surrogate.Erf()},
}


@pytest.mark.parametrize("leaky", [True, False], ids=["LIF", "IF"])
@pytest.mark.parametrize("name", NODES)
def test_neurons_are_spikingjellys(name, leaky):
    arguments = dict(NODES[name])
    if not leaky:
        arguments = {k: v for k, v in arguments.items() if k not in ("tau", "decay_input")}
    node = (neuron.LIFNode if leaky else neuron.IFNode)(step_mode="m", **arguments)
    found = neuron_constants(node)
    assert found is not None
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(5, 6, 8, 4, 4, dtype=dtype).mul_(1.5).add_(0.4)
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (5, 6))
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        node.reset()
        want = node(theirs)
        got = spikes(ours, found)
        assert torch.equal(got, want) and 0.05 < want.mean() < 0.9
        assert torch.equal(spikes(x, found), want)
        weight = torch.randn_like(want)
        (got * weight).sum().backward()
        (want * weight).sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_quick_form_computes_and_learns_what_the_plain_one_does(family):
    torch.manual_seed(0)
    model, shape = FAMILIES[family]
    compare(program_of(model(T=2) if family == "spikformer" else model(), shape), shape)


@pytest.mark.parametrize("kind", NEURONS)
def test_the_quick_form_with_every_neuron(kind):
    torch.manual_seed(0)
    shape = (3, 16, 16)
    size = {"img_size_h": 16, "img_size_w": 16, "embed_dims": 16, "T": 2}
    compare(program_of(spikformer(**size, **NEURONS[kind]), shape), shape)


def compare(program, shape):
    """In float64, where the order of sums flips no spike."""
    program.module.double().train()
    twin = program.copy()
    Pipeline([HoistRepeat(), MergeViews()])(twin)
    twin.module.train()
    x = torch.randn(4, *shape, dtype=torch.float64)
    labels = torch.arange(4) % 3
    program.reset()
    want = program.module(x)
    want = want.mean(0) if want.ndim == 3 else want
    got = FastForward(twin)(x)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    F.cross_entropy(want, labels).backward()
    F.cross_entropy(got, labels).backward()
    program.reset()
    ours = dict(twin.module.named_parameters())
    for name, parameter in program.module.named_parameters():
        assert (parameter.grad is None) == (ours[name].grad is None)
        if parameter.grad is not None:
            got, want = ours[name].grad, parameter.grad
            worst = float((got - want).abs().max())
            assert worst <= 1e-6 * float(want.abs().max()) + 1e-12, (name, worst, float(want.abs().max()))


class Unlabeled(Blobs):
    """The same images, without their labels."""

    def batches(self, n):
        return ((x, torch.full_like(y, -1)) for x, y in super().batches(n))


def test_images_without_labels_are_learned_from_the_original_alone(student, teacher, tmp_path):
    options = {**OPTIONS, "distil": 1.0, "epochs": 2, "held_out": 8}
    done = finetune(student, teacher, Unlabeled(), **options, checkpoint=tmp_path / "c.pt")
    report = json.loads(json.dumps(done.report))
    assert not any("accuracy" in key for row in (report, *report["history"]) for key in row)
    shares = [report["start_agreement"], *(epoch["agreement"] for epoch in report["history"])]
    assert report["best_agreement"] == max(shares) and report["history"][-1]["loss"] < report["history"][0]["loss"]
    # the labels play no part in the gradients of distillation, and without them every image may be held out
    again = finetune(student, teacher, Unlabeled(), **options, checkpoint=tmp_path / "c.pt", resume=True)
    assert same(weights_of(again.program), weights_of(done.program))
    unpruned = finetune(teacher, teacher, Unlabeled(), **{**options, "epochs": 1}).report
    assert unpruned["start_agreement"] == 1.0


@pytest.mark.parametrize("distil", [0.0, 0.5])
def test_a_label_loss_needs_labels(student, teacher, distil):
    with pytest.raises(UsageError, match=f"no labels to train on, so distil must be 1, not {distil:g}"):
        finetune(student, teacher, Unlabeled(), **{**OPTIONS, "distil": distil})


def test_a_rank_that_is_gone_before_the_first_step_is_said(monkeypatch):
    def gone(*_: object, **__: object) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer")

    monkeypatch.setattr(finetuning, "DistributedDataParallel", gone)
    monkeypatch.setattr(finetuning, "current", lambda: DistributedContext(rank=0, size=2))
    teacher = small()
    with pytest.raises(RankError, match="rank 0 of 2 stops, because another rank stopped"):
        finetune(halved(teacher), teacher, Blobs(), **OPTIONS)
