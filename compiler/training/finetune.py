"""Fine-tuning: a pruned program learns again at the widths that it has, from labels and from the original's logits.

Weights are float32; layers run in bfloat16 where autocast allows it. After every epoch the held-out images are
classified in float32 as the exported file will, and the best of all epochs wins, the start included: what comes back
is never worse on them than what came in. Under torchrun every rank trains on its share of every batch.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from svitc.errors import UsageError
from svitc.ir.ops import is_batch_norm
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program, Stage
from svitc.passes.canonical.merge_views import MergeViews
from svitc.passes.inference.hoist_repeat import HoistRepeat
from svitc.passes.pipelines import inference_passes
from svitc.support.atomic_files import writable
from svitc.support.distributed import DistributedContext, current
from svitc.support.reporter import Reporter
from svitc.training.augment import augmentation, jitter, random_of
from svitc.training.checkpoint import digest, load, save
from svitc.training.fast_forward import FastForward
from svitc.training.images import Data, Images, open_images, split
from svitc.training.quantization_aware import FakeQuantizedWeights

log = logging.getLogger("svitc")
CLIP = 1.0  # largest norm of a step's gradient
WARM_UP = 0.05  # share of all steps in which the learning rate rises, at most one epoch
JUDGE_BATCH = 64


class Score(NamedTuple):
    """Of the held-out images: how many are right, and minus the mean cross-entropy, which decides between equals."""

    right: int
    likelihood: float


@dataclass
class Finetuned:
    """A program that learned.

    Attributes:
        program: the same widths as before, the best weights.
        report: ``epochs``, ``images``, ``held_out``, ``start_accuracy``, ``best_accuracy``, ``teacher_accuracy``,
            ``chosen_epoch`` (0 is the start), ``history`` (a dictionary for each epoch: ``loss``, ``accuracy``,
            ``lr``, ``seconds``), ``settings``. JSON values only; accuracies are shares of the held-out images.
    """

    program: Program
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FinetuneOptions:
    """How to train.

    Attributes:
        epochs: over the training images, at least 1.
        batch: images of a step, over all ranks.
        lr: highest learning rate; it rises by step, then falls along a cosine to 0.
        weight_decay: not of biases and batch norms.
        distil: share of the teacher in the loss, 0 to 1.
        temperature: by which logits are divided before the two are compared.
        augment: ``auto`` is ``flip,crop`` for images of three channels and ``none`` for all else.
        amp: run layers in bfloat16.
        seed: of the order of images and their augmentation.
        held_out: at most 5% of the images, and at most this many, only judge epochs.
        bits: layers whose weights lie on a grid of so many bits, and stay there (quantization_aware.py).
        checkpoint: file that is written after every epoch.
        resume: go on from ``checkpoint``, if it is there, and end in the weights that an uninterrupted run gives.
    """

    epochs: int
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.02
    distil: float = 0.5
    temperature: float = 2.0
    augment: str = "auto"
    amp: bool = True
    seed: int = 0
    held_out: int = 2000
    bits: Mapping[str, int] | None = None
    checkpoint: Path | None = None
    resume: bool = False

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            UsageError: a number that makes no sense, or a run to be resumed from nowhere.
            OutputError: the checkpoint cannot be written.
        """
        for name, low in (("epochs", 1), ("batch", 2), ("held_out", 1)):
            if getattr(self, name) < low:
                raise UsageError(f"fine-tuning with {name} {getattr(self, name)}: it must be at least {low}")
        if not 0 <= self.distil <= 1:
            raise UsageError(f"distil {self.distil:g} is not a share from 0 to 1")
        for name in ("lr", "temperature"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise UsageError(f"{name} {value:g} is not a positive number")
        if self.resume and self.checkpoint is None:
            raise UsageError("there is no checkpoint to resume fine-tuning from")
        if self.checkpoint is not None:
            writable(self.checkpoint.parent)

    def to_json(self) -> dict[str, Any]:
        """Return what decides the weights, but for the bits."""
        apart = ("bits", "checkpoint", "resume")
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in apart}


def finetune(
    student: Program, teacher: Program, data: Data, options: FinetuneOptions, reporter: Reporter | None = None
) -> Finetuned:
    """Train a pruned program on labelled images.

    Args:
        student: still trains; not changed.
        teacher: the original; not changed.
        data: images to train and to judge epochs on.
        options: how to train.
        reporter: told of the images seen of all epochs.

    Raises:
        UsageError: options that make no sense, or a loss that turns infinite or NaN.
        InputError: too few images, or a checkpoint that is damaged or belongs to another run.
        OutputError: the checkpoint cannot be written.
        RankError: another rank stopped.
    """
    for program in (student, teacher):
        if program.stage > Stage.PRUNED:
            raise UsageError(f"a program at stage {program.stage.name.lower()} no longer trains")
    options.check()
    return _Run(student, teacher, data, options, reporter or Reporter()).result()


