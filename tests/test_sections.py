"""Sections of the report: their order, and when turns replace whole runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from unittest.mock import Mock

from helpers.planted_runs import make_finished_run
from mlflow.entities import Run

from gtdl_mlflow.config import display
from gtdl_mlflow.reporting import page
from gtdl_mlflow.reporting.intervals import Ratio
from gtdl_mlflow.reporting.ranking import Conditions, group_by_conditions
from gtdl_mlflow.reporting.ratios import Ranked
from gtdl_mlflow.reporting.runs import OWN, LoadedRuns, to_benchmark_run
from gtdl_mlflow.reporting.sections import Section, compare_groups, paired_by_conditions, pareto_front, section
from gtdl_mlflow.reporting.tables import Paired
from gtdl_mlflow.reporting.website import by_machine


def runs(framework: str, times: Sequence[float], *overrides: str, setting: str = "caffe_mnist") -> list[Run]:
    words = (f"framework={framework}", "dataset=mnist_5k", f"setting={setting}", *overrides)
    return [make_finished_run(*words, seed=seed, training_s=time) for seed, time in enumerate(times)]


def turns(**times: float) -> Paired:
    """Return the paired rankings of frameworks in training by both clocks, with the seconds of a step."""
    best = min(times.values())
    ranked = {}
    for name, time in times.items():
        part = display.part_of_metric(f"{display.label(name)} {display.version(name)}")
        ratio = time / best
        spread = 0.01 * (time > best)
        for clock in ("cpu", "wall"):
            ranked[f"{clock}/training/{part}"] = Ranked(part, time, Ratio(ratio, ratio - spread, ratio + spread, 8))
    return ranked


def only_section(planted: Iterable[list[Run]], *paired: Paired, charts: bool = False) -> Section:
    client = Mock(get_metric_history=lambda *_: []) if charts else None
    groups = group_by_conditions(to_benchmark_run(run) for some in planted for run in some)
    ((conditions, frameworks),) = [each for each in groups.items() if len(each[1]) > 1]
    return section(conditions, frameworks, [*paired], client)


ONE_THREAD = "hardware.threads=1"
SECONDS = (10.0, 10.1, 10.2, 10.3, 10.4)
TWICE = tuple(2 * each for each in SECONDS)


def test_turns_on_one_thread_replace_whole_runs() -> None:
    planted = runs("torch", SECONDS, ONE_THREAD), runs("tensorflow", TWICE, ONE_THREAD)
    sentences = only_section(planted, turns(torch=1, tensorflow=3)).sentences
    assert sentences[0] == (
        "Paired measurement, CPU time of one thread: PyTorch 2.13.0 trained fastest. "
        "TensorFlow 2.21.0 took 3.00x [2.99, 3.01] as long."
    )
    assert not [each for each in sentences[1:] if "trained" in each]
    found = only_section(planted, turns(torch=1, tensorflow=3), charts=True)
    assert [table.header for table in found.paired] == [["framework", "training step, CPU time"]]
    assert found.charts[0].title == "Training step, CPU time"


def test_cost_of_an_abstraction_on_one_thread_is_by_cpu_time() -> None:
    planted = runs("torch", SECONDS, ONE_THREAD), runs("keras_torch", TWICE, ONE_THREAD)
    label = "Keras-PyTorch-3.15.1"
    costs = {
        f"{clock}/training_over_plain/{label}": Ranked(label, 2.0, Ratio(2, 1.9, 2.1, 8)) for clock in ("cpu", "wall")
    }
    table = only_section(planted, costs).abstraction
    assert table is not None
    assert table.header[2:] == ["training step, CPU time"]


def test_turns_on_two_threads_have_a_sentence_for_each_clock(all_cores: None) -> None:
    planted = runs("torch", SECONDS, "hardware.threads=2"), runs("tensorflow", TWICE, "hardware.threads=2")
    both = turns(torch=1, tensorflow=3)
    sentences = only_section(planted, both).sentences
    assert [each.partition(":")[0] for each in sentences if "trained" in each] == [
        "Paired measurement, CPU time of one thread",
        "Paired measurement, wall clock",
    ]
    one = {name: each for name, each in both.items() if name.startswith("cpu/")}
    sentences = only_section(planted, one).sentences
    assert [each for each in sentences if each.startswith("PyTorch 2.13.0 trained fastest: 10.20 s.")]


def test_turns_of_some_frameworks_do_not_replace_the_whole_runs_of_all() -> None:
    planted = [runs(name, SECONDS, ONE_THREAD) for name in ("torch", "tensorflow")]
    theano = runs("theano", [each / 2 for each in SECONDS], ONE_THREAD)
    sentences = only_section([*planted, theano], turns(torch=1, tensorflow=3)).sentences
    assert [each for each in sentences if each.startswith("Theano 1.1.2 trained fastest: 5.10 s.")]


def test_frameworks_in_development_have_an_answer_if_an_older_one_is_noisy() -> None:
    planted = [
        runs("theano", (1.0, 1.9, 0.6, 1.9, 1.0)),
        runs("torch", (1.5, 1.502, 1.498, 1.501, 1.499)),
        runs("tensorflow", (1.9, 1.902, 1.898, 1.901, 1.899)),
    ]
    sentences = only_section(planted, {}).sentences
    assert sentences[0].startswith("No difference in training time is resolved: Theano 1.1.2")
    expected = "Frameworks in development only: PyTorch 2.13.0 trained fastest: 1.50 s. TensorFlow 2.21.0 took 1.27x"
    assert [each for each in sentences if each.startswith(expected)]


def test_conditions_with_turns_come_first_and_own_defaults_first_in_their_table() -> None:
    planted = [
        each
        for name in ("torch", "tensorflow")
        for setting in (f"{name}_mnist", "caffe_mnist")
        for each in runs(name, SECONDS, setting=setting)
    ]
    groups = group_by_conditions(map(to_benchmark_run, planted))
    common = next(each for each in groups if each.setting == "caffe_mnist")
    own = next(each for each in groups if each.setting == OWN)

    def order(paired: Sequence[Conditions]) -> list[Conditions]:
        return [conditions for conditions, _ in compare_groups(groups, paired)]

    assert order([]).index(own) < order([]).index(common)
    assert order([common])[0] == common
    ((_, table),) = page.tracks(compare_groups(groups, [common]))
    assert table.header[1].startswith("own default")


def test_each_paired_measurement_has_a_table_and_a_sentence() -> None:
    names = ("torch", "tensorflow", "mxnet", "jax")
    planted = [runs(name, SECONDS, ONE_THREAD) for name in names]
    found = only_section(planted, turns(torch=1, tensorflow=3), turns(mxnet=2, jax=4), charts=True)
    assert [[row[0] for row in table.rows] for table in found.paired] == [
        ["PyTorch 2.13.0", "TensorFlow 2.21.0"],
        ["MXNet 1.9.1", "JAX 0.12.0.1"],
    ]
    assert [chart.title for chart in found.charts[:2]] == [
        "Training step, CPU time: PyTorch 2.13.0, TensorFlow 2.21.0",
        "Training step, CPU time: MXNet 1.9.1, JAX 0.12.0.1",
    ]
    first, second, *_ = found.sentences
    assert first.startswith("Paired measurement, CPU time of one thread: PyTorch 2.13.0 trained fastest.")
    assert second.startswith("Paired measurement, CPU time of one thread: MXNet 1.9.1 trained fastest.")


def measurements(*frameworks: Sequence[str]) -> list[set[str]]:
    """Return the frameworks of the paired measurements that a report keeps, of sweeps of these, the newest first."""
    planted = []
    metrics = {}
    for number, names in enumerate(frameworks):
        parent = f"sweep{number}"
        metrics[parent] = {f"cpu/training/{name}/ratio": 1.0 for name in names}
        planted += [
            make_finished_run(f"framework={name}", "setting=caffe_mnist", **{"mlflow.parentRunId": parent})
            for name in names
        ]
    loaded = LoadedRuns([to_benchmark_run(run) for run in planted], [], metrics)
    (found,) = paired_by_conditions(loaded).values()
    return [{name.rpartition("/")[2] for name in each} for each in found.values()]


def test_shorter_measurement_does_not_hide_older_frameworks() -> None:
    assert measurements(["torch", "jax"], ["torch", "jax", "mxnet"]) == [{"torch", "jax"}, {"torch", "jax", "mxnet"}]
    assert measurements(["torch", "jax"], ["mxnet", "caffe"]) == [{"torch", "jax"}, {"mxnet", "caffe"}]


def test_interrupted_repetition_does_not_hide_the_measurement_whose_runs_it_has_taken() -> None:
    runs_of = {"mlflow.parentRunId": "again", "gtdl.sweep_id": "1f"}
    planted = [make_finished_run(f"framework={name}", "setting=caffe_mnist", **runs_of) for name in ("torch", "jax")]
    metrics = {"first": {f"cpu/training/{name}/ratio": 1.0 for name in ("torch", "jax")}}
    loaded = LoadedRuns([to_benchmark_run(run) for run in planted], [], metrics, {"first": "1f"})
    assert len(paired_by_conditions(loaded)) == 1
    (of_machine,) = by_machine(loaded).values()
    assert len(paired_by_conditions(of_machine)) == 1


def test_measurement_is_replaced_by_a_newer_one_of_all_its_frameworks() -> None:
    assert measurements(["torch", "jax", "mxnet"], ["torch", "jax"]) == [{"torch", "jax", "mxnet"}]


def test_pareto_front_has_no_framework_of_the_same_accuracy() -> None:
    rows = [
        {"framework": name, "training_time_s": time_s, "accuracy_percent": accuracy}
        for name, time_s, accuracy in (("A", 1.0, 95.7), ("B", 1.2, 96.0), ("C", 2.0, 96.4), ("D", 3.0, 97.0))
    ]
    assert [row["framework"] for row in pareto_front(rows)] == ["A", "D"]
