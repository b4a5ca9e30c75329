"""Hydra callbacks of this project; ``conf/config.yaml`` names these classes."""

from __future__ import annotations

import copy
import importlib
import itertools
import math
import os
import signal
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

from .. import files, signals
from ..config import ConfigError, Rerun, Study, SweepOrder, Unavailable, compose, compose_unchecked, to_checked_config
from ..console import info, output
from ..files import write_atomically
from ..progress import SweepProgress
from ..redaction import conceal, has_secrets, redact

if TYPE_CHECKING:
    from mlflow.entities import Run

    from .cells import SweepSummary
    from .paired_study import PairedStudy
    from .studies import StudyResult

PAIRED = (Study.paired, Study.stability)
"""Studies that measure after the runs of the sweep."""

STUDIES = tuple(f"{study.value}/" for study in PAIRED)
"""Beginnings of the names of their metrics."""

# MLflow takes two seconds to import, and a mistake on the command line must be reported sooner: SweepParent imports it
# inside its methods.


class CheckConfig(Callback):
    """Callback that checks the command line before a folder, an environment or an MLflow run is created.

    In a sweep every value is checked once, together with the first values of the others. An impossible combination of
    valid values is a FAILED run of its own, and the sweep goes on.
    """

    def on_run_start(self, config: Any, **_: Any) -> None:
        try:
            job = copy.deepcopy(config)  # Hydra itself gives a job such a copy
            with open_dict(job):
                del job["hydra"]
            to_checked_config(job)
        except ConfigError as error:
            exit_with(error)

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        try:
            check_launcher(config.hydra)
            for overrides in check_lines(requested_overrides(config.hydra)):
                with suppress(Unavailable):  # its run records the reason, and the sweep goes on
                    compose(overrides)
        except ConfigError as error:
            exit_with(error)

    def on_job_start(self, config: Any, **_: Any) -> None:
        """Redact the files that Hydra has just written: a configuration file may hold an address with a password."""
        written = [Path(config.hydra.sweep.dir) / "multirun.yaml"]
        if config.hydra.output_subdir is not None:
            written += (Path(config.hydra.runtime.output_dir) / config.hydra.output_subdir).glob("*.yaml")
        for path in written:
            if path.exists() and has_secrets(text := path.read_text(encoding="utf-8")):
                write_atomically(path, redact(text))


def check_launcher(hydra: Any) -> None:
    """Raise ConfigError if the launcher's plugin is not installed; ``conf/hydra/launcher`` names it in any case."""
    module = hydra.launcher._target_.rpartition(".")[0]
    try:
        importlib.import_module(module)
    except ImportError as error:
        choice = hydra.runtime.choices["hydra/launcher"]
        extra = choice.partition("_")[0]
        raise ConfigError(
            f"hydra/launcher={choice}: {module} is not installed ({error}); pip install 'gtdl-mlflow[{extra}]'"
        ) from error


def protect_joblib() -> None:
    """Start joblib's resource tracker with SIGHUP ignored. By itself, it ignores SIGINT and SIGTERM only."""
    tracker = importlib.import_module("joblib.externals.loky.backend.resource_tracker")
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    tracker.ensure_running()
    signal.signal(signal.SIGHUP, previous)


def requested_overrides(hydra: Any) -> list[str]:
    """Return the overrides of a sweep: those typed, and those of ``hydra.sweeper.params`` that were not typed."""
    typed = list(hydra.overrides.task)
    keys = {override.partition("=")[0] for override in typed}
    params = hydra.sweeper.get("params") or {}
    return [*(conceal(f"{key}={value}") for key, value in params.items() if key not in keys), *typed]


def check_lines(overrides: list[str]) -> list[list[str]]:
    """Return command lines that together hold every value of every override, each beside the others' first values.

    Overrides whose values a sweeper generates (``interval(0, 1)``) are left out.
    """
    values = [*_values(overrides).values()]
    first = [options[0] for options in values]
    lines = [first]
    for index, options in enumerate(values):
        lines += [[*first[:index], option, *first[index + 1 :]] for option in options[1:]]
    return lines


COMPARED = ("framework", "framework.version", "mode", "precision", "deterministic")
"""Keys whose values a paired measurement compares."""


