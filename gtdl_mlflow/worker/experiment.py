"""The procedure of one run: build, train, test, save. The only clock and the only accuracy there are."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import platform
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from . import initial, parity
from .assembly import adapter, assemble
from .events import Described, Event, Finished, Metrics, Progress
from .frameworks.base import Adapter
from .inputs import Batch, Treatment, ahead, batches, drawn, split, test_batches
from .job import EarlyStopping, Job

Emit = Callable[[Event], None]

WARM_UP_STEPS = 10
"""Steps left out of the steady speed, though never out of the training time."""

CHUNK_S = 0.5
"""About how long a stretch of steps between two reports takes: short for a live line, long beside a report's cost."""

EVALUATION_BATCH = 500
"""Images at a time while the clock is stopped; how they are batched does not change what they are classified as."""


class Clock:
    """Seconds, on a monotonic clock of nanoseconds; it can be stopped and started."""

    def __init__(self, now: Callable[[], int] = time.perf_counter_ns):
        self._now = now
        self._sum = 0
        self._since: int | None = None

    def start(self) -> None:
        self._since = self._now()

    def stop(self) -> float:
        """The seconds it has run so far."""
        assert self._since is not None
        self._sum += self._now() - self._since
        self._since = None
        return self.seconds

    @property
    def seconds(self) -> float:
        running = 0 if self._since is None else self._now() - self._since
        return (self._sum + running) / 1e9


def run(job: Job, emit: Emit) -> None:
    """Train and test the job's network, telling ``emit`` what happens as it happens.

    Boundaries of the times: ``setup/import_s`` the adapter and its framework; ``setup/build_s`` initial weights and
    network; ``setup/compile_s`` what the framework compiles ahead of the first batch; ``setup/data_s`` mapping and
    treating the images; ``training_time_s`` from before the first batch to after the device finished the last step,
    evaluation left out; ``testing_time_s`` one pass over the test set, batching and transfer included, after one batch
    outside the clock.
    """
    wall = Clock()
    wall.start()
    with _measured(emit, "setup/import_s"):
        adapter_class = adapter(job.adapter)
    if job.parity:
        prove(job, adapter_class, emit)
    with _measured(emit, "setup/build_s"):
        treatment, model, network = assemble(job, adapter_class)
    with _measured(emit, "setup/compile_s"):
        model.compile()
    with _measured(emit, "setup/data_s"):
        data = Data(job, treatment, model)
    facts = {f"framework_{key}" if key == "version" else key: value for key, value in model.describe().items()}
    emit(Described({**facts, "python": platform.python_version(), "numpy": np.__version__,
                    "parameters": network.parameter_count, "flops_per_image": network.flops_per_image,
                    "train_images": len(data.train_images), "test_images": len(data.test_images)}))  # fmt: skip
    train(job, model, data, emit)
    emit(Described({"weights_sha256": digest(model.weights())}))
    test(job, model, data, emit)
    with _measured(emit, "save/model_s"):
        save(job, model, treatment, Path(job.folder))
    emit(Metrics({"worker/wall_s": wall.stop()}))
    emit(Finished())


def prove(job: Job, adapter_class: type[Adapter], emit: Emit) -> None:
    """Hold the framework against the float64 NumPy network, on a model of its own.

    Raises:
        ParityBroken: it computes something else.
    """
    with _measured(emit, "setup/parity_s"):
        differences = parity.check(job, adapter_class)
    emit(Metrics(differences))
    parity.require(differences)


class Data:
    """The treated images: float32 in the adapter's layout, but for training images that are drawn anew each time."""

    def __init__(self, job: Job, treatment: Treatment, model: Adapter) -> None:
        self._job, self._treatment, self._layout = job, treatment, model.layout
        arrays = {
            name: np.load(Path(job.data) / f"{name}.npy", mmap_mode="r")
            for name in ("train_images", "train_labels", "test_images", "test_labels")
        }
        trained, held_back = split(len(arrays["train_images"]), job.training)
        self.train_images = treatment.apply("train", arrays["train_images"][trained], model.layout)
        self.train_labels = arrays["train_labels"][trained].astype(model.label_type)
        if job.training.early_stopping:  # nothing else looks at them
            self.validation_images = treatment.apply("validation", arrays["train_images"][held_back], model.layout)
            self.validation_labels = np.asarray(arrays["train_labels"][held_back])
        self.test_images = treatment.apply("test", arrays["test_images"], model.layout)
        self.test_labels = np.asarray(arrays["test_labels"])

    def feed(self) -> Generator[Batch, None, None]:
        """Training batches without end."""
        training, seed = self._job.training, self._job.seed
        feed = batches(self.train_images, self.train_labels, training.batch_size, training.order, seed)
        return ahead(drawn(feed, self._treatment, self._layout, seed)) if self._treatment.draws else feed


