"""``python -m gtdl_mlflow [key=value ...]``: one run, or with ``-m`` a sweep. The Hydra application."""

from __future__ import annotations

from . import signals

if __name__ == "__main__":  # the imports take most of a second
    signals.exit_on_first()

import atexit
import gc
import os
import re
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from . import files
from .config import CONF, Config, ConfigError, Unavailable, describe, to_config
from .config.errors import explain, explain_null_section, refusal
from .console import Failure, conceal_arguments, info, output
from .sweeps.hydra_callbacks import SweepParent, record_refusal
from .tracking.deadline import leave

HYDRA_FLAGS = {
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info"),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun"),
}
"""Options of Hydra. Any other ``--key value`` is an extra parameter of ``mlflow run``."""

LAUNCHERS = ("joblib.", "ray.", "submitit.")
"""Packages of the launchers: their exceptions report a job whose process died, or a cluster that does not respond."""

failures: list[str] = []
"""Reasons of the failed runs of this process."""


def main() -> None:
    """Run the command line and exit: 0 finished, 1 a run failed, 2 invalid request, 130 stopped by a signal."""
    # MLflow's imports leave no garbage. Collections during them and at exit take 1.1 s of a run that takes 4.4 s.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors instead of printing them at length
    # Before the import of MLflow, which configures its loggers: messages about migrations would hide a run's output.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # a run prints its own
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # its threads would run beside the worker
    # The files of conf/hydra/launcher/ have the names under which the plugins register their schemas.
    warnings.filterwarnings("ignore", message=r"(?s).*is validated against ConfigStore schema")
    try:
        files.name_user()
        sys.argv[1:] = to_overrides(sys.argv[1:])
        if message := refusal(sys.argv[1:]):
            raise ConfigError(message)
        application()
    except ConfigError as error:
        _refuse(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _refuse(explain(error, Config, sys.argv[1:]))
    except KeyboardInterrupt:
        _close_sweep("KILLED")
        info("stopped")
        leave(signals.INTERRUPTED)
    except OSError as error:
        _close_sweep("FAILED")
        info(files.explain(error))
        sys.exit(1)
    except Exception as error:  # of OmegaConf or of a launcher; application() handles the failures of runs
        if message := explain_null_section(error, sys.argv[1:]):
            _refuse(message)
        _close_sweep("FAILED")
        if not type(error).__module__.startswith(LAUNCHERS):
            raise
        info(f"the launcher failed: {error}")
        sys.exit(1)
    signals.ignore()  # everything is delivered
    # For a sweep, the states in MLflow count: an earlier start or a later delivery may have added runs.
    leave(1 if (failures if SweepParent.failures is None else SweepParent.failures) else 0)


def to_overrides(arguments: list[str]) -> list[str]:
    """Return Hydra's arguments. ``--key value`` and ``--key=value`` of MLflow become ``key=value``.

    Secrets of addresses are concealed: Hydra prints and stores the command line.

    Raises:
        ConfigError: an argument has no key.
    """
    overrides, rest = [], iter(conceal_arguments(arguments))
    for argument in rest:
        key, equals, value = argument.partition("=")
        if not key:
            raise ConfigError(f"{argument}: expected key=value, without spaces beside the =")
        if re.fullmatch(r"-[A-Z]", key):
            raise ConfigError(f"{key}: an option of `mlflow run`; here, write {next(rest, 'key=value')} without it")
        if not argument.startswith("--") or key in HYDRA_FLAGS:
            overrides.append(argument)
        else:
            overrides.append(f"{key[2:]}={value if equals else next(rest, '')}")
    return overrides


def _refuse(message: str) -> NoReturn:
    """Print why the request is wrong and exit with status 2."""
    info(message)
    _close_sweep("FAILED")
    record_refusal(message)
    sys.exit(2)


def _close_sweep(status: str) -> None:
    signals.ignore()
    if SweepParent.open is not None:
        SweepParent.open.close(status)


@hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")
def application(composed: Any) -> float | None:
    """Run one job. Return the sweeper's objective, or None if the run failed."""
    # hydra.job.chdir=true must not move mlflow.db, mlruns and relative paths, which every later command looks for here.
    os.chdir(HydraConfig.get().runtime.cwd)
    config = to_config(composed)
    output(f"{describe(config)}, on the {config.hardware.device}")
    # Imported here because MLflow takes two seconds: a mistake on the command line is reported before.
    from .hardware import interference

    before = interference.Snapshot.now()
    from .runner import run
    from .sweeps import cells

    signals.interrupt_on_first()  # from now on there may be a run to close; this process may be a launcher's
    hydra_config = HydraConfig.get()
    position = cells.position(hydra_config.job.num) if hydra_config.mode is RunMode.MULTIRUN else None
    if position is None and (warning := interference.busy_warning(before)):  # a sweep warns before its first cell
        info(warning)
    if position is not None and (done := cells.find_completed(config, position)) is not None:
        output(
            f"skipped: run {done.info.run_id} of this sweep is {done.info.status} already; sweep.rerun=all repeats it"
        )
        return objective(config, done.data.metrics) if done.info.status == "FINISHED" else None
    started = time.monotonic()
    try:
        outcome = run(config, Path(hydra_config.runtime.output_dir), position)
    except Failure as error:
        if not isinstance(error, Unavailable):
            failures.append(str(error))
        info(str(error))
        return None
    if SweepParent.open is not None:  # in this process, not in one of a launcher
        SweepParent.open.progress.add_time(time.monotonic() - started - outcome.metrics["device_wait_s"])
    output(summary(config, outcome.metrics))
    if warning := interference.unreliable(outcome.metrics):
        info(warning)
    if outcome.undelivered:
        failures.append(outcome.undelivered)
    else:
        output(f"MLflow run {outcome.run_id}; to view it: {outcome.view_hint}")
    return objective(config, outcome.metrics)


def objective(config: Config, metrics: Mapping[str, float]) -> float | None:
    """Return the metric for optimizing sweepers such as Optuna; print a message and return None if the run lacks it."""
    name = config.sweep.objective
    if name not in metrics:
        info(f"sweep.objective={name}: expected one of {', '.join(sorted(metrics))}")
    return metrics.get(name)


def summary(config: Config, metrics: dict[str, float]) -> str:
    """Return the three headline metrics in a line, and the differences of a parity check."""
    figures = (
        f"accuracy {metrics['accuracy_percent']:.2f} %, training {metrics['training_time_s']:.2f} s, "
        f"testing {metrics['testing_time_s']:.3g} s (budget {config.budget:g}, seed {config.seed})"
    )
    if not config.parity:
        return figures
    differences = (f"{key} {metrics[f'parity/{key}_difference']:.1e}" for key in ("logits", "gradient", "loss"))
    return f"parity: largest relative differences from float64: {', '.join(differences)}; {figures}"


if __name__ == "__main__":
    main()
