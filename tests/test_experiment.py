"""The procedure of one run: what is under the clock, what the framework receives, and which events are sent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.clock import FakeTime
from helpers.networks import ZERO

from gtdl_mlflow import metrics
from gtdl_mlflow.worker import experiment
from gtdl_mlflow.worker import training as training_module
from gtdl_mlflow.worker.clock import Clock
from gtdl_mlflow.worker.events import Event, Finished, Metadata, Metrics, Phase, Progress, Remark
from gtdl_mlflow.worker.experiment import weights_sha256
from gtdl_mlflow.worker.frameworks.base import Adapter, Setup
from gtdl_mlflow.worker.job import (
    BatchOrder,
    EarlyStopping,
    HeldOut,
    Job,
    Latency,
    LearningRateSchedule,
    Optimizer,
    Schedule,
    Training,
    Validation,
)
from gtdl_mlflow.worker.saved_model import SavedModel
from gtdl_mlflow.worker.scores import cross_entropy

TIME = FakeTime()
STEP_S, IMAGE_S, PREPARE_S, COMPILE_S = 1.0, 0.25, 1000.0, 30.0
"""Seconds of the fake adapter's operations: a step, the classification of an image, building and saving, compiling."""

CREATED: list[FakeAdapter] = []
"""Every instance of the fake adapter that a run has created."""

TRAIN_IMAGES, TEST_IMAGES, CLASSES = 20, 12, 6
TEST_LABELS = np.array([1, 1, 1, 2, 3, 0, 5, 5, 4, 1, 2, 5], np.uint8)

Run = Callable[..., "tuple[FakeAdapter, list[Event]]"]


def training(**changes: Any) -> Training:
    values: dict[str, Any] = {
        "name": "test",
        "order": BatchOrder.sequential,
        "batch_size": 4,
        "test_batch_size": 5,
        "iterations": 20,
        "optimizer": Optimizer.sgd,
        "learning_rate": 0.1,
    }
    return Training(**{**values, **changes})


def test_weights_sha256_changes_with_any_bit_and_any_name() -> None:
    weights = {"a": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float32)}
    same = weights_sha256({"b": weights["b"], "a": np.asfortranarray(weights["a"])})
    assert weights_sha256(weights) == same
    assert weights_sha256({**weights, "b": np.array([0, 1e-45], np.float32)}) != same
    assert weights_sha256({"a": weights["a"], "c": weights["b"]}) != same


class NativeArray(np.ndarray):
    """The fake adapter's own array type; slices have the same type."""


