"""Recorder of one run: its configuration, metrics, files and final status.

It sends no request to the tracking server while a worker's clock runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from mlflow.entities import Metric
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from .. import __version__, signals, tags
from ..config import Config, Mode, Unavailable, display
from ..console import info, printable
from ..datasets import PreparedDataset
from ..environments import Environment
from ..hardware import host, interference, peak, roofline
from ..metrics import HEADLINE, phase_times
from ..redaction import redact
from ..worker.events import ConfusionMatrix, Event, Finished, Metadata, Metrics, Remark
from . import dead_runs, delivery, mlperf_log, outbox
from .artifacts import ARTIFACTS, CONFIG, ENVIRONMENT, MLPERF_LOG, ArtifactWriter, report_failure
from .identity import InterruptedRun, tracker_hash, worker_code_version
from .model import save_model, write_yaml
from .monitor import Monitor
from .processes import PROCESS_GONE
from .quality import quality
from .record import STAGING, UNDELIVERED, new_record
from .store import TrackerUnreachable, TrackingFailed, close_run, connect, http_timeouts, within

INTERRUPTED = "stopped by the user"
"""The reason recorded for a run that a signal stopped."""

REASON_LIMIT = 5000
"""Characters of a failure's reason: MLflow limits the length of a tag."""


@dataclass(frozen=True)
class SweepPosition:
    """The position of a run in its sweep."""

    parent: str
    """The sweep's run, as in ``record.Record.reference``."""
    sweep_id: str
    number: int

    @property
    def tags(self) -> dict[str, str]:
        return {tags.SWEEP_ID: self.sweep_id, tags.SWEEP_POSITION: str(self.number)}


