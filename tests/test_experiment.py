"""The procedure of a run: what is under the clock, what is shown to the framework, and what is said about it."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gtdl_mlflow.worker import events, experiment
from gtdl_mlflow.worker import training as procedure
from gtdl_mlflow.worker.checkpoints import Checkpoints
from gtdl_mlflow.worker.clock import Clock
from gtdl_mlflow.worker.events import Event, Finished, Metadata, Metrics, Progress
from gtdl_mlflow.worker.experiment import cross_entropy, mean_class_accuracy, weights_sha256
from gtdl_mlflow.worker.frameworks.base import Adapter, Setup
from gtdl_mlflow.worker.job import (
    BatchOrder,
    EarlyStopping,
    Job,
    Latency,
    LearningRateSchedule,
    Optimizer,
    Schedule,
    Take,
    Training,
    Validation,
)
from gtdl_mlflow.worker.saved_model import SavedModel
from gtdl_mlflow.worker.training import EarlyStoppingState, Throughput, evaluation_steps


class Time:
    """A clock that moves only when told to; seconds."""

    def __init__(self) -> None:
        self.nanoseconds = 0

    def __call__(self) -> int:
        return self.nanoseconds

    def pass_(self, seconds: float) -> None:
        self.nanoseconds += round(seconds * 1e9)


def test_clock_counts_only_while_it_runs() -> None:
    time = Time()
    clock = Clock(time)
    assert clock.seconds == 0
    clock.start()
    time.pass_(2)
    assert clock.seconds == 2
    assert clock.stop() == 2
    time.pass_(100)
    assert clock.seconds == 2
    clock.start()
    time.pass_(0.5)
    assert clock.stop() == 2.5


def test_clock_keeps_nanoseconds() -> None:
    time = Time()
    time.nanoseconds = 2**62  # a machine that has been up for a century
    clock = Clock(time)
    clock.start()
    time.nanoseconds += 1
    assert clock.stop() == 1e-9


def training(**more: Any) -> Training:
    given: dict[str, Any] = {
        "name": "here", "order": BatchOrder.sequential, "batch_size": 4, "test_batch_size": 5, "iterations": 20,
        "optimizer": Optimizer.sgd, "learning_rate": 0.1,
    }  # fmt: skip
    return Training(**{**given, **more})


def test_steps_are_iterations_or_epochs_whichever_ends_first() -> None:
    assert training(iterations=20_000, batch_size=50).steps(55_000, 1) == 20_000
    assert training(iterations=None, epochs=20, batch_size=10).steps(60_000, 1) == 120_000
    assert training(iterations=None, epochs=0.5, batch_size=10).steps(60_000, 1) == 3_000
    assert training(iterations=1_000, epochs=20, batch_size=10).steps(60_000, 1) == 1_000
    assert training(iterations=1_000_000, epochs=1, batch_size=10).steps(60_000, 1) == 6_000


def test_budget_takes_a_share_of_the_steps() -> None:
    assert training(iterations=20_000).steps(4, 0.1) == 2_000
    assert training(iterations=None, epochs=3, batch_size=7).steps(100, 1) == 43
    assert training(iterations=10).steps(4, 0.001) == 1  # never none at all


CAFFE, TORCH = LearningRateSchedule(Schedule.inverse, 1e-4, 0.75), LearningRateSchedule(Schedule.inverse, 5e-7, 1)


STEP = LearningRateSchedule(
    Schedule.step, 0.1, every_iterations=136_718.75
)  # TensorFlow's: 350 epochs of 50,000 in batches of 128
MULTISTEP = LearningRateSchedule(Schedule.multistep, 0.1, boundary_iterations=[4000, 6000])


@pytest.mark.parametrize("schedule", [CAFFE, TORCH, LearningRateSchedule(), STEP, MULTISTEP])
def test_budget_compresses_the_schedule(schedule: LearningRateSchedule) -> None:
    made = training(iterations=10_000, learning_rate=0.01, schedule=schedule)
    full, tenth = made.steps(64, 1), made.steps(64, 0.1)
    assert tenth * 10 == full
    assert made.rates(0, 1, 0.1) == made.rates(0, 1, 1) == [0.01]
    assert made.rates(tenth, tenth + 1, 0.1) == pytest.approx(made.rates(full, full + 1, 1), rel=1e-12)
    assert made.rates(500, 501, 0.1) == pytest.approx(made.rates(5_000, 5_001, 1), rel=1e-12)


def test_rates_are_the_originals() -> None:
    caffe = training(learning_rate=0.01, schedule=CAFFE)
    assert caffe.rates(0, 10_000, 1)[9_999] == pytest.approx(0.01 * 1.9999**-0.75, rel=1e-12)
    torch = training(learning_rate=0.05, schedule=TORCH)
    assert torch.rates(120_000, 120_001, 1) == pytest.approx([0.05 / 1.06], rel=1e-12)
    assert training().rates(3, 6, 1) == [0.1, 0.1, 0.1]


def test_rates_that_step_are_the_originals() -> None:
    made = training(learning_rate=0.001, schedule=MULTISTEP)
    assert made.rates(3999, 4001, 1.0) == pytest.approx([0.001, 0.0001])
    assert made.rates(5999, 6001, 1.0) == pytest.approx([0.0001, 0.00001])
    made = training(learning_rate=0.1, schedule=STEP)
    assert made.rates(136_718, 136_720, 1.0) == pytest.approx([0.1, 0.01])
    assert made.rates(273_437, 273_439, 1.0) == pytest.approx([0.01, 0.001])
    assert made.rates(1367, 1369, 0.01) == pytest.approx([0.1, 0.01])  # a budget moves the steps


def test_the_average_starts_short_and_grows_long() -> None:
    made = training(ema_decay=0.9999)
    assert [made.ema_decay_at(step) for step in (1, 2, 91)] == pytest.approx([2 / 11, 3 / 12, 92 / 101])
    assert made.ema_decay_at(10**6) == 0.9999


def test_stretches_of_rates_join() -> None:
    made = training(schedule=LearningRateSchedule(Schedule.inverse, 0.1, 1))
    assert made.rates(0, 3, 0.5) + made.rates(3, 20, 0.5) == made.rates(0, 20, 0.5)


def test_evaluations_are_at_the_ends_of_epochs_but_not_at_the_end() -> None:
    assert evaluation_steps(100, 25, 1) == [25, 50, 75]
    assert evaluation_steps(100, 25, 2) == [50]
    assert evaluation_steps(101, 25, 1) == [25, 50, 75, 100]
    assert evaluation_steps(100, 25, 0) == []
    assert evaluation_steps(20, 25, 1) == []
    assert evaluation_steps(11, 2.5, 1) == [2, 5, 8, 10]  # 7.5 is nearer to the even number


def test_evaluations_never_look_twice_at_one_step() -> None:
    for steps_per_epoch in (0.25, 0.5, 1, 1.5):  # less than one: a batch larger than the data
        looks = evaluation_steps(9, steps_per_epoch, 1)
        assert sorted(set(looks)) == looks
        assert all(0 < look < 9 for look in looks)


def tutorial(errors: list[float], per_epoch: int, epochs: int, patience: int) -> tuple[int, int]:
    """Steps trained and the step of the lowest error, by the loop of Theano's tutorial: iterations count from 0."""
    lowest, best, iteration = math.inf, 0, -1
    for epoch in range(epochs):
        for index in range(per_epoch):
            iteration = epoch * per_epoch + index
            if (iteration + 1) % per_epoch == 0:
                error = errors[epoch]
                if error < lowest:
                    if error < lowest * 0.995:
                        patience = max(patience, iteration * 2)
                    lowest, best = error, iteration + 1
            if patience <= iteration:
                return iteration + 1, best
    return iteration + 1, best


