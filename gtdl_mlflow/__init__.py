"""A benchmark of deep-learning frameworks, tracked in MLflow.

``import gtdl_mlflow as gtdl`` gives the functions of the Python API, which ``gtdl_mlflow.api`` defines. They are
imported when they are first used: a worker imports this package, too, and has neither Hydra nor MLflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Comparison, Report, RunResult, compare, predict, report, results, run, sweep
    from .config import ConfigError
    from .console import Failure

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "ConfigError",
    "Failure",
    "Report",
    "RunResult",
    "compare",
    "predict",
    "report",
    "results",
    "run",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
