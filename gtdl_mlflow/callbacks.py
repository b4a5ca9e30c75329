"""What happens around Hydra's jobs; ``conf/config.yaml`` names these classes."""

from __future__ import annotations

import copy
import importlib
import math
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from omegaconf import open_dict, read_write

from .config import ConfigError, Order, Rerun, Unavailable, compose, load
from .making import say

if TYPE_CHECKING:
    from .studies import Conclusion
    from .sweeps import Summary


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
            check_launcher(config.hydra)
            for overrides in one_by_one(asked(config.hydra)):
                with suppress(Unavailable):  # a run of its own will say so, and the sweep goes on
                    compose(overrides)
        except ConfigError as error:
            refuse(error)


def check_launcher(hydra: Any) -> None:
    """Raises ConfigError if the launcher's plugin is not installed: ``conf/hydra/launcher`` has its settings anyway."""
    module = hydra.launcher._target_.rpartition(".")[0]
    try:
        importlib.import_module(module)
    except ImportError as error:
        choice = hydra.runtime.choices["hydra/launcher"]
        extra = choice.partition("_")[0]
        raise ConfigError(
            f"hydra/launcher={choice}: {module} is not installed ({error}); pip install 'gtdl-mlflow[{extra}]'"
        ) from error


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
    values: list[list[str]] = []
    for item in _parsed(overrides):
        if not item.is_sweep_override():
            values.append([str(item.input_line)])
        elif item.is_discrete_sweep():
            values.append([f"{item.key_or_group}={value}" for value in item.sweep_string_iterator()])
    first = [options[0] for options in values]
    lines = [first]
    for position, options in enumerate(values):
        lines += [[*first[:position], option, *first[position + 1 :]] for option in options[1:]]
    return lines


def _parsed(overrides: list[str]) -> list[Override]:
    hydra = GlobalHydra.instance().hydra
    parser = OverridesParser.create(config_loader=hydra.config_loader if hydra else None)
    return list(parser.parse_overrides(overrides))


def refuse(error: Exception | str, status: int = 2) -> NoReturn:
    """Say what is wrong and exit: of a callback's exceptions, Hydra turns all but SystemExit into mere warnings."""
    print(f"gtdl_mlflow: {error}", file=sys.stderr)
    sys.exit(status)


