"""Sentences of the answer, on runs with known figures: each planted fact has to be found, and nothing beside it."""

from __future__ import annotations

import mlflow
import pytest
from helpers.planted_runs import finished, plant

from gtdl_mlflow import cli
from gtdl_mlflow.report import ranking
from gtdl_mlflow.report.runs import load

PARITY = ("dataset=mnist_5k", "setting=caffe_mnist")


def five(framework: str, training: float, accuracy: float, *overrides: str, seeds: int = 5, **tags: str) -> None:
    for seed in range(seeds):
        wobble = 1 + 0.01 * ((seed * 3 + len(framework)) % 5 - 2) / 2
        finished([f"framework={framework}", *PARITY, f"seed={seed}", *overrides], training * wobble,
                 training / 100 * wobble, accuracy + 0.1 * (wobble - 1), **tags)  # fmt: skip


def said(store: str) -> tuple[list[str], list[str]]:
    """The sentences and the remarks of the only conditions there are."""
    (found,) = [each for each in ranking.group_by_conditions(load(store, ["gtdl"])).values() if len(each) > 1]
    return [each.sentence for each in ranking.answers(found)], ranking.remarks(found)


def test_twice_as_fast_is_said_and_is_significant(store: str) -> None:
    five("torch", 10, 98)
    five("tensorflow", 20, 98)
    sentences, remarks = said(store)
    assert sentences[0].startswith("torch ")
    assert "trains fastest (10.0" in sentences[0] or "trains fastest (9.9" in sentences[0] or "(10 " in sentences[0]
    assert "2.00 times as fast as tensorflow" in sentences[0]
    assert "tests fastest" in sentences[1]
    assert "not significant" in sentences[2]
    assert remarks == []


def test_no_difference_is_not_made_one(store: str) -> None:
    five("torch", 10, 98)
    five("mxnet", 10.005, 98)
    sentences, _ = said(store)
    assert all("not significant" in sentence for sentence in sentences)


def test_too_few_runs_are_said_to_be_too_few(store: str) -> None:
    five("torch", 10, 98, seeds=3)
    five("tensorflow", 20, 98, seeds=3)
    sentences, remarks = said(store)
    assert "too few runs to tell" in sentences[0]
    assert remarks == ["3 seeds; a publishable figure has 5"]


def test_a_failed_run_and_a_missing_seed_are_remarked_on(store: str) -> None:
    five("torch", 10, 98)
    five("tensorflow", 20, 98, seeds=4)
    five("caffe", 30, 98, seeds=4)
    plant(["framework=caffe", *PARITY, "seed=4"], {}, "FAILED", **{"gtdl.failure": "the worker was killed by SIGKILL"})
    _, remarks = said(store)
    assert [remark.partition(" ")[0] for remark in remarks] == ["caffe", "tensorflow"]
    assert "1 of 5 seeds failed: the worker was killed by SIGKILL" in remarks[0]
    assert remarks[1].endswith("4 seeds, where others have 5")


def test_a_failure_that_was_made_good_is_not_held_against_it(store: str) -> None:
    plant(["framework=torch", *PARITY, "seed=0"], {}, "FAILED", **{"gtdl.failure": "the power failed"})
    five("torch", 10, 98)
    five("tensorflow", 20, 98)
    assert said(store)[1] == []


def test_what_did_not_learn_wins_no_race(store: str) -> None:
    five("torch", 10, 98)
    five("tensorflow", 20, 98)
    five("mxnet", 1, 10, **{"gtdl.quality": "the loss is not finite"})
    five("theano", 1, 10, **{"gtdl.quality": "the accuracy is no better than chance"})
    sentences, remarks = said(store)
    assert sentences[0].startswith("torch ")
    assert any(remark.startswith("mxnet") and "the loss is not finite" in remark for remark in remarks)
    assert any(remark.startswith("theano") and "no better than chance" in remark for remark in remarks)


