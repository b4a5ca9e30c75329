"""The training of one run: its steps under the clock, the looks between them, and going on after a kill."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .checkpoints import Checkpoints
from .clock import Clock
from .events import Event, Metadata, Metrics, Progress
from .frameworks.base import Adapter
from .inputs import Batch, Preprocessing, augmented, batches, prefetched, split, test_batches
from .job import WARM_UP_STEPS, BatchOrder, EarlyStopping, Job

Emit = Callable[[Event], None]

CHUNK_S = 0.5
"""About how long a stretch of steps between two reports takes: short for a live line, long beside a report's cost."""

EVALUATION_BATCH = 500
"""Images at a time while the clock is stopped; how they are batched does not change what they are classified as."""


class Data:
    """The treated images: float32 in the adapter's layout, but for training images that are drawn anew each time."""

    def __init__(self, job: Job, treatment: Preprocessing, model: Adapter) -> None:
        self._job, self._treatment, self._model = job, treatment, model
        arrays = {
            name: np.load(Path(job.data) / f"{name}.npy", mmap_mode="r")
            for name in ("train_images", "train_labels", "test_images", "test_labels")
        }
        trained, held_back = split(len(arrays["train_images"]), job.training)
        self.train_images = treatment.apply("train", arrays["train_images"][trained], model.layout)
        # Not a memmap any more, whose slices are Python code, and views of nothing in common.
        self.train_labels = np.array(arrays["train_labels"][trained], model.label_type)
        if job.training.early_stopping:  # nothing else looks at them
            self.validation_images = treatment.apply("validation", arrays["train_images"][held_back], model.layout)
            self.validation_labels = np.asarray(arrays["train_labels"][held_back])
        self.test_images = treatment.apply("test", arrays["test_images"], model.layout)
        self.test_labels = np.asarray(arrays["test_labels"])

    def feed(self, start: int) -> Generator[Batch, None, None]:
        """Training batches without end, the first one that of iteration ``start``."""
        training, seed, adopt = self._job.training, self._job.seed, self._model.to_native

        def ordered(images: Any, labels: Any) -> Generator[Batch, None, None]:
            return batches(images, labels, training.batch_size, training.order, seed, start)

        if training.order is BatchOrder.sequential and not self._treatment.draws:
            return ordered(adopt(self.train_images), adopt(self.train_labels))
        feed = ordered(self.train_images, self.train_labels)  # nothing picks images here and there faster than NumPy
        if self._treatment.draws:
            feed = augmented(feed, self._treatment, self._model.layout, seed, start)
        adopted = ((adopt(images), adopt(labels)) for images, labels in feed)
        return prefetched(adopted) if self._treatment.draws else adopted


class TrainingState:
    """How far a training has come: all that a checkpoint holds beside the model."""

    def __init__(self, job: Job) -> None:
        self.step = 0
        self.clock, self.evaluation, self.validation, self.saving = Clock(), Clock(), Clock(), Clock()
        self.steady, self.losses = Throughput(), RunningMean()
        stopping = job.training.early_stopping
        self.stopping = EarlyStoppingState(stopping, job.budget) if stopping else None
        self.reached = False
        """Whether a look has found ``training.target_accuracy_percent``."""
        self.said: list[Metrics] = []
        """What was reported of the training so far: whoever goes on reports it again."""

    def write(self, path: Path) -> None:
        values = {
            "step": self.step,
            "seconds": [(clock.seconds, clock.cpu_seconds) for clock in self._clocks()],
            "reached": self.reached,
            "steady": vars(self.steady),
            "losses": vars(self.losses),
            "stopping": self.stopping and {**vars(self.stopping), "rule": None},
            "said": [asdict(event) for event in self.said],
        }
        path.write_text(json.dumps(values))

    def read(self, path: Path) -> None:
        values = json.loads(path.read_text())
        self.step, self.reached = values["step"], values["reached"]
        for clock, seconds in zip(self._clocks(), values["seconds"], strict=True):
            clock.add(*seconds)
        vars(self.steady).update(values["steady"], warm_from=self.step + WARM_UP_STEPS)
        vars(self.losses).update(values["losses"])
        if self.stopping:
            vars(self.stopping).update({**values["stopping"], "rule": self.stopping.rule})
        self.said = [Metrics(**event) for event in values["said"]]

    def _clocks(self) -> list[Clock]:
        return [self.clock, self.evaluation, self.validation, self.saving]


