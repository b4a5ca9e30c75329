"""A shared tracking server: the one of ``compose.yaml``, with PostgreSQL, several users, and a name."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import pytest
import yaml
from helpers.project import ROOT, Command, logged_model, need_package, runs, start, wait_until
from helpers.servers import PASSWORD, Server, mlflow_server, postgresql, postgresql_programs
from helpers.share import share

from gtdl_mlflow.reporting.ui import free_port
from gtdl_mlflow.tracking.delivery import deliver
from gtdl_mlflow.tracking.record import new_record

pytestmark = [pytest.mark.slow, pytest.mark.server]

ADMIN = ("admin", "sesame-of-the-tracker")

NAME = "tracker.example"

SETTINGS = {
    "POSTGRES_PASSWORD": PASSWORD,
    "S3_SECRET_KEY": "only-for-this-test",
    "MLFLOW_SECRET_KEY": "only-for-this-test",
    "MLFLOW_ADMIN_PASSWORD": ADMIN[1],
    "HOST_NAME": NAME,
}
"""The file .env beside ``compose.yaml``."""


def compose_file(settings: dict[str, str]) -> Any:
    """Return ``compose.yaml`` with the variables of .env replaced, as Docker does."""

    def value(match: re.Match[str]) -> str:
        name, operator, default = match.groups()
        assert name in settings or operator == ":-", f"{name} must be set"
        return settings.get(name, default)

    text = (ROOT / "compose.yaml").read_text()
    return yaml.safe_load(re.sub(r"\$\{(\w+)(:[-?])([^}]*)\}", value, text))


def guide_blocks(language: str) -> list[str]:
    """Return the code blocks of ``docs/server.md`` in a language."""
    text = (ROOT / "docs" / "server.md").read_text()
    return [textwrap.dedent(block) for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of ``compose.yaml``: its command and environment, on a database and a folder of this test."""
    folder = tmp_path_factory.mktemp("server")
    compose = compose_file(SETTINGS)
    auth = folder / "auth.ini"
    auth.write_text(compose["configs"]["auth"]["content"].replace("/var/lib/mlflow", str(folder)))
    service = compose["services"]["mlflow"]
    assert service["command"][:2] == ["mlflow", "server"]
    with postgresql() as database:
        without_password = database.replace(f"gtdl:{PASSWORD}@", "gtdl@").replace("postgresql:", "postgresql+psycopg:")
        variables = {
            **service["environment"],
            "MLFLOW_BACKEND_STORE_URI": without_password,
            "MLFLOW_AUTH_CONFIG_PATH": str(auth),
        }
        # The options that follow those of the file are another port and a folder instead of S3.
        with mlflow_server(folder, *service["command"][2:], **variables) as running:
            yield running


