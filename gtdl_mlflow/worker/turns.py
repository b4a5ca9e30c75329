"""Worker side of a paired measurement: perform short turns of training or inference on request.

The driver alternates between the workers of several frameworks, so that all are measured under the same conditions. A
turn is a fixed number of training steps, test batches or images. The first request for an activity determines the
number.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from .assembly import build_model, description, load_adapter
from .clock import Clock
from .compile_cache import CompileCache
from .events import Metadata, Turn
from .job import Activity, Job
from .prepared_data import open_arrays
from .training import Data, Emit

WARM_UP_S = 0.2
"""Minimum warm-up time of an activity in seconds: for compilation, choice of kernels and first use of memory."""

WARM_UP_STEPS = 10
"""Minimum number of units in the warm-up of an activity."""

LEAD_IN = 0.3
"""Number of untimed units at the start of each turn, relative to the number of timed units.

The first units after a pause are slow: while another worker runs, this worker's data are evicted from the caches, and a
virtual machine may lose its pages. Without a lead-in, the ratio of two neighbouring turns of PyTorch against itself
varies by 9 %; with it, by 4 %.
"""


class Turns:
    """Model and data of a job, with methods to perform turns."""

    def __init__(self, job: Job) -> None:
        """Build the job's model and load its data."""
        self._job = job
        preprocessing, self.model, _ = build_model(job, load_adapter(job.adapter))
        cache = CompileCache(job.compile_cache)
        started = time.perf_counter()
        self.model.compile()
        self.compile_s = time.perf_counter() - started
        self._data = Data(job, preprocessing, self.model, open_arrays(job))
        self._batches = self._data.training_batches(0)
        self._test_images = self.model.to_native(self._data.test_images)
        self._image = self.model.to_native(np.ascontiguousarray(self._data.test_images[:1]))
        self._step = 0
        first, second = self._timed_step(), self._timed_step()
        self.compile_s += max(0.0, first - second)
        self.compile_cache = cache.state
        self._units: dict[Activity, int] = {}
        self._waiting_since = time.process_time()

    def _timed_step(self) -> float:
        """Do one training step and return its duration in seconds."""
        started = time.perf_counter()
        self._do(Activity.training, 1)
        return time.perf_counter() - started

    def turn(self, activity: Activity, seconds: float) -> Turn:
        """Do one turn of about ``seconds`` after a lead-in. The first turn of an activity begins with a warm-up."""
        requested = time.process_time()
        waiting_cpu_s = requested - self._waiting_since
        units = self._units.get(activity) or self._calibrate(activity, seconds)
        self._do(activity, math.ceil(LEAD_IN * units))
        lead_in_cpu_s = time.process_time() - requested
        clock = Clock()
        clock.start()
        self._do(activity, units)
        clock.stop()
        self._waiting_since = time.process_time()
        return Turn(units, clock.seconds, clock.cpu_seconds, lead_in_cpu_s, waiting_cpu_s)

    def _calibrate(self, activity: Activity, seconds: float) -> int:
        """Warm up, and choose the number of units that take about ``seconds``."""
        units, done, unit_s, started = 1, 0, math.inf, time.perf_counter()
        while done < WARM_UP_STEPS or time.perf_counter() - started < WARM_UP_S:
            before = time.perf_counter()
            self._do(activity, units)
            unit_s = min(unit_s, (time.perf_counter() - before) / units)  # the least disturbed measurement
            done += units
            units = max(1, round(seconds / unit_s / 4))
        self._units[activity] = max(1, round(seconds / unit_s))
        return self._units[activity]

    def _do(self, activity: Activity, units: int) -> None:
        if activity is Activity.training:
            rates = self._job.training.rates(self._step, self._step + units, self._job.budget)
            self.model.train(self._batches, rates)
            self._step += units
        elif activity is Activity.testing:
            self.model.predict(itertools.islice(self._test_batches(), units))
        else:
            for _ in range(units):
                self.model.predict([self._image])

    def _test_batches(self) -> Iterator[Any]:
        """Yield full batches of the test set in an endless cycle."""
        size = min(self._job.training.test_batch_size, len(self._data.test_images))
        starts = range(0, len(self._data.test_images) - size + 1, size)
        yield from (self._test_images[start : start + size] for start in itertools.cycle(starts))


def serve(job: Job, requests: IO[str], emit: Emit) -> None:
    """Build the model and perform one turn for each line of ``requests``, until the end of the stream.

    A line is a JSON object with ``activity`` and ``seconds``. Each turn is reported as an event ``Turn``.
    """
    turns = Turns(job)
    compilation = {"compile_s": turns.compile_s, **turns.compile_cache}
    emit(Metadata({**description(turns.model), **compilation}))
    for line in requests:
        request = json.loads(line)
        emit(turns.turn(Activity(request["activity"]), request["seconds"]))
