"""Sentences and remarks of the ranking, and ``gtdl compare``, on runs with known results."""

from __future__ import annotations

import math
import re
import warnings
from html import unescape
from pathlib import Path

import mlflow
import pytest
from helpers.planted_runs import make_finished_run, make_run, plant
from mlflow.entities import Run

from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.config import display
from gtdl_mlflow.reporting import check, comparison, ranking
from gtdl_mlflow.reporting.intervals import Ratio, Verdict, ratio_of_medians
from gtdl_mlflow.reporting.ranking import group_by_conditions
from gtdl_mlflow.reporting.ratios import Ranked
from gtdl_mlflow.reporting.runs import read, to_benchmark_run
from gtdl_mlflow.reporting.tables import abstraction_table
from gtdl_mlflow.reporting.verdicts import QUESTIONS, sample

PARITY = ("dataset=mnist_5k", "setting=caffe_mnist")


def repeats(
    framework: str, training_s: float, accuracy: float, *overrides: str, seeds: int = 5, **tags: str
) -> list[Run]:
    """Return runs that differ by at most 2 % in their times; the median is that of ``training_s``."""
    runs = []
    for seed in range(seeds):
        factor = 1 + 0.01 * ((seed * 3 + len(framework)) % 5 - 2) / 2
        runs.append(
            make_finished_run(
                f"framework={framework}",
                *PARITY,
                *overrides,
                seed=seed,
                training_s=training_s * factor,
                testing_s=training_s / 100 * factor,
                accuracy=accuracy + 0.1 * (factor - 1),
                **tags,
            )
        )
    return runs


def failed_run(framework: str, seed: int, **tags: str) -> Run:
    return make_run(f"framework={framework}", *PARITY, seed=seed, **tags)


def rank(*runs: list[Run]) -> tuple[list[str], list[str]]:
    """Return the sentences and the remarks of the only conditions with two frameworks or more."""
    groups = ranking.group_by_conditions(to_benchmark_run(run) for some in runs for run in some)
    (frameworks,) = [each for each in groups.values() if len(each) > 1]
    return [each.sentence for each in ranking.answers(frameworks)], ranking.remarks(frameworks)


def test_difference_is_stated_with_its_interval() -> None:
    sentences, remarks = rank(repeats("torch", 10, 98), repeats("tensorflow", 20, 98))
    assert sentences == [
        "PyTorch 2.13.0 trained fastest: 10.00 s. TensorFlow 2.21.0 took 2.00x [1.97, 2.03] as long.",
        "PyTorch 2.13.0 tested fastest: 0.100 s. TensorFlow 2.21.0 took 2.00x [1.97, 2.03] as long.",
        "PyTorch 2.13.0 and TensorFlow 2.21.0 reach the same accuracy, within 0.5 points: 98.00 %.",
    ]
    assert remarks == []


def test_every_framework_has_its_own_ratio() -> None:
    sentences, _ = rank(repeats("torch", 10, 97), repeats("mxnet", 15, 98), repeats("caffe", 40, 95))
    ratio = r"\[\d\.\d\d, \d\.\d\d\]"
    assert re.search(rf"MXNet 1\.9\.1 took 1\.50x {ratio} as long, Caffe 1\.0\.0 4\.00x {ratio}\.", sentences[0])
    assert "PyTorch 2.13.0 is 1.00 points [1.00, 1.00] behind, Caffe 1.0.0 3.00 points [3.00, 3.00]." in sentences[2]


def test_equal_frameworks_are_the_same() -> None:
    sentences, _ = rank(repeats("torch", 10, 98), repeats("mxnet", 10.005, 98))
    assert sentences[0].startswith("PyTorch 2.13.0 and MXNet 1.9.1 trained in the same time, within 2 %: 10.00 to ")


def spread_accuracies(
    framework: str, *values: float, seeds: range = range(5), setting: str = "caffe_mnist"
) -> list[Run]:
    overrides = (f"framework={framework}", "dataset=mnist_5k", f"setting={setting}")
    return [make_finished_run(*overrides, seed=seed, accuracy=value) for seed, value in zip(seeds, values, strict=True)]


def test_accuracies_of_the_same_seeds_are_compared_seed_by_seed() -> None:
    torch = spread_accuracies("torch", 90, 92, 94, 96, 98)
    sentences, _ = rank(torch, spread_accuracies("caffe", 90.1, 91.9, 94.1, 95.9, 98))
    assert sentences[2] == "Caffe 1.0.0 and PyTorch 2.13.0 reach the same accuracy, within 0.5 points: 94.00 %."
    sentences, _ = rank(torch, spread_accuracies("caffe", 89, 91, 93, 95, 97.2))
    assert sentences[2].startswith("PyTorch 2.13.0 was most accurate: 94.00 %. Caffe 1.0.0 is 0.96 points [0.85, 1.07]")


