"""One MLflow run over all runs of a Hydra multirun: their parent."""

from __future__ import annotations

import os
from typing import Any

from hydra.experimental.callback import Callback

from .config import Tracking


class SweepRun(Callback):
    """Opens the parent before the first job and closes it after the last; named in ``conf/config.yaml``.

    Under ``mlflow run`` the project's run is the parent. Jobs hear of it by an environment variable that is not
    MLflow's own: with MLFLOW_RUN_ID, which launchers' processes inherit, all of them would write into one run.
    """

    open: SweepRun | None = None
    """The one in progress, so that a Ctrl-C can close it: Hydra calls nothing then."""

    failures: int = 0
    """Runs that had not finished when the last sweep ended."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        from mlflow.tracking import MlflowClient

        from . import tracking

        self._client = MlflowClient(config.tracking.uri)
        experiment = config.tracking.get("experiment", Tracking.experiment)
        self._run_id, self._experiment_id = tracking.open_run(self._client, "sweep", experiment)
        self._client.set_tag(self._run_id, "gtdl.sweep", " ".join(config.hydra.overrides.task))
        os.environ.pop("MLFLOW_RUN_ID", None)
        os.environ["MLFLOW_EXPERIMENT_ID"] = self._experiment_id
        os.environ[tracking.PARENT_VARIABLE] = self._run_id
        SweepRun.open = self

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        SweepRun.failures = self.close()

    def close(self, killed: bool = False) -> int:
        """End the parent, FAILED if any of its runs is not FINISHED; how many those are."""
        SweepRun.open = None
        family = f"tags.`mlflow.parentRunId` = '{self._run_id}'"
        children = self._client.search_runs([self._experiment_id], family, max_results=10000)
        failures: int = sum(run.info.status != "FINISHED" for run in children)
        self._client.log_metric(self._run_id, "sweep/finished", len(children) - failures)
        self._client.log_metric(self._run_id, "sweep/failed", failures)
        self._client.set_terminated(self._run_id, "KILLED" if killed else "FAILED" if failures else "FINISHED")
        return failures
