"""MLflow's own system metrics, sampled beside a worker without a word to the tracker."""

from __future__ import annotations

import threading
import time

from mlflow.entities import Metric
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor


class Sampler:
    """MLflow's own system metrics, kept until the run is over: its monitor asks the tracker at every sample."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._metrics: list[Metric] = []
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._interval_s:
            self._thread = threading.Thread(target=self._sample, name="system metrics", daemon=True)
            self._thread.start()

    def stop(self) -> list[Metric]:
        """The samples; a last one is taken now, so that the shortest run has one."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        return self._metrics

    def _sample(self) -> None:
        # Made here: they count from their construction on.
        monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        monitors[0].collect_metrics()  # psutil's first answer is always 0 %
        monitors[0].clear_metrics()
        step, stopped = 0, False
        while not stopped:
            stopped = self._stopped.wait(self._interval_s)
            at = round(time.time() * 1000)
            for monitor in monitors:
                monitor.collect_metrics()
                values = monitor.aggregate_metrics()
                monitor.clear_metrics()
                self._metrics += [Metric(f"system/{key}", value, at, step) for key, value in values.items()]
            step += 1