def test_noise_is_told_once_for_all(store: str) -> None:
    for framework, spread in (("torch", 0.3), ("tensorflow", 0.5), ("caffe", 0.01)):
        for seed in range(5):
            finished([f"framework={framework}", *PARITY, f"seed={seed}"], 10 * (1 + spread * seed / 4), 1, 98)
    (remark,) = said(store)[1]
    assert remark.startswith("training_time_s is noisy: tensorflow 2.21.0 (standard deviation ")
    assert remark.endswith("range 50% of the smallest), less so torch 2.13.0")


def test_another_machine_is_another_comparison(store: str) -> None:
    five("torch", 10, 98)
    five("tensorflow", 5, 98, **{"gtdl.machine": "a faster one (abc)"})
    assert ranking.text(load(store, ["gtdl"])).startswith("there are no two frameworks")


def test_what_cannot_run_here_is_named_with_its_reason(store: str) -> None:
    five("torch", 10, 98)
    five("tensorflow", 20, 98)
    plant(["framework=caffe", *PARITY, "seed=0"], {}, "FAILED", **{"gtdl.unavailable": "no compiler"})
    assert said(store)[1] == ["caffe 1.0.0 cannot run here: no compiler"]


def test_own_defaults_are_compared_beside_a_common_setting(store: str) -> None:
    five("torch", 10, 98)
    five("caffe", 20, 98)  # its own default, and the common setting
    for seed in range(5):
        finished(["framework=torch", "dataset=mnist_5k", f"seed={seed}"], 40 + seed / 10, 0.5, 97)
    settings = [
        each.setting for each, found in ranking.group_by_conditions(load(store, ["gtdl"])).items() if len(found) > 1
    ]
    assert settings == ["each under its own default", "caffe_mnist"]
    text = ranking.text(load(store, ["gtdl"]))
    own, common = text.split("\n\n")
    assert "caffe 1.0.0 trains fastest" in own
    assert "torch" in common.splitlines()[1].split(" trains fastest")[0]


def compared(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = cli.main(["compare", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_compare_names_ratio_interval_and_verdict(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    five("torch", 10, 98)
    five("tensorflow", 20, 98)
    status, out, _ = compared(capsys, "torch", "tensorflow")
    assert status == 0
    conditions, _, training, testing, accuracy = out.splitlines()[:5]
    assert conditions.startswith("mnist_5k, caffe_mnist, cpu, ")
    assert "0.500 [0.4" in training
    assert training.endswith("2.00 times as fast")
    assert testing.endswith("2.00 times as fast")
    assert accuracy.endswith("not significant")
    assert "!" not in out


def test_compare_takes_runs_versions_and_searches(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    five("torch", 10, 98)
    five("torch", 30, 98, "framework.version=1.0")
    runs = mlflow.search_runs(experiment_names=["gtdl"], output_format="list")
    old = ",".join(run.info.run_id for run in runs if run.data.params["framework.version"] == "1.0")
    for first in ("torch=1.0", old, "params.`framework.version` = '1.0'"):
        status, out, err = compared(capsys, first, "torch=2.13.0")
        assert status == 0, err
        assert "3.00 times as long" in out


@pytest.mark.parametrize("words", ["nonsense", "caffe", "0" * 32])
def test_compare_says_what_it_did_not_find(store: str, capsys: pytest.CaptureFixture[str], words: str) -> None:
    five("torch", 10, 98)
    status, out, err = compared(capsys, words, "torch")
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert words in err


def test_compare_keeps_machines_apart_unless_told(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    five("torch", 10, 98)
    five("tensorflow", 5, 98, **{"gtdl.machine": "a faster one (abc)"})
    status, _, err = compared(capsys, "torch", "tensorflow")
    assert status == 1
    assert "--across-machines" in err
    status, out, _ = compared(capsys, "torch", "tensorflow", "--across-machines")
    assert status == 0
    assert "2.00 times as long" in out


def test_compare_warns_of_what_should_not_be_published(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    five("torch", 10, 98, seeds=3, **{"gtdl.quality": "the loss does not fall"})
    five("tensorflow", 20, 98)
    _, out, _ = compared(capsys, "torch", "tensorflow")
    assert "! torch: 3 of the 5 seeds" in out
    assert "! torch: its times mean nothing: the loss does not fall" in out
