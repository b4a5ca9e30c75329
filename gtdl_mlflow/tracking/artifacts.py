"""The files that a run leaves in MLflow, and the charts among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from mlflow.entities import Metric

from ..config import Config
from ..console import info
from ..datasets import PreparedDataset
from ..hardware import roofline
from ..hardware.peak import Peak

CONFIG, ENVIRONMENT, MLPERF_LOG = "config.yaml", "environment.txt", "mlperf.log"

ARTIFACTS = (CONFIG, ENVIRONMENT, "contact_sheet.png", "learning_curve.svg", "confusion_matrix.svg",
             "confusion_matrix.csv", "roofline.svg", "roofline.csv", "inference.svg", "inference.csv", "job.json",
             "events.jsonl", MLPERF_LOG, "worker.log")  # fmt: skip
"""Files of a run's folder that are logged if they exist."""


class ArtifactWriter:
    """Writes the charts of a run in a thread of its own.

    A chart that fails is reported and left out: a run that took hours is not lost for it.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self._folder, self._config = folder, config
        self._executor = ThreadPoolExecutor(1)

    def draw_run(self, metrics: Sequence[Metric], confusion: list[list[int]], peak: Peak | None) -> None:
        """Start to draw the charts of MLflow's page of the run."""
        self._executor.submit(self._draw_run, list(metrics), confusion, peak)

    def draw_data(self, data: PreparedDataset) -> None:
        """Start to draw the contact sheet of the data set."""
        self._executor.submit(self._draw_data, data)

    def wait(self) -> None:
        """Wait until everything is written."""
        self._executor.shutdown()

    def _draw_run(self, metrics: Sequence[Metric], confusion: list[list[int]], peak: Peak | None) -> None:
        folder, config = self._folder, self._config
        with report_failure("the charts of the run could not be drawn"):
            from .. import charts  # the renderer takes long to import, and no run needs it before its end

            results = {metric.key: metric.value for metric in metrics}
            charts.learning_curve(metrics, config.framework.name, folder / "learning_curve.svg")
            charts.confusion_matrix(confusion, folder / "confusion_matrix.csv", folder / "confusion_matrix.svg")
            if peak is not None:
                roofline.write_table(folder / "roofline.csv", config.network, config.training, peak)
                charts.roofline(results, peak, folder / "roofline.svg")
            if config.latency.batch_sizes:
                charts.inference(metrics, folder / "inference.csv", folder / "inference.svg")

    def _draw_data(self, data: PreparedDataset) -> None:
        with report_failure("the contact sheet of the data set could not be drawn"):
            from ..datasets import contact_sheet  # imports PIL

            contact_sheet.write(data, self._folder / "contact_sheet.png")


@contextmanager
def report_failure(what: str) -> Iterator[None]:
    """Print ``what`` with the reason if the block fails, and go on."""
    try:
        yield
    except Exception as error:  # a renderer in another language may raise anything
        info(f"{what}: {error}")