class Recorder:
    """Context manager that records one run: RUNNING at its start; FINISHED, FAILED with a reason, or KILLED at its end.

    The tracker receives requests when the run is created and when it ends. A run that cannot run on this machine is
    FAILED too, with the tag ``gtdl.unavailable``. An unreachable tracker stops nothing: ``undelivered`` holds the
    reason, and the outbox holds what is missing.
    """

    def __init__(self, config: Config, folder: Path, position: SweepPosition | None = None) -> None:
        self._config, self._folder, self._position = config, folder, position
        self._waited_s = 0.0
        self._metrics: list[Metric] = []
        self._metadata: dict[str, Any] = {}
        self._confusion: list[list[int]] = []
        self._monitor = Monitor(config.hardware.device, config.tracking.system_metrics_interval_s)
        self._artifacts = ArtifactWriter(folder, config)
        self._peak: peak.Peak | None = None
        self._environment: Environment | None = None
        self._data: PreparedDataset | None = None
        self._resumed: InterruptedRun | None = None
        self._started = time.monotonic()
        self.undelivered = ""
        """Why MLflow does not have the whole run; empty if it does."""

    def __enter__(self) -> Recorder:
        """Create the run, with all that is known of it.

        Raises:
            TrackingFailed: the tracker or its artifact store refuses the run, or can never work as it is configured;
                nothing must run then.
        """
        config, position = self._config, self._position
        tracking, parent = config.tracking, position.parent if position else ""
        self.record = new_record(tracking.uri, self._folder, _run_name(config), tracking.experiment, parent)
        self.record.tags = _run_tags(config) | (position.tags if position else {})
        self.record.params = {key: str(value) for key, value in _params(config).items()}
        self.record.artifacts = [CONFIG]
        plain = config.to_dict()
        plain["tracking"]["uri"] = redact(config.tracking.uri)
        try:
            with report_failure(f"{CONFIG} could not be written"):
                self._folder.mkdir(parents=True, exist_ok=True)
                write_yaml(self._folder / CONFIG, plain)
            with http_timeouts(retries=2, timeout_s=10):
                delivery.deliver(self.record, tracking.uri, delivery.START_DEADLINE_S)
            dead_runs.close_once(tracking.uri)
        except TrackerUnreachable as error:
            self.undelivered = str(error)
            outbox.save(self.record)
            info(f"{self.undelivered}; the run goes on and is delivered later")
        except TrackingFailed as error:
            refusal = f"{error}; nothing was run"
            self._close_unstarted("FAILED", refusal)
            raise TrackingFailed(refusal) from error
        except Exception as error:
            self._close_unstarted("FAILED", printable(str(error)))
            raise
        except BaseException:
            self._close_unstarted("KILLED", INTERRUPTED)
            raise
        return self

    def _close_unstarted(self, status: str, reason: str) -> None:
        """End the run, if the tracker has created it. It has no results that have to be saved."""
        record = self.record
        if not (record.run_id or record.maybe_created):
            return
        record.artifacts = []
        record.tags = {**record.tags, tags.FAILURE: reason, MLFLOW_RUN_NOTE: f"{status}: {reason}"}
        record.finish(status)
        with signals.deferred(), suppress(TrackingFailed), http_timeouts(retries=2, timeout_s=10):
            delivery.deliver(record, self._config.tracking.uri, delivery.START_DEADLINE_S)

    @contextmanager
    def measuring(self, waited_s: float) -> Iterator[None]:
        """Contain everything that happens while the run holds its device, after ``waited_s`` seconds of waiting.

        At the end, the charts are drawn: they must not disturb the next run on the device.
        """
        self._waited_s = waited_s
        try:
            yield
        finally:
            self._metrics += self._monitor.stop()
            if self._data is not None:
                self._artifacts.draw_data(self._data)
            self._artifacts.wait()

    def record_inputs(
        self, environment: Environment, data: PreparedDataset, machine_peak: peak.Peak | None = None
    ) -> None:
        """Record the environment, the data set and the machine's peak."""
        self._environment, self._data, self._peak = environment, data, machine_peak
        with report_failure(f"{ENVIRONMENT} could not be written"):
            (self._folder / ENVIRONMENT).write_text("\n".join(environment.packages) + "\n")
        self.record.tags |= {tags.DATA_DIGEST: data.digest, tags.ENVIRONMENT: environment.key}
        self.record.tags[tags.ENVIRONMENT_LOCKED] = environment.locked
        self.record.inputs = [_dataset_input(self._config, data)]

    def record_mode(self, name: str, candidates: str, mode: Mode) -> None:
        """Record the execution mode, its options and, if it was chosen, how the candidates compare."""
        self.record.tags[tags.MODE] = name
        if candidates:
            self.record.tags[tags.MODE_CANDIDATES] = candidates[:REASON_LIMIT]
        params = _flatten("framework.options", mode.options) | _flatten("framework.environment", mode.environment)
        self.record.params |= {key: str(value) for key, value in params.items()}

    def start_monitoring(self, pid: int) -> None:
        """Monitor the worker with this process ID from now on."""
        self._monitor.start(pid)
        if driver := self._monitor.gpu_driver:
            self._metadata["gpu_driver"] = driver

    def resume_from(self, interrupted: InterruptedRun) -> None:
        """Record that this run resumes another one. That one is closed in MLflow after the device is released."""
        self._resumed = interrupted

    def _close_resumed(self, interrupted: InterruptedRun) -> None:
        uri = self._config.tracking.uri
        if interrupted.tracker != tracker_hash(uri) or interrupted.run.startswith(UNDELIVERED):
            return

        def close() -> None:
            client = connect(uri)
            run = client.get_run(interrupted.run)
            if run.data.tags.get(tags.FAILURE) == PROCESS_GONE:
                reason = f"{PROCESS_GONE}; run {self.record.reference} resumes it from its last checkpoint"
                close_run(client, run, reason)

        with suppress(TrackingFailed), http_timeouts(retries=2, timeout_s=10):  # it may have been deleted
            within(delivery.START_DEADLINE_S, uri, close)

    def add(self, event: Event) -> None:
        """Store an event. Nothing is sent: a worker's clock may be running."""
        if isinstance(event, Metrics):
            self._add_metrics(event.values, round(event.time * 1000), event.step)
        elif isinstance(event, Metadata):
            self._metadata |= event.values
        elif isinstance(event, ConfusionMatrix):
            self._confusion = event.counts
        elif isinstance(event, Remark):
            before = self.record.tags.get(tags.REMARKS)
            self.record.tags[tags.REMARKS] = "; ".join(filter(None, [before, printable(event.text)]))[:REASON_LIMIT]
        elif isinstance(event, Finished):
            self._add_metrics(self._monitor.interference(event.cpu_s))
            self._add_metrics(self._peak_shares())
            # The renderer releases Python's lock: it draws while the worker ends.
            self._artifacts.draw_run(self._metrics, self._confusion, self._peak)

    def _add_metrics(self, values: dict[str, float], time_ms: int | None = None, step: int = 0) -> None:
        at = time_ms or round(time.time() * 1000)
        self._metrics += [Metric(key, value, at, step) for key, value in values.items()]

    def _peak_shares(self) -> dict[str, float]:
        """Return the roofline's metrics. A run above the machine's peak makes the peak doubtful."""
        shares = roofline.peak_shares(self.results, self._config.network, self._config.training, self._peak)
        highest = max((value for key, value in shares.items() if key.endswith("/peak_share_percent")), default=0.0)
        if self._peak is not None and highest > 100:
            with report_failure("the machine's peak could not be marked as doubtful"):
                doubtful = peak.mark_doubtful(self._peak)
                info(
                    f"the run reached {highest:.0f} % of the machine's measured peak. The peak was measured on a busy "
                    f"machine, or the framework skips operations on padding, which are counted. Peak: {doubtful.text}"
                )
        return shares

    @property
    def results(self) -> dict[str, float]:
        """The last value of every metric so far."""
        return {metric.key: metric.value for metric in self._metrics}

    @property
    def view_hint(self) -> str:
        """The command or the address that shows the run."""
        uri = redact(self._config.tracking.uri)
        if uri.startswith("http"):
            return f"{uri.rstrip('/')}/#/experiments/{self.record.experiment_id}/runs/{self.record.run_id}"
        return f"mlflow ui --backend-store-uri {uri}"

    def log_model(self, folder: Path) -> None:
        """Log the worker's saved model as a pyfunc model that loads in the framework's environment."""
        assert self._environment is not None
        staged = f"{STAGING}/model"
        with report_failure("the model could not be logged"):
            save_model(self._folder / staged, folder, self._config, self._environment, str(self._metadata["numpy"]))
            self.record.model = {
                "name": f"{self._config.framework.name}-{self._config.setting_name}",
                "path": staged,
                "dataset": self._config.dataset.name,
                "digest": self.record.inputs[0]["digest"],
            }
            self.record.model_params = {
                "framework": self._config.framework.name,
                "framework.version": self._config.framework.version,
                "setting": self._config.setting_name,
                "dataset": self._config.dataset.name,
                "budget": f"{self._config.budget:g}",
                "seed": str(self._config.seed),
            }

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with signals.deferred():
            now_ms = round(time.time() * 1000)
            self._add_outcome(kind, error, now_ms)
            self._add_files(now_ms, success=kind is None)
            self._finish()
        if kind is not None and not issubclass(kind, Exception):
            every_s = self._config.training.checkpoint_every_s
            way = "the same command resumes it" if every_s else "training.checkpoint_every_s=60 lets a run be resumed"
            info(f"MLflow run {self.record.reference} is KILLED; {way}")

    def _add_outcome(self, kind: type[BaseException] | None, error: BaseException | None, now_ms: int) -> None:
        """Add the status of the run, with its results or the reason why it did not finish."""
        self._add_metadata_tags()
        if kind is None:
            wall_s = time.monotonic() - self._started - self._waited_s
            self._add_metrics({"wall_time_s": wall_s, "device_wait_s": self._waited_s}, now_ms)
            with report_failure("the quality gate could not be evaluated"):
                self.record.tags |= {
                    tags.QUALITY: quality(self._metrics, self._confusion),
                    tags.INTERFERENCE: "; ".join(interference.warnings(self.results)) or "ok",
                    MLFLOW_RUN_NOTE: _note(self._config, self.results),
                }
            if self.record.model:
                self.record.model_metrics = [(name, self.results[name], now_ms, 0) for name in HEADLINE]
            self.record.finish("FINISHED", now_ms)
        else:
            status = "FAILED" if issubclass(kind, Exception) else "KILLED"
            reason = printable(redact(str(error))) if issubclass(kind, Exception) else INTERRUPTED
            tag, label = (tags.UNAVAILABLE, "unavailable") if issubclass(kind, Unavailable) else (tags.FAILURE, status)
            self.record.tags |= {tag: reason[:REASON_LIMIT], MLFLOW_RUN_NOTE: f"{label}: {reason}"[:REASON_LIMIT]}
            self.record.finish(status, now_ms)
        self.record.params |= {f"worker.{key}": str(value) for key, value in self._metadata.items()}
        self.record.metrics += [(metric.key, metric.value, metric.timestamp, metric.step) for metric in self._metrics]

    def _add_files(self, now_ms: int, success: bool) -> None:
        with report_failure(f"{MLPERF_LOG} could not be written"):
            mlperf_log.write(
                self._folder / MLPERF_LOG, self._config, self._metrics, self._metadata, now_ms, success=success
            )
        missing = self.record.artifacts
        self.record.artifacts = [*missing, *(name for name in ARTIFACTS if name != CONFIG)]

    def _add_metadata_tags(self) -> None:
        for tag in (tags.FRAMEWORK_VERSION, tags.DEVICE, tags.WEIGHTS_SHA256, tags.COMPILE_CACHE):
            if (key := tag.removeprefix("gtdl.")) in self._metadata:
                self.record.tags[tag] = str(self._metadata[key])
        if self._resumed is not None and "resumed_from_iteration" in self._metadata:
            iteration = self._metadata["resumed_from_iteration"]
            self.record.tags[tags.RESUMED] = f"after iteration {iteration} of run {self._resumed.run}"

    def _finish(self) -> None:
        """Deliver the run."""
        # A tracker that was unreachable at the start may be back; one that was reachable will soon be again.
        retries, timeout_s = (2, 10) if self.undelivered else (4, 30)
        with http_timeouts(retries, timeout_s):
            self.undelivered = outbox.conclude(self.record, self._config.tracking.uri)
        if self.undelivered:
            info(f"{self.undelivered}; the run is saved, `gtdl track replay` delivers it")
            return
        if self._resumed is not None:
            self._close_resumed(self._resumed)