def test_accuracies_of_other_seeds_are_compared_by_their_means() -> None:
    torch = spread_accuracies("torch", 90, 92, 94, 96, 98)
    others = spread_accuracies("caffe", 90.1, 91.9, 94.1, 95.9, 98.5, seeds=range(5, 10))
    assert rank(torch, others)[0][2] == (
        "No difference in test accuracy is resolved: Caffe 1.0.0 94.10 %, PyTorch 2.13.0 94.00 %."
    )


def test_a_further_seed_leaves_the_others_in_pairs() -> None:
    torch = spread_accuracies("torch", 90, 92, 94, 96, 98, 95, seeds=range(6))
    sentences, remarks = rank(torch, spread_accuracies("caffe", 90.1, 91.9, 94.1, 95.9, 98))
    assert "reach the same accuracy, within 0.5 points" in sentences[2]
    assert remarks[0] == "Caffe 1.0.0: 5 seeds; others have 6."


def test_the_most_accurate_is_never_behind() -> None:
    """The medians have the opposite order of the means."""
    torch = spread_accuracies("torch", 90, 92, 94, 96, 98)
    sentences, _ = rank(torch, spread_accuracies("caffe", 91, 93, 93.9, 97, 99))
    assert sentences[2] == (
        "Caffe 1.0.0 was most accurate: 94.78 %. PyTorch 2.13.0 is 0.78 points [0.17, 1.39] behind."
    )


def test_noise_leaves_the_order_open() -> None:
    noisy = [
        make_finished_run(f"framework={name}", *PARITY, seed=seed, training_s=time_s * (1 + 0.2 * (seed % 3)))
        for name, time_s in (("torch", 10), ("mxnet", 10.5))
        for seed in range(5)
    ]
    sentences, remarks = rank(noisy)
    assert sentences[0] == "No difference in training time is resolved: PyTorch 2.13.0 12.00 s, MXNet 1.9.1 12.60 s."
    (remark,) = [each for each in remarks if "would resolve" in each]
    assert int(remark.split()[1].replace(",", "")) > ranking.MOST_RUNS
    assert remark.endswith("would resolve the ranking by training time; experiment=paired needs fewer.")


def test_number_of_runs_that_would_resolve_the_order() -> None:
    noisy = [
        make_finished_run(f"framework={name}", *PARITY, seed=seed, training_s=time_s * (1 + 0.05 * (seed % 3)))
        for name, time_s in (("torch", 10), ("mxnet", 10.5))
        for seed in range(5)
    ]
    (remark,) = [each for each in rank(noisy)[1] if "would resolve" in each]
    needed = int(remark.split()[1])
    assert remark.endswith("runs of each framework would resolve the ranking by training time.")
    assert 10 < needed <= ranking.MOST_RUNS


def test_disturbed_runs_are_counted() -> None:
    disturbed = repeats("torch", 10, 98, **{"gtdl.interference": "other processes used 61 %"})
    _, remarks = rank(disturbed, repeats("mxnet", 20, 98))
    assert remarks == ["Other load disturbed 5 of 10 runs. Use experiment=paired to compare frameworks under load."]


def test_reference_is_not_ranked_against_frameworks() -> None:
    sentences, _ = rank(repeats("reference", 1, 98), repeats("torch", 10, 97), repeats("mxnet", 20, 97))
    assert not any("Reference" in sentence or "NumPy" in sentence for sentence in sentences)
    assert "PyTorch 2.13.0 trained fastest" in sentences[0]


def test_three_runs_cannot_confirm_an_order() -> None:
    sentences, remarks = rank(repeats("torch", 10, 98, seeds=3), repeats("tensorflow", 20, 98, seeds=3))
    assert sentences[0] == "Too few runs to compare: PyTorch 2.13.0 9.95 s, TensorFlow 2.21.0 19.90 s."
    assert remarks == ["Only 3 seeds; publish with at least 5."]


def test_framework_with_too_few_runs_is_named() -> None:
    runs = repeats("torch", 10, 98), repeats("mxnet", 10.005, 98), repeats("caffe", 20, 98, seeds=2)
    sentence = rank(*runs)[0][0]
    assert sentence.endswith("Too few runs to compare: Caffe 1.0.0 1.99x (2 runs).")


