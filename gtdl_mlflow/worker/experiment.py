"""One run in the worker: build, train, test, save."""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
import resource
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..metrics import METRICS
from . import initialization, latency, parity
from .assembly import build_model, description, load_adapter
from .clock import Clock
from .compile_cache import CompileCache
from .events import ConfusionMatrix, Finished, Metadata, Metrics, Phase, Remark, one_line
from .frameworks.base import Adapter
from .inputs import Preprocessing, test_batches
from .job import Job
from .prepared_data import open_arrays
from .scores import accuracy, confusion_matrix, cross_entropy, mean_class_accuracy, top_accuracy
from .training import Data, Emit, TrainingState, train

COLD_BLOCKS = 512
"""Limit in blocks of 512 bytes: a context that reads more than this from the disk has read its files from the disk.

Otherwise, the files came from memory. Page faults cannot be used instead, because the kernel reads mapped files ahead
of an access.
"""


def run(job: Job, emit: Emit, start_s: float | None = None) -> None:
    """Train and test the job's network and report every event to ``emit`` when it happens.

    ``metrics.py`` describes the reported times. ``start_s`` is the start-up time of the interpreter, with NumPy, in
    seconds; None without a driver. After start-up, the worker may have waited for its job; no clock includes that wait.
    ``worker/wall_s`` also includes the time between the other timed intervals.
    """
    wall = Clock()
    wall.start()
    if start_s is not None:
        wall.add(start_s, time.process_time())
        emit(Metrics({"setup/start_s": wall.seconds}))
    with FileAccess() as framework_files, _Timed(emit, "setup/import_s"):
        adapter_class = load_adapter(job.adapter)
    if job.parity:
        check_parity(job, adapter_class, emit)
    with _Timed(emit, "setup/build_s"):
        preprocessing, model, network = build_model(job, adapter_class)
    compile_cache = CompileCache(job.compile_cache)
    with _Timed(emit, "setup/compile_s"):
        model.compile()
    with FileAccess() as data_files:
        with _Timed(emit, "setup/verify_data_s"):
            arrays = open_arrays(job)
        with _Timed(emit, "setup/data_s"):
            data = Data(job, preprocessing, model, arrays)
    metadata = {
        **description(model),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "parameters": network.parameter_count,
        "flops_per_image": network.flops_per_image,
        "train_images": len(data.train_images),
        "test_images": len(data.test_images),
        "framework_files": framework_files.state,
        "data_files": data_files.state,
    }
    emit(Metadata(metadata))
    state = train(job, model, data, emit)
    emit(Metadata({"weights_sha256": weights_sha256(model.weights()), **compile_cache.state}))
    test(job, model, data, state, emit)
    with _Timed(emit, "save/model_s"):
        try:
            save(job, model, preprocessing, Path(job.folder))
        except Exception as error:  # its type depends on the framework; the results do not depend on saving
            shutil.rmtree(job.folder, ignore_errors=True)
            emit(Remark(f"the trained model could not be saved: {one_line(error)}"))
    if job.latency.repeats:
        with _Timed(emit, "latency/time_s"):
            steps = latency.training_steps(job, model, data, state.step)
            inference = latency.inference(job, model, data.test_images)
        for event in (Metrics(steps), *inference):
            emit(event)
    usage = resource_usage()
    emit(Metrics({**usage, **model.metrics(), "worker/wall_s": wall.stop()}))
    emit(Finished(usage["worker/cpu_user_s"] + usage["worker/cpu_system_s"]))


