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
from dataclasses import dataclass, field
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
from svitc.support.timing import Progress
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


def finetune(
    student: Program,
    teacher: Program,
    data: Data,
    *,
    epochs: int,
    bits: Mapping[str, int] | None = None,
    held_out: int = 2000,
    batch: int = 64,
    lr: float = 1e-3,
    weight_decay: float = 0.02,
    distil: float = 0.5,
    temperature: float = 2.0,
    augment: str = "auto",
    amp: bool = True,
    seed: int = 0,
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Finetuned:
    """Train a pruned program on labelled images.

    Args:
        student: still trains; not changed.
        teacher: the original; not changed.
        data: images; at most 5% of them, and at most ``held_out``, only judge epochs.
        bits: layers whose weights lie on a grid of so many bits, and stay there (quantization_aware.py).
        batch: images of a step, over all ranks.
        lr: highest learning rate; it rises by step, then falls along a cosine to 0.
        weight_decay: not of biases and batch norms.
        distil: share of the teacher in the loss, 0 to 1.
        temperature: by which logits are divided before the two are compared.
        augment: ``auto`` is ``flip,crop`` for images of three channels and ``none`` for all else.
        amp: run layers in bfloat16.
        checkpoint: file that is written after every epoch.
        resume: go on from ``checkpoint``, if it is there, and end in the weights that an uninterrupted run gives.
        progress: called with the images seen of all epochs.

    Raises:
        UsageError: arguments that make no sense, or a loss that turns infinite or NaN.
        InputError: too few images, or a checkpoint that is damaged or belongs to another run.
        OutputError: the checkpoint cannot be written.
        RankError: another rank stopped.
    """
    settings = {
        "epochs": epochs,
        "batch": batch,
        "lr": lr,
        "weight_decay": weight_decay,
        "distil": distil,
        "temperature": temperature,
        "augment": augment,
        "amp": amp,
        "seed": seed,
        "held_out": held_out,
    }
    _check(student, teacher, settings, checkpoint, resume)
    return _Run(student, teacher, data, settings, bits or {}, checkpoint, resume, progress or _silent).result()


def _silent(stage: str, done: int, of: int | None) -> None:
    pass


def _check(student: Program, teacher: Program, settings: dict[str, Any], checkpoint: Path | None, resume: bool) -> None:
    for program in (student, teacher):
        if program.stage > Stage.PRUNED:
            raise UsageError(f"a program at stage {program.stage.name.lower()} no longer trains")
    for name, low in (("epochs", 1), ("batch", 2), ("held_out", 1)):
        if settings[name] < low:
            raise UsageError(f"fine-tuning with {name} {settings[name]}: it must be at least {low}")
    if not 0 <= settings["distil"] <= 1:
        raise UsageError(f"distil {settings['distil']:g} is not a share from 0 to 1")
    for name in ("lr", "temperature"):
        if not (settings[name] > 0 and math.isfinite(settings[name])):
            raise UsageError(f"{name} {settings[name]:g} is not a positive number")
    if resume and checkpoint is None:
        raise UsageError("there is no checkpoint to resume fine-tuning from")
    if checkpoint is not None:
        writable(checkpoint.parent)


class _Run:
    """One call of ``finetune``: what it trains, on what, and how far it is."""

    def __init__(
        self,
        student: Program,
        teacher: Program,
        data: Data,
        settings: dict[str, Any],
        bits: Mapping[str, int],
        checkpoint: Path | None,
        resume: bool,
        progress: Progress,
    ) -> None:
        self.bits = dict(bits)
        self.student, self.settings, self.checkpoint, self.progress = student, settings, checkpoint, progress
        self.world: DistributedContext = current()
        self.batch_dim = student.input.batch_dim
        self.augment = augmentation(settings["augment"], student.input)
        self.images: Images = open_images(data, student.input, lambda n: progress("read images", n, len(data)))
        self.train, self.judged = split(self.images.labels, settings["held_out"], settings["seed"])
        self.share = settings["batch"] // self.world.size  # images of a step on one rank
        if self.share == 0:
            raise UsageError(f"a batch of {settings['batch']} images is too small for {self.world.size} ranks")
        # the last, incomplete batch is left out: its batch-norm statistics would be the noisiest
        self.steps = max(1, len(self.train) // (self.share * self.world.size))
        if len(self.train) < self.share * self.world.size:
            self.share = len(self.train) // self.world.size
            if self.share == 0:
                raise UsageError(f"{len(self.train)} images are too few for {self.world.size} ranks")
        self._prepare(teacher)
        self.state = self._begin(teacher, resume)

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
        decays = (self.settings["weight_decay"], 0.0)
        self.optimizer = torch.optim.AdamW(
            [{"params": g, "weight_decay": d} for g, d in zip(groups, decays, strict=True) if g], lr=self.settings["lr"]
        )

    def _begin(self, teacher: Program, resume: bool) -> dict[str, Any]:
        """The state after the finished epochs: of the checkpoint, or none finished."""
        inputs = {
            **self.settings,
            "augment": ",".join(self.augment) or "none",
            "student": digest(self.student.module.state_dict()),
            "teacher": digest(teacher.module.state_dict()),
            "data": self.images.key,
        } | ({"bits": self.bits} if self.bits else {})
        path = self.checkpoint

        def read() -> dict[str, Any] | None:
            return load(path, inputs) if resume and path is not None and path.is_file() else None

        found = self.world.on_writer(read)
        if found is not None:
            self.pupil.load_state_dict(found["weights"])
            self.optimizer.load_state_dict(found["optimizer"])
            log.info("fine-tuning goes on after epoch %d of %d", found["epoch"], self.settings["epochs"])
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
        state, epochs = self.state, self.settings["epochs"]
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
        if self.checkpoint is not None:
            save(self.checkpoint, self.state)

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
            "settings": {**self.settings, "augment": ",".join(self.augment) or "none"},
            "ranks": self.world.size,
        }

    def _epoch(self, epoch: int) -> tuple[float, float]:
        """Train for one epoch. Returns the mean loss over all ranks and the last learning rate."""
        seed, size, total = self.settings["seed"], self.share * self.world.size, 0.0
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
            self.progress("finetune", done * size, self.settings["epochs"] * self.steps * size)
        return total / self.steps, lr

    def _step(self, x: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
        """Loss, and norm of its gradient, which is the same on every rank; the gradient is left clipped."""
        share, heat = self.settings["distil"], self.settings["temperature"]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings["amp"]):
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
        steps = self.steps * self.settings["epochs"]
        warm = max(1, min(int(WARM_UP * steps), self.steps))
        if step < warm:
            return self.settings["lr"] * (step + 1) / warm
        return self.settings["lr"] * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    def _stop(self, what: str, epoch: int, step: int) -> None:
        state = self.state
        kept = "No epoch was finished."
        if state["epoch"]:
            share = f"{100 * state['best_score'][0] / len(self.judged):.2f}% of the held-out images"
            of = f"epoch {state['best_epoch']}" if state["best_epoch"] else "the start"
            kept = f"Of {state['epoch']} finished epochs the best weights are those of {of}, {share}"
            kept += f", in {self.checkpoint}." if self.checkpoint is not None else "."
        lower = self.settings["lr"] / 4
        raise UsageError(
            f"the {what} is not finite in epoch {epoch + 1} of {self.settings['epochs']}, step {step + 1} of "
            f"{self.steps}",
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