@pytest.mark.parametrize("seed", range(20))
def test_early_stopping_is_the_tutorials(seed: int) -> None:
    random = np.random.RandomState(seed)
    errors = (np.maximum.accumulate(random.uniform(0, 1, 40))[::-1] + random.uniform(0, 0.02, 40)).tolist()
    rule, step, per_epoch = EarlyStoppingState(EarlyStopping(patience_iterations=25), 1.0), 0, 10
    for error in errors:
        step = min(step + per_epoch, rule.limit)
        if step % per_epoch:
            break
        rule.improves(step, error)
        if step == rule.limit:
            break
    assert (step, rule.best_step) == tutorial(errors, per_epoch, 40, 25)


def test_steady_speed_leaves_out_the_warm_up() -> None:
    steady = Throughput()
    steady.add(0, 1, 60.0)
    assert steady.first_s == 60
    assert steady.steps_per_s == 1 / 60  # there is nothing better yet
    steady.add(1, 3, 20.0)
    steady.add(3, 12, 10.0)  # begins in the warm-up
    assert steady.steps_per_s == 12 / 90
    steady.add(12, 112, 20.0)
    steady.add(112, 212, 20.0)
    assert steady.steps_per_s == 5
    assert steady.first_s == 60


def test_every_class_counts_alike() -> None:
    labels = np.array([0, 0, 0, 0, 2, 2, 5], np.uint8)
    right = np.array([1, 1, 1, 0, 1, 0, 1], bool)
    assert mean_class_accuracy(right, labels) == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)


