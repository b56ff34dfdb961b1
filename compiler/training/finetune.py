"""Fine-tuning: train a pruned program on labels and on the logits of the original (knowledge distillation).

Images without labels are trained on by distillation alone; a held-out one counts as right in the original's class.
Channel counts do not change. Weights are float32; layers run in bfloat16 where autocast allows it. After every epoch
the held-out images are classified in float32, as the exported file will do it. The result has the weights of the best
epoch, or those before training where no epoch is better: on the held-out images it is never worse than the input.
Under torchrun every rank trains on its share of every batch.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from svitc.errors import UsageError
from svitc.ir.ops import is_batch_norm
from svitc.ir.outputs import class_scores
from svitc.ir.pass_manager import Pipeline
from svitc.ir.program import Program, Stage
from svitc.passes.canonical.merge_views import MergeViews
from svitc.passes.inference.hoist_repeat import HoistRepeat
from svitc.passes.pipelines import inference_passes
from svitc.support.distributed import DistributedContext, current
from svitc.support.reporter import Reporter
from svitc.support.types import JsonDict
from svitc.training.augment import augment, parse_augmentations, seeded_generator
from svitc.training.checkpoint import digest, load_checkpoint, save
from svitc.training.fast_forward import FastForward
from svitc.training.images import Data, Images, open_images, split
from svitc.training.options import FinetuneOptions
from svitc.training.quantization_aware import FakeQuantizedWeights

log = logging.getLogger("svitc")
MAX_GRADIENT_NORM = 1.0
WARM_UP_SHARE = 0.05  # of all steps, but at most one epoch: the learning rate rises
EVALUATION_BATCH_IMAGES = 64


class Score(NamedTuple):
    """The score on the held-out images; of two scores the higher is better.

    Attributes:
        right: number of images that are classified correctly.
        likelihood: minus the mean cross-entropy, in nats, which decides between equal numbers.
    """

    right: int
    likelihood: float


@dataclass
class Finetuned:
    """The result of fine-tuning.

    Attributes:
        program: the student with the best weights; channel counts are unchanged.
        report: ``epochs``, ``images``, ``held_out``, ``start_accuracy``, ``best_accuracy``, ``teacher_accuracy``,
            ``chosen_epoch`` (0 for the weights before training), ``history`` (a dictionary for each epoch: ``loss``,
            ``accuracy``, ``lr``, ``seconds``), ``settings``. JSON values only; accuracies are shares of the held-out
            images. Without labels there are ``start_agreement``, ``best_agreement`` and in the history ``agreement``
            in their place: shares of the held-out images in the class that the original chooses.
    """

    program: Program
    report: JsonDict = field(default_factory=dict)


def finetune(
    student: Program, teacher: Program, data: Data, options: FinetuneOptions, reporter: Reporter | None = None
) -> Finetuned:
    """Train a pruned program on images.

    Args:
        student: the pruned program, at a stage that can be trained; not changed.
        teacher: the original program; not changed.
        data: images with labels, or all without; a few are held out to choose the best epoch.
        options: how to train.
        reporter: told how many images of all epochs are done.

    Raises:
        UsageError: invalid options, a label loss without labels, or a loss or gradient that becomes infinite or NaN.
        InputError: too few images, or a checkpoint that is damaged or belongs to another run.
        OutputError: the checkpoint cannot be written.
        RankError: another rank has stopped.
    """
    for program in (student, teacher):
        if program.stage > Stage.PRUNED:
            raise UsageError(f"a program at stage {program.stage.name.lower()} no longer trains")
        check_trainable(program)
    options.check()
    return _Run(student, teacher, data, options, reporter or Reporter()).result()


def check_trainable(program: Program) -> None:
    """Check that fine-tuning has a loss for all outputs of a program.

    Raises:
        UsageError: there are outputs beside class scores, or none.
    """
    names = program.output_names
    if len(names) > 1 or class_scores(program.graph, program.info) is None:
        raise UsageError(
            f"fine-tuning trains class scores alone, and the model returns {', '.join(names)}",
            hint="Compile without --finetune, and train the written model.py with your own loss.",
        )


class _Run:
    """One call of ``finetune``: its models, its images and its progress."""

    def __init__(
        self, student: Program, teacher: Program, data: Data, options: FinetuneOptions, reporter: Reporter
    ) -> None:
        self.student, self.options, self.reporter = student, options, reporter
        self.bits = dict(options.bits or {})
        self.world: DistributedContext = current()
        self.batch_dim = student.input.batch_dim
        self.augment = parse_augmentations(options.augment, student.input)
        self.images: Images = open_images(
            data, student.input, lambda done: reporter.progress("read images", done, len(data))
        )
        self.labeled = bool((self.images.labels >= 0).all())
        if not self.labeled and options.distil != 1:
            raise UsageError(
                f"the images have no labels to train on, so distil must be 1, not {options.distil:g}",
                hint="Fine-tuning then learns from the original's answers alone.",
            )
        self.chosen: dict[int, torch.Tensor] = {}  # chunk of held-out images -> their classes in the original
        self.train, self.held_out = split(self.images.labels, options.held_out, options.seed)
        self.share = options.batch // self.world.size  # images of a step on one rank
        if self.share == 0:
            raise UsageError(f"a batch of {options.batch} images is too small for {self.world.size} ranks")
        # drop the last, incomplete batch: its batch-norm statistics would be the noisiest
        self.steps = max(1, len(self.train) // (self.share * self.world.size))
        if len(self.train) < self.share * self.world.size:
            self.share = len(self.train) // self.world.size
            if self.share == 0:
                raise UsageError(f"{len(self.train)} images are too few for {self.world.size} ranks")
        self._prepare(teacher)
        self.state = self._begin(teacher)

    def _prepare(self, teacher: Program) -> None:
        """Build the models, on the device of this rank, and the optimizer."""
        device = self.world.device
        trained = self.student.copy()
        Pipeline([HoistRepeat(), MergeViews()])(trained)
        trained.module.to(device).train().requires_grad_(True)
        self.trained: nn.Module = trained.module
        self.fake_quantized = FakeQuantizedWeights(self.trained, self.bits)
        self.evaluated = FastForward(trained)
        self.model: nn.Module = self.evaluated
        if self.world.size > 1:
            with self.world.guard():  # it compares the shapes of all ranks
                self.model = DistributedDataParallel(
                    self.evaluated, device_ids=[device.index] if device.type == "cuda" else None
                )
        teacher_copy = teacher.copy()
        Pipeline(inference_passes())(teacher_copy)
        teacher_copy.module.to(device).eval().requires_grad_(False)
        self.teacher = FastForward(teacher_copy)
        self.device = device
        exempt = {id(p) for m in self.trained.modules() if is_batch_norm(m) for p in m.parameters()}
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for p in self.trained.parameters():
            groups[id(p) in exempt or p.ndim < 2].append(p)
        decays = (self.options.weight_decay, 0.0)
        self.optimizer = torch.optim.AdamW(
            [{"params": g, "weight_decay": d} for g, d in zip(groups, decays, strict=True) if g], lr=self.options.lr
        )

    def _begin(self, teacher: Program) -> JsonDict:
        """Return the state to start from: that of the checkpoint, or that before the first epoch."""
        inputs = {
            **self.options.to_json(),
            "augment": ",".join(self.augment) or "none",
            "student": digest(self.student.module.state_dict()),
            "teacher": digest(teacher.module.state_dict()),
            "data": self.images.key,
        } | ({"bits": self.bits} if self.bits else {})
        path = self.options.checkpoint

        def read() -> JsonDict | None:
            if not self.options.resume or path is None or not path.is_file():
                return None
            return load_checkpoint(path, inputs)

        resumed = self.world.on_writer(read)
        if resumed is not None:
            self.trained.load_state_dict(resumed["weights"])
            self.optimizer.load_state_dict(resumed["optimizer"])
            log.info("fine-tuning goes on after epoch %d of %d", resumed["epoch"], self.options.epochs)
            return resumed
        with self.fake_quantized():
            score, start = self._judge(self.evaluated), _weights(self.trained)
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
        """Train for the remaining epochs and return the best weights."""
        state, epochs = self.state, self.options.epochs
        for epoch in range(state["epoch"], epochs):
            start = time.perf_counter()
            loss, lr = self._epoch(epoch)
            # batch-norm statistics differ between ranks: all go on with those of rank 0
            weights = self.world.broadcast(_weights(self.trained))
            self.trained.load_state_dict(weights)
            with self.fake_quantized():
                score, best = self._judge(self.evaluated), _weights(self.trained)
            seconds = time.perf_counter() - start
            accuracy = score.right / len(self.held_out)
            state["history"].append(
                {"epoch": epoch + 1, "loss": loss, self.measure: accuracy, "lr": lr, "seconds": round(seconds, 3)}
            )
            if tuple(score) > tuple(state["best_score"]):
                state.update(best=best, best_score=list(score), best_epoch=epoch + 1)
            state.update(epoch=epoch + 1, weights=weights, optimizer=self.optimizer.state_dict())
            self.world.on_writer(self._save)
            log.info(
                "epoch %d of %d: loss %.4f, %s %.2f%% on %d held-out images, %.0f s, about %.0f s to go",
                epoch + 1,
                epochs,
                loss,
                self.measure,
                100 * accuracy,
                len(self.held_out),
                seconds,
                seconds * (epochs - epoch - 1),
            )
        tuned = self.student.copy()
        tuned.module.load_state_dict(state["best"])
        tuned.module.eval()
        return Finetuned(tuned, self._report())

    @property
    def measure(self) -> str:
        """The measure of the held-out images: ``accuracy``, or ``agreement`` with the original without labels."""
        return "accuracy" if self.labeled else "agreement"

    def _save(self) -> None:
        if self.options.checkpoint is not None:
            save(self.options.checkpoint, self.state)

    def _report(self) -> JsonDict:
        state, held_out = self.state, len(self.held_out)
        return {
            "epochs": state["epoch"],
            "images": len(self.train),
            "held_out": held_out,
            f"start_{self.measure}": state["start_right"] / held_out,
            f"best_{self.measure}": state["best_score"][0] / held_out,
            **({"teacher_accuracy": state["teacher_right"] / held_out} if self.labeled else {}),
            "chosen_epoch": state["best_epoch"],
            "history": state["history"],
            "settings": {**self.options.to_json(), "augment": ",".join(self.augment) or "none"},
            "ranks": self.world.size,
        }

    def _epoch(self, epoch: int) -> tuple[float, float]:
        """Train for one epoch and return the mean loss over all ranks and the last learning rate."""
        seed, size, total = self.options.seed, self.share * self.world.size, 0.0
        order = self.train[torch.randperm(len(self.train), generator=seeded_generator(seed, epoch))]
        lr = 0.0
        self.trained.train()
        for step in range(self.steps):
            first = self.world.rank * self.share
            x, labels = self.images.take(order[step * size + first : step * size + first + self.share])
            if self.augment:
                x = augment(x, self.augment, seeded_generator(seed, epoch, step), first, size, self.batch_dim)
            lr = self._rate(epoch * self.steps + step)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            with self.world.guard(), self.fake_quantized():
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
        """Compute the clipped gradient of a batch; return the loss and the norm of the gradient before clipping.

        The gradient and its norm are averaged over ranks, the loss is that of this rank.
        """
        share, temperature = self.options.distil, self.options.temperature
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.amp):
            with torch.no_grad():
                teacher_logits = self.teacher(x) if share else None
            logits = self.model(x)
        loss = (1 - share) * F.cross_entropy(logits, labels) if self.labeled else logits.new_zeros(())
        if teacher_logits is not None:
            student_log, teacher_log = (
                F.log_softmax(logits / temperature, 1),
                F.log_softmax(teacher_logits / temperature, 1),
            )
            loss = loss + share * temperature**2 * F.kl_div(
                student_log, teacher_log, reduction="batchmean", log_target=True
            )
        self.optimizer.zero_grad()
        loss.backward()
        return loss.item(), float(nn.utils.clip_grad_norm_(self.trained.parameters(), MAX_GRADIENT_NORM))

    def _rate(self, step: int) -> float:
        """Return the learning rate of a step, counted over all epochs: a linear warm-up, then a cosine."""
        steps = self.steps * self.options.epochs
        warm_up_steps = max(1, min(int(WARM_UP_SHARE * steps), self.steps))
        if step < warm_up_steps:
            return self.options.lr * (step + 1) / warm_up_steps
        return self.options.lr * 0.5 * (1 + math.cos(math.pi * (step - warm_up_steps) / max(1, steps - warm_up_steps)))

    def _stop(self, what: str, epoch: int, step: int) -> None:
        """Raise UsageError: the loss or the gradient is not finite."""
        state = self.state
        summary = "No epoch was finished."
        if state["epoch"]:
            share = f"{100 * state['best_score'][0] / len(self.held_out):.2f}% of the held-out images"
            best_epoch = f"epoch {state['best_epoch']}" if state["best_epoch"] else "the start"
            summary = f"Of {state['epoch']} finished epochs the best weights are those of {best_epoch}, {share}"
            summary += f", in {self.options.checkpoint}." if self.options.checkpoint is not None else "."
        lower_lr = self.options.lr / 4
        raise UsageError(
            f"the {what} is not finite in epoch {epoch + 1} of {self.options.epochs}, step {step + 1} of {self.steps}",
            hint=f"Try a lower learning rate, --lr {lower_lr:g}. {summary}",
        )

    @torch.inference_mode()
    def _judge(self, model: FastForward) -> Score:
        """Score a model on the held-out images in float32; each rank classifies its share, and all return the sum."""
        model.eval()
        parts = []
        chunks = list(enumerate(self.held_out.split(EVALUATION_BATCH_IMAGES)))
        for number, chunk in chunks[self.world.rank :: self.world.size]:
            x, labels = self.images.take(chunk)
            if not self.labeled:
                if number not in self.chosen:
                    self.chosen[number] = self.teacher(x.to(self.device)).argmax(1).cpu()
                labels = self.chosen[number]
            logits = model(x.to(self.device)).double().cpu()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            parts.append((int((logits.argmax(1) == labels).sum()), float(loss)))
        results = [part for rank in self.world.gather(parts) for part in rank]
        mean = math.fsum(loss for _, loss in results) / len(self.held_out)
        return Score(sum(right for right, _ in results), -mean if math.isfinite(mean) else -math.inf)


def _weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copy all parameters and buffers to the CPU."""
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
