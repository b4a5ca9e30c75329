"""Rules of the training: when it is evaluated, when it stops, and how its speed is averaged."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gtdl_mlflow.worker.job import EarlyStopping
from gtdl_mlflow.worker.training import EarlyStoppingState, RunningMean, Throughput, evaluation_steps


def test_evaluations_are_at_the_ends_of_epochs_but_not_after_the_last_step() -> None:
    assert evaluation_steps(100, 25, 1) == [25, 50, 75]
    assert evaluation_steps(100, 25, 2) == [50]
    assert evaluation_steps(101, 25, 1) == [25, 50, 75, 100]
    assert evaluation_steps(100, 25, 0) == []
    assert evaluation_steps(20, 25, 1) == []
    assert evaluation_steps(11, 2.5, 1) == [2, 5, 8, 10]  # 7.5 is rounded to the even number


def test_no_step_is_evaluated_twice() -> None:
    for steps_per_epoch in (0.25, 0.5, 1, 1.5):  # below one: a batch larger than the data
        steps = evaluation_steps(9, steps_per_epoch, 1)
        assert sorted(set(steps)) == steps
        assert all(0 < step < 9 for step in steps)


def tutorial(errors: list[float], per_epoch: int, epochs: int, patience: int) -> tuple[int, int]:
    """Return the steps trained and the step of the lowest error in the loop of Theano's tutorial.

    Its iterations count from 0.
    """
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
def test_early_stopping_equals_the_tutorials(seed: int) -> None:
    random = np.random.RandomState(seed)
    errors = (np.maximum.accumulate(random.uniform(0, 1, 40))[::-1] + random.uniform(0, 0.02, 40)).tolist()
    state, step, per_epoch = EarlyStoppingState(EarlyStopping(patience_iterations=25), 1.0), 0, 10
    for error in errors:
        step = min(step + per_epoch, state.limit)
        if step % per_epoch:
            break
        state.improves(step, error)
        if step == state.limit:
            break
    assert (step, state.best_step) == tutorial(errors, per_epoch, 40, 25)


def test_throughput_excludes_the_warm_up() -> None:
    throughput = Throughput()
    throughput.add(0, 1, 60.0)
    assert throughput.first_s == 60
    assert throughput.steps_per_s == 1 / 60  # the warm-up counts until there is something after it
    throughput.add(1, 3, 20.0)
    throughput.add(3, 12, 10.0)  # begins in the warm-up
    assert throughput.steps_per_s == 12 / 90
    throughput.add(12, 112, 20.0)
    throughput.add(112, 212, 20.0)
    assert throughput.steps_per_s == 5
    assert throughput.first_s == 60


def test_running_mean_restarts_after_pop() -> None:
    mean = RunningMean()
    mean.add(np.array([1, 2], np.float32))
    mean.add(np.array([6], np.float32))
    assert mean.pop() == 3
    mean.add(np.array([5], np.float32))
    assert mean.pop() == 5
