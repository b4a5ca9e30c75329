"""One MLflow run: what was asked, what happened, how it ended. No call to the tracker while a worker's clock runs."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from mlflow.entities import Metric
from mlflow.types import Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from . import __version__, delivery, machine, mllog, noise, peaks, resuming, roofline, sweeps
from .config import Config, Unavailable
from .datasets import Prepared
from .delivery import FAILURE, STAGING, UNAVAILABLE, Away, TrackingFailed, patience, reaching, redacted
from .environments import Environment
from .making import say
from .pyfunc import save_model, write_yaml
from .resuming import Interrupted
from .system_metrics import Sampler
from .worker.events import Confusion, Described, Event, Finished, Metrics

if TYPE_CHECKING:
    from .gpu import Gpu

ARTIFACTS = ("config.yaml", "environment.txt", "contact_sheet.png", "learning_curve.svg", "confusion_matrix.svg",
             "confusion_matrix.csv", "roofline.svg", "roofline.csv", "inference.svg", "inference.csv", "job.json",
             "events.jsonl", "mlperf.log", "worker.log")  # fmt: skip
"""Files of a run's folder that are kept with it, as far as it came to them."""


VARIANTS = ("labels", "image_size", "train_limit", "test_limit")
"""What makes other data of a data set; the limits, if there are any, say that it was a quick look."""