class FakeAdapter(Adapter):
    """An adapter that records its calls and advances the fake time. It predicts class 1 for every image."""

    layout = "NHWC"
    label_type = "int32"

    def __init__(self, setup: Setup) -> None:
        TIME.advance(PREPARE_S)
        self.setup = setup
        self.trained: list[tuple[np.ndarray, np.ndarray, float]] = []
        self.chunks: list[int] = []
        self.predicted: list[list[np.ndarray]] = []
        self.calls: list[str] = []
        CREATED.append(self)

    def to_native(self, array: np.ndarray) -> Any:
        return array.view(NativeArray)

    def compile(self) -> None:
        self.calls.append("compile")
        TIME.advance(COMPILE_S)

    def train(self, batches: Iterable[Any], rates: list[float]) -> np.ndarray:
        assert rates
        for rate, (images, labels) in zip(rates, batches, strict=False):
            assert isinstance(images, NativeArray)
            assert isinstance(labels, NativeArray)
            self.trained.append((images, labels, rate))
            TIME.advance(STEP_S)
        self.chunks.append(len(rates))
        self.calls.append("train")
        return np.array([len(self.trained)] * len(rates), np.float32)

    def predict(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        parts = list(batches)
        assert all(isinstance(part, NativeArray) for part in parts)
        self.predicted.append(parts)
        self.calls.append("predict")
        count = sum(map(len, parts))
        TIME.advance(IMAGE_S * count)
        return np.tile(np.array([0, 3, 2, 1, 0, -1], np.float32), (count, 1))

    def weights(self) -> dict[str, np.ndarray]:
        return self.setup.weights

    def save(self, folder: Path) -> None:
        self.calls.append("save")
        TIME.advance(PREPARE_S)
        (folder / "native").write_text("weights")

    def load(self, folder: Path) -> None:
        self.calls.append("load")
        assert (folder / "native").read_text() == "weights"

    def checkpoint(self, folder: Path) -> None:
        self.calls.append("checkpoint")
        TIME.advance(PREPARE_S)
        (folder / "step").write_text(str(len(self.trained)))

    def restore(self, folder: Path, step: int) -> None:
        self.calls.append("restore")
        assert (folder / "step").read_text() == str(step)

    def describe(self) -> dict[str, Any]:
        return {"version": "7", "device": self.setup.device, "threads": self.setup.threads}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Return a job whose images have their number as the value of every pixel, which identifies them in a batch."""
    for part, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        numbers = np.arange(count, dtype=np.uint8)[:, None, None, None]
        np.save(tmp_path / f"{part}_images.npy", np.broadcast_to(numbers, (count, 3, 2, 1)))
        np.save(tmp_path / f"{part}_labels.npy", numbers.ravel() % CLASSES if part == "train" else TEST_LABELS)
    return Job(
        adapter=f"{__name__}:FakeAdapter",
        options={},
        layers={"dense": {"type": "dense", "units": "classes", "weights": ZERO, "biases": ZERO}},
        image_shape=[3, 2, 1],
        classes=CLASSES,
        data=str(tmp_path),
        training=training(),
        budget=1.0,
        seed=0,
        device="cpu",
        threads=1,
        cores=None,
        folder=str(tmp_path / "model"),
        latency=Latency(repeats=0),
    )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a job on the fake time and returns its adapter and its events."""
    for module in (experiment, training_module):
        monkeypatch.setattr(module, "Clock", lambda: Clock(TIME))

    def run(job: Job) -> tuple[FakeAdapter, list[Event]]:
        events: list[Event] = []

        def emit(event: Event) -> None:
            events.append(event)
            if isinstance(event, Metadata):
                TIME.advance(PREPARE_S)

        experiment.run(job, emit)
        return CREATED.pop(), events

    return run


def metric(events: list[Event], name: str) -> list[float]:
    """Return all values of a metric in their order."""
    return [event.values[name] for event in events if isinstance(event, Metrics) and name in event.values]


@pytest.mark.parametrize("order", BatchOrder)
@pytest.mark.parametrize("preprocessing", [{}, {"random_flip": {}}])
def test_adapter_receives_its_native_arrays(
    job: Job, run: Run, order: BatchOrder, preprocessing: dict[str, Any]
) -> None:
    hyper = training(order=order, preprocessing=preprocessing, iterations=30, evaluate_every_epochs=1)
    adapter, _ = run(replace(job, training=hyper))
    assert len(adapter.trained) == 30  # FakeAdapter.train checks the type of every batch


def test_events_are_sent_in_order(job: Job, run: Run) -> None:
    _, events = run(replace(job, training=training(iterations=6)))
    labels = []
    for event in events:
        if isinstance(event, Metrics):
            labels.append(next(iter(event.values)))
        elif isinstance(event, Metadata):
            labels.append("weights" if "weights_sha256" in event.values else "metadata")
        elif isinstance(event, Phase):
            labels.append(f"phase {event.name}")
        else:
            labels.append(type(event).__name__)
    assert [label for label, before in zip(labels, ["", *labels], strict=False) if label != before] == [
        "phase import", "setup/import_s", "phase build", "setup/build_s",
        "phase ahead-of-time compilation", "setup/compile_s", "phase data verification", "setup/verify_data_s",
        "phase data", "setup/data_s", "metadata",
        "phase training", "Progress", "eval/accuracy_percent", "Progress", "training_time_s", "weights",
        "phase test warm-up", "test/warm_up_s", "phase testing", "testing_time_s", "ConfusionMatrix",
        "phase saving", "save/model_s", "worker/cpu_user_s", "Finished",
    ]  # fmt: skip


def test_every_reported_metric_and_phase_is_registered(job: Job, run: Run) -> None:
    hyper = training(
        epochs=6,
        validation=Validation(1, 5, HeldOut.last),
        early_stopping=EarlyStopping(patience_iterations=14),
        target_accuracy_percent=10.0,
    )
    latency = Latency(repeats=2, batch_sizes=[1, 4])
    _, events = run(replace(job, training=hyper, latency=latency, seed=1))
    names = {name for event in events if isinstance(event, Metrics) for name in event.values}
    assert {"train/time_to_target_s", "train/best_iteration", "inference/p50_ms", "train_step/samples"} <= names
    assert {name for name in names if metrics.find(name) is None} == set()
    phases = {event.name for event in events if isinstance(event, Phase)}
    assert phases <= {metric.phase for metric in metrics.PHASES}


def test_end_reports_the_cpu_time_of_the_worker(job: Job, run: Run) -> None:
    _, events = run(job)
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.cpu_s == metric(events, "worker/cpu_user_s")[0] + metric(events, "worker/cpu_system_s")[0] > 0


def test_metadata_describe_framework_network_and_data(job: Job, run: Run) -> None:
    _, events = run(replace(job, training=training(validation=Validation(1, 10, HeldOut.first))))
    metadata = {key: value for event in events if isinstance(event, Metadata) for key, value in event.values.items()}
    expected = {"framework_version": "7", "threads": 1, "device": "cpu", "parameters": 42, "train_images": 18}
    assert expected.items() <= metadata.items()
    assert metadata["test_images"] == 12
    assert metadata["weights_sha256"] == weights_sha256(
        {"dense/weights": np.zeros((6, 6)), "dense/biases": np.zeros(6)}
    )


def test_training_time_includes_only_the_steps(job: Job, run: Run) -> None:
    adapter, events = run(job)
    # 20 steps of a second, 5 per epoch, with three evaluations on 12 images between them.
    assert metric(events, "training_time_s") == [20 * STEP_S]
    assert metric(events, "train/evaluation_s") == [3 * TEST_IMAGES * IMAGE_S]
    assert metric(events, "train/elapsed_s") == [5, 10, 15, 20]
    assert metric(events, "train/iterations") == [20]
    assert metric(events, "train/images_per_s") == [4]
    assert metric(events, "train/first_step_s") == [STEP_S]
    assert metric(events, "train/epoch") == [1, 2, 3, 4]
    assert metric(events, "setup/build_s") == [PREPARE_S]
    assert metric(events, "setup/compile_s") == [COMPILE_S]
    assert metric(events, "save/model_s") == [PREPARE_S]
    assert len(adapter.trained) == 20


def test_every_step_is_trained_once_with_its_batch_and_rate(job: Job, run: Run) -> None:
    schedule = LearningRateSchedule(Schedule.inverse, 0.1, 1)
    hyper = training(batch_size=3, iterations=30, schedule=schedule)
    adapter, _ = run(replace(job, training=hyper, budget=0.5))
    assert len(adapter.trained) == 15
    shown = np.concatenate([images[:, 0, 0, 0] for images, _, _ in adapter.trained])
    assert shown.tolist() == [number % TRAIN_IMAGES for number in range(45)]
    assert np.concatenate([labels for _, labels, _ in adapter.trained]).tolist() == [int(n) % CLASSES for n in shown]
    assert [rate for _, _, rate in adapter.trained] == hyper.rates(0, 15, 0.5)
    images, labels, _ = adapter.trained[0]
    assert (images.dtype, images.shape, labels.dtype) == (np.float32, (3, 3, 2, 1), np.int32)


def test_early_stopping_ends_the_training_and_tests_the_best_model(job: Job, run: Run) -> None:
    # 16 images in batches of 4. The adapter always predicts class 1, so the error is lowest at the first validation.
    hyper = training(
        epochs=30,
        validation=Validation(1, 5, HeldOut.last),
        early_stopping=EarlyStopping(patience_iterations=9),
        evaluate_every_epochs=2,
    )
    adapter, events = run(replace(job, training=hyper))
    assert metric(events, "train/iterations") == [10]
    assert len(adapter.trained) == 10
    assert metric(events, "train/best_iteration") == [4]
    # Images 16 to 19, of the classes 4, 5, 0, 1.
    assert metric(events, "eval/validation_error_percent") == [75, 75]
    assert [images[0].item(0) for images in adapter.predicted[0]] == [16]
    assert adapter.calls.index("save") < adapter.calls.index("load") < len(adapter.calls) - 3
    assert adapter.calls[-3:] == ["predict", "predict", "save"]
    assert metric(events, "training_time_s") == [10 * STEP_S]


@pytest.mark.parametrize(("batch_size", "steps"), [(4, 3), (1, 10)])
def test_early_stopping_before_the_first_validation_tests_the_model_of_the_end(
    job: Job, run: Run, batch_size: int, steps: int
) -> None:
    # The first validation would be after an epoch of 4 or 16 steps.
    hyper = training(
        batch_size=batch_size,
        epochs=30,
        validation=Validation(1, 5, HeldOut.last),
        early_stopping=EarlyStopping(patience_iterations=steps - 1),
    )
    adapter, events = run(replace(job, training=hyper))
    assert len(adapter.trained) == steps
    assert metric(events, "train/iterations") == [steps]
    assert metric(events, "train/best_iteration") == [steps]
    assert metric(events, "eval/validation_error_percent") == [75]
    assert metric(events, "train/validation_s") == [4 * IMAGE_S + PREPARE_S]  # with the clock stopped
    assert metric(events, "training_time_s") == [steps * STEP_S]
    assert adapter.calls.index("save") < adapter.calls.index("load")


class Interrupted(Exception):
    """Stands in for the end of the process."""


@pytest.mark.parametrize("last", range(1, 15))
def test_resumed_training_equals_an_uninterrupted_one(
    job: Job, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    hyper = training(
        order=BatchOrder.shuffled,
        epochs=6,
        validation=Validation(1, 5, HeldOut.last),
        checkpoint_every_s=3 * STEP_S,
        early_stopping=EarlyStopping(patience_iterations=14),
    )
    whole, events_of_whole = run(replace(job, training=hyper))
    assert metric(events_of_whole, "train/iterations") == [15]

    def interrupt(self: FakeAdapter, batches: Iterable[Any], rates: list[float]) -> np.ndarray:
        if len(self.trained) + len(rates) > last:
            raise Interrupted
        return original_train(self, batches, rates)

    original_train = FakeAdapter.train
    job = replace(job, training=hyper, checkpoints=str(tmp_path / "checkpoints"))
    monkeypatch.setattr(FakeAdapter, "train", interrupt)
    with pytest.raises(Interrupted):
        run(job)
    first = CREATED.pop()
    monkeypatch.setattr(FakeAdapter, "train", original_train)
    second, events = run(job)
    metadata = {key: value for event in events if isinstance(event, Metadata) for key, value in event.values.items()}
    checkpoint = last // 3 * 3
    assert metadata.get("resumed_from_iteration", 0) == checkpoint
    assert len(first.trained) == last
    trained = [*first.trained[:checkpoint], *second.trained]
    assert len(trained) == len(whole.trained)
    pairs = zip(trained, whole.trained, strict=True)
    for (images, labels, rate), (expected_images, expected_labels, expected_rate) in pairs:
        assert (images == expected_images).all()
        assert (labels == expected_labels).all()
        assert rate == expected_rate
    for name in (
        "training_time_s", "train/evaluation_s", "train/validation_s", "train/iterations", "train/best_iteration",
        "train/elapsed_s", "eval/accuracy_percent", "eval/validation_error_percent", "accuracy_percent",
    ):  # fmt: skip
        assert metric(events, name) == metric(events_of_whole, name), name


def test_checkpoints_follow_the_training_clock_and_are_not_timed_by_it(job: Job, run: Run, tmp_path: Path) -> None:
    job = replace(job, checkpoints=str(tmp_path / "checkpoints"))
    adapter, events = run(replace(job, training=training(checkpoint_every_s=6 * STEP_S)))
    assert adapter.calls.count("checkpoint") == 3  # after 6, 12, 18 of 20 steps of a second
    assert metric(events, "train/checkpoint_s") == [3 * PREPARE_S]
    assert metric(events, "training_time_s") == [20 * STEP_S]
    assert [path.name for path in (tmp_path / "checkpoints").glob("*-*")] == ["step-18"]


def remarks(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Remark)]


def test_checkpoint_that_cannot_be_written_stops_nothing(
    job: Job, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checkpoint(self: FakeAdapter, folder: Path) -> None:
        original(self, folder)
        if len(self.trained) != 6:
            raise RuntimeError("the framework's own\nerror for a full disk")

    original = FakeAdapter.checkpoint
    monkeypatch.setattr(FakeAdapter, "checkpoint", checkpoint)
    job = replace(job, checkpoints=str(tmp_path / "checkpoints"), training=training(checkpoint_every_s=6 * STEP_S))
    adapter, events = run(job)
    assert remarks(events) == [
        f"no checkpoint after iteration {step}: RuntimeError: the framework's own error for a full disk"
        for step in (12, 18)
    ]
    assert len(adapter.trained) == 20
    assert metric(events, "training_time_s") == [20 * STEP_S]
    assert metric(events, "train/checkpoint_s") == [3 * PREPARE_S]
    assert [path.name for path in (tmp_path / "checkpoints").glob("*-*")] == ["step-6"]


def test_checkpoints_without_a_usable_folder_stop_nothing(job: Job, run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    job = replace(job, checkpoints=str(tmp_path / "file" / "x"), training=training(checkpoint_every_s=6 * STEP_S))
    adapter, events = run(job)
    (remark,) = remarks(events)
    assert remark.startswith("no checkpoints are written: NotADirectoryError:")
    assert len(adapter.trained) == 20


@pytest.mark.parametrize("name", ["state.json", "model/step"])
def test_training_begins_anew_without_a_damaged_checkpoint(job: Job, run: Run, tmp_path: Path, name: str) -> None:
    job = replace(job, checkpoints=str(tmp_path / "checkpoints"), training=training(checkpoint_every_s=6 * STEP_S))
    run(job)
    (tmp_path / "checkpoints" / "step-18" / name).write_text("")
    adapter, events = run(job)
    assert remarks(events) == ["the checkpoint after iteration 18 is damaged and is not used"]
    assert "restore" not in adapter.calls
    assert len(adapter.trained) == 20
    assert not any("resumed_from_iteration" in event.values for event in events if isinstance(event, Metadata))


def test_checkpoint_that_the_framework_refuses_fails_one_run_only(
    job: Job, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: FakeAdapter, folder: Path, step: int) -> None:
        raise RuntimeError("another version")

    job = replace(job, checkpoints=str(tmp_path / "checkpoints"), training=training(checkpoint_every_s=6 * STEP_S))
    run(job)
    monkeypatch.setattr(FakeAdapter, "restore", refuse)
    with pytest.raises(RuntimeError, match="another version"):
        run(job)
    adapter, _ = run(job)
    assert len(adapter.trained) == 20


def test_model_that_cannot_be_saved_leaves_the_results(job: Job, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(self: FakeAdapter, folder: Path) -> None:
        (folder / "half").write_text("")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FakeAdapter, "save", save)
    _, events = run(job)
    assert remarks(events) == ["the trained model could not be saved: OSError: [Errno 28] No space left on device"]
    assert not Path(job.folder).exists()
    assert len(metric(events, "accuracy_percent")) == len(metric(events, "save/model_s")) == 1
    assert isinstance(events[-1], Finished)


def test_validation_images_are_not_trained_on(job: Job, run: Run) -> None:
    adapter, _ = run(replace(job, training=training(validation=Validation(1, 4, HeldOut.first))))
    assert min(images.min() for images, _, _ in adapter.trained) == 5


def test_test_set_is_classified_once_under_the_clock_after_one_warm_up_batch(job: Job, run: Run) -> None:
    adapter, events = run(job)
    *evaluations, warm_up, timed = adapter.predicted
    assert [[len(part) for part in parts] for parts in evaluations] == [[12]] * 3
    assert [len(part) for part in warm_up] == [5]
    assert [len(part) for part in timed] == [5, 5, 2]
    assert np.concatenate(timed)[:, 0, 0, 0].tolist() == list(range(TEST_IMAGES))
    assert metric(events, "testing_time_s") == [TEST_IMAGES * IMAGE_S]
    assert metric(events, "test/images_per_s") == [1 / IMAGE_S]
    assert adapter.calls[-4:] == ["train", "predict", "predict", "save"]


def test_accuracy_is_the_share_of_correctly_classified_images(job: Job, run: Run) -> None:
    _, events = run(job)
    assert metric(events, "accuracy_percent") == pytest.approx([100 * 4 / 12])
    assert metric(events, "eval/accuracy_percent") == pytest.approx([100 * 4 / 12] * 3)
    assert metric(events, "test/top5_accuracy_percent") == pytest.approx([100 * 9 / 12])  # class 5 has the lowest score
    logits = np.tile([0.0, 3, 2, 1, 0, -1], (TEST_IMAGES, 1))
    assert metric(events, "test/loss") == [cross_entropy(logits, TEST_LABELS)]


def test_mean_per_class_accuracy_is_the_headline_if_the_data_set_requires_it(job: Job, run: Run) -> None:
    # All predictions are class 1, which has 4 of the 12 images: 33 % overall, but only one of six classes is correct.
    _, events = run(replace(job, mean_per_class=True))
    assert metric(events, "accuracy_percent") == pytest.approx([100 / 6])
    assert metric(events, "eval/accuracy_percent") == pytest.approx([100 / 6] * 3)
    for mean_per_class in (True, False):
        _, events = run(replace(job, mean_per_class=mean_per_class))
        assert metric(events, "test/overall_accuracy_percent") == pytest.approx([100 * 4 / 12])
        assert metric(events, "test/mean_class_accuracy_percent") == pytest.approx([100 / 6])


@pytest.mark.parametrize("every_epochs", [0, 1])
def test_target_is_compared_with_the_headline_accuracy(job: Job, run: Run, every_epochs: int) -> None:
    job = replace(job, training=training(target_accuracy_percent=20.0, evaluate_every_epochs=every_epochs))
    _, overall = run(job)
    assert metric(overall, "train/time_to_target_s") == [5 * STEP_S if every_epochs else 20 * STEP_S]
    _, per_class = run(replace(job, mean_per_class=True))
    assert metric(per_class, "train/time_to_target_s") == []


def test_no_evaluation_during_training_at_interval_0(job: Job, run: Run) -> None:
    adapter, events = run(replace(job, training=training(evaluate_every_epochs=0)))
    assert len(adapter.predicted) == 2
    assert metric(events, "eval/accuracy_percent") == []
    assert metric(events, "train/evaluation_s") == [0]


def test_losses_are_means_since_the_last_evaluation(job: Job, run: Run) -> None:
    adapter, events = run(job)
    each = np.repeat(np.cumsum(adapter.chunks), adapter.chunks)
    assert metric(events, "train/loss") == [each[start : start + 5].mean() for start in (0, 5, 10, 15)]


def test_progress_ends_at_the_last_step(job: Job, run: Run) -> None:
    _, events = run(job)
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.iteration for event in progress] == sorted(event.iteration for event in progress)
    last = progress[-1]
    assert (last.iteration, last.iterations, last.batch_size, last.epoch) == (20, 20, 4, 4)
    assert last.images_per_s == 4


def test_chunks_grow_to_half_a_second(job: Job, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.STEP_S", 0.01)
    adapter, _ = run(replace(job, training=training(iterations=200, evaluate_every_epochs=0)))
    assert adapter.chunks[:7] == [1, 2, 4, 8, 16, 32, 50]
    assert sum(adapter.chunks) == 200


def test_saved_model_classifies_raw_images(job: Job, run: Run) -> None:
    run(replace(job, training=training(preprocessing={"standardize": {}})))
    folder = Path(job.folder)
    saved = Job.read(folder / "job.json")
    assert (saved.data, saved.folder, saved.cores) == ("", "", None)  # nothing of this machine
    raw = np.arange(TEST_IMAGES, dtype=np.uint8)[:, None, None, None] * np.ones((3, 2, 1), np.uint8)
    probabilities = SavedModel(folder).predict(raw[2:4])
    assert probabilities.shape == (2, CLASSES)
    assert probabilities.sum(axis=1) == pytest.approx([1, 1])
    inputs = CREATED.pop().predicted[0][0]
    deviation = raw.std(dtype=np.float64)
    assert inputs[:, 0, 0, 0] == pytest.approx([(2 - 5.5) / deviation, (3 - 5.5) / deviation])