@pytest.fixture(scope="module")
def users(server: Server) -> dict[str, str]:
    """Passwords of the users that the snippet of ``docs/server.md`` creates."""
    (snippet,) = guide_blocks("python")
    environment = {**os.environ, "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN[1]}
    done = subprocess.run(
        [sys.executable, "-"],
        input=snippet.replace("http://127.0.0.1:5000", server.uri),
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.fixture
def log_in(server: Server, users: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Function that sets the address of the server with the password of a user."""

    def function(user: str) -> None:
        password = {**users, ADMIN[0]: ADMIN[1]}[user]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri.replace("http://", f"http://{user}:{password}@"))

    return function


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``gtdl ARGUMENTS``."""
    return subprocess.run(
        [sys.executable, "-m", "gtdl_mlflow.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_compose_file_pins_its_parts_and_hides_its_secrets() -> None:
    compose = compose_file({name: f"planted-{name}" for name in SETTINGS if name != "HOST_NAME"})
    services = compose["services"]
    build = services["mlflow"]["build"]["dockerfile_inline"]
    assert f'"mlflow[auth]=={mlflow.__version__}"' in build, "the server that these tests use"
    assert re.findall(r'"([^"=]+)==[\d.]+"', build) == ["mlflow[auth]", "psycopg[binary]", "boto3"]
    for image in (re.findall(r"FROM (\S+)", build)[0], services["postgresql"]["image"], services["s3"]["image"]):
        assert re.search(r":\d+\.\d+", image), f"{image} is pinned to a version"
    for name, service in services.items():
        assert "healthcheck" in service, name
        assert "planted" not in str([service.get("command"), service.get("entrypoint"), service["healthcheck"]]), name
        assert "planted" not in str(service.get("build")), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    assert "planted" not in str(compose["configs"])


def test_no_password_is_on_a_command_line_of_the_server(server: Server) -> None:
    assert server.process is not None
    listed = subprocess.run(
        ["ps", "-o", "args", "-g", str(server.process.pid)], capture_output=True, text=True, check=True
    )
    assert listed.stdout.count("uvicorn") >= 1
    for secret in (PASSWORD, ADMIN[1], SETTINGS["S3_SECRET_KEY"]):
        assert secret not in listed.stdout


def request(server: Server, host: str, user: tuple[str, str] | None = ADMIN, origin: str = "") -> int:
    """Search experiments under the name ``host``; return the HTTP status."""
    headers = {"Host": host, "Content-Type": "application/json"}
    if user is not None:
        headers["Authorization"] = f"Basic {b64encode(':'.join(user).encode()).decode()}"
    if origin:
        headers["Origin"] = origin
    address = f"{server.uri}/api/2.0/mlflow/experiments/search"
    try:
        with urllib.request.urlopen(urllib.request.Request(address, b'{"max_results": 1}', headers), timeout=60) as got:
            return int(got.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_server_answers_to_its_name_only_and_to_no_stranger(server: Server) -> None:
    port = server.port
    for host in (NAME, f"{NAME}:{port}", f"127.0.0.1:{port}", f"localhost:{port}"):
        assert request(server, host) == 200, host
    assert request(server, f"tracker.attacker.example:{port}") == 403
    assert request(server, f"{NAME}.attacker.example") == 403
    assert request(server, NAME, None) == 401
    assert request(server, NAME, ("admin", "password1234")) == 401
    assert request(server, NAME, origin=f"https://{NAME}") == 200
    assert request(server, NAME, origin="https://attacker.example") == 403


def run_with_name(folder: Path, arguments: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run ``python -m gtdl_mlflow ARGUMENTS`` where ``NAME`` is the name of this machine."""
    hosts = folder / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {NAME}\n")
    enter = ["unshare", "--mount", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh"]
    if subprocess.run([*enter, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not permit a mount namespace")
    return subprocess.run(
        [*enter, sys.executable, "-m", "gtdl_mlflow", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_run_reaches_the_server_by_name(server: Server, log_in: Any, tmp_path: Path) -> None:
    log_in("alice")
    address = {"MLFLOW_TRACKING_URI": os.environ["MLFLOW_TRACKING_URI"].replace("127.0.0.1", NAME)}
    done = run_with_name(tmp_path, ["framework=reference", "tracking.experiment=by name"], address)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"http://{NAME}:{server.port}/#/experiments/" in done.stdout


def test_a_run_reaches_the_server_by_tls_through_the_documented_proxy(
    server: Server, log_in: Any, tmp_path: Path
) -> None:
    need_package("caddy", shutil.which("caddy"))
    log_in("alice")
    port = free_port()
    # An authority of this test instead of a public one, and other ports.
    own = f"{{\nlocal_certs\nskip_install_trust\nadmin off\nhttp_port {free_port()}\nhttps_port {port}\n}}\n"
    (tmp_path / "Caddyfile").write_text(
        own + guide_blocks("text")[0].replace("127.0.0.1:5000", f"127.0.0.1:{server.port}")
    )
    proxy = subprocess.Popen(
        ["caddy", "run", "--config", tmp_path / "Caddyfile"],
        env={**os.environ, "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    )
    try:
        authority = tmp_path / "caddy" / "pki" / "authorities" / "local" / "root.crt"
        wait_until(authority.exists, "the proxy has a certificate", proxy)
        address = os.environ["MLFLOW_TRACKING_URI"].replace(f"127.0.0.1:{server.port}", f"{NAME}:{port}")
        variables = {
            "MLFLOW_TRACKING_URI": address.replace("http:", "https:"),
            "REQUESTS_CA_BUNDLE": str(authority),
        }
        done = run_with_name(tmp_path, ["framework=reference", "tracking.experiment=by tls"], variables)
    finally:
        proxy.terminate()
        proxy.wait(timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"https://{NAME}:{port}/#/experiments/" in done.stdout
    assert [run.info.status for run in runs(os.environ["MLFLOW_TRACKING_URI"], "by tls")] == ["FINISHED"]


DOCKER = """#!/bin/sh
# "docker compose exec|run OPTIONS SERVICE COMMAND" runs the command on this machine. Other commands do nothing.
[ "$2" = exec ] || [ "$2" = run ] || exit 0
shift 2
while case $1 in -*) true;; *) false;; esac; do shift; done
shift
exec "$@"
"""


def test_the_backup_of_the_guide_restores_runs_logins_and_files_and_its_upgrade_migrates_them(tmp_path: Path) -> None:
    logins, files = tmp_path / "logins", tmp_path / "files"
    (tmp_path / "docker").write_text(DOCKER)
    (tmp_path / "docker").chmod(0o755)
    backup, restore, upgrade = (
        block.replace("/var/lib/mlflow", str(logins)).replace(" /data", f" {files}") for block in guide_blocks("sh")[2:]
    )
    with postgresql() as database:
        address = urlsplit(database)
        variables = {
            **os.environ,
            "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{postgresql_programs()}:{os.environ['PATH']}",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(address.port),
            "PGPASSWORD": PASSWORD,
            "MLFLOW_BACKEND_STORE_URI": database.replace("/postgres", "/gtdl"),
        }

        def shell(script: str) -> None:
            command = ["bash", "-euo", "pipefail", "-c", script]
            done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr

        def new_volumes() -> None:
            for folder in (logins, files):
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
            shell("dropdb -U gtdl --if-exists gtdl && createdb -U gtdl gtdl")

        new_volumes()
        shell(upgrade)
        assert (logins / "auth.db").stat().st_size > 0
        (files / "object").write_bytes(bytes(range(256)))
        client = mlflow.MlflowClient(variables["MLFLOW_BACKEND_STORE_URI"])
        run = client.create_run(client.create_experiment("kept"))
        client.log_metric(run.info.run_id, "accuracy_percent", 99.0)
        saved = {path: path.read_bytes() for path in (logins / "auth.db", files / "object")}
        shell(backup)
        client._tracking_client.store.engine.dispose()
        new_volumes()
        shell(restore)
        shell(upgrade)
        assert client.get_run(run.info.run_id).data.metrics == {"accuracy_percent": 99.0}
        assert {path: path.read_bytes() for path in saved} == saved


def test_two_users_share_an_experiment_and_a_third_reads_it(
    server: Server, users: dict[str, str], log_in: Any, gtdl: Command, tmp_path: Path
) -> None:
    shared = "tracking.experiment=shared"
    for seed, user in enumerate(("alice", "benchmark")):
        log_in(user)
        output(gtdl("framework=reference", "training.epochs=1", f"seed={seed}", shared), 0)
    log_in("admin")
    client = mlflow.MlflowClient()
    recorded = runs(os.environ["MLFLOW_TRACKING_URI"], "shared")
    assert [run.info.status for run in recorded] == ["FINISHED"] * 2
    for run in recorded:  # sent and listed with the password in the address only
        assert "events.jsonl" in {item.path for item in client.list_artifacts(run.info.run_id)}
        assert logged_model(client, run)
        assert client.download_artifacts(run.info.run_id, "config.yaml", str(tmp_path))

    log_in("guest")
    refused = gtdl("framework=reference", shared)
    assert refused.returncode == 1
    assert "nothing was run" in refused.stderr
    assert "Traceback" not in refused.stderr
    checked = cli("check", "--experiment", "shared", "--json")
    verdict = json.loads(checked.stdout)
    assert verdict["runs"] == 2
    assert checked.returncode == (0 if verdict["passed"] else 1)
    assert checked.stderr.count("gtdl: the tag gtdl.check is not set") == checked.stderr.count("\n") == 1
    opened = output(cli("ui", "--experiment", "shared", "--no-browser"), 0)
    assert "the table is not arranged" in opened
    assert opened.startswith(f"{server.uri}/#/experiments/")
    assert output(cli("report", "--experiment", "shared"), 0).startswith("gtdl_report.html: 2 runs")
    assert not any(password in opened for password in users.values())


def test_four_processes_at_once_record_all_their_runs(
    server: Server, gtdl: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
    processes = []
    for number in range(4):
        seeds = ",".join(str(number * 3 + index) for index in range(3))
        folder = tmp_path / str(number)
        folder.mkdir()
        # With separate device locks, the runs overlap.
        processes.append(
            start(
                "-m",
                "framework=reference",
                "training.epochs=1",
                f"seed={seeds}",
                "tracking=server",
                f"tracking.uri={server.uri}",
                cwd=folder,
                env={"GTDL_LOCKS": str(folder / "locks")},
            )
        )
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, "\n".join(errors)
    client, every = mlflow.MlflowClient(server.uri), runs(server.uri)
    cells = [run for run in every if "mlflow.parentRunId" in run.data.tags]
    assert {run.info.status for run in every} == {"FINISHED"}
    assert sorted(int(run.data.tags["gtdl.seed"]) for run in cells) == list(range(12))
    assert len(every) == 4 + 12
    for run in cells:
        assert run.data.metrics["accuracy_percent"] > 80
        assert "events.jsonl" in {item.path for item in client.list_artifacts(run.info.run_id)}
        assert logged_model(client, run)


def test_runs_that_log_a_new_data_set_at_the_same_time_all_have_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
    records = [new_record(server.uri, tmp_path, f"run {number}", "datasets") for number in range(8)]
    for record in records:
        deliver(record, server.uri)
    with ThreadPoolExecutor(len(records)) as threads:
        for attempt in range(10):
            data = {"name": f"new {attempt}", "digest": "d", "source_type": "local", "source": "{}"}
            for record in records:
                record.inputs.append(data)
            list(threads.map(deliver, records, [server.uri] * len(records)))
    client = mlflow.MlflowClient(server.uri)
    for record in records:
        inputs = client.get_run(record.run_id).inputs.dataset_inputs
        assert {item.dataset.name for item in inputs} == {f"new {attempt}" for attempt in range(10)}


def test_artifacts_are_stored_by_the_server(server: Server) -> None:
    assert list((server.folder / "artifacts").rglob("events.jsonl"))


@pytest.mark.parametrize("how", share(["environment", "address", "typed"], ["typed"]))
def test_no_password_is_in_params_tags_files_or_messages(
    server: Server, gtdl: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")  # retries without waiting
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    address = server.uri.replace("http://", f"http://{ADMIN[0]}:{ADMIN[1]}@")
    uri = [f"tracking.uri={address}"]
    if how == "environment":
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN[0])
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
        uri = [f"tracking.uri={server.uri}"]
    elif how == "address":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        uri = []
    sweep = ["-m", "framework=reference", "training.epochs=1", "training.checkpoint_every_s=0.01"]
    sweep.append(f"tracking.experiment={how}")
    outputs = [output(gtdl(*sweep, "seed=1,2", *uri), 0)]
    # A run that fails, one with a wrong key, and one whose server is down, with the same password.
    outputs.append(output(gtdl(*sweep, "seed=3", "limits.run_timeout_s=0.01", *uri), 1))
    outputs.append(output(gtdl("framework=reference", "nonsense=1", *uri), 2))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", ADMIN[1])
    client = mlflow.MlflowClient(server.uri)
    experiment = client.get_experiment_by_name(how)
    assert experiment is not None
    recorded = client.search_runs([experiment.experiment_id])
    assert len(recorded) == 5
    server.kill()
    try:
        outputs.append(output(gtdl(*sweep, "seed=4", *uri), 1))
    finally:
        server.start()
    assert list((tmp_path / "home" / "undelivered").glob("*.json"))
    for text in [*outputs, *(str(run.to_dictionary()) for run in recorded)]:
        assert ADMIN[1] not in text
        assert PASSWORD not in text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    files += [path for path in (server.folder / "artifacts").rglob("*") if path.is_file()]
    assert len(files) > 40
    for path in files:
        assert ADMIN[1].encode() not in path.read_bytes(), path


def output(done: subprocess.CompletedProcess[str], status: int) -> str:
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_nothing_runs_with_a_wrong_password(
    server: Server, gtdl: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not-the-one")
    done = gtdl("framework=reference", f"tracking.uri={server.uri}")
    assert done.returncode == 1
    assert "nothing was run" in done.stderr
    assert "not-the-one" not in done.stdout + done.stderr
    assert list(tmp_path.rglob("events.jsonl")) == []