def train(job: Job, model: Adapter, data: Data, emit: Emit) -> None:
    """All training steps, in stretches between which progress is reported and, with the clock stopped, evaluated."""
    training, count = job.training, len(data.train_images)
    steps = training.steps(count, job.budget)
    steps_per_epoch = count / training.batch_size
    looks = evaluations(steps, steps_per_epoch, training.evaluate_every)
    stopping = Stopping(training.early_stopping, job.budget) if training.early_stopping else None
    validations = [*evaluations(steps, steps_per_epoch, 1), steps] if stopping else []

    clock, evaluation, steady, losses = Clock(), Clock(), Steady(), Mean()
    with closing(data.feed()) as feed, TemporaryDirectory() as best:
        clock.start()
        step, length = 0, 1
        for look in sorted({*looks, *validations, steps}):
            target = min(look, stopping.limit) if stopping else look
            while step < target:
                stop = min(step + length, target)
                before = clock.seconds
                stretch = model.train(feed, training.rates(step, stop, job.budget))
                seconds = clock.seconds - before
                steady.add(step, stop, seconds)
                losses.add(stretch)
                length = max(1, min(2 * length, int((stop - step) * CHUNK_S / max(seconds, 1e-9))))
                step = stop
                rate = training.batch_size * steady.steps_per_s
                emit(Progress(step, steps, training.batch_size, step / steps_per_epoch, float(stretch[-1]), rate))
            if step < look:
                break
            elapsed = clock.stop()
            evaluation.start()
            values = {}
            if stopping and look in validations:
                wrong = classify(model, data.validation_images) != data.validation_labels
                values["eval/validation_error_percent"] = 100 * float(wrong.mean())
                if stopping.improves(step, float(wrong.mean())):
                    model.save(Path(best))
            if look in looks:
                right = classify(model, data.test_images) == data.test_labels
                values["eval/accuracy_percent"] = 100 * float(right.mean())
                values |= {"train/loss": losses.take(), "train/epoch": step / steps_per_epoch}
                values["train/elapsed_s"] = elapsed
            evaluation.stop()
            if values:
                emit(Metrics(values, step))
            clock.start()
        training_s = clock.stop()
        if stopping:
            model.load(Path(best))
            emit(Metrics({"train/best_iteration": stopping.best_step}, step))
    values = {
        "training_time_s": training_s,
        "train/images_per_s": training.batch_size * step / training_s,
        "train/steady_images_per_s": training.batch_size * steady.steps_per_s,
        "train/first_step_s": steady.first_s,
        "train/evaluation_s": evaluation.seconds,
        "train/iterations": step,
        "train/epoch": step / steps_per_epoch,
        "train/elapsed_s": training_s,
    }
    if losses.any:  # none since the last look if that is where the patience ended
        values["train/loss"] = losses.take()
    emit(Metrics(values, step))


class Stopping:
    """How far training may go by the errors on the held-back images, and where they were lowest."""

    def __init__(self, rule: EarlyStopping, budget: float) -> None:
        self._rule = rule
        # The tutorial counts iterations from 0 and stops in the one that reaches the patience.
        self.limit = round(rule.patience * budget) + 1
        """Steps that may be trained."""
        self.best_step, self._lowest = 0, math.inf

    def improves(self, step: int, error: float) -> bool:
        """Whether ``error``, the share of wrong classes after ``step`` steps, is the lowest so far."""
        if error >= self._lowest:
            return False
        if error < self._rule.improvement * self._lowest:
            self.limit = max(self.limit, round(self._rule.increase * (step - 1)) + 1)
        self.best_step, self._lowest = step, error
        return True