def train(job: Job, model: Adapter, data: Data, emit: Emit) -> TrainingState:
    """All training steps, in stretches between which progress is reported and, with the clock stopped, evaluated.

    Where ``job.checkpoints`` has one, training goes on from there, and its clock too.
    """
    with ExitStack() as stack:
        best = Path(stack.enter_context(TemporaryDirectory()))
        checkpoints = stack.enter_context(Checkpoints(Path(job.checkpoints))) if job.checkpoints else None
        trainer = Trainer(job, model, data, emit, best, checkpoints)
        trainer.resume()
        trainer.train(stack.enter_context(closing(data.feed(trainer.course.step))))
        return trainer.course


class Trainer:
    """One training: what it works with, and how far it has come."""

    def __init__(
        self, job: Job, model: Adapter, data: Data, emit: Emit, best: Path, checkpoints: Checkpoints | None
    ) -> None:
        self._job, self._training, self._model, self._data, self._emit = job, job.training, model, data, emit
        self._best = best
        """The model with the lowest validation error so far."""
        count = len(data.train_images)
        self._steps, self._steps_per_epoch = job.training.steps(count, job.budget), count / job.training.batch_size
        self._looks = evaluation_steps(self._steps, self._steps_per_epoch, job.training.evaluate_every_epochs)
        self._checkpoints = checkpoints
        self._due_s = job.training.checkpoint_every_s
        self._length = 1
        self.course = TrainingState(job)
        self._validations = (
            [*evaluation_steps(self._steps, self._steps_per_epoch, 1), self._steps] if self.course.stopping else []
        )

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        found = self._checkpoints and self._checkpoints.newest()
        if not found:
            return
        self.course.read(found / "course.json")
        self._model.restore(found / "model", self.course.step)
        shutil.copytree(found / "best", self._best, dirs_exist_ok=True)
        self._due_s += self.course.clock.seconds
        self._emit(Metadata({"resumed_from_iteration": self.course.step}))
        for event in self.course.said:
            self._emit(event)

    def train(self, feed: Generator[Batch, None, None]) -> None:
        """Train to the end on what ``feed`` gives."""
        course, stopping = self.course, self.course.stopping
        course.clock.start()
        for look in sorted({*self._looks, *self._validations, self._steps}):
            if look <= course.step:
                continue  # before the checkpoint
            target = min(look, stopping.limit) if stopping else look
            while course.step < target:
                self._stretch(feed, target)
                if course.step < target:
                    self._save_when_due()
            if course.step < look:
                break
            elapsed_s = course.clock.stop()
            self._look(look, elapsed_s)
            course.clock.start()
            self._save_when_due()
        training_s = course.clock.stop()
        if stopping:
            self._model.load(self._best)
            self._say({"train/best_iteration": stopping.best_step})
        self._say(self._figures(training_s))

    def _stretch(self, feed: Generator[Batch, None, None], target: int) -> None:
        """A few steps, at most to ``target``."""
        course, training = self.course, self._training
        stop = min(course.step + self._length, target)
        before = course.clock.seconds
        losses = self._model.train(feed, training.rates(course.step, stop, self._job.budget))
        seconds = course.clock.seconds - before
        course.steady.add(course.step, stop, seconds)
        course.losses.add(losses)
        self._length = max(1, min(2 * self._length, int((stop - course.step) * CHUNK_S / max(seconds, 1e-9))))
        course.step = stop
        rate = training.batch_size * course.steady.steps_per_s
        epoch = stop / self._steps_per_epoch
        self._emit(Progress(stop, self._steps, training.batch_size, epoch, float(losses[-1]), rate))

    def _look(self, step: int, elapsed_s: float) -> None:
        """Validate and evaluate, whichever is due after ``step`` steps."""
        course, values = self.course, {}
        if course.stopping and step in self._validations:
            course.validation.start()
            wrong = float((classify(self._model, self._data.validation_images) != self._data.validation_labels).mean())
            values["eval/validation_error_percent"] = 100 * wrong
            if course.stopping.improves(step, wrong):
                self._model.save(self._best)
            course.validation.stop()
        if step in self._looks:
            course.evaluation.start()
            right = classify(self._model, self._data.test_images) == self._data.test_labels
            course.evaluation.stop()
            values["eval/accuracy_percent"] = 100 * float(right.mean())
            if not course.reached and self._training.reaches(values["eval/accuracy_percent"]):
                course.reached = True
                values["train/time_to_target_s"] = elapsed_s
            values |= {"train/loss": course.losses.take(), "train/epoch": step / self._steps_per_epoch}
            values["train/elapsed_s"] = elapsed_s
        if values:
            self._say(values)

    def _save_when_due(self) -> None:
        course = self.course
        if self._checkpoints is None or course.clock.seconds < self._due_s:
            return
        course.clock.stop()
        course.saving.start()
        self._checkpoints.save(course.step, self._write)
        course.saving.stop()
        self._due_s = course.clock.seconds + self._training.checkpoint_every_s
        course.clock.start()

    def _write(self, folder: Path) -> None:
        (folder / "model").mkdir()
        self._model.checkpoint(folder / "model")
        shutil.copytree(self._best, folder / "best")
        self.course.write(folder / "course.json")

    def _figures(self, training_s: float) -> dict[str, float]:
        course, step = self.course, self.course.step
        figures = {
            "training_time_s": training_s,
            "train/images_per_s": self._training.batch_size * step / training_s,
            "train/steady_state_images_per_s": self._training.batch_size * course.steady.steps_per_s,
            "train/first_step_s": course.steady.first_s,
            "train/first_step_overhead_s": max(0.0, course.steady.first_s - 1 / course.steady.steps_per_s),
            "train/evaluation_s": course.evaluation.seconds,
            "train/validation_s": course.validation.seconds,
            "train/checkpoint_s": course.saving.seconds,
            "train/cpu_utilization_percent": 100 * course.clock.cpu_seconds / (training_s * self._job.threads),
            "train/iterations": step,
            "train/epoch": step / self._steps_per_epoch,
            "train/elapsed_s": training_s,
        }
        if course.losses.count:  # none since the last look if that is where the patience ended
            figures["train/loss"] = course.losses.take()
        return figures

    def _say(self, values: dict[str, float]) -> None:
        self.course.said.append(Metrics(values, self.course.step))
        self._emit(self.course.said[-1])


