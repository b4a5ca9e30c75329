"""The procedure of one run: build, train, test, save."""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import resource
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics import METRICS
from . import initialization, latency, parity
from .assembly import build_model, load_adapter
from .clock import Clock
from .events import ConfusionMatrix, Finished, Metadata, Metrics, Phase
from .frameworks.base import Adapter
from .inputs import Preprocessing, test_batches
from .job import Job
from .training import Data, Emit, TrainingState, train

COLD_FAULTS = 20
"""Pages that had to be fetched from the disk while files were read: with more, they were not in memory."""


def run(job: Job, emit: Emit, start_s: float | None = None) -> None:
    """Train and test the job's network, telling ``emit`` what happens as it happens.

    Boundaries of the times: ``setup/start_s`` the interpreter and NumPy, which took ``start_s`` seconds; after that,
    outside all clocks, the driver may have had the worker wait; ``setup/import_s`` the adapter and its framework;
    ``setup/build_s`` initial weights and network; ``setup/compile_s`` what the framework compiles ahead of the first
    batch; ``setup/data_s`` mapping and treating the images; ``training_time_s`` from before the first batch to after
    the device finished the last step, evaluation, validation and checkpoints left out (``train/evaluation_s``,
    ``train/validation_s``, ``train/checkpoint_s``); ``testing_time_s`` one pass over the test set, batching and
    transfer included, after one batch outside the clock (``test/warm_up_s``); ``save/model_s``; ``latency/time_s``
    single operations. ``worker/wall_s`` is all of it and what lies between, but for that wait.
    """
    wall = Clock()
    wall.start()
    if start_s is not None:
        wall.add(start_s, time.process_time())
        emit(Metrics({"setup/start_s": wall.seconds}))
    with _Cold() as framework_files, _measured(emit, "setup/import_s"):
        adapter_class = load_adapter(job.adapter)
    if job.parity:
        check_parity(job, adapter_class, emit)
    with _measured(emit, "setup/build_s"):
        treatment, model, network = build_model(job, adapter_class)
    with _measured(emit, "setup/compile_s"):
        model.compile()
    with _Cold() as data_files, _measured(emit, "setup/data_s"):
        data = Data(job, treatment, model)
    facts = {f"framework_{key}" if key == "version" else key: value for key, value in model.describe().items()}
    emit(Metadata({**facts, "python": platform.python_version(), "numpy": np.__version__,
                    "parameters": network.parameter_count, "flops_per_image": network.flops_per_image,
                    "train_images": len(data.train_images), "test_images": len(data.test_images),
                    "framework_files": framework_files.word, "data_files": data_files.word}))  # fmt: skip
    course = train(job, model, data, emit)
    emit(Metadata({"weights_sha256": weights_sha256(model.weights())}))
    test(job, model, data, course, emit)
    with _measured(emit, "save/model_s"):
        save(job, model, treatment, Path(job.folder))
    if job.latency.repeats:
        with _measured(emit, "latency/time_s"):
            steps = latency.training_steps(job, model, data, course.step)
            inference = latency.inference(job, model, data.test_images)
        for event in (Metrics(steps), *inference):
            emit(event)
    used = resource_usage()
    emit(Metrics({**used, **model.metrics(), "worker/wall_s": wall.stop()}))
    emit(Finished(used["worker/cpu_user_s"] + used["worker/cpu_system_s"]))


def resource_usage() -> dict[str, float]:
    """What the operating system says that this process and those it started have used, from their start to now."""
    own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "worker/cpu_user_s": own.ru_utime + others.ru_utime,
        "worker/cpu_system_s": own.ru_stime + others.ru_stime,
        "worker/peak_memory_mb": max(own.ru_maxrss, others.ru_maxrss) * 1024 / 1e6,  # of Linux's KiB
        "worker/context_switches": own.ru_nvcsw + others.ru_nvcsw,
        "worker/involuntary_context_switches": own.ru_nivcsw + others.ru_nivcsw,
        "worker/disk_read_mb": (own.ru_inblock + others.ru_inblock) * 512 / 1e6,
        "worker/disk_write_mb": (own.ru_oublock + others.ru_oublock) * 512 / 1e6,
    }