def evaluations(steps: int, steps_per_epoch: float, every: int) -> list[int]:
    """The steps after which the test accuracy is looked at: every so many epochs, but the last step left to testing."""
    if not every:
        return []
    rounded = (round(number * every * steps_per_epoch) for number in itertools.count(1))
    looks = (look for look, _ in itertools.groupby(rounded) if look > 0)
    return list(itertools.takewhile(lambda look: look < steps, looks))


def classify(model: Adapter, images: np.ndarray) -> np.ndarray:
    """The class of each image."""
    classes: np.ndarray = model.predict(test_batches(images, EVALUATION_BATCH)).argmax(axis=1)
    return classes


def test(job: Job, model: Adapter, data: Data, emit: Emit) -> None:
    """Classify the whole test set once, after one batch that is not timed."""
    size = job.training.test_batch_size
    model.predict(itertools.islice(test_batches(data.test_images, size), 1))
    clock = Clock()
    clock.start()
    logits = model.predict(test_batches(data.test_images, size))
    seconds = clock.stop()
    right = logits.argmax(axis=1) == data.test_labels
    best = np.argsort(-logits, axis=1)[:, :5]
    emit(
        Metrics(
            {
                "testing_time_s": seconds,
                "accuracy_percent": 100 * float(right.mean()),
                "test/mean_class_accuracy_percent": 100 * mean_over_classes(right, data.test_labels),
                "test/top5_accuracy_percent": 100 * float((best == data.test_labels[:, None]).any(axis=1).mean()),
                "test/loss": cross_entropy(logits, data.test_labels),
                "test/images_per_s": len(right) / seconds,
            }
        )
    )


def mean_over_classes(right: np.ndarray, labels: np.ndarray) -> float:
    """The mean of the shares of ``right`` (N,) in each class there is in ``labels`` (N,): every class counts alike."""
    counts = np.bincount(labels)
    shares = np.bincount(labels, weights=right)[counts > 0] / counts[counts > 0]
    return float(shares.mean())


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean softmax cross-entropy in nats, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]))


def save(job: Job, model: Adapter, treatment: Treatment, folder: Path) -> None:
    """The native model, and what is needed beside it to classify raw images again."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder)
    replace(job, data="", folder="", cores=None).write(folder / "job.json")  # the model may move to another machine
    (folder / "treatment.json").write_text(json.dumps(treatment.statistics))


def digest(weights: initial.Weights) -> str:
    """SHA-256 of all canonical values: equal only if two runs ended with the same weights to the last bit."""
    total = hashlib.sha256()
    for name, values in sorted(weights.items()):
        total.update(name.encode())
        total.update(np.ascontiguousarray(values, np.float32).tobytes())
    return total.hexdigest()


class Steady:
    """The pace of training after its warm-up."""

    def __init__(self) -> None:
        self.first_s = 0.0
        self._all = (0, 0.0)
        self._warm = (0, 0.0)

    def add(self, start: int, stop: int, seconds: float) -> None:
        """The steps ``start`` to ``stop`` took ``seconds``."""
        if start == 0:
            self.first_s = seconds / stop
        self._all = (self._all[0] + stop - start, self._all[1] + seconds)
        if start >= WARM_UP_STEPS:
            self._warm = (self._warm[0] + stop - start, self._warm[1] + seconds)

    @property
    def steps_per_s(self) -> float:
        """Of the warm steps; of all, as long as none is warm."""
        steps, seconds = self._warm if self._warm[0] else self._all
        return steps / seconds


class Mean:
    """The mean of the losses since it was last taken."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []

    def add(self, losses: np.ndarray) -> None:
        self._parts.append(losses)

    @property
    def any(self) -> bool:
        return bool(self._parts)

    def take(self) -> float:
        mean = float(np.concatenate(self._parts).mean(dtype=np.float64))
        self._parts = []
        return mean


class _measured:
    """Reports how long its block took."""

    def __init__(self, emit: Emit, name: str) -> None:
        self._emit, self._name = emit, name
        self._clock = Clock()

    def __enter__(self) -> None:
        self._clock.start()

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self._emit(Metrics({self._name: self._clock.stop()}))