class Run:
    """A context: entered RUNNING; left FINISHED, FAILED with the reason, or KILLED, with all that was reported.

    A run that cannot be here is FAILED too, as MLflow has no other word for it, with the tag ``UNAVAILABLE``. A tracker
    that is away stops nothing: ``undelivered`` says so, and what it has not heard is kept for ``delivery.replay``.
    """

    def __init__(self, config: Config, folder: Path, place: sweeps.Place | None = None, waited_s: float = 0.0) -> None:
        self._config, self._folder, self._place, self._waited_s = config, folder, place, waited_s
        self._metrics: list[Metric] = []
        self._facts: dict[str, Any] = {}
        self._confusion: list[list[int]] = []
        self._sampler = Sampler(config.tracking.system_metrics_interval_s, config.hardware.device)
        self._peak: peaks.Peak | None = None
        self._before: noise.Moment | None = None
        self._gpu: Gpu | None = None
        self._worker = 0
        self._used_before_s = 0.0
        """What the worker had had of the CPU when it was told to begin."""
        self._beside = ThreadPoolExecutor(1)
        self._started = time.monotonic()
        self._environment: Environment | None = None
        self._data: Prepared | None = None
        self._resumes: Interrupted | None = None
        self.undelivered = ""
        """Why MLflow has not heard all of the run; empty if it has."""

    def __enter__(self) -> Run:
        """Raises TrackingFailed if the tracker refuses the run: nothing is run then."""
        config, place = self._config, self._place
        self.record = delivery.record(
            config.tracking.uri, self._folder, _name(config), config.tracking.experiment, place.parent if place else ""
        )
        self.record.tags = _tags(config) | (place.tags if place else {})
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            self._deliver(retries=2, timeout_s=10)
        except TrackingFailed as error:
            raise TrackingFailed(f"{error}; nothing was run") from error
        if self.undelivered:
            say(f"{self.undelivered}; the run goes on and is delivered later")
        self.record.params = {key: str(value) for key, value in _params(config).items()}  # told with what is used
        plain = config.plain()
        plain["tracking"]["uri"] = redacted(config.tracking.uri)
        write_yaml(self._folder / "config.yaml", plain)
        return self

    def uses(self, environment: Environment, data: Prepared, peak: peaks.Peak | None = None) -> None:
        """What the run runs in and on, and what the machine can do at most."""
        self._environment, self._peak = environment, peak
        (self._folder / "environment.txt").write_text("\n".join(environment.packages) + "\n")
        self._data = data
        self.record.tags |= {"gtdl.data_digest": data.digest, "gtdl.environment": environment.key}
        self.record.inputs = [_dataset_input(self._config, data)]
        if not self.undelivered:
            self._deliver(retries=2, timeout_s=10)

    def starts(self, worker: int) -> None:
        """The process of this number works on the run from now on."""
        self._worker = worker
        if self._config.hardware.device == "gpu":
            from .gpu import Gpu  # and NVML with it, which other runs do without

            self._gpu = Gpu.found()
            self._facts |= {"gpu_driver": self._gpu.driver()} if self._gpu else {}
        self._sampler.start(worker)
        with suppress(psutil.NoSuchProcess):  # how it ended, its driver will hear
            times = psutil.Process(worker).cpu_times()
            self._used_before_s = times.user + times.system
        self._before = self._moment()

    def resumes(self, interrupted: Interrupted) -> None:
        """This run goes on with another, which can say no more."""
        self._resumes = interrupted
        uri = self._config.tracking.uri
        if interrupted.tracker != resuming.tracker(uri) or interrupted.run.startswith(delivery.UNDELIVERED):
            return
        with suppress(TrackingFailed), reaching(uri), patience(retries=2, timeout_s=10):  # it may have been deleted
            client = delivery.connect(uri)
            run = client.get_run(interrupted.run)
            if run.info.status == "RUNNING":
                reason = f"{delivery.ENDED}; run {self.record.reference} goes on from its last checkpoint"
                sweeps.close(client, run, reason)

    def add(self, event: Event) -> None:
        """Keep an event for later: a worker's clock may be running."""
        if isinstance(event, Metrics):
            at = round(event.time * 1000)
            values = event.values
            if "worker/wall_s" in values and self._before is not None:  # its last word: what it used is known
                used_s = values["worker/cpu_user_s"] + values["worker/cpu_system_s"] - self._used_before_s
                values = values | noise.figures(self._before, self._moment(), used_s)
            self._metrics += [Metric(key, value, at, event.step) for key, value in values.items()]
        elif isinstance(event, Described):
            self._facts |= event.facts
        elif isinstance(event, Confusion):
            self._confusion = event.counts
        elif isinstance(event, Finished):
            now = round(time.time() * 1000)
            shares = roofline.shares(self.results, self._config.network, self._config.training, self._peak)
            self._metrics += [Metric(key, value, now, 0) for key, value in shares.items()]
            highest = max((value for key, value in shares.items() if key.endswith("/peak_share_percent")), default=0.0)
            if self._peak is not None and highest > 100:
                with _not_worth_a_run("that the machine's peak was exceeded cannot be kept"):
                    doubted = peaks.doubt(self._peak)
                    say(f"{highest:.0f} % of the machine's peak: it was measured while the machine was slow, or the "
                        f"framework leaves products with padding out, which are counted: {doubted.text}")  # fmt: skip
            # The renderer needs no Python: it works while the worker ends and MLflow hears of the rest.
            self._beside.submit(self._draw, list(self._metrics), self.results)

    def _moment(self) -> noise.Moment:
        return noise.Moment.now(gpu=noise.GpuMoment.now(self._gpu, self._worker) if self._gpu else None)

    @property
    def results(self) -> dict[str, float]:
        """The last value of every metric so far."""
        return {metric.key: metric.value for metric in self._metrics}

    @property
    def where(self) -> str:
        """What to type, or which page to open, to look at the run."""
        uri = redacted(self._config.tracking.uri)
        if uri.startswith("http"):
            return f"{uri.rstrip('/')}/#/experiments/{self.record.experiment_id}/runs/{self.record.run_id}"
        return f"mlflow ui --backend-store-uri {uri}"

    def log_model(self, folder: Path) -> None:
        """The worker's saved model, as a pyfunc model that loads in the framework's environment."""
        assert self._environment is not None
        staged = f"{STAGING}/model"
        save_model(self._folder / staged, folder, self._config, self._environment, str(self._facts["numpy"]))
        self.record.artifacts.append(staged)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics += self._sampler.stop()
        told = self.record
        told.tags |= {
            f"gtdl.{key}": str(self._facts[key]) for key in ("framework_version", "device") if key in self._facts
        }
        if "weights_sha256" in self._facts:
            told.tags["gtdl.weights_sha256"] = self._facts["weights_sha256"]
        if self._resumes is not None and "resumed_from_iteration" in self._facts:
            told.tags["gtdl.resumed"] = (
                f"after iteration {self._facts['resumed_from_iteration']} of run {self._resumes.run}"
            )
        now = round(time.time() * 1000)
        if kind is None:
            status = "FINISHED"
            self._metrics.append(Metric("wall_time_s", time.monotonic() - self._started, now, 0))
            self._metrics.append(Metric("device_wait_s", self._waited_s, now, 0))
            told.tags["gtdl.quality"] = quality(self._metrics, self._config.dataset.classes)
            told.tags["gtdl.noise"] = "; ".join(noise.flags(self.results)) or "ok"
            told.tags[MLFLOW_RUN_NOTE] = _note(self._config, self.results)
        else:
            status = "FAILED" if issubclass(kind, Exception) else "KILLED"
            reason = str(error) if issubclass(kind, Exception) else "stopped by the user"
            unavailable = issubclass(kind, Unavailable)
            word = "unavailable" if unavailable else status
            told.tags |= {UNAVAILABLE if unavailable else FAILURE: reason[:5000],
                          MLFLOW_RUN_NOTE: f"{word}: {reason}"[:5000]}  # fmt: skip
        mllog.write(self._folder / "mlperf.log", self._config, self._metrics, self._facts, now, success=kind is None)
        told.params |= {f"worker.{key}": str(value) for key, value in self._facts.items()}
        told.metrics += [(metric.key, metric.value, metric.timestamp, metric.step) for metric in self._metrics]
        # A tracker that was away at the start may be back; one that was there will soon be again.
        patient = (2, 10) if self.undelivered else (4, 30)
        self._deliver(*patient, refusal=True)
        if self._data is not None:
            self._beside.submit(self._draw_data, self._data)
        self._beside.shutdown()
        told.artifacts += ARTIFACTS
        delivery.end(told, status, now)
        if self.undelivered:
            delivery.keep(told)
        else:
            self._deliver(*patient, refusal=True)
        if self.undelivered:
            say(f"{self.undelivered}; all of the run is kept in {self._folder}, `gtdl track replay` delivers it")

    def _draw(self, metrics: list[Metric], results: dict[str, float]) -> None:
        """What MLflow's page of the run shows."""
        folder = self._folder
        with _not_worth_a_run("the run's pictures cannot be drawn"):
            from . import pictures  # a second to import, which no run needs to wait for before it starts

            framework, network, training = self._config.framework.name, self._config.network, self._config.training
            pictures.learning_curve(metrics, framework, folder / "learning_curve.svg")
            pictures.confusion_matrix(self._confusion, folder / "confusion_matrix.csv", folder / "confusion_matrix.svg")
            if self._peak is not None:
                roofline.write(folder / "roofline.csv", network, training, self._peak)
                pictures.roofline(results, self._peak, folder / "roofline.svg")
            if self._config.latency.batch_sizes:
                pictures.inference(metrics, framework, folder / "inference.csv", folder / "inference.svg")

    def _draw_data(self, data: Prepared) -> None:
        with _not_worth_a_run("the data set's contact sheet cannot be drawn"):
            from .datasets import contact_sheet  # with PIL: so too

            contact_sheet.write(data, self._folder / "contact_sheet.png")

    def _deliver(self, retries: int, timeout_s: int, refusal: bool = False) -> None:
        """Tell MLflow what it has not heard, and keep what cannot be told; a ``refusal`` is kept too, or raised."""
        try:
            with patience(retries, timeout_s):
                delivery.deliver(self.record, self._config.tracking.uri)
        except TrackingFailed as error:
            if not (refusal or isinstance(error, Away)):
                raise
            self.undelivered = str(error)
            delivery.keep(self.record)
            return
        self.undelivered = ""
        delivery.forget(self.record)
        shutil.rmtree(self._folder / STAGING, ignore_errors=True)