def test_failed_and_missing_seeds_are_remarks() -> None:
    killed = failed_run("caffe", 4, **{"gtdl.failure": "the worker was killed by SIGKILL"})
    runs = (
        repeats("torch", 10, 98),
        repeats("tensorflow", 20, 98, seeds=4),
        [*repeats("caffe", 30, 98, seeds=4), killed],
    )
    assert rank(*runs)[1] == [
        "Caffe 1.0.0: 1 of 5 seeds failed: the worker was killed by SIGKILL",
        "TensorFlow 2.21.0: 4 seeds; others have 5.",
    ]


def test_failure_of_a_seed_that_finished_later_is_no_remark() -> None:
    failed = failed_run("torch", 0, **{"gtdl.failure": "the power failed"})
    assert rank([failed, *repeats("torch", 10, 98)], repeats("tensorflow", 20, 98))[1] == []


def test_runs_that_failed_the_quality_gate_are_in_no_ranking_of_times() -> None:
    sentences, remarks = rank(
        repeats("torch", 10, 98),
        repeats("tensorflow", 20, 98),
        repeats("mxnet", 1, 10, **{"gtdl.quality": "the loss is not finite"}),
        repeats("theano", 1, 10, **{"gtdl.quality": "the accuracy is no better than chance"}),
    )
    assert sentences[0].startswith("PyTorch 2.13.0 ")
    assert "MXNet" not in sentences[0]
    assert "MXNet" in sentences[2]
    assert remarks == [
        "MXNet 1.9.1 failed the quality gate, so its times are not ranked: the loss is not finite",
        "Theano 1.1.2 failed the quality gate, so its times are not ranked: the accuracy is no better than chance",
    ]


def test_noise_is_one_remark_with_the_noisiest_framework_first() -> None:
    runs = [
        [
            make_finished_run(f"framework={framework}", *PARITY, seed=seed, training_s=10 * (1 + spread * seed / 4))
            for seed in range(5)
        ]
        for framework, spread in (("torch", 0.3), ("tensorflow", 0.5), ("caffe", 0.01))
    ]
    remark = rank(*runs)[1][0]
    assert remark.startswith("Noisy training time: TensorFlow 2.21.0 (standard deviation ")
    assert remark.endswith("range 50% of the smallest); also PyTorch 2.13.0")


def test_runs_of_another_machine_are_another_comparison() -> None:
    runs = [*repeats("torch", 10, 98), *repeats("tensorflow", 5, 98, **{"gtdl.machine": "a faster one (abc)"})]
    text = ranking.text(to_benchmark_run(run) for run in runs)
    assert text == "No two frameworks have runs under the same conditions."


def test_unavailable_framework_is_named_with_its_reason() -> None:
    unavailable = failed_run("caffe", 0, **{"gtdl.unavailable": "no compiler"})
    remarks = rank(repeats("torch", 10, 98), repeats("tensorflow", 20, 98), [unavailable])[1]
    assert remarks == ["Caffe 1.0.0 is not available: no compiler"]


def test_own_defaults_and_a_common_setting_are_two_comparisons() -> None:
    default = [
        make_finished_run("framework=torch", "dataset=mnist_5k", seed=seed, training_s=40 + seed / 10)
        for seed in range(5)
    ]
    # The common setting is Caffe's own default.
    runs = [to_benchmark_run(run) for run in [*repeats("torch", 10, 98), *repeats("caffe", 20, 98), *default]]
    groups = ranking.group_by_conditions(runs)
    assert [conditions.setting for conditions, frameworks in groups.items() if len(frameworks) > 1] == [
        "each under its own default",
        "caffe_mnist",
    ]
    own, common = ranking.text(runs).split("\n\n")
    assert "Caffe 1.0.0 trained fastest" in own
    assert "PyTorch 2.13.0 trained fastest" in common


def test_framework_without_yaml_has_its_name_and_grey() -> None:
    run = to_benchmark_run(
        make_finished_run("framework=torch", **{"gtdl.framework": "cntk", "gtdl.framework_version": "2.7"})
    )
    (frameworks,) = ranking.group_by_conditions([run]).values()
    assert (frameworks[0].label, frameworks[0].color) == ("cntk 2.7", "#767676")