def test_cross_entropy_is_the_definition() -> None:
    logits = np.array([[1.0, 2, 3], [-1, 0, 0.5], [4, 4, 4]], np.float32)
    labels = np.array([2, 0, 1])
    each = [
        -math.log(math.exp(row[label]) / sum(map(math.exp, row))) for row, label in zip(logits, labels, strict=True)
    ]
    assert cross_entropy(logits, labels) == pytest.approx(sum(each) / 3, rel=1e-12)


def test_cross_entropy_survives_large_logits() -> None:
    assert cross_entropy(np.array([[1e4, 0]], np.float32), np.array([1])) == 1e4
    assert cross_entropy(np.array([[1e30, -1e30]], np.float32), np.array([0])) == 0


def test_digest_tells_any_bit_and_any_name() -> None:
    weights = {"a": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float32)}
    same = weights_sha256({"b": weights["b"], "a": np.asfortranarray(weights["a"])})
    assert weights_sha256(weights) == same
    assert weights_sha256({**weights, "b": np.array([0, 1e-45], np.float32)}) != same
    assert weights_sha256({"a": weights["a"], "c": weights["b"]}) != same


SAID = [
    Metadata({"version": "2.13.0", "threads": 2, "tf32": False, "gpu": None, "note": 'a "quoted"\nline, ü'}),
    Progress(3, 100, 50, 0.5, 2.25, 1234.5),
    Progress(3, 100, 50, 0.5, math.inf, -math.inf),
    Metrics({"train/loss": 0.5, "count": 3}, 7, 1.5),
    Finished(),
]


@pytest.mark.parametrize("event", SAID)
def test_events_arrive_as_they_were_sent(event: Event) -> None:
    stream = io.StringIO()
    events.write(stream, event)
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert events.parse(line) == event


