"""How often the verdict of a paired measurement is right, for planted differences.

    python benchmarks/verdict.py [--trials 100] [--load 0] [--seconds 90] [--setting caffe_mnist]

PyTorch is measured against itself, and against itself slowed down by 3 % and by 10 % (half of the trials each), with
one thread and by CPU time. ``--load K`` keeps K other processes busy meanwhile. Each trial is a measurement of at most
``--seconds``. Prints every goal with what was reached, and exits with 1 if one is missed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from gtdl_mlflow import config, datasets, environments
from gtdl_mlflow.config.job import create_job
from gtdl_mlflow.report import ratios
from gtdl_mlflow.report.ratios import Ratio, RatioVerdict
from gtdl_mlflow.sweeps.paired import Contestant, MeasurementPlan, PairedMeasurement
from gtdl_mlflow.worker.job import Activity

PLANTED = Path(__file__).parent / "planted"

# The worker runs isolated from PYTHONPATH; this interpreter adds the folder of the slowed adapter.
WRAPPER = """#!/bin/sh
shift 3  # -I -X faulthandler
exec {python} -I -X faulthandler -c 'import runpy, sys
sys.path.insert(0, "{planted}")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")' "$@"
"""


@dataclass(frozen=True)
class Trial:
    """The result of one measurement."""

    true_ratio: float
    ratio: Ratio
    seconds: float

    @property
    def is_covered(self) -> bool:
        return self.ratio.low <= self.true_ratio <= self.ratio.high


def contestants(setting: str, folder: Path, true_ratio: float) -> list[Contestant]:
    """Return PyTorch, and PyTorch slowed down by ``true_ratio``."""
    composed = config.compose(["framework=torch", f"setting={setting}"])
    python = environments.ensure(composed.framework, "cpu").python
    data = datasets.prepare(composed.dataset)
    job = create_job(composed, data.folder, folder / "job", data.sha256)
    plain = Contestant("plain", python, composed.speed_settings.environment, job)
    wrapper = folder / "python"
    wrapper.write_text(WRAPPER.format(python=python, planted=PLANTED))
    wrapper.chmod(0o755)
    environment = {**composed.speed_settings.environment, "SLOWED": str(true_ratio)}
    return [plain, Contestant("slowed", wrapper, environment, replace(job, adapter="slowed:Slowed"))]


def trial(setting: str, true_ratio: float, seconds: float, seed: int) -> Trial:
    """Measure once."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        plan = MeasurementPlan(seconds, activities=(Activity.training,))
        both = contestants(setting, Path(name), true_ratio)
        measurement = PairedMeasurement(both, 1, plan, Path(name))
        for _ in measurement.run(seed):
            pass
    if measurement.failures:
        sys.exit(f"a worker failed: {measurement.failures}")
    return Trial(
        true_ratio,
        ratios.compare(measurement.turns, "training", ratios.CPU, "slowed", "plain"),
        time.monotonic() - started,
    )


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep ``count`` processes busy during the block."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for each in others:
            each.kill()
            each.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100, help="of a framework against itself; half as many of each")
    parser.add_argument("--load", type=int, default=0, metavar="K")
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--setting", default="caffe_mnist")
    options = parser.parse_args()
    plan = {1.0: options.trials, 1.03: options.trials // 2, 1.10: options.trials // 2}
    results: dict[float, list[Trial]] = {true_ratio: [] for true_ratio in plan}
    with busy_processes(options.load):
        for number in range(max(plan.values())):
            for true_ratio, count in plan.items():
                if number < count:
                    result = trial(options.setting, true_ratio, options.seconds, number)
                    results[true_ratio].append(result)
                    text = f"{true_ratio:.2f}: {ratios.factor(result.ratio)} {result.ratio.verdict.value}"
                    print(f"{text}, {result.ratio.restarts} restarts, {result.seconds:.0f} s", flush=True)
    reached = [goal(true_ratio, some) for true_ratio, some in results.items() if some]  # prints all of them
    sys.exit(0 if all(reached) else 1)


def goal(true_ratio: float, trials: list[Trial]) -> bool:
    """Print the goals for one planted ratio with what was reached; return whether all are reached."""
    count, covered = len(trials), sum(each.is_covered for each in trials)
    slower = sum(each.ratio.verdict is RatioVerdict.slower for each in trials)
    wrong = sum(each.ratio.verdict is RatioVerdict.faster for each in trials) + (slower if true_ratio == 1 else 0)
    if true_ratio == 1:
        same = sum(each.ratio.verdict is RatioVerdict.same for each in trials)
        print(f"against itself: {wrong} false differences in {count} (at most {0.05 * count:g}); {same} 'same'")
        reached = wrong <= 0.05 * count
    else:
        least = 1.0 if true_ratio >= 1.1 else 0.9
        print(f"{true_ratio - 1:.0%} slower: detected {slower} of {count} (at least {least:.0%})")
        reached = slower >= least * count
    print(f"  the interval contains the true ratio: {covered} of {count} (at least 90 %)")
    return reached and covered >= 0.9 * count


if __name__ == "__main__":
    main()
