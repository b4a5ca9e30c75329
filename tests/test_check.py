"""``gtdl check``: every rule found broken where it was broken on purpose, and nowhere else."""

from __future__ import annotations

import json
import math

import mlflow
import pytest
from helpers.planted_runs import finished, plant

from gtdl_mlflow import cli
from gtdl_mlflow.report import check

CELL = ("framework=torch", "dataset=mnist_5k")


def five(*changes: object, **last: object) -> None:
    """Five runs that are fit to be published; the last one with a difference."""
    for seed in range(5):
        differences = last if seed == 4 else {}
        finished([*CELL, f"seed={seed}"], 10 + seed / 100, 1 + seed / 1000, 98, **differences)  # type: ignore[arg-type]


def broken(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, set[str]]:
    """The exit status, and the rules that are said to be broken."""
    status = cli.main(["check", "--json", *arguments])
    said = json.loads(capsys.readouterr().out)
    assert said["passed"] == (status == 0)
    return status, {finding["rule"] for finding in said["findings"]}


def test_runs_that_are_fit_pass_and_are_tagged(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    five()
    assert cli.main(["check"]) == 0
    assert capsys.readouterr().out == "passed: 5 runs in 1 cells, 0 errors, 0 warnings\n"
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert [run.data.tags[check.TAG] for run in runs] == ["ok"] * 5


@pytest.mark.parametrize(
    ("rule", "difference"),
    [
        ("same_machine", {"gtdl.machine": "another"}),
        ("same_data", {"gtdl.data_digest": "another"}),
        ("same_code", {"gtdl.code": "another"}),
        ("environment_recorded", {"gtdl.environment": ""}),
        ("device_as_asked", {"said": {"worker.device": "gpu"}}),
        ("device_as_asked", {"said": {"worker.precision": "float64"}}),
        ("device_as_asked", {"said": {"worker.threads": "7"}}),
        ("device_synchronised", {"metrics": {"worker/wall_s": 5.0}}),
        ("device_synchronised", {"metrics": {"testing_time_s": 0.0}}),
        ("warm_up_kept", {"metrics": {"train/first_step_s": 11.0}}),
        ("warm_up_kept", {"metrics": {"train/first_step_s": math.nan}}),
        ("quality_gate", {"gtdl.quality": "the loss is not finite"}),
        ("noise", {"metrics": {"training_time_s": 12.0, "worker/wall_s": 20.0}}),
        ("undisturbed", {"gtdl.interference": "other processes had 20 % of the machine's CPU time"}),
        ("resumed", {"gtdl.resumed": "after iteration 5 of run x"}),
        ("resumed_silently", {"said": {"worker.resumed_from_iteration": "5"}}),
        ("alone", {"gtdl.side_by_side": "true"}),
    ],
)
def test_one_rule_is_broken(
    store: str, capsys: pytest.CaptureFixture[str], rule: str, difference: dict[str, object]
) -> None:
    five(**difference)
    status, rules = broken(capsys)
    assert rule in rules
    assert rules <= {rule, "same_data"} if rule == "same_data" else rules == {rule}
    assert status == (0 if check.rules()[rule]["level"] == "warning" else 1)
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert any(rule in run.data.tags[check.TAG] for run in runs)


def test_seeds_are_counted_and_must_differ(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1, 1):
        finished([*CELL, f"seed={seed}"], 10, 1, 98)
    assert broken(capsys) == (1, {"enough_seeds", "seeds_differ"})


def test_a_failed_seed_is_told_unless_it_finished_later(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    plant([*CELL, "seed=3"], {}, "FAILED", **{"gtdl.failure": "the worker was killed by SIGKILL"})
    five()
    assert broken(capsys) == (0, set())
    plant([*CELL, "seed=9"], {}, "FAILED", **{"gtdl.failure": "the worker was killed by SIGKILL"})
    assert cli.main(["check"]) == 1
    said = capsys.readouterr().out
    assert "error    finished              torch torch_mnist on mnist_5k, cpu, " in said
    assert "seed 9: FAILED: the worker was killed by SIGKILL" in said
    assert "a run that failed is a result that the report must show" in said


def test_what_is_unavailable_breaks_nothing(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    five()
    plant(["framework=caffe", "dataset=mnist_5k"], {}, "FAILED", **{"gtdl.unavailable": "no GPU"})
    assert broken(capsys) == (0, set())


def test_quick_looks_at_part_of_the_data_are_not_other_data(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    five()
    for seed in range(5):
        finished([*CELL, f"seed={seed}", "dataset.train_limit=500"], 10 + seed / 100, 1, 98,
                 **{"gtdl.data_digest": "cut"})  # fmt: skip
    assert broken(capsys) == (0, set())


def test_every_rule_can_be_broken_and_says_why() -> None:
    assert set(check.rules()) == set(check.RULES)
    for rule in check.rules().values():
        assert rule["level"] in ("error", "warning")
        assert rule["why"]


def test_an_experiment_that_is_not_there(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    five()
    capsys.readouterr()
    assert cli.main(["check", "nothing"]) == 1
    assert capsys.readouterr().err == "gtdl: experiment nothing: there is none in this tracking store\n"