def test_a_loss_that_is_not_a_number_arrives() -> None:
    stream = io.StringIO()
    events.write(stream, Metrics({"train/loss": math.nan}))
    # Any reader of JSON can read it: no bare NaN.
    json.loads(stream.getvalue(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    arrived = events.parse(stream.getvalue())
    assert isinstance(arrived, Metrics)
    assert math.isnan(arrived.values["train/loss"])


@pytest.mark.parametrize(
    "line",
    [
        "", "\n", "Segmentation fault", "3", "null", "[]", '["event"]', "{}", '{"event": "no such"}', '{"event": []}',
        '{"event": "metrics"}', '{"event": "finished", "more": 1}', '{"event": "metrics", "values": {"a": 1}',
        '{"event": "progress", "iteration": 1}', '{"event": "metrics", "values": 3}',
        '{"event": "metrics", "values": {"a": "fast"}}',
    ],
)  # fmt: skip
def test_what_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not an event"):
        events.parse(line)


# A whole run, with an adapter that does nothing but remember.

TIME = Time()
STEP_S, IMAGE_S, PREPARE_S, COMPILE_S = 1.0, 0.25, 1000.0, 30.0


class Adopted(np.ndarray):
    """What the recorder calls its own: its slices are, too."""


class Recorder(Adapter):
    """Takes a second a step and a quarter a classified image; says class 1 of everything."""

    layout = "NHWC"
    label_type = "int32"

    def __init__(self, setup: Setup) -> None:
        TIME.pass_(PREPARE_S)
        self.setup = setup
        self.trained: list[tuple[np.ndarray, np.ndarray, float]] = []
        self.stretches: list[int] = []
        self.predicted: list[list[np.ndarray]] = []
        self.calls: list[str] = []
        MADE.append(self)

    def to_native(self, array: np.ndarray) -> Any:
        return array.view(Adopted)

    def compile(self) -> None:
        self.calls.append("compile")
        TIME.pass_(COMPILE_S)

    def train(self, batches: Iterable[Any], rates: list[float]) -> np.ndarray:
        assert rates
        for rate, (images, labels) in zip(rates, batches, strict=False):
            assert isinstance(images, Adopted)
            assert isinstance(labels, Adopted)
            self.trained.append((images, labels, rate))
            TIME.pass_(STEP_S)
        self.stretches.append(len(rates))
        self.calls.append("train")
        return np.array([len(self.trained)] * len(rates), np.float32)

    def predict(self, batches: Iterable[np.ndarray]) -> np.ndarray:
        parts = list(batches)
        assert all(isinstance(part, Adopted) for part in parts)
        self.predicted.append(parts)
        self.calls.append("predict")
        count = sum(map(len, parts))
        TIME.pass_(IMAGE_S * count)
        return np.tile(np.array([0, 3, 2, 1, 0, -1], np.float32), (count, 1))

    def weights(self) -> dict[str, np.ndarray]:
        return self.setup.weights

    def save(self, folder: Path) -> None:
        self.calls.append("save")
        TIME.pass_(PREPARE_S)
        (folder / "native").write_text("weights")

    def load(self, folder: Path) -> None:
        self.calls.append("load")
        assert (folder / "native").read_text() == "weights"

    def checkpoint(self, folder: Path) -> None:
        self.calls.append("checkpoint")
        TIME.pass_(PREPARE_S)
        (folder / "taken").write_text(str(len(self.trained)))

    def restore(self, folder: Path, step: int) -> None:
        self.calls.append("restore")
        assert (folder / "taken").read_text() == str(step)

    def describe(self) -> dict[str, Any]:
        return {"version": "7", "device": self.setup.device, "threads": self.setup.threads}


MADE: list[Recorder] = []
TRAIN_IMAGES, TEST_IMAGES, CLASSES = 20, 12, 6
TEST_LABELS = np.array([1, 1, 1, 2, 3, 0, 5, 5, 4, 1, 2, 5], np.uint8)

Run = Callable[..., tuple[Recorder, list[Event]]]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Two values a pixel: the image's number, so that every batch says what is in it."""
    for part, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        numbers = np.arange(count, dtype=np.uint8)[:, None, None, None]
        np.save(tmp_path / f"{part}_images.npy", np.broadcast_to(numbers, (count, 3, 2, 1)))
        np.save(tmp_path / f"{part}_labels.npy", numbers.ravel() % CLASSES if part == "train" else TEST_LABELS)
    zero = {"distribution": "constant", "value": 0}
    return Job(
        adapter=f"{__name__}:Recorder",
        options={},
        layers={"dense": {"type": "dense", "units": "classes", "weights": zero, "biases": zero}},
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
    for module in (experiment, procedure):
        monkeypatch.setattr(module, "Clock", lambda: Clock(TIME))

    def run(job: Job) -> tuple[Recorder, list[Event]]:
        said: list[Event] = []

        def emit(event: Event) -> None:
            said.append(event)
            if isinstance(event, Metadata):
                TIME.pass_(PREPARE_S)

        experiment.run(job, emit)
        return MADE.pop(), said

    return run


def metric(said: list[Event], name: str) -> list[float]:
    return [event.values[name] for event in said if isinstance(event, Metrics) and name in event.values]


@pytest.mark.parametrize("order", BatchOrder)
@pytest.mark.parametrize("inputs", [{}, {"random_flip": {}}])
def test_a_framework_is_given_its_own_arrays(job: Job, run: Run, order: BatchOrder, inputs: dict[str, Any]) -> None:
    model, _ = run(replace(job, training=training(order=order, inputs=inputs, iterations=30, evaluate_every_epochs=1)))
    assert len(model.trained) == 30  # and each batch is looked at by the recorder


def test_events_come_in_their_order(job: Job, run: Run) -> None:
    _, said = run(replace(job, training=training(iterations=6)))
    words = []
    for event in said:
        if isinstance(event, Metrics):
            words.append(next(iter(event.values)))
        elif isinstance(event, Metadata):
            words.append("weights" if "weights_sha256" in event.facts else "described")
        else:
            words.append(type(event).__name__.lower())
    assert [word for word, before in zip(words, ["", *words], strict=False) if word != before] == [
        "setup/import_s", "setup/build_s", "setup/compile_s", "setup/data_s", "described", "progress",
        "eval/accuracy_percent", "progress",
        "training_time_s", "weights", "test/warm_up_s", "testing_time_s", "confusion", "save/model_s",
        "worker/cpu_user_s", "finished",
    ]  # fmt: skip


def test_described_says_what_ran(job: Job, run: Run) -> None:
    _, said = run(replace(job, training=training(validation=Validation(1, 10, Take.first))))
    facts = {key: value for event in said if isinstance(event, Metadata) for key, value in event.facts.items()}
    expected = {"framework_version": "7", "threads": 1, "device": "cpu", "parameters": 42, "train_images": 18}
    assert expected.items() <= facts.items()
    assert facts["test_images"] == 12
    assert facts["weights_sha256"] == weights_sha256({"dense/weights": np.zeros((6, 6)), "dense/biases": np.zeros(6)})


def test_training_time_is_that_of_the_steps_alone(job: Job, run: Run) -> None:
    adapter, said = run(job)
    # 20 steps of a second, 5 in an epoch, with three looks at 12 images between; all else is before and after.
    assert metric(said, "training_time_s") == [20 * STEP_S]
    assert metric(said, "train/evaluation_s") == [3 * TEST_IMAGES * IMAGE_S]
    assert metric(said, "train/elapsed_s") == [5, 10, 15, 20]
    assert metric(said, "train/iterations") == [20]
    assert metric(said, "train/images_per_s") == [4]
    assert metric(said, "train/first_step_s") == [STEP_S]
    assert metric(said, "train/epoch") == [1, 2, 3, 4]
    assert metric(said, "setup/build_s") == [PREPARE_S]
    assert metric(said, "setup/compile_s") == [COMPILE_S]
    assert metric(said, "save/model_s") == [PREPARE_S]
    assert len(adapter.trained) == 20


def test_every_step_is_trained_once_with_its_batch_and_rate(job: Job, run: Run) -> None:
    schedule = LearningRateSchedule(Schedule.inverse, 0.1, 1)
    made = training(batch_size=3, iterations=30, schedule=schedule)
    adapter, _ = run(replace(job, training=made, budget=0.5))
    assert len(adapter.trained) == 15
    shown = np.concatenate([images[:, 0, 0, 0] for images, _, _ in adapter.trained])
    assert shown.tolist() == [number % TRAIN_IMAGES for number in range(45)]
    assert np.concatenate([labels for _, labels, _ in adapter.trained]).tolist() == [int(n) % CLASSES for n in shown]
    assert [rate for _, _, rate in adapter.trained] == made.rates(0, 15, 0.5)
    images, labels, _ = adapter.trained[0]
    assert (images.dtype, images.shape, labels.dtype) == (np.float32, (3, 3, 2, 1), np.int32)


def test_training_ends_with_its_patience_and_the_best_model_is_tested(job: Job, run: Run) -> None:
    # 16 images in batches of 4; the Recorder says 1 of everything, so the error never falls after the first look.
    made = training(
        epochs=30,
        validation=Validation(1, 5, Take.last),
        early_stopping=EarlyStopping(patience_iterations=9),
        evaluate_every_epochs=2,
    )
    adapter, said = run(replace(job, training=made))
    assert metric(said, "train/iterations") == [10]
    assert len(adapter.trained) == 10
    assert metric(said, "train/best_iteration") == [4]
    # Images 16 to 19, of the classes 4, 5, 0, 1.
    assert metric(said, "eval/validation_error_percent") == [75, 75]
    assert [images[0].item(0) for images in adapter.predicted[0]] == [16]
    assert adapter.calls.index("save") < adapter.calls.index("load") < len(adapter.calls) - 3
    assert adapter.calls[-3:] == ["predict", "predict", "save"]
    assert metric(said, "training_time_s") == [10 * STEP_S]


class Interrupted(Exception):
    """What becomes of a run here; elsewhere it is killed."""


@pytest.mark.parametrize("last", range(1, 15))
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(
    job: Job, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    made = training(
        order=BatchOrder.shuffled, epochs=6, validation=Validation(1, 5, Take.last), checkpoint_every_s=3 * STEP_S,
        early_stopping=EarlyStopping(patience_iterations=14),
    )  # fmt: skip
    whole, said_of_whole = run(replace(job, training=made))
    assert metric(said_of_whole, "train/iterations") == [15]

    def interrupt(self: Recorder, batches: Iterable[Any], rates: list[float]) -> np.ndarray:
        if len(self.trained) + len(rates) > last:
            raise Interrupted
        return untouched(self, batches, rates)

    untouched = Recorder.train
    job = replace(job, training=made, checkpoints=str(tmp_path / "checkpoints"))
    monkeypatch.setattr(Recorder, "train", interrupt)
    with pytest.raises(Interrupted):
        run(job)
    first = MADE.pop()
    monkeypatch.setattr(Recorder, "train", untouched)
    second, said = run(job)
    resumed = [event.facts["resumed_from_iteration"] for event in said if isinstance(event, Metadata)
               and "resumed_from_iteration" in event.facts]  # fmt: skip
    taken = last // 3 * 3
    assert resumed == ([taken] if taken else [])
    assert len(first.trained) == last
    trained = [*first.trained[:taken], *second.trained]
    assert len(trained) == len(whole.trained)
    for (images, labels, rate), (wanted, wanted_labels, wanted_rate) in zip(trained, whole.trained, strict=True):
        assert (images == wanted).all()
        assert (labels == wanted_labels).all()
        assert rate == wanted_rate
    for name in (
        "training_time_s", "train/evaluation_s", "train/validation_s", "train/iterations", "train/best_iteration",
        "train/elapsed_s", "eval/accuracy_percent", "eval/validation_error_percent", "accuracy_percent",
    ):  # fmt: skip
        assert metric(said, name) == metric(said_of_whole, name), name


def test_checkpoints_are_due_by_the_clock_of_training_and_outside_it(job: Job, run: Run, tmp_path: Path) -> None:
    job = replace(job, checkpoints=str(tmp_path / "checkpoints"))
    adapter, said = run(replace(job, training=training(checkpoint_every_s=6 * STEP_S)))
    assert adapter.calls.count("checkpoint") == 3  # after 6, 12, 18 of 20 steps of a second
    assert metric(said, "train/checkpoint_s") == [3 * PREPARE_S]
    assert metric(said, "training_time_s") == [20 * STEP_S]
    assert [path.name for path in (tmp_path / "checkpoints").glob("*-*")] == ["step-18"]


def test_a_worker_waits_for_the_one_before_it(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from gtdl_mlflow.worker.checkpoints import Checkpoints; "
        "Checkpoints(Path(sys.argv[1])).__enter__(); print('has it')"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True) as other:
        with Checkpoints(tmp_path), pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=5)
        assert other.communicate(timeout=60)[0] == "has it\n"


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path) -> None:
    def dies(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise Interrupted

    def text(checkpoints: Checkpoints) -> str:
        newest = checkpoints.newest()
        assert newest is not None
        return " ".join(f"{path.name}: {path.read_text()}" for path in newest.iterdir())

    with Checkpoints(tmp_path / "here") as checkpoints:
        assert checkpoints.newest() is None
        checkpoints.save(9, lambda folder: (folder / "a").write_text("nine") and None)
        with pytest.raises(Interrupted):
            checkpoints.save(10, dies)
        assert text(checkpoints) == "a: nine"
    with Checkpoints(tmp_path / "here") as checkpoints:
        assert text(checkpoints) == "a: nine"
        checkpoints.save(10, lambda folder: (folder / "b").write_text("ten") and None)
        assert text(checkpoints) == "b: ten"


def test_validation_images_are_not_trained_on(job: Job, run: Run) -> None:
    adapter, _ = run(replace(job, training=training(validation=Validation(1, 4, Take.first))))
    assert min(images.min() for images, _, _ in adapter.trained) == 5


def test_test_set_is_classified_once_under_the_clock_after_one_warm_up_batch(job: Job, run: Run) -> None:
    adapter, said = run(job)
    *looks, warm_up, timed = adapter.predicted
    assert [[len(part) for part in parts] for parts in looks] == [[12]] * 3
    assert [len(part) for part in warm_up] == [5]
    assert [len(part) for part in timed] == [5, 5, 2]
    assert np.concatenate(timed)[:, 0, 0, 0].tolist() == list(range(TEST_IMAGES))
    assert metric(said, "testing_time_s") == [TEST_IMAGES * IMAGE_S]
    assert metric(said, "test/images_per_s") == [1 / IMAGE_S]
    assert adapter.calls[-4:] == ["train", "predict", "predict", "save"]


def test_accuracy_is_the_share_of_right_first_guesses(job: Job, run: Run) -> None:
    _, said = run(job)
    assert metric(said, "accuracy_percent") == pytest.approx([100 * 4 / 12])
    assert metric(said, "eval/accuracy_percent") == pytest.approx([100 * 4 / 12] * 3)
    assert metric(said, "test/top5_accuracy_percent") == pytest.approx([100 * 9 / 12])  # the last guess is class 5
    logits = np.tile([0.0, 3, 2, 1, 0, -1], (TEST_IMAGES, 1))
    assert metric(said, "test/loss") == [cross_entropy(logits, TEST_LABELS)]


def test_evaluation_only_when_asked(job: Job, run: Run) -> None:
    adapter, said = run(replace(job, training=training(evaluate_every_epochs=0)))
    assert len(adapter.predicted) == 2
    assert metric(said, "eval/accuracy_percent") == []
    assert metric(said, "train/evaluation_s") == [0]


def test_losses_are_means_since_the_last_look(job: Job, run: Run) -> None:
    adapter, said = run(job)
    each = np.repeat(np.cumsum(adapter.stretches), adapter.stretches)
    assert metric(said, "train/loss") == [each[start : start + 5].mean() for start in (0, 5, 10, 15)]


def test_progress_ends_at_the_last_step(job: Job, run: Run) -> None:
    _, said = run(job)
    progress = [event for event in said if isinstance(event, Progress)]
    assert [event.iteration for event in progress] == sorted(event.iteration for event in progress)
    last = progress[-1]
    assert (last.iteration, last.iterations, last.batch_size, last.epoch) == (20, 20, 4, 4)
    assert last.images_per_s == 4


def test_stretches_grow_to_half_a_second(job: Job, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.STEP_S", 0.01)
    adapter, _ = run(replace(job, training=training(iterations=200, evaluate_every_epochs=0)))
    assert adapter.stretches[:7] == [1, 2, 4, 8, 16, 32, 50]
    assert sum(adapter.stretches) == 200


def test_saved_model_classifies_raw_images(job: Job, run: Run) -> None:
    run(replace(job, training=training(inputs={"standardize": {}})))
    folder = Path(job.folder)
    saved = Job.read(folder / "job.json")
    assert (saved.data, saved.folder, saved.cores) == ("", "", None)  # nothing of this machine
    raw = np.arange(TEST_IMAGES, dtype=np.uint8)[:, None, None, None] * np.ones((3, 2, 1), np.uint8)
    probabilities = SavedModel(folder).predict(raw[2:4])
    assert probabilities.shape == (2, CLASSES)
    assert probabilities.sum(axis=1) == pytest.approx([1, 1])
    treated = MADE.pop().predicted[0][0]
    deviation = raw.std(dtype=np.float64)
    assert treated[:, 0, 0, 0] == pytest.approx([(2 - 5.5) / deviation, (3 - 5.5) / deviation])


def test_a_job_reads_as_it_was_written(job: Job, tmp_path: Path) -> None:
    schedule, validation = LearningRateSchedule(Schedule.inverse, 0.1, 2), Validation(1, 5, Take.first)
    made = training(schedule=schedule, validation=validation, optimizer=Optimizer.adam, order=BatchOrder.shuffled)
    written = replace(job, cores=[0, 1], training=made)
    written.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == written
