"""From the command line to the first training step, part by part, for each framework.

    python benchmarks/startup.py [--repeats 5] [--cold] [--frameworks torch ...]

``driver``: from the command until the worker begins, in which MLflow and Hydra are imported, the configuration is
composed and the run opened; the worker's interpreter gets ready meanwhile (``start``). Then the worker's own parts, and
the first step, compilation in it. ``allowed`` is the worker's import, data, build and compilation, ``import mlflow,
hydra`` (timed in turns, in a process of its own) and half a second. With ``--cold``, Linux drops its page cache before
every command (as root), and Theano's cache of compiled operations is removed.
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
        for framework in options.frameworks:  # makes the store, environments and prepared data
            one(folder, framework, options.overrides, cold=False)
        found: dict[str, list[dict[str, float]]] = {framework: [] for framework in options.frameworks}
        for _ in range(options.repeats):
            for framework in options.frameworks:
                parts = one(folder, framework, options.overrides, options.cold)
                if options.cold:
                    forget(None)
                parts["import mlflow, hydra"] = imported(folder)
                found[framework].append(parts)
    for framework, repeats in found.items():
        median = {part: statistics.median(parts[part] for parts in repeats) for part in repeats[0]}
        allowed = 0.5 + sum(median[part] for part in ("import mlflow, hydra", *PARTS[1:5]))
        before = median["first step begins"]
        shown = ", ".join(f"{part.split('/')[-1].removesuffix('_s')} {median[part]:.2f}" for part in ("driver", *PARTS))
        state, alone = "cold" if options.cold else "warm", median["import mlflow, hydra"]
        print(f"{framework:11} {state}: first step begins after {before:.2f} s (allowed {allowed:.2f}): {shown}; "
              f"import mlflow, hydra {alone:.2f}")  # fmt: skip


def one(folder: Path, framework: str, overrides: list[str], cold: bool) -> dict[str, float]:
    """Seconds of each part of one run."""
    if cold:
        forget(framework)
    uri = f"sqlite:///{folder}/mlflow.db"
    began = time.time()
    subprocess.run(
        [sys.executable, "-m", "gtdl_mlflow", f"framework={framework}", *overrides], cwd=folder, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("gtdl")
    assert experiment is not None
    run = client.search_runs([experiment.experiment_id], order_by=["start_time DESC"], max_results=1)[0]
    parts = {part: run.data.metrics[part] for part in PARTS}

    def said(part: str) -> float:
        """When the worker did, seconds after the command."""
        return client.get_metric_history(run.info.run_id, part)[0].timestamp / 1000 - began

    return {
        "driver": said("setup/start_s"),
        "first step begins": said("setup/data_s"),
        **parts,
    }


def imported(folder: Path) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import mlflow, hydra"], cwd=folder, check=True)
    return time.perf_counter() - began


def forget(framework: str | None) -> None:
    """Empty the page cache, and the compiled operations of a framework that keeps some."""
    if framework is not None:
        made = environments.ensure(config.compose([f"framework={framework}"]).framework, "cpu")
        if made.folder is not None:
            shutil.rmtree(made.folder / "theano", ignore_errors=True)
    os.sync()
    CACHES.write_text("3\n")


if __name__ == "__main__":
    main()
