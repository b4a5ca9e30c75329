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
    said: dict[str, str] | None = None,
    **tags: str,
) -> str:
    """A run of what ``overrides`` say, with these metrics, tags and what its worker ``said``; its number."""
    config, client = compose(overrides), MlflowClient()
    found = mlflow.get_experiment_by_name(experiment)
    identifier = found.experiment_id if found else client.create_experiment(experiment)
    run_id: str = client.create_run(identifier, run_name=tracking._name(config)).info.run_id
    reported = {"worker.device": config.hardware.device, "worker.precision": "float32",
                "worker.threads": config.threads, **(said or {})}  # fmt: skip
    params = [Param(key, str(value)) for key, value in (tracking._params(config) | reported).items()]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    client.log_batch(
        run_id,
        metrics=[Metric(key, value, 0, 0) for key, value in metrics.items()],
        tags=[RunTag(key, value) for key, value in {**tracking._tags(config), **tags}.items()],
    )
    client.set_terminated(run_id, status)
    return run_id


def finished(
    overrides: list[str], training_s: float, testing_s: float, accuracy: float, said: dict[str, str] | None = None,
    metrics: dict[str, float] | None = None, experiment: str = "gtdl", **tags: str,
) -> str:  # fmt: skip
    """One that ended well, fit to be published but for what is given beside its figures."""
    config = compose(overrides)
    iterations = config.training.steps(60_000, config.budget)
    values = {"training_time_s": training_s, "testing_time_s": testing_s, "accuracy_percent": accuracy,
              "train/iterations": float(iterations), "train/first_step_s": training_s / 100,
              "train/images_per_s": iterations * config.training.batch_size / training_s,
              "test/images_per_s": 10_000 / testing_s, "setup/import_s": 1.0, "setup/build_s": 0.1,
              "worker/wall_s": 1.5 + training_s + testing_s, **(metrics or {})}  # fmt: skip
    complete = {
        "gtdl.quality": "ok",
        "gtdl.environment": "e" * 64,
        "gtdl.data_digest": f"digest of {config.dataset.name}",
    }
    return plant(overrides, values, experiment=experiment, said=said, **{**complete, **tags})