def compare(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = cli.main(["compare", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def plant_all(*runs: list[Run]) -> None:
    for some in runs:
        for run in some:
            plant(run)


@pytest.mark.slow
def test_compare_prints_ratio_interval_and_verdict(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    plant_all(repeats("torch", 10, 98), repeats("tensorflow", 20, 98))
    status, out, _ = compare(capsys, "torch", "tensorflow")
    assert status == 0
    conditions, header, training, testing, accuracy = out.splitlines()[:5]
    assert conditions.startswith("mnist_5k, caffe_mnist, cpu, ")
    assert header.split()[:2] == ["PyTorch", "TensorFlow"]
    assert "  0.50x [0.49, 0.51]  " in training
    assert training.endswith("2.00x as fast")
    assert testing.endswith("2.00x as fast")
    assert accuracy.endswith("the same within 0.5 points")
    assert "!" not in out


@pytest.mark.slow
def test_compare_selects_by_ids_version_and_search(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    plant_all(repeats("torch", 10, 98), repeats("torch", 30, 98, "framework.version=1.0"))
    runs = mlflow.search_runs(experiment_names=["gtdl"], output_format="list")
    old = ",".join(run.info.run_id for run in runs if run.data.params["framework.version"] == "1.0")
    for first in ("torch=1.0", old, "params.`framework.version` = '1.0'"):
        status, out, err = compare(capsys, first, "torch=2.13.0")
        assert status == 0, err
        assert "3.00x as long" in out
        assert "PyTorch 2.13.0" in out


def test_cost_of_an_abstraction_is_that_of_the_framework_below() -> None:
    setting = "setting=caffe_mnist"
    times = {"framework=keras_jax": 12.0, "framework=jax": 10.0, "framework=torch": 5.0}
    runs = [make_finished_run(name, setting, seed=seed, training_s=time + seed / 1000) for name, time in times.items()
            for seed in range(5)]  # fmt: skip
    runs += [make_finished_run("framework=jax", setting, "precision=bfloat16", seed=seed) for seed in range(5)]
    frameworks = group_by_conditions(read(runs).runs)
    some = next(some for conditions, some in frameworks.items() if conditions.setting == "caffe_mnist")
    table = abstraction_table(some, {})
    assert table is not None
    assert table.header == ["framework", "relative to", "training time, s", "testing time, s"]
    assert [row[:2] for row in table.rows] == [["Keras (JAX) 3.15.1", "JAX 0.12.0.1"]]
    assert table.rows[0][2].startswith("1.20x [1.20, 1.20]")
    label = "Keras-JAX-3.15.1"
    paired = {f"cpu/{activity}/{label}": Ranked(label, 0.1, ratio) for activity, ratio in (
        ("training", Ratio(2.5, 2.4, 2.6, 5)), ("training_over_plain", Ratio(1.3, 1.2, 1.4, 5)))}  # fmt: skip
    table = abstraction_table(some, paired)
    assert table is not None
    assert (table.header[2:], table.rows[0][2:]) == (["training step, CPU time"], ["1.30x [1.20, 1.40]"])
    assert abstraction_table([each for each in some if each.framework != "jax"], {}) is None


def test_compare_prints_what_matches_no_run(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    plant_all(repeats("torch", 10, 98, seeds=1))
    for selector, expected in (("nonsense", 2), ("caffe", 1), ("0" * 32, 1), ("torch", 2)):
        status, out, err = compare(capsys, selector, "torch")
        assert (status, out) == (expected, "")
        assert err.count("\n") == 1
        assert selector in err


@pytest.mark.slow
def test_compare_combines_machines_only_on_request(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    plant_all(repeats("torch", 10, 98), repeats("tensorflow", 5, 98, **{"gtdl.machine": "a faster one (abc)"}))
    status, _, err = compare(capsys, "torch", "tensorflow")
    assert status == 1
    assert "--across-machines" in err
    status, out, _ = compare(capsys, "torch", "tensorflow", "--across-machines")
    assert status == 0
    assert "2.00x as long" in out


@pytest.mark.slow
def test_compare_warns_of_unpublishable_runs(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    untrained = repeats("torch", 10, 98, seeds=3, **{"gtdl.quality": "the loss does not fall"})
    plant_all(untrained, repeats("tensorflow", 20, 98))
    _, out, _ = compare(capsys, "torch", "tensorflow")
    assert "! PyTorch: only 3 seeds; publish with at least 5." in out
    assert "! PyTorch failed the quality gate, so its times are meaningless: the loss does not fall" in out


# One verdict, whichever command prints it.


def five_frameworks() -> list[list[Run]]:
    """Return repeats of frameworks of which some differ clearly, and some hardly."""
    return [
        repeats("torch", 10, 98),
        repeats("tensorflow", 10.08, 98.01),
        repeats("mxnet", 10.02, 97),
        repeats("theano", 15, 96),
        repeats("caffe", 10.05, 98, seeds=4),
    ]


@pytest.mark.slow
def test_report_compare_and_answer_give_the_same_interval_and_verdict(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = five_frameworks()
    plant_all(*every)
    runs = [to_benchmark_run(run) for some in every for run in some]
    frameworks = max(ranking.group_by_conditions(runs).values(), key=len)
    answers = {each.question.name: each for each in ranking.answers(frameworks)}
    assert cli.main(["report", "--output", str(tmp_path / "report.html")]) == 0
    html = unescape((tmp_path / "report.html").read_text())
    answered = ranking.text(runs)  # what `gtdl answer` prints
    for answer in answers.values():
        assert answer.sentence in html
        assert answer.sentence in answered
    names = {display.label(each.framework): each.framework for each in frameworks}
    titles = {question.metric.title: question.name for question in QUESTIONS}
    compared = 0
    for answer in answers.values():
        best = answer.ranking[0].label.split()[0]
        for other in answer.ranking[1:]:
            pair = [names[other.label.split()[0]], names[best]]
            _, out, _ = compare(capsys, *(pair[::-1] if answer.question.largest else pair))
            (line,) = [line for line in out.splitlines() if titles.get(line[2:18].rstrip()) == answer.question.name]
            assert f"  {other.behind.text}  " in line, (answer.question.name, other.label)
            assert line.endswith("not resolved") == (other.behind.verdict is Verdict.unresolved)
            assert ("the same within" in line) == (other.behind.verdict is Verdict.same)
            compared += 1
    assert compared == 12


@pytest.mark.slow
def test_verdict_on_a_pair_does_not_depend_on_its_order(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    plant_all(*five_frameworks())
    first, second = (compare(capsys, *pair)[1].splitlines() for pair in (("mxnet", "theano"), ("theano", "mxnet")))
    assert first[2].endswith("1.50x as fast")
    assert second[2].endswith("1.50x as long")
    ratios = [re.findall(r"  ([\d.]+)x \[([\d.]+), ([\d.]+)\]", lines[2])[0] for lines in (first, second)]
    (value, low, high), inverse = ([float(number) for number in ratio] for ratio in ratios)
    assert [1 / value, 1 / high, 1 / low] == pytest.approx(inverse, abs=0.02)
    # As one of four comparisons, the interval is wider than that of these two frameworks alone.
    alone = ratio_of_medians(*([15 * factor for factor in (0.99, 0.995, 1, 1.005, 1.01)] for _ in range(2)))
    assert inverse[2] / inverse[1] > alone.high / alone.low


def test_framework_that_failed_the_quality_gate_gets_no_verdict_on_its_times(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_all(repeats("torch", 1, 98, **{"gtdl.quality": "the loss does not fall"}), repeats("mxnet", 10, 97))
    _, out, _ = compare(capsys, "torch", "mxnet")
    verdicts = [line for line in out.splitlines() if ", " in line[:20]][1:4]
    assert [line.endswith("no verdict: failed the quality gate") for line in verdicts] == [True, True, False]


# Repeats of one seed.


def repeats_of_one_seed(framework: str, accuracy: float, **tags: str) -> list[Run]:
    """Return four runs with one seed: they are alike but for their times, unless ``tags`` differ."""
    return [
        make_finished_run(
            f"framework={framework}",
            *PARITY,
            seed=7,
            training_s=10 + number / 10 + len(framework),
            accuracy=accuracy + number / 1000,
            **tags,
        )
        for number in range(4)
    ]


@pytest.mark.parametrize("tags", [{}, {"gtdl.weights_sha256": "w"}])
def test_repeats_of_one_seed_are_one_accuracy_and_several_times(tags: dict[str, str]) -> None:
    runs = [*repeats_of_one_seed("torch", 98, **tags), *repeats_of_one_seed("tensorflow", 90, **tags)]
    sentences, remarks = rank(runs)
    assert sentences[0] == (
        "PyTorch 2.13.0 trained fastest: 15.15 s. TensorFlow 2.21.0 took 1.33x [1.31, 1.35] as long."
    )
    assert sentences[2] == "Too few seeds to compare: PyTorch 2.13.0 98.00 %, TensorFlow 2.21.0 90.00 %."
    assert "PyTorch 2.13.0: 3 repeats of a seed; each seed has one accuracy, the median." in remarks
    assert "Only 1 seed; publish with at least 5." in remarks


def test_a_seed_with_many_repeats_weighs_as_much_as_any_other() -> None:
    once = [make_finished_run("framework=torch", *PARITY, seed=seed, accuracy=90 + seed) for seed in range(3)]
    often = [
        make_finished_run("framework=torch", *PARITY, seed=2, accuracy=value) for value in (70.0, 92.0, 99.0, 99.0)
    ]
    measured = sample([to_benchmark_run(run) for run in [*once, *often]], "accuracy_percent")
    assert sorted(measured.values) == [90, 91, 92]  # 92 is the median of 92, 70, 92, 99 and 99
    assert measured.size == "3 seeds"


@pytest.mark.slow
def test_compare_and_check_count_seeds_for_the_accuracy(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    plant_all(repeats_of_one_seed("torch", 98), repeats_of_one_seed("tensorflow", 90))
    _, out, _ = compare(capsys, "torch", "tensorflow")
    training, _, accuracy = out.splitlines()[2:5]
    assert "], 4  " in training
    assert training.endswith("x as fast")
    assert "98.00  " in accuracy
    assert accuracy.endswith("no verdict: 1 seed, an interval needs 4")
    assert "! PyTorch: only 1 seed; publish with at least 5." in out
    assert cli.main(["check"]) == 1
    text = capsys.readouterr().out
    assert "seed 7 finished 4 times" in text
    assert "1 seed finished; publish with at least 5" in text


# Values that are no measurement.


@pytest.mark.parametrize(
    ("value", "text"),
    [(math.nan, "1 not finite"), (math.inf, "1 not finite"), (0.0, "1 not above 0"), (-1.0, "1 not above 0")],
)
def test_time_that_is_no_measurement_is_shown_and_gives_no_verdict(value: float, text: str) -> None:
    broken = repeats("torch", 10, 98)
    broken[2].data.metrics["training_time_s"] = value
    runs = [to_benchmark_run(run) for run in [*broken, *repeats("tensorflow", 20, 98)]]
    (frameworks,) = ranking.group_by_conditions(runs).values()
    answers = ranking.answers(frameworks)
    assert answers[0].sentence.startswith("TensorFlow 2.21.0: 20.00 s. There is no other framework")
    assert "PyTorch 2.13.0 tested fastest" in answers[1].sentence
    assert ranking.remarks(frameworks)[0] == f"PyTorch 2.13.0 is not ranked by training time: {text} of 5."
    measured = sample(runs[:5], "training_time_s")
    assert measured.text.endswith(f"], 4, {text}")
    assert len(measured.values) == 4
    found = comparison.rows(runs, lambda search: [], "torch", "tensorflow")
    printed = comparison.text(found, "torch", "tensorflow")
    assert f"no verdict: {text}" in printed.splitlines()[2]
    assert found[0].result is None
    assert {"finite_results", "device_synchronised"} & {each.rule for each in check.check(runs).findings}


def test_framework_without_any_finite_value_crashes_nothing() -> None:
    broken = repeats("torch", 10, 98)
    for run in broken:
        run.data.metrics.update(training_time_s=math.nan, testing_time_s=math.inf, accuracy_percent=math.nan)
    sentences, remarks = rank(broken, repeats("tensorflow", 20, 98))
    assert all(sentence.startswith("TensorFlow") for sentence in sentences)
    assert remarks[:3] == [
        "PyTorch 2.13.0 is not ranked by training time: 5 not finite of 5.",
        "PyTorch 2.13.0 is not ranked by testing time: 5 not finite of 5.",
        "PyTorch 2.13.0 is not ranked by test accuracy: 5 not finite of 5.",
    ]
    assert sample([to_benchmark_run(run) for run in broken], "training_time_s").text == "5 not finite"


@pytest.mark.parametrize("values", [(1e308, 1e-320), (1e308, 1e308), (5e-324, 5e-324), (1e-320, 1.0)])
def test_extreme_times_give_no_warning_and_no_crash(values: tuple[float, float]) -> None:
    runs = [
        make_finished_run(
            f"framework={name}", *PARITY, seed=seed, metrics={"training_time_s": value * (1 - seed / 100)}
        )
        for name, value in zip(("torch", "tensorflow"), values, strict=True)
        for seed in range(5)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sentences, _ = rank(runs)
    assert any(words in sentences[0] for words in ("trained fastest", "in the same time", "is resolved"))
