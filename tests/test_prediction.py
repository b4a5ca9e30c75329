"""``gtdl predict``: images in, class probabilities out, in the framework's own environment."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from helpers.project import ROOT, Command, need_framework, runs, wait_until
from helpers.share import share

import gtdl_mlflow as gtdl
from gtdl_mlflow import config, datasets, environments
from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.environments import Environment, pip_settings
from gtdl_mlflow.reporting.ui import free_port
from gtdl_mlflow.tracking.model import requirements

RunID = str


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RunID]:
    """Return a store with one run of the reference, and the run's ID."""
    folder = tmp_path_factory.mktemp("trained")
    uri = f"sqlite:///{folder}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = gtdl.run(framework="reference", budget=0.25, **{"tracking.uri": uri})
    return uri, result.run_id


def test_images() -> tuple[np.ndarray, np.ndarray]:
    folder = datasets.prepare(config.compose([]).dataset).folder
    return np.load(folder / "test_images.npy"), np.load(folder / "test_labels.npy")


test_images.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.frameworks
def test_caffe_classifies_the_test_set_as_its_run_did(
    gtdl: Command, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other frameworks are in the test of the guide's commands."""
    need_framework("caffe")
    done = gtdl("framework=caffe", "setting=caffe_mnist", "training.iterations=40", "latency.repeats=0")
    assert done.returncode == 0, done.stderr
    (run,) = runs(store)
    images, labels = test_images()
    np.save(tmp_path / "images.npy", images)
    output = tmp_path / "probabilities.npy"
    assert cli.main(["predict", run.info.run_id, str(tmp_path / "images.npy"), "--output", str(output)]) == 0
    probabilities = np.load(output)
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (1000, 10))
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    classes = probabilities.argmax(axis=1)
    assert 100 * (classes == labels).mean() == pytest.approx(run.data.metrics["accuracy_percent"])
    assert f"1,000 images; most probable classes: {', '.join(map(str, classes[:10]))}, ..." in capsys.readouterr().out


GUIDE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
ON_AN_INDEX = [
    name
    for name in config.choices("framework")
    if (recipes := config.compose_part("framework", name).devices["cpu"].recipes) and not recipes[0].build
]


def block(language: str, word: str) -> str:
    """Return the code block of the guide that has this word."""
    (found,) = [each for each in re.findall(rf"```{language}\n(.*?)```", GUIDE, re.DOTALL) if word in each]
    return str(found)


