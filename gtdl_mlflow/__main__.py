"""``python -m gtdl_mlflow [key=value ...]``: one run, or with ``-m`` a sweep. The Hydra application."""

# ruff: noqa: E402 - what is imported is read ahead from before the first import on
from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from . import readahead

readahead.begin()
if __name__ == "__main__":
    gc.disable()  # to look for garbage among what imports make takes a sixth of their time, and there is none

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from . import secrets
from .callbacks import SweepRun
from .config import CONF, Config, ConfigError, Unavailable, loader, typed
from .explain import explain

FLAGS = {
    "--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun",
    "--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun", "--info",
}  # fmt: skip
"""Hydra's own; every other ``--key value`` is one of MLflow's extra parameters."""


def main() -> None:
    """Run the command line; exit with 0, 1 if a run failed, 2 if it was asked for wrongly, 130 at Ctrl-C."""
    atexit.register(gc.freeze)  # nor is there any as the interpreter ends
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand errors to us instead of printing them at length
    # Before MLflow's import, which sets its loggers up: what a run prints must not drown in migrations.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # a run's last line says it
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it asks and tells a server of MLflow, beside the worker
    # conf/hydra/launcher/ has what our runs need of each launcher, under the name that its plugin gave it.
    warnings.filterwarnings("ignore", message=r"(?s).*is validated against ConfigStore schema")
    signal.signal(signal.SIGTERM, _interrupt)
    secrets.hide()
    loader.install()
    try:
        sys.argv[1:] = overrides(sys.argv[1:])
        application()
        if "mlflow" in sys.modules:  # it was no --help
            readahead.remember()
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        print(f"gtdl_mlflow: {error if isinstance(error, ConfigError) else explain(error, Config)}", file=sys.stderr)
        if SweepRun.open is not None:
            SweepRun.open.close("FAILED")
        sys.exit(2)
    except KeyboardInterrupt:
        if SweepRun.open is not None:
            SweepRun.open.close("KILLED")
        print("gtdl_mlflow: stopped", file=sys.stderr)
        sys.exit(130)
    except Exception:  # of a launcher: the jobs' own are answered in application()
        if SweepRun.open is not None:
            SweepRun.open.close("FAILED")
        raise
    # Of a sweep, the runs' end in MLflow decides: some may have been delivered later, or by an earlier start.
    sys.exit(1 if (failed if SweepRun.failures is None else SweepRun.failures) else 0)


def overrides(arguments: list[str]) -> list[str]:
    """Hydra's arguments, with MLflow's ``--key value`` and ``--key=value`` turned into ``key=value``."""
    turned, rest = [], iter(arguments)
    for argument in rest:
        key, given, value = argument.partition("=")
        if not key:
            raise ConfigError(f"{argument}: expected key=value")
        if not argument.startswith("--") or key in FLAGS:
            turned.append(argument)
        else:
            turned.append(f"{key[2:]}={value if given else next(rest, '')}")
    return [override for override in turned if not _hidden(override)]


def _hidden(override: str) -> bool:
    """Take a tracker's address with a password off the command line, which Hydra prints and writes down.

    It goes to where ``conf/tracking`` finds it, and where the processes of all launchers inherit it.
    """
    key, _, value = override.partition("=")
    address = value.strip("'\"")
    if key != "tracking.uri" or not secrets.has_one(address):
        return False
    secrets.hide(address)
    return True


failed: list[str] = []
"""The reasons of the runs of this process that failed."""


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def application(composed: Any) -> float | None:
    """One job: its objective, or nothing if the run failed."""
    config = typed(composed)
    # Only now: MLflow takes two seconds to import, a mistake on the command line should not.
    from . import benchmark, sweeps

    if not gc.isenabled():  # from here on there may be garbage; the tracking store's import is still to come
        gc.freeze()
        gc.set_threshold(100_000)
        gc.enable()
    hydra = HydraConfig.get()
    place = sweeps.place(hydra.job.num) if hydra.mode is RunMode.MULTIRUN else None
    print(f"{benchmark.label(config)}, on the {config.hardware.device}", flush=True)
    if place is not None and (done := benchmark.done_already(config, place)) is not None:
        state = f"MLflow run {done.info.run_id} of this sweep did that: {done.info.status}"
        print(f"{state} (sweep.rerun=all runs it again)")
        return objective(config, done.data.metrics) if done.info.status == "FINISHED" else None
    try:
        outcome = benchmark.run(config, Path(hydra.runtime.output_dir), place)
    except benchmark.FAILURES as error:
        if not isinstance(error, Unavailable):
            failed.append(str(error))
        print(f"gtdl_mlflow: {error}", file=sys.stderr)
        return None
    print(summary(config, outcome.metrics))
    if outcome.undelivered:
        failed.append(outcome.undelivered)
    else:
        print(f"MLflow run {outcome.run_id}; to look at it: {outcome.where}")
    return objective(config, outcome.metrics)


def objective(config: Config, metrics: Mapping[str, float]) -> float | None:
    """What a sweeper that searches is answered with: nothing where the run has no such metric, which it hears of."""
    name = config.sweep.objective
    if name not in metrics:
        print(f"gtdl_mlflow: sweep.objective={name}: expected one of {', '.join(sorted(metrics))}", file=sys.stderr)
    return metrics.get(name)


def summary(config: Config, metrics: dict[str, float]) -> str:
    """The three headline figures, and the proof of parity if there is one."""
    figures = (
        f"accuracy {metrics['accuracy_percent']:.2f} %, training {metrics['training_time_s']:.2f} s, "
        f"testing {metrics['testing_time_s']:.3g} s (budget {config.budget:g}, seed {config.seed})"
    )
    if not config.parity:
        return figures
    differences = (f"{key} {metrics[f'parity/{key}_difference']:.1e}" for key in ("logits", "gradient", "loss"))
    return f"parity: differs from float64 by: {', '.join(differences)}; {figures}"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