def paired_lines(overrides: list[str]) -> list[list[str]]:
    """Return the command line of each contestant of a paired measurement: all combinations, with the first seed.

    Raises:
        ConfigError: a key that is not one of ``COMPARED`` has several values.
    """
    values = _values(overrides)
    for key, options in values.items():
        if key == "seed":
            values[key] = options[:1]
        elif len(options) > 1 and key not in COMPARED:
            raise ConfigError(
                f"{key}={','.join(option.partition('=')[2] for option in options)}: a paired measurement has one value "
                f"of {key}; start a sweep for each"
            )
    return [list(line) for line in itertools.product(*values.values())]


def _values(overrides: list[str]) -> dict[str, list[str]]:
    """Return the values of each override as ``key=value``, by key, without those that a sweeper generates."""
    values = {}
    for item in _parse(overrides):
        if not item.is_sweep_override():
            values[item.key_or_group] = [str(item.input_line)]
        elif item.is_discrete_sweep():
            values[item.key_or_group] = [f"{item.key_or_group}={value}" for value in item.sweep_string_iterator()]
    return values


def _parse(overrides: list[str]) -> list[Override]:
    hydra = GlobalHydra.instance().hydra
    parser = OverridesParser.create(config_loader=hydra.config_loader if hydra else None)
    return list(parser.parse_overrides(overrides))


def exit_with(error: Exception | str, status: int = 2) -> NoReturn:
    """Print the error and exit. Hydra turns every exception of a callback but SystemExit into a warning."""
    info(str(error))
    record_refusal(str(error))
    sys.exit(status)


def record_refusal(reason: str) -> None:
    """Record why a request is refused in the run that `mlflow run` has created for it."""
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        from ..tracking import store

        store.explain_refusal(run_id, redact(reason))


