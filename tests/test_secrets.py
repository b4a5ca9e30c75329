"""Passwords and signatures: each is sent to the address for which it was given, and nothing that is left has one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from helpers.project import ROOT, Command, wait_until
from helpers.servers import (
    PASSWORD,
    Server,
    login_server,
    postgresql,
    recording_server,
)

from gtdl_mlflow.reporting.ui import free_port

pytestmark = [pytest.mark.slow, pytest.mark.server]

PLANTED = {
    name: f"planted-{name}-0123456789"
    for name in (
        "alice",
        "bob",
        "pip",
        "extra",
        "uv",
        "aws",
        "session",
        "hf",
        "wandb",
        "github",
        "mirror",
        "proxy",
        "sig",
    )
}
"""Secrets, by the place in which a user has them."""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m gtdl_mlflow`` (a command that starts with an override or an option) or ``gtdl``."""
    module = "gtdl_mlflow" if "=" in command[0] or command[0].startswith("-") else "gtdl_mlflow.cli"
    return subprocess.run(
        [sys.executable, "-m", module, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_a_password_is_sent_to_its_own_tracker_only(
    gtdl: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    with recording_server() as (ours, at_ours), recording_server() as (other, at_other):
        with_password = ours.replace("http://", "http://alice:p%40ss@")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", with_password)
        assert run("framework=reference", f"tracking.uri={other}").returncode == 1
        assert run("report", "--tracking-uri", other).returncode == 1
        assert at_ours == []
        assert run("track", "replay").returncode in (0, 1)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
        assert run("track", "replay").returncode == 1
        assert len(at_other) > 3
        assert set(at_other) == {""}

        at_ours.clear()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", with_password)
        assert run("report").returncode == 1
        assert run("report", "--tracking-uri", ours).returncode == 1  # the same tracker, without its password
        assert set(at_ours) == {f"Basic {b64encode(b'alice:p@ss').decode()}"}
        at_ours.clear()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
        assert run("report", "--tracking-uri", with_password).returncode == 1
        assert set(at_ours) == {f"Basic {b64encode(b'alice:p@ss').decode()}"}
    assert set(at_other) == {""}


@pytest.fixture
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tracking server with a login, and the users alice and bob."""
    with login_server(tmp_path_factory.mktemp("tracker"), {name: PLANTED[name] for name in ("alice", "bob")}) as server:
        yield server


@pytest.mark.timeout(3600)
def test_nothing_that_ten_commands_leave_has_one_of_the_planted_secrets(
    tracker: Server, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, shared = PLANTED, Path(os.environ["GTDL_HOME"])
    address = tracker.uri.replace("http://", f"http://alice:{secret['alice']}@")
    home, temporary, folder = tmp_path / "home", tmp_path / "tmp", tmp_path / "run"
    for path in (home, temporary, folder):
        path.mkdir()
    for name in ("environments", "builds", "peaks"):
        (home / name).symlink_to(shared / name)
    # A configuration file of the user, with a password.
    own = tmp_path_factory.mktemp("conf")
    (own / "mine").mkdir()
    bob = tracker.uri.replace("http://", f"http://bob:{secret['bob']}@")
    (own / "mine" / "tracker.yaml").write_text(f"# @package _global_\ntracking: {{uri: '{bob}'}}\n")
    for name, value in {
        "GTDL_HOME": home,
        "GTDL_DATA": tmp_path / "data",
        "TMPDIR": temporary,
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
        "PIP_INDEX_URL": f"http://pipuser:{secret['pip']}@127.0.0.1:9/simple",
        "PIP_EXTRA_INDEX_URL": f"http://x:{secret['extra']}@127.0.0.1:9/simple",
        "UV_INDEX": f"corp=http://u:{secret['uv']}@127.0.0.1:9/simple",
        "AWS_SECRET_ACCESS_KEY": secret["aws"],
        "AWS_SESSION_TOKEN": secret["session"],
        "HF_TOKEN": secret["hf"],
        "WANDB_API_KEY": secret["wandb"],
        "GITHUB_TOKEN": secret["github"],
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(folder)
    mirror = f"http://m:{secret['mirror']}@127.0.0.1:9/t10k-labels-idx1-ubyte.gz?X-Amz-Signature={secret['sig']}&x=1"
    urls = f'dataset.downloads.test_labels.urls=["{mirror}"]'
    proxy = dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), f"http://p:{secret['proxy']}@127.0.0.1:9")
    here = {"MLFLOW_TRACKING_URI": address}
    reference = ("framework=reference", "training.epochs=1")
    quoted, sweep = f'"{address}"', ("-m", *reference, "tracking.experiment=sweeps")
    commands = [  # with the status that shows that the password was sent where it belongs
        (0, run(*reference, "seed=1", **here)),
        (0, run(*sweep, "seed=2,3", **here)),
        (0, run(*reference, "seed=4", f"++tracking.uri={quoted}")),
        (0, run("--tracking.uri", address, *reference, "seed=5")),
        (0, run(*sweep, "seed=6", f"tracking.uri={address}")),
        (0, run("--config-dir", str(own), *sweep, "seed=7,8", "+mine=tracker")),
        (0, run("report", "--tracking-uri", address)),
        (2, run(*reference, f"~tracking.uri={address}")),
        (2, run("report", "--no-such-option", address)),
        (1, run("data", "fetch", "cifar100", "limits.fetch_timeout_s=2", **proxy)),
        (1, run("data", "fetch", "mnist", urls)),
        (1, run("framework=reference", "dataset=mnist", urls)),
        (1, run("framework=reference", "dataset=mnist", urls, **here)),
        (1, run("env", "create", "torch", "framework.version=9.9.9")),
    ]
    for status, done in commands:
        assert done.returncode == status, f"{done.args[2:]}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
    output = "".join(done.stdout + done.stderr for _, done in commands)
    assert "9.9.9" in output
    assert "t10k-labels-idx1-ubyte.gz" in output

    client = mlflow.MlflowClient(address)
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert len(runs) == 1 + 3 + 1 + 1 + 2 + 3 + 1
    stored = json.dumps([each.to_dictionary() for each in runs], default=str)

    contents = {"output": output.encode(), "runs": stored.encode()}
    for top in (tmp_path, tracker.folder):
        for parent, _, names in os.walk(top):  # symbolic links, to the frameworks, are not followed
            contents |= {str(path): path.read_bytes() for path in (Path(parent) / name for name in names)}
    found = [
        (secret, where) for where, text in contents.items() for secret in PLANTED.values() if secret.encode() in text
    ]
    size = sum(map(len, contents.values()))
    print(f"{len(commands)} commands, {len(PLANTED)} secrets, {len(contents)} files, {size / 1e6:.1f} MB: {len(found)}")
    assert len(contents) > 100
    assert any(str(where).endswith(".hydra/overrides.yaml") for where in contents)
    assert any(str(where).endswith("multirun.yaml") for where in contents)
    assert any(str(where).endswith("mlflow.db") for where in contents)
    assert any(str(where).endswith("server.db") for where in contents)
    assert found == []


def test_gtdl_ui_shows_no_password_and_leaves_no_server(
    gtdl: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with postgresql() as database:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
        mlflow.MlflowClient(database).create_experiment("gtdl")
        port = free_port()
        command = [sys.executable, "-m", "gtdl_mlflow.cli", "ui", "--no-browser", "--port", str(port)]
        log = tmp_path / "log"
        with log.open("w") as file:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
        try:
            # The last line that is printed, once the server responds.
            wait_until(lambda: "To compare runs" in log.read_text(), "the server responds", process, 300)  # type: ignore[arg-type]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=30) as page:
                assert page.status == 200
            family = descendants(process.pid)
            assert len(family) >= 2
            for pid in family:
                assert PASSWORD.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
            deadline = time.monotonic() + 30
            while left := [pid for pid in family if Path(f"/proc/{pid}").exists()]:
                assert time.monotonic() < deadline, f"left after SIGTERM: {left}"
                time.sleep(0.1)
            assert PASSWORD not in log.read_text()
        finally:
            process.terminate()
            process.wait(timeout=60)


def descendants(pid: int) -> list[int]:
    """Return the process IDs of all children, of their children, and so on."""
    children = [int(word) for path in Path(f"/proc/{pid}/task").glob("*/children") for word in path.read_text().split()]
    return [each for child in children for each in (child, *descendants(child))]