class SweepRun(Callback):
    """Opens the parent of a sweep's runs before the first job and closes it after the last.

    Under ``mlflow run`` the project's run is the parent. Otherwise the same command again goes on with the parent that
    it had. Jobs hear of it by an environment variable that Hydra sets for each, in whatever process a launcher runs it,
    and that is not MLflow's own: with MLFLOW_RUN_ID, which launchers' processes inherit, all would write into one run.
    """

    open: SweepRun | None = None
    """The one in progress, so that a Ctrl-C can close it: Hydra calls nothing then."""

    failures: int | None = None
    """Cells of the last sweep that did not finish though they could have; None if there was no sweep."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        from . import delivery, sweeps

        self._started = time.monotonic()
        self._before_s = 0.0
        self._uri = config.tracking.uri
        self._folder = Path(config.hydra.sweep.dir).absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        overrides = ordered(asked(config.hydra), config.sweep.order)
        self._cells = count(overrides)
        self._study = config.sweep.study
        self._key = sweeps.key(overrides)
        self._told = delivery.record(self._uri, self._folder, "sweep", config.tracking.experiment)
        self._told.tags = {
            sweeps.SWEEP: " ".join(overrides),
            sweeps.SWEEP_KEY: self._key,
            "gtdl.sweep_order": config.sweep.order.value,
        }
        try:
            with delivery.patience(retries=2, timeout_s=10):
                if config.sweep.rerun is not Rerun.all and not self._told.run_id:
                    with delivery.reaching(self._uri):
                        self._take_over(config.limits.run_timeout_s)
                delivery.deliver(self._told, self._uri)
                with delivery.reaching(self._uri):
                    self._close_stale(config.limits.run_timeout_s)
        except delivery.Away as error:
            say(f"{error}; the sweep goes on and is delivered later")
            delivery.keep(self._told)
        except delivery.TrackingFailed as error:
            refuse(f"{error}; nothing was run", status=1)
        os.environ.pop("MLFLOW_RUN_ID", None)
        variables = {sweeps.VARIABLE: f"{self._told.reference}/{self._key}"}
        if self._told.experiment_id:
            variables["MLFLOW_EXPERIMENT_ID"] = self._told.experiment_id
        with read_write(config), open_dict(config):
            # All of it in one list and in the order in which a sweep is to run; Hydra itself puts params first.
            config.hydra.overrides.task = overrides
            if "params" in config.hydra.sweeper:
                config.hydra.sweeper.params = None
            config.hydra.overrides.hydra += [
                f"+hydra.job.env_set.{name}='{value}'" for name, value in variables.items()
            ]
        SweepRun.open = self

    def _take_over(self, timeout_s: float) -> None:
        """Go on with the parent of an earlier start of this sweep, if there is one."""
        from . import delivery, sweeps

        client = delivery.connect(self._uri)
        experiment = client.get_experiment_by_name(self._told.experiment)
        if experiment is None:
            return
        for run in sweeps.previous(client, experiment.experiment_id, self._key):
            process = run.data.tags.get(delivery.PROCESS, "")
            lives = delivery.alive(process)
            if run.info.status == "RUNNING" and lives:
                refuse(
                    f"this very sweep is being run by process {process.split(' ')[1]} (MLflow run {run.info.run_id}): "
                    "wait for it, or run it beside that with sweep.rerun=all"
                )
            if run.info.status == "RUNNING" and lives is None and not sweeps.older(run, timeout_s):
                say(f"this sweep may still be running elsewhere (MLflow run {run.info.run_id}); here it starts anew")
                continue
            self._told.run_id, self._told.experiment_id = run.info.run_id, experiment.experiment_id
            self._told.tags |= {delivery.KEY: self._told.key, delivery.PROCESS: self._told.process}
            self._before_s = run.data.metrics.get("sweep/time_s", 0.0)
            client.update_run(run.info.run_id, "RUNNING")
            return

    def _close_stale(self, timeout_s: float) -> None:
        from . import delivery, sweeps

        closed = sweeps.close_stale(delivery.connect(self._uri), self._told.experiment_id, self._key, timeout_s)
        if closed:
            say(f"closed {closed} {'run' if closed == 1 else 'runs'} as KILLED whose process was gone")

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        self.close()

    def close(self, status: str | None = None) -> None:
        """End the parent, unless told otherwise FAILED if any of its cells failed, and say what became of all.

        A cell that is unavailable here has not failed.
        """
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        from . import delivery, sweeps

        SweepRun.open = None
        try:
            with delivery.patience(retries=4, timeout_s=30):
                delivery.deliver(self._told, self._uri)
                delivery.forget(self._told)
                left = [each for each in delivery.replay(self._uri) if each.failure]
                with delivery.reaching(self._uri):
                    family = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self._told.run_id}'"
                    children = sweeps.runs(delivery.connect(self._uri), self._told.experiment_id, family)
                    summary = sweeps.Summary(sweeps.cells(children), self._cells, time.monotonic() - self._started)
                summary.write(self._folder / "summary.csv")
                conclusion = self._conclude(summary)
                self._told.artifacts += ["summary.csv", *conclusion.artifacts]
                now = round(time.time() * 1000)
                figures = {**summary.counts, "time_s": self._before_s + summary.seconds}
                metrics = {f"sweep/{name}": value for name, value in figures.items()} | conclusion.metrics
                self._told.metrics = [(name, value, now, 0) for name, value in metrics.items()]
                delivery.end(self._told, status or ("FAILED" if summary.failures else "FINISHED"))
                delivery.deliver(self._told, self._uri)
            print("\n".join(filter(None, [summary.text(), conclusion.text])))
            SweepRun.failures = summary.failures
            for each in left:
                say(f"{each.failure}; {each.told.name} is kept, `gtdl track replay` delivers it")
        except delivery.TrackingFailed as error:
            SweepRun.failures = 1
            if self._told.status == "RUNNING":
                delivery.end(self._told, status or "FAILED")
            delivery.keep(self._told)
            say(f"{error}; all that was measured is kept, `gtdl track replay` delivers it")

    def _conclude(self, summary: Summary) -> Conclusion:
        """Of the study that the sweep was for; what was measured is not lost for the lack of it."""
        from . import studies

        if self._study is None:
            return studies.Conclusion("")
        try:
            found = studies.conclude(self._study, (cell.run for cell in summary.cells), self._folder)
        except Exception as error:  # whatever a renderer in another language may raise
            return studies.Conclusion(f"the study of {self._study.value} cannot be concluded: {error}")
        return found or studies.Conclusion(f"too few runs finished for a study of {self._study.value}")


def ordered(overrides: list[str], order: Order) -> list[str]:
    """The overrides of a sweep in the order in which a sweeper turns them into runs: the last changes fastest."""
    ends = ("seed", "framework") if order is Order.interleaved else ("framework", "seed")
    place = {ends[0]: -1, ends[1]: 1}
    return sorted(overrides, key=lambda override: place.get(override.partition("=")[0], 0))


def count(overrides: list[str]) -> int | None:
    """How many runs a sweep has; None where only a sweeper that searches knows."""
    parsed = _parsed(overrides)
    if any(item.is_sweep_override() and not item.is_discrete_sweep() for item in parsed):
        return None
    return math.prod(len(list(item.sweep_string_iterator())) for item in parsed if item.is_sweep_override())