@contextmanager
def _not_worth_a_run(what: str) -> Iterator[None]:
    """What fails in here is said, and the run goes on: one that took hours is not lost for a picture."""
    try:
        yield
    except Exception as error:  # whatever a renderer in another language may raise
        say(f"{what}: {error}")


def quality(metrics: Iterable[Metric], classes: int) -> str:
    """``ok``, or why a run's times should not be compared: it did not learn."""
    losses = [metric.value for metric in metrics if metric.key == "train/loss"]
    accuracy = [metric.value for metric in metrics if metric.key == "accuracy_percent"][-1]
    if not np.isfinite(losses).all():
        return "the loss is not finite"
    if len(losses) > 1 and losses[-1] >= losses[0]:
        return "the loss does not fall"
    if accuracy <= 100 / classes:
        return "the accuracy is no better than chance"
    return "ok"


def _dataset_input(config: Config, data: Prepared) -> dict[str, str]:
    """The fields of MLflow's ``Dataset``."""
    features = Schema([TensorSpec(np.dtype(np.uint8), (-1, *data.image_shape))])
    return {
        "name": config.dataset.name,
        "digest": data.digest[:36],  # all that MLflow's column holds; the tag has the rest
        "source_type": "http",
        "source": json.dumps({"url": config.dataset.source}),
        "schema": json.dumps({"mlflow_tensorspec": {"features": features.to_json()}}),
        "profile": json.dumps({"train_images": data.train_images, "test_images": data.test_images}),
    }


