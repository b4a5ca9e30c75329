"""Runs with known figures, as a real run would have left them in the store."""

from __future__ import annotations

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from gtdl_mlflow import tracking
from gtdl_mlflow.config import compose


def plant(
    overrides: list[str],
    metrics: dict[str, float],
    status: str = "FINISHED",
    experiment: str = "gtdl",
    **tags: str,
) -> str:
    """A run of what ``overrides`` say, with these metrics and tags; its number."""
    config, client = compose(overrides), MlflowClient()
    found = mlflow.get_experiment_by_name(experiment)
    identifier = found.experiment_id if found else client.create_experiment(experiment)
    run_id: str = client.create_run(identifier, run_name=tracking._name(config)).info.run_id
    params = [Param(key, str(value)) for key, value in tracking._params(config).items()]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    client.log_batch(
        run_id,
        metrics=[Metric(key, value, 0, 0) for key, value in metrics.items()],
        tags=[RunTag(key, value) for key, value in {**tracking._tags(config), **tags}.items()],
    )
    client.set_terminated(run_id, status)
    return run_id


def finished(overrides: list[str], training_s: float, testing_s: float, accuracy: float, **tags: str) -> str:
    """One that ended well."""
    config = compose(overrides)
    iterations = float(config.training.steps(60_000, config.budget))
    values = {"training_time_s": training_s, "testing_time_s": testing_s, "accuracy_percent": accuracy,
              "train/iterations": iterations}  # fmt: skip
    return plant(overrides, values, **{"gtdl.quality": "ok", **tags})