@pytest.mark.slow
@pytest.mark.frameworks
@pytest.mark.parametrize("framework", share(ON_AN_INDEX, []))
def test_the_commands_of_the_guide_work(
    gtdl: Command, store: str, framework: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_framework(framework)
    done = gtdl(f"framework={framework}", "setting=caffe_mnist", "training.iterations=40", "latency.repeats=0")
    assert done.returncode == 0, done.stderr
    (run,) = runs(store)
    monkeypatch.chdir(tmp_path)
    # MLflow installs the model's environment with uv, which does not read pip's settings by itself.
    for name, value in pip_settings.for_uv().environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_ENV_ROOT", str(tmp_path / "environments"))
    # uv finds the model's Python on the PATH; it cannot download one everywhere.
    environment = environments.ensure(config.compose([f"framework={framework}"]).framework, "cpu")
    folders = [str(Path(sys.executable).parent), os.environ["PATH"], str(environment.python.resolve().parent)]
    monkeypatch.setenv("PATH", os.pathsep.join(folders))
    images, labels = test_images()
    np.save("images.npy", images)
    Path("images.json").write_text(json.dumps({"inputs": images[:3].tolist()}))
    port = free_port()
    replacements = {"torch-caffe_mnist": f"{framework}-caffe_mnist", "5001": str(port)}

    def adapt(text: str) -> str:
        for old, new in replacements.items():
            text = re.sub(rf"\b{old}\b", new, text)
        return text

    def execute(*command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        return done.stdout

    replacements["RUN"] = run.info.run_id
    replacements["MODEL_ID"] = execute(sys.executable, "-c", adapt(block("python", "search_logged_models"))).strip()
    execute("bash", "-c", adapt(block("bash", "gtdl predict")))
    expected = np.load("predictions.npy")
    accuracy = 100 * (expected.argmax(axis=1) == labels).mean()
    assert accuracy == pytest.approx(run.data.metrics["accuracy_percent"])

    execute("bash", "-c", adapt(block("bash", "mlflow models predict")))
    predicted = json.loads(Path("predictions.json").read_text())["predictions"]
    np.testing.assert_allclose(predicted, expected[:3], atol=1e-5)
    uri = f"models:/{replacements['MODEL_ID']}"
    requirements = f"{mlflow.artifacts.download_artifacts(artifact_uri=uri)}/requirements.txt"
    python = tmp_path / "loading" / "bin" / "python"
    execute("uv", "venv", "--python", environment.python_version, str(tmp_path / "loading"))
    execute("uv", "pip", "install", "--python", str(python), "-r", requirements)
    saving = "\nnumpy.save('loaded.npy', probabilities)"
    execute(str(python), "-c", adapt(block("python", "load_model")) + saving)
    np.testing.assert_allclose(np.load("loaded.npy"), expected, atol=1e-5)
    assert not list(python.parents[1].glob("lib/python*/site-packages/nvidia*")), "packages for GPUs"

    serve, request = adapt(block("bash", "mlflow models serve")).splitlines()
    server = subprocess.Popen(shlex.split(serve), start_new_session=True)
    try:
        wait_until(lambda: is_open(port), "the server of the model", server)
        response = json.loads(execute(*shlex.split(request)))
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
    np.testing.assert_allclose(response["predictions"], expected[:3], atol=1e-5)


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.slow
def test_python_and_the_command_give_the_same_probabilities(
    trained: tuple[str, RunID], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, run_id = trained
    monkeypatch.chdir(tmp_path)
    images = test_images()[0][:3]
    np.save("images.npy", images)
    assert cli.main(["predict", run_id, "images.npy", f"tracking_uri={uri}"]) == 0
    np.testing.assert_array_equal(np.load("predictions.npy"), gtdl.predict(run_id, images, tracking_uri=uri))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 28, 28), np.uint8), "expected images of uint8 (N, 28, 28, 1); given: uint8 (3, 28, 28)"),
        (np.zeros((3, 28, 28, 1)), "expected images of uint8 (N, 28, 28, 1); given: float64 (3, 28, 28, 1)"),
        (np.zeros((0, 28, 28, 1), np.uint8), "given: uint8 (0, 28, 28, 1)"),
        (np.array([{}]), "images.npy: not a .npy file of numbers; numpy.save writes one"),
    ],
)
def test_wrong_images_are_one_line(
    trained: tuple[str, RunID],
    array: np.ndarray,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", array, allow_pickle=True)
    assert cli.main(["predict", trained[1], "images.npy", "--tracking-uri", trained[0]]) == 1
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert not Path("predictions.npy").exists()


def test_missing_images_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "0" * 32, str(tmp_path / "images.npy")]) == 2
    errors = capsys.readouterr().err
    assert "images.npy' does not exist" in errors
    assert errors.count("\n") == 1


@pytest.mark.slow
def test_a_run_without_a_model_is_one_line(
    trained: tuple[str, RunID], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", test_images()[0][:3])
    client = mlflow.MlflowClient(trained[0])
    other = client.create_run(client.get_run(trained[1]).info.experiment_id)
    for run_id, message in ((other.info.run_id, "(RUNNING) has no model"), ("0" * 32, f"run {'0' * 32}: not in")):
        assert cli.main(["predict", run_id, "images.npy", "--tracking-uri", trained[0]]) == 1
        errors = capsys.readouterr().err
        assert message in errors
        assert errors.count("\n") == 1


def environment(packages: list[str], requested: list[str], device: str = "cpu") -> Environment:
    return Environment("torch", "2.13.0", device, Path("/x"), Path("/x/python"), "3.11.7", requested, packages, "0")


@pytest.mark.parametrize(
    ("packages", "requested", "device", "expected"),
    [
        (["torch==2.13.0+cpu"], ["torch==2.13.0+cpu", "numpy==2.2.6"], "cpu", ["torch==2.13.0+cpu", "numpy==2.2.6"]),
        (
            ["torch==2.13.0+cpu"],
            ["torch==2.13.0", "numpy==2.2.6"],
            "cpu",
            ["--extra-index-url https://download.pytorch.org/whl/cpu", "torch==2.13.0+cpu", "numpy==2.2.6"],
        ),
        (["torch==2.13.0"], ["torch==2.13.0", "numpy==2.2.6"], "cpu", ["torch==2.13.0", "numpy==2.2.6"]),
        (["torch==2.13.0+cu130"], ["torch==2.13.0", "numpy==2.2.6"], "gpu", ["torch==2.13.0", "numpy==2.2.6"]),
    ],
    ids=["the user's index", "PyTorch's index", "no CPU build", "GPU"],
)
def test_a_cpu_model_requires_the_cpu_build(
    packages: list[str], requested: list[str], device: str, expected: list[str]
) -> None:
    framework = config.compose(["framework=torch"]).framework
    assert requirements(framework, environment(packages, requested, device)) == expected