class EarlyStoppingState:
    """How far training may go by the errors on the held-back images, and where they were lowest."""

    def __init__(self, rule: EarlyStopping, budget: float) -> None:
        self.rule = rule
        # The tutorial counts iterations from 0 and stops in the one that reaches the patience.
        self.limit = round(rule.patience_iterations * budget) + 1
        """Steps that may be trained."""
        self.best_step, self.lowest = 0, math.inf

    def improves(self, step: int, error: float) -> bool:
        """Whether ``error``, the share of wrong classes after ``step`` steps, is the lowest so far."""
        if error >= self.lowest:
            return False
        if error < self.rule.improvement * self.lowest:
            self.limit = max(self.limit, round(self.rule.increase * (step - 1)) + 1)
        self.best_step, self.lowest = step, error
        return True


def evaluation_steps(steps: int, steps_per_epoch: float, every: int) -> list[int]:
    """The steps after which the test accuracy is looked at: every so many epochs, but the last step left to testing."""
    if not every:
        return []
    rounded = (round(number * every * steps_per_epoch) for number in itertools.count(1))
    looks = (look for look, _ in itertools.groupby(rounded) if look > 0)
    return list(itertools.takewhile(lambda look: look < steps, looks))


def classify(model: Adapter, images: np.ndarray) -> np.ndarray:
    """The class of each image."""
    classes: np.ndarray = model.predict(test_batches(model.to_native(images), EVALUATION_BATCH)).argmax(axis=1)
    return classes


class Throughput:
    """The pace of training after its warm-up."""

    def __init__(self) -> None:
        self.first_s = 0.0
        self.warm_from = WARM_UP_STEPS
        self.all: tuple[int, float] = (0, 0.0)
        self.warm: tuple[int, float] = (0, 0.0)

    def add(self, start: int, stop: int, seconds: float) -> None:
        """The steps ``start`` to ``stop`` took ``seconds``."""
        if start == 0:
            self.first_s = seconds / stop
        self.all = (self.all[0] + stop - start, self.all[1] + seconds)
        if start >= self.warm_from:
            self.warm = (self.warm[0] + stop - start, self.warm[1] + seconds)

    @property
    def steps_per_s(self) -> float:
        """Of the warm steps; of all, as long as none is warm."""
        steps, seconds = self.warm if self.warm[0] else self.all
        return steps / seconds


class RunningMean:
    """The mean of the losses since it was last taken."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def add(self, losses: np.ndarray) -> None:
        self.sum += float(losses.sum(dtype=np.float64))
        self.count += len(losses)

    def take(self) -> float:
        mean = self.sum / self.count
        self.sum, self.count = 0.0, 0
        return mean
