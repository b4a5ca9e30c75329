"""Training loop of a run: timed steps, evaluations with the training clock stopped, checkpoints and resuming."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..metrics import METRICS
from .checkpoints import Checkpoints
from .clock import Clock
from .events import Event, Metadata, Metrics, Phase, Progress, Remark, one_line
from .frameworks.base import Adapter
from .inputs import Batch, Preprocessing, augmented, batches, prefetched, split, test_batches
from .job import WARM_UP_STEPS, BatchOrder, EarlyStopping, Job
from .scores import accuracy

Emit = Callable[[Event], None]

CHUNK_S = 0.5
"""Approximate duration of a chunk of steps in seconds.

Progress is reported after each chunk. The duration is short enough for a progress line and long compared with the cost
of a report.
"""

EVALUATION_BATCH = 500
"""Images per batch while the clock is stopped. The batch size does not change the classification."""


class Data:
    """Images and labels of a run.

    Images are preprocessed, float32 and in the adapter's layout. If training images are augmented, ``train_images`` are
    only partly preprocessed and in NHWC (see ``Preprocessing.apply``).
    """

    def __init__(
        self, job: Job, preprocessing: Preprocessing, model: Adapter, arrays: Mapping[str, np.ndarray]
    ) -> None:
        self._job, self._preprocessing, self._model = job, preprocessing, model
        trained, held_out = split(len(arrays["train_images"]), job.training)
        self.train_images = preprocessing.apply("train", arrays["train_images"][trained], model.layout)
        self.train_labels = np.array(arrays["train_labels"][trained], model.label_type)
        if job.training.early_stopping:  # the only use of the validation images
            self.validation_images = preprocessing.apply("validation", arrays["train_images"][held_out], model.layout)
            self.validation_labels = np.asarray(arrays["train_labels"][held_out])
        self.test_images = preprocessing.apply("test", arrays["test_images"], model.layout)
        self.test_labels = np.asarray(arrays["test_labels"])

    def training_batches(self, start: int) -> Generator[Batch, None, None]:
        """Return an endless generator of training batches, starting with iteration ``start``."""
        training, seed, to_native = self._job.training, self._job.seed, self._model.to_native

        def ordered(images: Any, labels: Any) -> Generator[Batch, None, None]:
            return batches(images, labels, training.batch_size, training.order, seed, start)

        if training.order is BatchOrder.sequential and not self._preprocessing.augments:
            return ordered(to_native(self.train_images), to_native(self.train_labels))
        source = ordered(self.train_images, self.train_labels)  # NumPy gathers scattered images fastest
        if self._preprocessing.augments:
            source = augmented(source, self._preprocessing, self._model.layout, seed, start)
        native = ((to_native(images), to_native(labels)) for images, labels in source)
        return prefetched(native) if self._preprocessing.augments else native


class TrainingState:
    """Training state without that of the model. A checkpoint stores it in ``state.json``."""

    def __init__(self, job: Job) -> None:
        self.step = 0
        self.clock, self.evaluation, self.validation, self.saving = Clock(), Clock(), Clock(), Clock()
        self.throughput, self.losses = Throughput(), RunningMean()
        stopping = job.training.early_stopping
        self.stopping = EarlyStoppingState(stopping, job.budget) if stopping else None
        self.reached_target = False
        """Whether an evaluation has reached ``training.target_accuracy_percent``."""
        self.reported: list[Metrics] = []
        """Metrics of the training so far; a resumed run emits them again."""

    def write(self, path: Path) -> None:
        values = {
            "step": self.step,
            "seconds": [(clock.seconds, clock.cpu_seconds) for clock in self._clocks()],
            "reached_target": self.reached_target,
            "throughput": vars(self.throughput),
            "losses": vars(self.losses),
            "stopping": self.stopping and {**vars(self.stopping), "rule": None},
            "reported": [asdict(event) for event in self.reported],
        }
        path.write_text(json.dumps(values))

    def read(self, path: Path) -> None:
        values = json.loads(path.read_text())
        self.step, self.reached_target = values["step"], values["reached_target"]
        for clock, seconds in zip(self._clocks(), values["seconds"], strict=True):
            clock.add(*seconds)
        vars(self.throughput).update(values["throughput"], warm_from=self.step + WARM_UP_STEPS)
        vars(self.losses).update(values["losses"])
        if self.stopping:
            vars(self.stopping).update({**values["stopping"], "rule": self.stopping.rule})
        self.reported = [Metrics(**event) for event in values["reported"]]

    def _clocks(self) -> list[Clock]:
        return [self.clock, self.evaluation, self.validation, self.saving]


def train(job: Job, model: Adapter, data: Data, emit: Emit) -> TrainingState:
    """Train to the end and return the final state.

    Training runs in chunks of steps. Between them progress is reported and, with the clock stopped, the model is
    evaluated. If ``job.checkpoints`` has a checkpoint, training resumes from it, and the clock continues from the saved
    time.
    """
    with ExitStack() as stack:
        best = Path(stack.enter_context(TemporaryDirectory()))
        checkpoints = None
        if job.checkpoints:
            try:
                checkpoints = stack.enter_context(Checkpoints(Path(job.checkpoints)))
            except OSError as error:
                emit(Remark(f"no checkpoints are written: {one_line(error)}"))
        trainer = Trainer(job, model, data, emit, best, checkpoints)
        trainer.resume()
        trainer.train(stack.enter_context(closing(data.training_batches(trainer.state.step))))
        return trainer.state


class Trainer:
    """Training loop of one run, with the model, its data and the training state."""

    def __init__(
        self, job: Job, model: Adapter, data: Data, emit: Emit, best: Path, checkpoints: Checkpoints | None
    ) -> None:
        self._job, self._training, self._model, self._data, self._emit = job, job.training, model, data, emit
        self._best = best
        """Folder of the model with the lowest validation error so far."""
        count = len(data.train_images)
        self._steps, self._steps_per_epoch = job.training.steps(count, job.budget), count / job.training.batch_size
        self._evaluations = evaluation_steps(self._steps, self._steps_per_epoch, job.training.evaluate_every_epochs)
        self._checkpoints = checkpoints
        self._checkpoint_due_s = job.training.checkpoint_every_s
        self._chunk_steps = 1
        self.state = TrainingState(job)
        self._validations = (
            [*evaluation_steps(self._steps, self._steps_per_epoch, 1), self._steps] if self.state.stopping else []
        )

    def resume(self) -> None:
        """Restore the newest checkpoint, if there is one."""
        if self._checkpoints is None:
            return
        newest = self._checkpoints.newest(lambda text: self._emit(Remark(text)))
        if newest is None:
            return
        try:
            self.state.read(newest / "state.json")
            self._model.restore(newest / "model", self.state.step)
        except Exception:
            # The model may be only partly restored, so this run cannot continue. The next run ignores the checkpoint.
            self._checkpoints.set_aside(newest)
            raise
        shutil.copytree(newest / "best", self._best, dirs_exist_ok=True)
        self._checkpoint_due_s += self.state.clock.seconds
        self._emit(Metadata({"resumed_from_iteration": self.state.step}))
        for event in self.state.reported:
            self._emit(event)

    def train(self, source: Generator[Batch, None, None]) -> None:
        """Train to the end on the batches of ``source``. The training clock starts and stops here."""
        state, stopping = self.state, self.state.stopping
        self._emit(Phase(METRICS["training_time_s"].phase))
        state.clock.start()
        for pause in sorted({*self._evaluations, *self._validations, self._steps}):
            if pause <= state.step:
                continue  # completed before the checkpoint
            target = min(pause, stopping.limit) if stopping else pause
            while state.step < target:
                self._train_chunk(source, target)
                if state.step < target:
                    self._checkpoint_if_due()
            if state.step < pause:
                break
            elapsed_s = state.clock.stop()
            self._evaluate(pause, elapsed_s)
            state.clock.start()
            self._checkpoint_if_due()
        training_s = state.clock.stop()
        if stopping:
            if not stopping.best_step:  # the limit came before the first validation
                self._report(self._validate(state.step))
            self._model.load(self._best)
            self._report({"train/best_iteration": stopping.best_step})
        self._report(self._final_metrics(training_s))

    def _train_chunk(self, source: Generator[Batch, None, None], target: int) -> None:
        """Train one chunk of steps, at most up to step ``target``, and report progress."""
        state, training = self.state, self._training
        stop = min(state.step + self._chunk_steps, target)
        before = state.clock.seconds
        losses = self._model.train(source, training.rates(state.step, stop, self._job.budget))
        seconds = state.clock.seconds - before
        state.throughput.add(state.step, stop, seconds)
        state.losses.add(losses)
        steps_in_time = int((stop - state.step) * CHUNK_S / max(seconds, 1e-9))
        self._chunk_steps = max(1, min(2 * self._chunk_steps, steps_in_time))
        state.step = stop
        rate = training.batch_size * state.throughput.steps_per_s
        epoch = stop / self._steps_per_epoch
        self._emit(Progress(stop, self._steps, training.batch_size, epoch, float(losses[-1]), rate))

    def _evaluate(self, step: int, elapsed_s: float) -> None:
        """Run the validation, the evaluation or both if they are due after ``step`` steps."""
        state, data = self.state, self._data
        values = self._validate(step) if step in self._validations else {}
        if step in self._evaluations:
            state.evaluation.start()
            correct = classify(self._model, data.test_images) == data.test_labels
            state.evaluation.stop()
            values["eval/accuracy_percent"] = 100 * accuracy(correct, data.test_labels, self._job.mean_per_class)
            if not state.reached_target and self._training.reaches_target(values["eval/accuracy_percent"]):
                state.reached_target = True
                values["train/time_to_target_s"] = elapsed_s
            values |= {"train/loss": state.losses.pop(), "train/epoch": step / self._steps_per_epoch}
            values["train/elapsed_s"] = elapsed_s
        if values:
            self._report(values)

    def _validate(self, step: int) -> dict[str, float]:
        """Return the validation error after ``step`` steps. If it is the lowest so far, save the model."""
        state, data = self.state, self._data
        assert state.stopping is not None
        state.validation.start()
        error = float((classify(self._model, data.validation_images) != data.validation_labels).mean())
        if state.stopping.improves(step, error):
            self._model.save(self._best)
        state.validation.stop()
        return {"eval/validation_error_percent": 100 * error}

    def _checkpoint_if_due(self) -> None:
        state = self.state
        if self._checkpoints is None or state.clock.seconds < self._checkpoint_due_s:
            return
        state.clock.stop()
        state.saving.start()
        try:
            self._checkpoints.save(state.step, self._write_checkpoint)
        except Exception as error:  # its type depends on the framework; training does not need checkpoints
            self._emit(Remark(f"no checkpoint after iteration {state.step}: {one_line(error)}"))
        state.saving.stop()
        self._checkpoint_due_s = state.clock.seconds + self._training.checkpoint_every_s
        state.clock.start()

    def _write_checkpoint(self, folder: Path) -> None:
        (folder / "model").mkdir()
        self._model.checkpoint(folder / "model")
        shutil.copytree(self._best, folder / "best")
        self.state.write(folder / "state.json")

    def _final_metrics(self, training_s: float) -> dict[str, float]:
        state, step, throughput = self.state, self.state.step, self.state.throughput
        values = {
            "training_time_s": training_s,
            "train/images_per_s": self._training.batch_size * step / training_s,
            "train/steady_state_images_per_s": self._training.batch_size * throughput.steps_per_s,
            "train/first_step_s": throughput.first_s,
            "train/first_step_overhead_s": max(0.0, throughput.first_s - 1 / throughput.steps_per_s),
            "train/evaluation_s": state.evaluation.seconds,
            "train/validation_s": state.validation.seconds,
            "train/checkpoint_s": state.saving.seconds,
            "train/cpu_utilization_percent": 100 * state.clock.cpu_seconds / (training_s * self._job.threads),
            "train/iterations": step,
            "train/epoch": step / self._steps_per_epoch,
            "train/elapsed_s": training_s,
        }
        if state.losses.count:  # 0 if early stopping ended the training at an evaluation
            values["train/loss"] = state.losses.pop()
        return values

    def _report(self, values: dict[str, float]) -> None:
        self.state.reported.append(Metrics(values, self.state.step))
        self._emit(self.state.reported[-1])


class EarlyStoppingState:
    """The step limit of early stopping, and the step with the lowest validation error so far."""

    def __init__(self, rule: EarlyStopping, budget: float) -> None:
        self.rule = rule
        # Theano's tutorial counts iterations from 0 and stops after the iteration whose number equals the patience.
        self.limit = round(rule.patience_iterations * budget) + 1
        """Maximum number of training steps, given the validation errors so far."""
        self.best_step, self.lowest = 0, math.inf

    def improves(self, step: int, error: float) -> bool:
        """Record the validation error (0 to 1) after ``step`` steps and return whether it is the lowest so far."""
        if error >= self.lowest:
            return False
        if error < self.rule.improvement * self.lowest:
            self.limit = max(self.limit, round(self.rule.increase * (step - 1)) + 1)
        self.best_step, self.lowest = step, error
        return True


def evaluation_steps(steps: int, steps_per_epoch: float, every_epochs: int) -> list[int]:
    """Return the steps after which the model is evaluated: every ``every_epochs`` epochs, but not after the last step.

    The final test measures the accuracy after the last step.
    """
    if not every_epochs:
        return []
    rounded = (round(number * every_epochs * steps_per_epoch) for number in itertools.count(1))
    distinct = (step for step, _ in itertools.groupby(rounded) if step > 0)
    return list(itertools.takewhile(lambda step: step < steps, distinct))


def classify(model: Adapter, images: np.ndarray) -> np.ndarray:
    """Return the predicted class of each image, (N,)."""
    classes: np.ndarray = model.predict(test_batches(model.to_native(images), EVALUATION_BATCH)).argmax(axis=1)
    return classes


class Throughput:
    """The speed of training, with and without the warm-up steps."""

    def __init__(self) -> None:
        self.first_s = 0.0
        """Seconds of the first step."""
        self.warm_from = WARM_UP_STEPS
        self.all: tuple[int, float] = (0, 0.0)
        """Number of all steps, and their total seconds."""
        self.warm: tuple[int, float] = (0, 0.0)
        """Number of steps after the warm-up, and their total seconds."""

    def add(self, start: int, stop: int, seconds: float) -> None:
        """Add the ``seconds`` of the steps from ``start`` to ``stop``."""
        if start == 0:
            self.first_s = seconds / stop
        self.all = (self.all[0] + stop - start, self.all[1] + seconds)
        if start >= self.warm_from:
            self.warm = (self.warm[0] + stop - start, self.warm[1] + seconds)

    @property
    def steps_per_s(self) -> float:
        """Steps per second after the warm-up, or over all steps if none has followed the warm-up yet."""
        steps, seconds = self.warm if self.warm[0] else self.all
        return steps / seconds


class RunningMean:
    """The mean of the losses since the last ``pop``."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def add(self, losses: np.ndarray) -> None:
        self.sum += float(losses.sum(dtype=np.float64))
        self.count += len(losses)

    def pop(self) -> float:
        """Return the mean and reset it."""
        mean = self.sum / self.count
        self.sum, self.count = 0.0, 0
        return mean
