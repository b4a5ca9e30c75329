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
from ..worker_process import EVENTS, JOB, LOG

CONFIG, ENVIRONMENT, MLPERF_LOG = "config.yaml", "environment.txt", "mlperf.log"
CONTACT_SHEET = "contact_sheet.png"
LEARNING_CURVE = "learning_curve.svg"
CONFUSION_CHART, CONFUSION_TABLE = "confusion_matrix.svg", "confusion_matrix.csv"
ROOFLINE_CHART, ROOFLINE_TABLE = "roofline.svg", "roofline.csv"
INFERENCE_CHART, INFERENCE_TABLE = "inference.svg", "inference.csv"

CHARTS = (
    LEARNING_CURVE,
    CONFUSION_CHART,
    CONFUSION_TABLE,
    ROOFLINE_CHART,
    ROOFLINE_TABLE,
    INFERENCE_CHART,
    INFERENCE_TABLE,
)
"""Charts of a run, and the tables that they show."""

ARTIFACTS = (CONFIG, ENVIRONMENT, CONTACT_SHEET, *CHARTS, JOB, EVENTS, MLPERF_LOG, LOG)
"""Files of a run's folder that are logged if they exist."""


class ArtifactWriter:
    """Writer of a run's charts, in a thread of its own.

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
            charts.learning_curve(metrics, config.framework.name, folder / LEARNING_CURVE)
            charts.confusion_matrix(confusion, folder / CONFUSION_TABLE, folder / CONFUSION_CHART)
            if peak is not None:
                roofline.write_table(folder / ROOFLINE_TABLE, config.network, config.training, peak)
                charts.roofline(results, peak, folder / ROOFLINE_CHART)
            if config.latency.batch_sizes:
                charts.inference(metrics, folder / INFERENCE_TABLE, folder / INFERENCE_CHART)

    def _draw_data(self, data: PreparedDataset) -> None:
        with report_failure("the contact sheet of the data set could not be drawn"):
            from ..datasets import contact_sheet  # imports PIL

            contact_sheet.write(data, self._folder / CONTACT_SHEET)


@contextmanager
def report_failure(what: str) -> Iterator[None]:
    """Print ``what`` with the reason if the block fails, and go on."""
    try:
        yield
    except Exception as error:  # a renderer in another language may raise anything
        info(f"{what}: {error}")
