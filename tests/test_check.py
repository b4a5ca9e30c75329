"""``gtdl check``: a rule is reported for runs that break it, and only then."""

from __future__ import annotations

import json
import math
from typing import Any

import mlflow
import pytest
from helpers.planted_runs import make_finished_run, make_run, plant
from helpers.project import Command
from mlflow.entities import Run

from gtdl_mlflow import tags
from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.reporting import check
from gtdl_mlflow.reporting.intervals import SEEDS_TO_PUBLISH
from gtdl_mlflow.reporting.runs import to_benchmark_run

CELL = ("framework=torch", "dataset=mnist_5k")


def publishable_runs(**last: Any) -> list[Run]:
    """Return runs that can be published. ``last`` are the differences of the last one."""
    differences: list[dict[str, Any]] = [{}] * (SEEDS_TO_PUBLISH - 1) + [last]
    return [
        make_finished_run(*CELL, seed=seed, training_s=10 + seed / 100, testing_s=1 + seed / 1000, **each)
        for seed, each in enumerate(differences)
    ]


def broken_rules(runs: list[Run]) -> set[str]:
    verdict = check.check([to_benchmark_run(run) for run in runs])
    assert verdict.passed == all(finding.level == "warning" for finding in verdict.findings)
    return {finding.rule for finding in verdict.findings}


@pytest.mark.parametrize(
    ("rule", "difference"),
    [
        ("same_machine", {"gtdl.machine": "another"}),
        ("same_data", {"gtdl.data_digest": "another"}),
        ("same_code", {"gtdl.code": "another"}),
        ("same_mode", {"gtdl.mode": "another"}),
        ("same_kernels", {"reported": {"worker.blas_kernels": "Prescott"}}),
        ("environment_recorded", {"gtdl.environment": ""}),
        ("device_as_requested", {"reported": {"worker.device": "gpu"}}),
        ("device_as_requested", {"reported": {"worker.precision": "float64"}}),
        ("device_as_requested", {"reported": {"worker.threads": "7"}}),
        ("finite_results", {"metrics": {"accuracy_percent": math.nan}}),
        ("device_synchronised", {"metrics": {"worker/wall_s": math.nan}}),
        ("device_synchronised", {"metrics": {"worker/wall_s": 5.0}}),
        ("device_synchronised", {"metrics": {"testing_time_s": 0.0}}),
        ("first_step_included", {"metrics": {"train/first_step_s": 11.0}}),
        ("first_step_included", {"metrics": {"train/first_step_s": math.nan}}),
        ("quality_gate", {"gtdl.quality": "the loss is not finite"}),
        ("low_noise", {"metrics": {"training_time_s": 12.0, "worker/wall_s": 20.0}}),
        ("no_interference", {"gtdl.interference": "other processes had 20 % of the machine's CPU time"}),
        ("not_resumed", {"gtdl.resumed": "after iteration 5 of run x"}),
        ("resumption_recorded", {"reported": {"worker.resumed_from_iteration": "5"}}),
    ],
)
def test_broken_rule_is_the_only_finding(rule: str, difference: dict[str, object]) -> None:
    verdict = check.check([to_benchmark_run(run) for run in publishable_runs(**difference)])
    assert {finding.rule for finding in verdict.findings} == {rule}
    assert verdict.passed == (check.rules()[rule]["level"] == "warning")
    assert any(rule in verdict.tag_value(run_id) for finding in verdict.findings for run_id in finding.runs)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("0.1.0+b", {"compared_code"}),
        ("0.2.0+b", {"compared_code", "compared_version"}),
        ("0.1.0+a", set()),
    ],
)
@pytest.mark.parametrize(("setting", "ranked"), [("caffe_mnist", True), ("torch_mnist", False)])
def test_frameworks_that_are_ranked_together_have_one_version(
    code: str, expected: set[str], setting: str, ranked: bool
) -> None:
    runs = [
        make_finished_run(
            f"framework={framework}", f"setting={of}", seed=seed, training_s=10 + seed / 100, **{"gtdl.code": its_code}
        )
        for framework, of, its_code in (("torch", "caffe_mnist", "0.1.0+a"), ("jax", setting, code))
        for seed in range(SEEDS_TO_PUBLISH)
    ]
    verdict = check.check([to_benchmark_run(run) for run in runs])
    assert {finding.rule for finding in verdict.findings} == (expected if ranked else set())
    assert verdict.passed == ("compared_version" not in expected or not ranked)
    assert all(finding.subject.startswith("mnist_5k, all under caffe_mnist") for finding in verdict.findings)


@pytest.mark.parametrize("machine", ["first", "second"])
def test_frameworks_of_each_machine_have_one_version(machine: str) -> None:
    runs = [
        make_finished_run(
            f"framework={framework}",
            "setting=caffe_mnist",
            seed=seed,
            **{"gtdl.machine": each, "gtdl.code": "0.2.0+a" if (framework, each) == ("jax", machine) else "0.1.0+a"},
        )
        for each in ("first", "second")
        for framework in ("torch", "jax")
        for seed in range(SEEDS_TO_PUBLISH)
    ]
    assert "compared_version" in broken_rules(runs)


def test_runs_side_by_side_are_a_cell_with_a_warning() -> None:
    beside = {"gtdl.side_by_side": "true"}
    runs = [make_finished_run(*CELL, seed=seed, training_s=10 + seed / 100, **beside) for seed in range(5)]
    assert broken_rules(runs) == {"not_side_by_side"}
    assert broken_rules([*publishable_runs(), *runs]) == {"not_side_by_side"}