def _dataset_input(config: Config, data: PreparedDataset) -> dict[str, str]:
    """Return the fields of MLflow's ``Dataset``."""
    features = Schema([TensorSpec(np.dtype(np.uint8), (-1, *data.image_shape))])
    return {
        "name": config.dataset.name,
        "digest": data.digest[:36],  # the width of MLflow's column; the tag holds all of it
        "source_type": "http",
        "source": json.dumps({"url": config.dataset.source}),
        "schema": json.dumps({"mlflow_tensorspec": {"features": features.to_json()}}),
        "profile": json.dumps({"train_images": data.train_images, "test_images": data.test_images}),
    }


def _run_name(config: Config) -> str:
    """Return a short name that differs between the runs of a sweep: ``torch · torch_mnist · mnist_5k · 0.05 · s3``."""
    return f"{_series(config)} · s{config.seed}"


def _series(config: Config) -> str:
    """Return what the repeats of a run have in common: ``torch compiled · torch_mnist · mnist_5k · 0.05``.

    The version of the framework is included if it is not that of ``conf/``.
    """
    budget = [] if config.budget == 1 else [f"{config.budget:g}"]
    framework = config.framework
    version = "" if framework.version == display.version(framework.name) else f" {framework.version}"
    variant = display.variant(config.mode, config.precision.value, config.deterministic)
    return " · ".join([f"{framework.name}{version}{variant}", config.setting_name, config.dataset.name, *budget])