def resource_usage() -> dict[str, float]:
    """Return the resources that this process and its children have used, as counted by the operating system."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "worker/cpu_user_s": own.ru_utime + children.ru_utime,
        "worker/cpu_system_s": own.ru_stime + children.ru_stime,
        "worker/peak_memory_mb": max(own.ru_maxrss, children.ru_maxrss) * 1024 / 1e6,  # Linux counts KiB
        "worker/context_switches": own.ru_nvcsw + children.ru_nvcsw,
        "worker/involuntary_context_switches": own.ru_nivcsw + children.ru_nivcsw,
        "worker/disk_read_mb": (own.ru_inblock + children.ru_inblock) * 512 / 1e6,
        "worker/disk_write_mb": (own.ru_oublock + children.ru_oublock) * 512 / 1e6,
    }


def check_parity(job: Job, adapter_class: type[Adapter], emit: Emit) -> None:
    """Compare the framework with the float64 NumPy network, on a separate model.

    Raises:
        ParityBroken: the framework does not compute the network of the job.
    """
    with _Timed(emit, "setup/parity_s"):
        differences = parity.check(job, adapter_class)
    emit(Metrics(differences))
    parity.require(differences, job.precision)


def test(job: Job, model: Adapter, data: Data, state: TrainingState, emit: Emit) -> None:
    """Classify the whole test set once, after one batch that is not timed. The testing clock starts and stops here."""
    images, size, labels = model.to_native(data.test_images), job.training.test_batch_size, data.test_labels
    with _Timed(emit, "test/warm_up_s"):
        model.predict(itertools.islice(test_batches(images, size), 1))
    emit(Phase(METRICS["testing_time_s"].phase))
    clock = Clock()
    clock.start()
    logits = model.predict(test_batches(images, size))
    seconds = clock.stop()
    predicted = logits.argmax(axis=1)
    correct = predicted == labels
    accuracy_percent = 100 * accuracy(correct, labels, job.mean_per_class)
    if not state.reached_target and job.training.reaches_target(accuracy_percent):
        emit(Metrics({"train/time_to_target_s": state.clock.seconds}, state.step))
    values = {
        "testing_time_s": seconds,
        "accuracy_percent": accuracy_percent,
        "test/overall_accuracy_percent": 100 * float(correct.mean()),
        "test/mean_class_accuracy_percent": 100 * mean_class_accuracy(correct, labels),
        "test/top5_accuracy_percent": 100 * top_accuracy(logits, labels, 5),
        "test/loss": cross_entropy(logits, labels),
        "test/images_per_s": len(correct) / seconds,
        "test/cpu_utilization_percent": 100 * clock.cpu_seconds / (seconds * job.threads),
    }
    emit(Metrics(values))
    emit(ConfusionMatrix(confusion_matrix(labels, predicted, job.classes)))


def save(job: Job, model: Adapter, preprocessing: Preprocessing, folder: Path) -> None:
    """Write the native model and the files that ``SavedModel`` needs to classify raw images."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder)
    # The saved job must not depend on this machine, and a prediction must not require compilation.
    options = job.options if job.saved_options is None else job.saved_options
    portable = replace(job, data="", folder="", checkpoints="", cores=None, compile_cache="", options=options)
    portable.write(folder / "job.json")
    (folder / "preprocessing.json").write_text(json.dumps(preprocessing.statistics))


def weights_sha256(weights: initialization.Weights) -> str:
    """Return the SHA-256 of all weights. It is the same for two runs only if their weights are bitwise identical."""
    total = hashlib.sha256()
    for name, values in sorted(weights.items()):
        total.update(name.encode())
        total.update(np.ascontiguousarray(values, np.float32).tobytes())
    return total.hexdigest()


class FileAccess:
    """Context manager that detects whether the files read in its block came from memory or from the disk."""

    def __enter__(self) -> FileAccess:
        self._blocks = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
        return self

    def __exit__(self, *_: Any) -> None:
        self._blocks = resource.getrusage(resource.RUSAGE_SELF).ru_inblock - self._blocks

    @property
    def state(self) -> str:
        """``warm`` (from memory) or ``cold`` (from the disk)."""
        return "cold" if self._blocks > COLD_BLOCKS else "warm"


class _Timed:
    """Context manager that emits the phase of a metric on entry and its duration, as the metric, on normal exit."""

    def __init__(self, emit: Emit, name: str) -> None:
        self._emit, self._name = emit, name
        self._clock = Clock()

    def __enter__(self) -> None:
        self._emit(Phase(METRICS[self._name].phase))
        self._clock.start()

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self._emit(Metrics({self._name: self._clock.stop()}))