def test_runs_on_several_cores_are_one_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    runs = [
        make_finished_run(*CELL, "hardware.threads=1", f"hardware.cores=[{seed % 2}]", seed=seed)
        for seed in range(SEEDS_TO_PUBLISH)
    ]
    assert len({run.data.tags["gtdl.cell"] for run in runs}) == 2
    assert broken_rules(runs) == set()


def test_seeds_are_counted_and_must_differ() -> None:
    runs = [make_finished_run(*CELL, seed=seed) for seed in (0, 1, 1)]
    assert broken_rules(runs) == {"enough_seeds", "distinct_seeds"}


def test_failed_seed_is_reported_unless_it_finished_later() -> None:
    killed = {"gtdl.failure": "the worker was killed by SIGKILL"}
    assert broken_rules([make_run(*CELL, seed=3, **killed), *publishable_runs()]) == set()
    runs = [*publishable_runs(), make_run(*CELL, seed=9, **killed)]
    text = check.check([to_benchmark_run(run) for run in runs]).text()
    assert "error    finished              torch torch_mnist on mnist_5k, cpu, " in text
    assert "seed 9: FAILED: the worker was killed by SIGKILL" in text
    assert "a failed run is a result that the report must show" in text
    assert text.endswith("not passed: 6 runs in 1 cell, 1 error, 0 warnings")


def test_time_that_is_not_finite_is_reported() -> None:
    runs = publishable_runs(metrics={"training_time_s": math.nan})
    text = check.check([to_benchmark_run(run) for run in runs]).text()
    assert "error    finite_results        torch torch_mnist on mnist_5k, cpu, " in text
    assert "seed 4: training time nan" in text
    assert "not passed: " in text


def test_nothing_finished_does_not_pass() -> None:
    unavailable = make_run("framework=caffe", "dataset=mnist_5k", **{"gtdl.unavailable": "no GPU"})
    assert broken_rules([unavailable]) == {"any_finished"}
    assert broken_rules([make_run(*CELL, status="RUNNING")]) == {"any_finished", "enough_seeds", "none_running"}


def test_message_from_the_store_is_one_line() -> None:
    runs = publishable_runs(**{"gtdl.quality": "x\npassed: 5 runs in 1 cell, 0 errors, 0 warnings"})
    text = check.check([to_benchmark_run(run) for run in runs]).text()
    assert [line for line in text.splitlines() if "passed" in line] == [
        "not passed: 5 runs in 1 cell, 1 error, 0 warnings"
    ]


def test_unavailable_framework_breaks_no_rule() -> None:
    unavailable = make_run("framework=caffe", "dataset=mnist_5k", **{"gtdl.unavailable": "no GPU"})
    assert broken_rules([*publishable_runs(), unavailable]) == set()


def test_limited_data_set_is_another_data_set() -> None:
    limited = [
        make_finished_run(*CELL, "dataset.train_limit=500", seed=seed, **{"gtdl.data_digest": "cut"})
        for seed in range(SEEDS_TO_PUBLISH)
    ]
    assert broken_rules([*publishable_runs(), *limited]) == set()


def test_every_rule_has_a_level_a_reason_and_a_check() -> None:
    assert set(check.rules()) == set(check.RULES)
    for rule in check.rules().values():
        assert rule["level"] in ("error", "warning")
        assert rule["why"]


@pytest.mark.slow
def test_command_prints_and_tags_the_verdict(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    for run in publishable_runs():
        plant(run)
    capsys.readouterr()
    assert cli.main(["check"]) == 0
    assert capsys.readouterr().out == "passed: 5 runs in 1 cell, 0 errors, 0 warnings\n"
    plant(make_finished_run(*CELL, seed=4, **{"gtdl.quality": "the loss is not finite"}))
    capsys.readouterr()
    assert cli.main(["check", "--json"]) == 1
    verdict = json.loads(capsys.readouterr().out)
    assert not verdict["passed"]
    assert {finding["rule"] for finding in verdict["findings"]} == {"distinct_seeds", "quality_gate"}
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert sorted(run.data.tags[tags.CHECK] for run in runs) == [
        "distinct_seeds",
        "distinct_seeds, quality_gate",
        *["ok"] * 4,
    ]


def test_unknown_experiment_is_one_line(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    plant(make_finished_run(*CELL))
    capsys.readouterr()
    assert cli.main(["check", "--experiment", "nothing"]) == 1
    reason = "not found in this tracking store; there are runs in gtdl: --experiment gtdl"
    assert capsys.readouterr().err == f"gtdl: experiment nothing: {reason}\n"


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_check_of_nothing_is_one_line_and_fails(
    store: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    mlflow.create_experiment("empty")
    with mlflow.start_run(experiment_id=mlflow.create_experiment("others")):
        pass
    capsys.readouterr()
    for name in ("empty", "others", "Default"):
        assert cli.main(["check", "--experiment", name, *flags]) == 1
        out, err = capsys.readouterr()
        assert (out, err) == ("", f"gtdl: experiment {name}: no run yet\n")


@pytest.mark.slow
def test_runs_of_the_reference_pass_every_rule_but_that_of_the_seeds(
    gtdl: Command, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = gtdl("framework=reference")
    assert done.returncode == 0, done.stderr
    capsys.readouterr()
    cli.main(["check", "--json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert [each["rule"] for each in findings if each["level"] == "error"] == ["enough_seeds"]