def _run_tags(config: Config) -> dict[str, str]:
    special = {tags.SIDE_BY_SIDE: "true"} if config.hardware.side_by_side else {}
    for tag in tags.DATASET_VARIANTS:
        if (value := getattr(config.dataset, tag.removeprefix("gtdl."))) is not None:
            special[tag] = str(getattr(value, "value", value))
    return special | {
        tags.FRAMEWORK: config.framework.name,
        tags.FRAMEWORK_VERSION: config.framework.version,
        tags.DATASET: config.dataset.name,
        tags.MODEL: config.model.name,
        tags.TRAINING: config.training.name,
        tags.SETTING: config.setting_name,
        tags.DEVICE: config.hardware.device,
        tags.HARDWARE: config.hardware.name,
        tags.SEED: str(config.seed),
        tags.BUDGET: f"{config.budget:g}",
        tags.MODE_REQUESTED: config.mode,
        tags.PRECISION: config.precision.value,
        tags.DETERMINISTIC: str(config.deterministic).lower(),
        tags.SERIES: _series(config),
        tags.CONFIG_HASH: config.hash(),
        tags.CELL: config.cell(),
        tags.WORK: config.work(),
        tags.MACHINE: host.fingerprint(),
        tags.VERSION: __version__,
        tags.CODE: worker_code_version(),
    }


def _params(config: Config) -> dict[str, Any]:
    """Return the params of the run: the name of each choice, every hyper-parameter, the hardware and the machine."""
    plain = config.to_dict()
    params: dict[str, Any] = {
        group: plain[group]["name"] for group in ("framework", "dataset", "model", "training", "hardware")
    }
    params |= {key: plain[key] for key in ("seed", "budget", "mode", "precision", "deterministic")}
    params["framework.version"] = config.framework.version
    params |= _flatten("training", {key: value for key, value in plain["training"].items() if key != "name"})
    params |= _flatten("hardware", {**plain["hardware"], "threads": config.threads})
    params |= _flatten("machine", host.describe() | host.software())
    return params


def _flatten(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(f"{prefix}.{key}", value)
        else:
            flat[f"{prefix}.{key}"] = json.dumps(value) if isinstance(value, (list, dict)) else value
    return flat


def _note(config: Config, results: dict[str, float]) -> str:
    share = "" if config.budget == 1 else f" A budget of {config.budget:g}: not the full training."
    times = phase_times(results)
    total_s = sum(times.values())
    rows = [f"| {phase} | {each:.3f} | {each / total_s:.1%} |" for phase, each in times.items() if round(each, 3)]
    phases = "\n".join(["| phase of the worker | s | share |", "| --- | --- | --- |", *rows])
    return (
        f"**{results['accuracy_percent']:.2f} %** after {results['training_time_s']:.1f} s of training; "
        f"tested in {results['testing_time_s']:.2f} s.{share}\n\n{phases}\n\n"
        "All runs in one page: `gtdl report`. Two frameworks side by side: `gtdl compare A B`."
    )