def _name(config: Config) -> str:
    return f"{config.framework.name} {config.model.name} on {config.dataset.name}, seed {config.seed}"


def _tags(config: Config) -> dict[str, str]:
    special = {"gtdl.side_by_side": "true"} if config.hardware.side_by_side else {}
    for key in VARIANTS:
        if (value := getattr(config.dataset, key)) is not None:
            special[f"gtdl.{key}"] = str(getattr(value, "value", value))
    return special | {
        "gtdl.framework": config.framework.name,
        "gtdl.framework_version": config.framework.version,
        "gtdl.dataset": config.dataset.name,
        "gtdl.model": config.model.name,
        "gtdl.training": config.training.name,
        "gtdl.device": config.hardware.device,
        "gtdl.hardware": config.hardware.name,
        "gtdl.seed": str(config.seed),
        "gtdl.budget": f"{config.budget:g}",
        "gtdl.tuning": config.tuning.value,
        "gtdl.config_hash": config.hash(),
        "gtdl.cell": config.cell(),
        "gtdl.machine": machine.fingerprint(),
        "gtdl.version": __version__,
        "gtdl.code": resuming.code(),
    }


def _params(config: Config) -> dict[str, Any]:
    """The choices by the words that were typed for them, and every hyper-parameter below them."""
    plain = config.plain()
    params: dict[str, Any] = {
        group: plain[group]["name"] for group in ("framework", "dataset", "model", "training", "hardware")
    }
    params |= {key: plain[key] for key in ("seed", "budget", "tuning")}
    params["framework.version"] = config.framework.version
    params |= _flat("framework.options", config.settings.options)
    params |= _flat("framework.environment", config.settings.environment)
    params |= _flat("training", {key: value for key, value in plain["training"].items() if key != "name"})
    params |= _flat("hardware", {**plain["hardware"], "threads": config.threads})
    params |= _flat("machine", machine.describe())
    return params


def _flat(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(f"{prefix}.{key}", value)
        else:
            flat[f"{prefix}.{key}"] = json.dumps(value) if isinstance(value, (list, dict)) else value
    return flat


def _note(config: Config, results: dict[str, float]) -> str:
    share = "" if config.budget == 1 else f" A budget of {config.budget:g}: not the full training."
    return (
        f"**{results['accuracy_percent']:.2f} %** after {results['training_time_s']:.1f} s of training; "
        f"tested in {results['testing_time_s']:.2f} s.{share}"
    )
