"""What happens around Hydra's jobs; ``conf/config.yaml`` names these classes."""

from __future__ import annotations

import copy
import os
import sys
from contextlib import suppress
from typing import Any, NoReturn

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import open_dict

from .config import ConfigError, Unavailable, compose, load


class CheckFirst(Callback):
    """A wrong command line is answered before a folder, an environment or an MLflow run is made.

    Of a sweep every value is checked once, beside the first values of the others: a combination that cannot be is a
    FAILED run of its own, and the sweep goes on.
    """

    def on_run_start(self, config: Any, **_: Any) -> None:
        try:
            job = copy.deepcopy(config)  # as Hydra itself makes of it what a job is given
            with open_dict(job):
                del job["hydra"]
            load(job)
        except ConfigError as error:
            refuse(error)

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        try:
            for overrides in one_by_one(asked(config.hydra)):
                with suppress(Unavailable):  # a run of its own will say so, and the sweep goes on
                    compose(overrides)
        except ConfigError as error:
            refuse(error)


def asked(hydra: Any) -> list[str]:
    """The overrides of a sweep: those of an experiment's ``hydra.sweeper.params``, unless typed, and those typed."""
    typed = list(hydra.overrides.task)
    keys = {override.partition("=")[0] for override in typed}
    params = hydra.sweeper.get("params") or {}
    return [*(f"{key}={value}" for key, value in params.items() if key not in keys), *typed]


def one_by_one(overrides: list[str]) -> list[list[str]]:
    """Command lines in which every value of every override of a sweep stands once, beside the others' first.

    An override whose values only a sweeper can name (``interval(0, 1)``) is left out.
    """
    hydra = GlobalHydra.instance().hydra
    parser = OverridesParser.create(config_loader=hydra.config_loader if hydra else None)
    values: list[list[str]] = []
    for item in parser.parse_overrides(overrides):
        if not item.is_sweep_override():
            values.append([str(item.input_line)])
        elif item.is_discrete_sweep():
            values.append([f"{item.key_or_group}={value}" for value in item.sweep_string_iterator()])
    first = [options[0] for options in values]
    lines = [first]
    for position, options in enumerate(values):
        lines += [[*first[:position], option, *first[position + 1 :]] for option in options[1:]]
    return lines


def refuse(error: Exception, status: int = 2) -> NoReturn:
    """Say what is wrong and exit: of a callback's exceptions, Hydra turns all but SystemExit into mere warnings."""
    print(f"gtdl_mlflow: {error}", file=sys.stderr)
    sys.exit(status)


class SweepRun(Callback):
    """Opens the parent of a sweep's runs before the first job and closes it after the last.

    Under ``mlflow run`` the project's run is the parent. Jobs hear of it by an environment variable that is not
    MLflow's own: with MLFLOW_RUN_ID, which launchers' processes inherit, all of them would write into one run.
    """

    open: SweepRun | None = None
    """The one in progress, so that a Ctrl-C can close it: Hydra calls nothing then."""

    failures: int = 0
    """Runs of the last sweep that did not finish though they could have."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        from mlflow.tracking import MlflowClient

        from . import tracking

        uri, overrides = config.tracking.uri, " ".join(asked(config.hydra))
        try:
            with tracking.reaching(uri, "nothing was run"), tracking.impatient():
                self._client = MlflowClient(uri)
                self._run_id, self._experiment_id = tracking.open_run(self._client, "sweep", config.tracking.experiment)
                self._client.set_tag(self._run_id, "gtdl.sweep", overrides)
        except tracking.TrackingFailed as error:
            refuse(error, status=1)
        os.environ.pop("MLFLOW_RUN_ID", None)
        os.environ["MLFLOW_EXPERIMENT_ID"] = self._experiment_id
        os.environ[tracking.PARENT_VARIABLE] = self._run_id
        SweepRun.open = self

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        SweepRun.failures = self.close()

    def close(self, status: str | None = None) -> int:
        """End the parent, unless told otherwise FAILED if any of its runs failed; how many those are.

        A run that is unavailable here has not failed.
        """
        from . import tracking

        SweepRun.open = None
        family = f"tags.`mlflow.parentRunId` = '{self._run_id}'"
        children = self._client.search_runs([self._experiment_id], family, max_results=10000)
        unavailable = sum(tracking.UNAVAILABLE in run.data.tags for run in children)
        finished = sum(run.info.status == "FINISHED" for run in children)
        failures: int = len(children) - finished - unavailable
        counts = {"finished": finished, "failed": failures, "unavailable": unavailable}
        for name, count in counts.items():
            self._client.log_metric(self._run_id, f"sweep/{name}", count)
        self._client.set_terminated(self._run_id, status or ("FAILED" if failures else "FINISHED"))
        return failures