class _Run:
    """One call of ``finetune``: what it trains, on what, and how far it is."""

    def __init__(
        self, student: Program, teacher: Program, data: Data, options: FinetuneOptions, reporter: Reporter
    ) -> None:
        self.student, self.options, self.reporter = student, options, reporter
        self.bits = dict(options.bits or {})
        self.world: DistributedContext = current()
        self.batch_dim = student.input.batch_dim
        self.augment = augmentation(options.augment, student.input)
        self.images: Images = open_images(data, student.input, lambda n: reporter.progress("read images", n, len(data)))
        self.train, self.judged = split(self.images.labels, options.held_out, options.seed)
        self.share = options.batch // self.world.size  # images of a step on one rank
        if self.share == 0:
            raise UsageError(f"a batch of {options.batch} images is too small for {self.world.size} ranks")
        # the last, incomplete batch is left out: its batch-norm statistics would be the noisiest
        self.steps = max(1, len(self.train) // (self.share * self.world.size))
        if len(self.train) < self.share * self.world.size:
            self.share = len(self.train) // self.world.size
            if self.share == 0:
                raise UsageError(f"{len(self.train)} images are too few for {self.world.size} ranks")
        self._prepare(teacher)
        self.state = self._begin(teacher)

    def _prepare(self, teacher: Program) -> None:
        device = self.world.device
        pupil = self.student.copy()
        Pipeline([HoistRepeat(), MergeViews()])(pupil)
        pupil.module.to(device).train().requires_grad_(True)
        self.pupil: nn.Module = pupil.module
        self.rounded = FakeQuantizedWeights(self.pupil, self.bits)
        self.quick = FastForward(pupil)
        self.model: nn.Module = self.quick
        if self.world.size > 1:
            self.model = DistributedDataParallel(
                self.quick, device_ids=[device.index] if device.type == "cuda" else None
            )
        guide = teacher.copy()
        Pipeline(inference_passes())(guide)
        guide.module.to(device).eval().requires_grad_(False)
        self.teacher = FastForward(guide)
        self.device = device
        exempt = {id(p) for m in self.pupil.modules() if is_batch_norm(m) for p in m.parameters()}
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for p in self.pupil.parameters():
            groups[id(p) in exempt or p.ndim < 2].append(p)
        decays = (self.options.weight_decay, 0.0)
        self.optimizer = torch.optim.AdamW(
            [{"params": g, "weight_decay": d} for g, d in zip(groups, decays, strict=True) if g], lr=self.options.lr
        )

    def _begin(self, teacher: Program) -> dict[str, Any]:
        """The state after the finished epochs: of the checkpoint, or none finished."""
        inputs = {
            **self.options.to_json(),
            "augment": ",".join(self.augment) or "none",
            "student": digest(self.student.module.state_dict()),
            "teacher": digest(teacher.module.state_dict()),
            "data": self.images.key,
        } | ({"bits": self.bits} if self.bits else {})
        path = self.options.checkpoint

        def read() -> dict[str, Any] | None:
            return load(path, inputs) if self.options.resume and path is not None and path.is_file() else None

        found = self.world.on_writer(read)
        if found is not None:
            self.pupil.load_state_dict(found["weights"])
            self.optimizer.load_state_dict(found["optimizer"])
            log.info("fine-tuning goes on after epoch %d of %d", found["epoch"], self.options.epochs)
            return found
        with self.rounded():
            score, start = self._judge(self.quick), _weights(self.pupil)
        return {
            "inputs": inputs,
            "epoch": 0,
            "weights": {},
            "best": start,
            "best_epoch": 0,
            "best_score": list(score),
            "optimizer": {},
            "history": [],
            "start_right": score.right,
            "teacher_right": self._judge(self.teacher).right,
        }

    def result(self) -> Finetuned:
        """Train what is left of the epochs."""
        state, epochs = self.state, self.options.epochs
        for epoch in range(state["epoch"], epochs):
            start = time.perf_counter()
            loss, lr = self._epoch(epoch)
            # batch-norm statistics differ from rank to rank; rank 0's count, for judging and for what follows
            weights = self.world.broadcast(_weights(self.pupil))
            self.pupil.load_state_dict(weights)
            with self.rounded():
                score, best = self._judge(self.quick), _weights(self.pupil)
            seconds = time.perf_counter() - start
            accuracy = score.right / len(self.judged)
            state["history"].append(
                {"epoch": epoch + 1, "loss": loss, "accuracy": accuracy, "lr": lr, "seconds": round(seconds, 3)}
            )
            if tuple(score) > tuple(state["best_score"]):
                state.update(best=best, best_score=list(score), best_epoch=epoch + 1)
            state.update(epoch=epoch + 1, weights=weights, optimizer=self.optimizer.state_dict())
            self.world.on_writer(self._save)
            log.info(
                "epoch %d of %d: loss %.4f, %.2f%% of %d held-out images, %.0f s, about %.0f s to go",
                epoch + 1,
                epochs,
                loss,
                100 * accuracy,
                len(self.judged),
                seconds,
                seconds * (epochs - epoch - 1),
            )
        tuned = self.student.copy()
        tuned.module.load_state_dict(state["best"])
        tuned.module.eval()
        return Finetuned(tuned, self._report())

    def _save(self) -> None:
        if self.options.checkpoint is not None:
            save(self.options.checkpoint, self.state)

    def _report(self) -> dict[str, Any]:
        state, judged = self.state, len(self.judged)
        return {
            "epochs": state["epoch"],
            "images": len(self.train),
            "held_out": judged,
            "start_accuracy": state["start_right"] / judged,
            "best_accuracy": state["best_score"][0] / judged,
            "teacher_accuracy": state["teacher_right"] / judged,
            "chosen_epoch": state["best_epoch"],
            "history": state["history"],
            "settings": {**self.options.to_json(), "augment": ",".join(self.augment) or "none"},
            "ranks": self.world.size,
        }

    def _epoch(self, epoch: int) -> tuple[float, float]:
        """Train for one epoch. Returns the mean loss over all ranks and the last learning rate."""
        seed, size, total = self.options.seed, self.share * self.world.size, 0.0
        order = self.train[torch.randperm(len(self.train), generator=random_of(seed, epoch))]
        lr = 0.0
        self.pupil.train()
        for step in range(self.steps):
            first = self.world.rank * self.share
            x, labels = self.images.take(order[step * size + first : step * size + first + self.share])
            if self.augment:
                x = jitter(x, self.augment, random_of(seed, epoch, step), first, size, self.batch_dim)
            lr = self._rate(epoch * self.steps + step)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            with self.world.guard(), self.rounded():
                loss, norm = self._step(x.to(self.device), labels.to(self.device))
            loss = self.world.mean(loss)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._stop("loss" if not math.isfinite(loss) else "gradient", epoch, step)
            self.optimizer.step()
            total += loss
            done = epoch * self.steps + step + 1
            self.reporter.progress("finetune", done * size, self.options.epochs * self.steps * size)
        return total / self.steps, lr

    def _step(self, x: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
        """Loss, and norm of its gradient, which is the same on every rank; the gradient is left clipped."""
        share, heat = self.options.distil, self.options.temperature
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.amp):
            with torch.no_grad():
                wanted = self.teacher(x) if share else None
            logits = self.model(x)
        loss = (1 - share) * F.cross_entropy(logits, labels)
        if wanted is not None:
            ours, theirs = F.log_softmax(logits / heat, 1), F.log_softmax(wanted / heat, 1)
            loss = loss + share * heat**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        self.optimizer.zero_grad()
        loss.backward()
        return loss.item(), float(nn.utils.clip_grad_norm_(self.pupil.parameters(), CLIP))

    def _rate(self, step: int) -> float:
        """Learning rate of a step, counted over all epochs: up along a line, down along a cosine."""
        steps = self.steps * self.options.epochs
        warm = max(1, min(int(WARM_UP * steps), self.steps))
        if step < warm:
            return self.options.lr * (step + 1) / warm
        return self.options.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    def _stop(self, what: str, epoch: int, step: int) -> None:
        state = self.state
        kept = "No epoch was finished."
        if state["epoch"]:
            share = f"{100 * state['best_score'][0] / len(self.judged):.2f}% of the held-out images"
            of = f"epoch {state['best_epoch']}" if state["best_epoch"] else "the start"
            kept = f"Of {state['epoch']} finished epochs the best weights are those of {of}, {share}"
            kept += f", in {self.options.checkpoint}." if self.options.checkpoint is not None else "."
        lower = self.options.lr / 4
        raise UsageError(
            f"the {what} is not finite in epoch {epoch + 1} of {self.options.epochs}, step {step + 1} of {self.steps}",
            hint=f"Try a lower learning rate, --lr {lower:g}. {kept}",
        )

    @torch.inference_mode()
    def _judge(self, model: FastForward) -> Score:
        """Classify the held-out images in float32; each rank takes its share, and all know the sum."""
        model.eval()
        parts = []
        for chunk in list(self.judged.split(JUDGE_BATCH))[self.world.rank :: self.world.size]:
            x, labels = self.images.take(chunk)
            logits = model(x.to(self.device)).double().cpu()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            parts.append((int((logits.argmax(1) == labels).sum()), float(loss)))
        found = [part for rank in self.world.gather(parts) for part in rank]
        mean = math.fsum(each for _, each in found) / len(self.judged)
        return Score(sum(right for right, _ in found), -mean if math.isfinite(mean) else -math.inf)


def _weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all parameters and buffers, in the processor's memory."""
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