def check_parity(job: Job, adapter_class: type[Adapter], emit: Emit) -> None:
    """Hold the framework against the float64 NumPy network, on a model of its own.

    Raises:
        ParityBroken: it computes something else.
    """
    with _measured(emit, "setup/parity_s"):
        differences = parity.check(job, adapter_class)
    emit(Metrics(differences))
    parity.require(differences)


def test(job: Job, model: Adapter, data: Data, course: TrainingState, emit: Emit) -> None:
    """Classify the whole test set once, after one batch that is not timed."""
    images, size = model.to_native(data.test_images), job.training.test_batch_size
    with _measured(emit, "test/warm_up_s"):
        model.predict(itertools.islice(test_batches(images, size), 1))
    clock = Clock()
    clock.start()
    logits = model.predict(test_batches(images, size))
    seconds = clock.stop()
    predicted = logits.argmax(axis=1)
    right = predicted == data.test_labels
    best = np.argsort(-logits, axis=1)[:, :5]
    if not course.reached and job.training.reaches(100 * float(right.mean())):
        emit(Metrics({"train/time_to_target_s": course.clock.seconds}, course.step))
    emit(
        Metrics(
            {
                "testing_time_s": seconds,
                "accuracy_percent": 100 * float(right.mean()),
                "test/mean_class_accuracy_percent": 100 * mean_class_accuracy(right, data.test_labels),
                "test/top5_accuracy_percent": 100 * float((best == data.test_labels[:, None]).any(axis=1).mean()),
                "test/loss": cross_entropy(logits, data.test_labels),
                "test/images_per_s": len(right) / seconds,
                "test/cpu_utilization_percent": 100 * clock.cpu_seconds / (seconds * job.threads),
            }
        )
    )
    emit(ConfusionMatrix(confusion_matrix(data.test_labels, predicted, job.classes)))


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> list[list[int]]:
    """How many images of each true class (rows) were taken for each class (columns)."""
    counts: list[list[int]] = (
        np.bincount(classes * labels.astype(np.intp) + predicted, minlength=classes**2)
        .reshape(classes, classes)
        .tolist()
    )
    return counts


def mean_class_accuracy(right: np.ndarray, labels: np.ndarray) -> float:
    """The mean of the shares of ``right`` (N,) in each class there is in ``labels`` (N,): every class counts alike."""
    counts = np.bincount(labels)
    shares = np.bincount(labels, weights=right)[counts > 0] / counts[counts > 0]
    return float(shares.mean())


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean softmax cross-entropy in nats, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]))


def save(job: Job, model: Adapter, treatment: Preprocessing, folder: Path) -> None:
    """The native model, and what is needed beside it to classify raw images again."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder)
    replace(job, data="", folder="", checkpoints="", cores=None).write(
        folder / "job.json"
    )  # the model may move to another machine
    (folder / "treatment.json").write_text(json.dumps(treatment.statistics))


def weights_sha256(weights: initialization.Weights) -> str:
    """SHA-256 of all canonical values: equal only if two runs ended with the same weights to the last bit."""
    total = hashlib.sha256()
    for name, values in sorted(weights.items()):
        total.update(name.encode())
        total.update(np.ascontiguousarray(values, np.float32).tobytes())
    return total.hexdigest()


class _Cold:
    """Tells whether the files that its block read were in memory already (``warm``), or came from the disk."""

    def __enter__(self) -> _Cold:
        self._faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
        return self

    def __exit__(self, *_: Any) -> None:
        self._faults = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - self._faults

    @property
    def word(self) -> str:
        return "cold" if self._faults > COLD_FAULTS else "warm"


class _measured:
    """Reports how long its block took."""

    def __init__(self, emit: Emit, name: str) -> None:
        self._emit, self._name = emit, name
        self._clock = Clock()

    def __enter__(self) -> None:
        self._emit(Phase(METRICS[self._name].phase))
        self._clock.start()

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self._emit(Metrics({self._name: self._clock.stop()}))