class SweepParent(Callback):
    """Callback that opens the parent run of a sweep before the first job and closes it after the last.

    Under ``mlflow run`` the project's run is the parent. Otherwise, a repeated command resumes its earlier parent run,
    unless that run has a paired measurement.

    Jobs receive the parent in an environment variable that Hydra sets for each of them, in any launcher's process.
    MLFLOW_RUN_ID cannot be that variable: launchers' processes inherit it, and all jobs would write into one run.
    """

    open: SweepParent | None = None
    """The open parent, so that Ctrl-C can close it: Hydra calls no callback then."""

    failures: int | None = None
    """Failed cells of the last sweep; None if there was no sweep."""

    def __init__(self) -> None:
        self._paired: PairedStudy | None = None

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        overrides = order_overrides(requested_overrides(config.hydra), config.sweep.order)
        basic = config.hydra.sweeper._target_.endswith(".BasicSweeper")  # others draw any number of combinations
        self._cells = count_cells(overrides) if basic else None
        output("sweep" if self._cells is None else f"sweep of {self._cells} run{'s' * (self._cells != 1)}")
        from ..hardware import interference

        before = interference.Snapshot.now()
        from ..tracking import store  # imports MLflow: long enough to measure the load of the machine

        if config.sweep.study not in PAIRED and (warning := interference.busy_warning(before)):
            info(warning)
        if config.hydra.launcher._target_.endswith(".JoblibLauncher"):
            protect_joblib()
        signals.interrupt_on_first()  # from now on there is a run to close
        try:
            with signals.deferred():
                self._start(config, overrides)
        except (store.TrackingFailed, OSError) as error:
            reason = files.explain(error) if isinstance(error, OSError) else error
            exit_with(f"{reason}; nothing was run", status=1)

    def _start(self, config: Any, overrides: list[str]) -> None:
        from .. import tags
        from ..tracking import dead_runs, delivery, outbox
        from ..tracking.record import new_record
        from ..tracking.store import TrackerUnreachable, TrackingFailed, http_timeouts, within
        from . import cells

        self._started = time.monotonic()
        self._before_s = 0.0
        self._uri = config.tracking.uri
        self._folder = Path(config.hydra.sweep.dir).absolute()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._study = config.sweep.study
        if self._study in PAIRED:
            from .paired_study import PairedStudy
            from .stability import StabilityStudy

            try:
                configs = [compose_unchecked(line) for line in paired_lines(overrides)]
            except ConfigError as error:
                exit_with(error)
            kind = StabilityStudy if self._study is Study.stability else PairedStudy
            self._paired = kind(configs, config.sweep.paired_minutes, self._folder, config.sweep.minutes)
        self.progress = SweepProgress(self._cells, "until the paired measurement" if self._paired else "left")
        self._sweep_id = cells.sweep_id(overrides)
        self._record = new_record(self._uri, self._folder, sweep_name(overrides), config.tracking.experiment)
        self._record.tags = {
            tags.SWEEP: " ".join(overrides),
            tags.SWEEP_ID: self._sweep_id,
            tags.SWEEP_ORDER: config.sweep.order.value,
        }
        try:
            with http_timeouts(retries=2, timeout_s=10):
                if config.sweep.rerun is not Rerun.all and not self._record.run_id:
                    within(delivery.START_DEADLINE_S, self._uri, self._resume_parent)
                delivery.deliver(self._record, self._uri, delivery.START_DEADLINE_S)
            dead_runs.close_once(self._uri)
        except TrackerUnreachable as error:
            info(f"{error}; the sweep goes on and is delivered later")
            outbox.save(self._record)
        except TrackingFailed as error:
            exit_with(f"{error}; nothing was run", status=1)
        os.environ.pop("MLFLOW_RUN_ID", None)
        variables = {cells.VARIABLE: f"{self._record.reference}/{self._sweep_id}"}
        if self._record.experiment_id:
            variables["MLFLOW_EXPERIMENT_ID"] = self._record.experiment_id
        with read_write(config), open_dict(config):
            # One list, in the order of the sweep; Hydra itself puts params first.
            config.hydra.overrides.task = overrides
            if "params" in config.hydra.sweeper:
                config.hydra.sweeper.params = None
            config.hydra.overrides.hydra += [
                f"+hydra.job.env_set.{name}='{value}'" for name, value in variables.items()
            ]
        SweepParent.open = self

    def _resume_parent(self) -> None:
        """Resume the parent of an earlier start of this sweep, unless it may still be running.

        A parent with a paired measurement is not resumed: MLflow cannot replace the ratios of frameworks that a new
        measurement lacks.
        """
        from .. import tags
        from ..tracking.processes import is_alive
        from ..tracking.store import connect
        from . import cells

        client = connect(self._uri)
        experiment = client.get_experiment_by_name(self._record.experiment)
        if experiment is None:
            return
        for run in cells.previous_sweeps(client, experiment.experiment_id, self._sweep_id):
            process = run.data.tags.get(tags.PROCESS, "")
            alive = is_alive(process)
            if run.info.status == "RUNNING" and alive:
                exit_with(
                    f"process {process.split(' ')[1]} is running this sweep (MLflow run {run.info.run_id}): "
                    "wait for it, or start a second one with sweep.rerun=all"
                )
            if run.info.status == "RUNNING" and alive is None:
                info(f"this sweep may be running elsewhere (MLflow run {run.info.run_id}); a new one starts here")
                continue
            if any(name.startswith(STUDIES) for name in run.data.metrics):
                continue
            self._record.run_id, self._record.experiment_id = run.info.run_id, experiment.experiment_id
            self._record.tags |= {tags.RECORD: self._record.key, tags.PROCESS: self._record.process}
            self._before_s = run.data.metrics.get("sweep/time_s", 0.0)
            # First the process, then the status: otherwise another command could take it for dead.
            client.set_tag(run.info.run_id, tags.PROCESS, self._record.process)
            client.update_run(run.info.run_id, "RUNNING")
            return

    def on_job_end(self, config: Any, job_return: Any, **_: Any) -> None:
        """Print the progress. A launcher's process has a copy of this object, which is not open."""
        if SweepParent.open is self and (line := self.progress.next()):
            info(line)

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        from ..tracking.artifacts import report_failure

        if self._paired is not None:
            with report_failure("the paired measurement ended early"):  # the sweep is closed in any case
                self._paired.run(self._runs())  # Ctrl-C ends it, and close() prints what has been measured
        try:
            with signals.deferred():
                self.close()
        except Exception as error:  # Hydra would turn it into a warning
            exit_with(f"the sweep could not be closed: {type(error).__name__}: {error}", status=1)

    def close(self, status: str | None = None) -> None:
        """Close the parent run and print a summary.

        Without ``status``, it is FAILED if any cell failed. A cell that cannot run on this machine has not failed.
        """
        from ..tracking import dead_runs, delivery, outbox
        from ..tracking.artifacts import report_failure
        from ..tracking.store import TrackingFailed, http_timeouts, within
        from . import cells

        SweepParent.open = None
        SweepParent.failures = 1  # until the summary counts them
        record = self._record
        with http_timeouts(retries=4, timeout_s=30):
            try:
                delivery.deliver(record, self._uri)
                outbox.discard(record)
                undelivered = [each for each in outbox.replay(self._uri) if each.failure]
                # A killed job of a launcher leaves its run RUNNING.
                within(delivery.START_DEADLINE_S, self._uri, lambda: dead_runs.close(self._uri))
                summary = within(delivery.END_DEADLINE_S, self._uri, self._summary)
            except TrackingFailed as error:
                record.finish(status or "FAILED")
                outbox.save(record)
                info(f"{error}; the sweep is saved, `gtdl track replay` delivers it")
                return
            with report_failure(f"{cells.SUMMARY} could not be written"):
                summary.write(self._folder / cells.SUMMARY)
            result = self._conclude_study(summary)
            record.artifacts += [cells.SUMMARY, *result.artifacts]
            now_ms = round(time.time() * 1000)
            metrics: dict[str, float] = {f"sweep/{name}": value for name, value in summary.counts.items()}
            metrics |= {"sweep/time_s": self._before_s + summary.seconds, **result.metrics}
            series = {name: [value] for name, value in metrics.items()} | result.series
            record.metrics = [
                (name, value, now_ms, step) for name, values in series.items() for step, value in enumerate(values)
            ]
            record.finish(status or ("FAILED" if summary.failures else "FINISHED"))
            failure = outbox.conclude(record, self._uri)
        output("\n\n".join(filter(None, [summary.text(), self._ranking(summary), result.text])))
        for each in undelivered:
            info(f"{each.record.name}: {each.failure}")
        if failure:
            info(f"{failure}; the sweep is saved, `gtdl track replay` delivers it")
        else:
            SweepParent.failures = summary.failures

    def _runs(self) -> list[Run]:
        """Return the runs of the sweep so far; none if the tracker cannot be read."""
        from ..tracking import delivery
        from ..tracking.store import TrackingFailed, http_timeouts, within

        try:
            with http_timeouts(retries=2, timeout_s=10):
                summary = within(delivery.START_DEADLINE_S, self._uri, self._summary)
        except TrackingFailed:
            return []
        return [cell.run for cell in summary.cells]

    def _summary(self) -> SweepSummary:
        """Return the states of the cells in MLflow."""
        from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

        from ..tracking.store import connect, search_runs
        from . import cells

        condition = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{self._record.run_id}'"
        children = cells.cells(search_runs(connect(self._uri), self._record.experiment_id, condition))
        return cells.SweepSummary(children, self._cells, time.monotonic() - self._started)

    def _ranking(self, summary: SweepSummary) -> str:
        """Return the ranking of the frameworks; empty if no two of them ran under the same conditions.

        A paired measurement has a ranking of its own.
        """
        if self._paired is not None:
            return ""
        from ..reporting import ranking, runs
        from ..tracking.artifacts import report_failure

        with report_failure("the frameworks could not be ranked"):  # the sweep's results stay
            loaded = runs.read(cell.run for cell in summary.cells)
            if any(len(frameworks) > 1 for frameworks in ranking.group_by_conditions(loaded.runs).values()):
                return ranking.text(loaded.runs)
        return ""

    def _conclude_study(self, summary: SweepSummary) -> StudyResult:
        """Return the result of the sweep's study. If it fails, the sweep's results stay."""
        from . import studies

        if self._study is None:
            return studies.StudyResult("")
        try:
            if self._paired is not None:
                return self._paired.conclude(cell.run for cell in summary.cells)
            result = studies.scaling((cell.run for cell in summary.cells), self._folder)
        except Exception as error:  # a renderer in another language may raise anything
            return studies.StudyResult(f"the study {self._study.value} could not be concluded: {error}")
        return result or studies.StudyResult(f"too few runs finished for the study {self._study.value}")


def order_overrides(overrides: list[str], order: SweepOrder) -> list[str]:
    """Return the overrides of a sweep in the order in which a sweeper expands them: the last changes fastest."""
    first, last = ("seed", "framework") if order is SweepOrder.interleaved else ("framework", "seed")
    rank = {first: -1, last: 1}
    return sorted(overrides, key=lambda override: rank.get(override.partition("=")[0], 0))


def sweep_name(overrides: list[str]) -> str:
    """Return the name of a sweep's run: what it sweeps over, such as ``sweep · framework=torch,mxnet · seed=0,1``."""
    swept = [each for each in overrides if "," in each or "(" in each]
    return " · ".join(["sweep", *(swept or overrides)])


def count_cells(overrides: list[str]) -> int | None:
    """Return how many runs a sweep has; None if the sweeper determines the number."""
    parsed = _parse(overrides)
    if any(item.is_sweep_override() and not item.is_discrete_sweep() for item in parsed):
        return None
    return math.prod(len(list(item.sweep_string_iterator())) for item in parsed if item.is_sweep_override())
