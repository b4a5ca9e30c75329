"""Time from the command line to the first training step, by part, for each framework.

    python benchmarks/startup.py [--repeats 5] [--cold] [--frameworks torch ...]

``driver`` is the time from the command until the worker starts its job: MLflow and Hydra are imported, the
configuration is composed and the MLflow run is created. The worker's interpreter starts meanwhile (``start``). The
worker's own parts follow, and the first step, which includes compilation. ``allowed`` is the sum of the worker's
import, data, build and compilation, of ``import mlflow, hydra`` (timed in turns, in a process of its own) and of half a
second. With ``--cold``, Linux drops its page cache before every command (as root), and Theano's cache of compiled
operations is deleted.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlflow.tracking import MlflowClient

from gtdl_mlflow import config, environments

ROOT = Path(__file__).parents[1]
PARTS = ("setup/start_s", "setup/import_s", "setup/build_s", "setup/compile_s", "setup/data_s", "train/first_step_s")
CACHES = Path("/proc/sys/vm/drop_caches")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name in config.choices("framework") if config.compose([f"framework={name}"]).framework.numpy]
    parser.add_argument("--frameworks", nargs="+", choices=names, default=names)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("overrides", nargs="*", default=["setting=caffe_mnist", "training.iterations=20"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for framework in options.frameworks:  # creates the store, environments and prepared data
            one_run(folder, framework, options.overrides, cold=False)
        results: dict[str, list[dict[str, float]]] = {framework: [] for framework in options.frameworks}
        for _ in range(options.repeats):
            for framework in options.frameworks:
                parts = one_run(folder, framework, options.overrides, options.cold)
                if options.cold:
                    drop_caches(None)
                parts["import mlflow, hydra"] = import_time(folder)
                results[framework].append(parts)
    for framework, repeats in results.items():
        median = {part: statistics.median(parts[part] for parts in repeats) for part in repeats[0]}
        allowed = 0.5 + sum(median[part] for part in ("import mlflow, hydra", *PARTS[1:5]))
        before = median["first step"]
        shown = ", ".join(f"{part.split('/')[-1].removesuffix('_s')} {median[part]:.2f}" for part in ("driver", *PARTS))
        state, imports = "cold" if options.cold else "warm", median["import mlflow, hydra"]
        print(
            f"{framework:11} {state}: first step starts after {before:.2f} s (allowed {allowed:.2f} s): {shown}; "
            f"import mlflow, hydra {imports:.2f}"
        )


def one_run(folder: Path, framework: str, overrides: list[str], cold: bool) -> dict[str, float]:
    """Return the seconds of each part of one run."""
    if cold:
        drop_caches(framework)
    uri = f"sqlite:///{folder}/mlflow.db"
    started = time.time()
    subprocess.run(
        [sys.executable, "-m", "gtdl_mlflow", f"framework={framework}", *overrides],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("gtdl")
    assert experiment is not None
    run = client.search_runs([experiment.experiment_id], order_by=["start_time DESC"], max_results=1)[0]
    parts = {part: run.data.metrics[part] for part in PARTS}

    def recorded(part: str) -> float:
        """Return when the worker recorded a part, in seconds after the command."""
        return client.get_metric_history(run.info.run_id, part)[0].timestamp / 1000 - started

    return {
        "driver": recorded("setup/start_s"),
        "first step": recorded("setup/data_s"),
        **parts,
    }


def import_time(folder: Path) -> float:
    """Return the seconds of a process that imports MLflow and Hydra."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import mlflow, hydra"], cwd=folder, check=True)
    return time.perf_counter() - started


def drop_caches(framework: str | None) -> None:
    """Drop the page cache and the compiled operations of ``framework``, if it stores any."""
    if framework is not None:
        environment = environments.ensure(config.compose([f"framework={framework}"]).framework, "cpu")
        if environment.folder is not None:
            shutil.rmtree(environment.folder / "theano", ignore_errors=True)
    os.sync()
    CACHES.write_text("3\n")


if __name__ == "__main__":
    main()
