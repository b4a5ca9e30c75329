"""The trained model as an MLflow model."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import yaml
from mlflow import pyfunc
from mlflow.models import Model, ModelSignature
from mlflow.types import Schema, TensorSpec

from ..config import Config, Framework
from ..environments import Environment


def save_model(path: Path, data: Path, config: Config, environment: Environment, numpy_version: str) -> None:
    """Write a pyfunc model that loads in the framework's environment; this process needs no framework.

    The model takes uint8 images (N, height, width, channels) and returns class probabilities, float32 (N, classes).
    ``data`` is the folder that the worker saved. MLflow's own ``save_model`` would record this process's Python as the
    model's, and spend half a second on a warning that the model's requirements are not installed here.
    """
    here = Path(__file__).parents[1]
    shutil.copytree(data, path / "data")
    # The model needs the worker with its own adapter, and the registry of metrics that the worker imports.
    package = path / "code" / "gtdl_mlflow"
    adapters = {config.framework.adapter.rpartition(".")[0].rpartition(".")[2], config.framework.plain}

    def ignored(folder: str, names: list[str]) -> list[str]:
        others = [name for name in names if Path(folder).name == "frameworks" and Path(folder, name).is_dir()]
        return [name for name in [*others, "__pycache__"] if name not in adapters]

    shutil.copytree(here / "worker", package / "worker", ignore=ignored)
    for name in ("__init__.py", "metrics.py"):
        shutil.copy(here / name, package)

    pinned = requirements(config.framework, environment) or [f"numpy=={numpy_version}"]
    pinned.append(f"mlflow=={mlflow.__version__}")
    (path / "requirements.txt").write_text("\n".join(pinned) + "\n")
    python_env = {
        "python": environment.python_version,
        "build_dependencies": ["pip", "setuptools", "wheel"],
        "dependencies": ["-r requirements.txt"],
    }
    write_yaml(path / "python_env.yaml", python_env)
    conda_env = {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [f"python={environment.python_version}", "pip", {"pip": pinned}],
    }
    write_yaml(path / "conda.yaml", conda_env)

    images = TensorSpec(np.dtype(np.uint8), (-1, *config.dataset.image_shape))
    probabilities = TensorSpec(np.dtype(np.float32), (-1, config.dataset.classes))
    model = Model(signature=ModelSignature(Schema([images]), Schema([probabilities])))
    pyfunc.add_to_model(
        model,
        loader_module="gtdl_mlflow.worker.saved_model",
        data="data",
        code="code",
        conda_env="conda.yaml",
        python_env="python_env.yaml",
    )
    model.flavors[pyfunc.FLAVOR_NAME][pyfunc.PY_VERSION] = environment.python_version
    model.save(path / "MLmodel")


def requirements(framework: Framework, environment: Environment) -> list[str]:
    """Return the lines of a requirements file for the framework.

    A CPU build keeps its local version (``+cpu``) and gets the index that the recipe names for it. Without them, pip
    and uv would install the build for GPUs. A build for GPUs loses its local version: the package index has the same.
    """
    requested = [_without_local_version(each) for each in environment.requirements]
    if environment.device != "cpu":
        return requested
    local = {_without_local_version(each): each for each in environment.packages if "+" in each}
    recipes = framework.devices[environment.device].recipes
    indexes = [each.index for each in recipes if each.index and each.requirements == environment.requirements]
    options = [f"--extra-index-url {index}" for index in indexes if local.keys() & {*requested}]
    return [*options, *(local.get(each, each) for each in requested)]


def _without_local_version(requirement: str) -> str:
    return re.sub(r"\+[\w.]+", "", requirement)


def set_model_id(path: Path, model_id: str, run_id: str) -> None:
    """Write into the saved model in the folder ``path`` which logged model and which run it belongs to."""
    model = Model.load(path / "MLmodel")
    model.model_id, model.run_id = model_id, run_id
    model.save(path / "MLmodel")


def write_yaml(path: Path, values: dict[str, Any]) -> None:
    """Write a YAML file with libyaml, if PyYAML has it.

    In pure Python, writing a run's configuration takes longer than MLflow needs to create the run.
    """
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    path.write_text(yaml.dump(values, Dumper=dumper, sort_keys=False), encoding="utf-8")
