"""Real tracking servers for tests, and one that misbehaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import socket
from typing import Any


def free_port() -> int:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Server:
    """An ``mlflow server`` that can be killed and started again at the same address."""

    folder: Path
    arguments: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, program: str | None = None) -> None:
        """With ``program``, Python code that ends in running MLflow, instead of MLflow itself."""
        store = () if "--backend-store-uri" in self.arguments else (
            "--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}")  # fmt: skip
        start = ["-m", "mlflow"] if program is None else ["-c", program]
        command = [sys.executable, *start, "server", "--host", "127.0.0.1", "--port", str(self.port),
                   "--workers", "1", *store, "--artifacts-destination", str(self.folder / "artifacts"),
                   *self.arguments]  # fmt: skip
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True,
                                            env={**environment, **self.environment})  # fmt: skip
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            except OSError:
                assert self.process.poll() is None, (self.folder / "server.log").read_text()
                time.sleep(0.1)
        raise AssertionError("the server did not start in two minutes")

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def mlflow_server(folder: Path, *arguments: str, **environment: str) -> Iterator[Server]:
    """One that has answered, and is gone afterwards."""
    server = Server(folder, arguments, environment)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def misbehaving(answer: str) -> Iterator[str]:
    """An address where every request gets the same HTTP status, or none at all (``hang``)."""
    release = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if answer == "hang":
                release.wait(300)
                return
            self.send_response(int(answer))
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        release.set()
        server.shutdown()
        server.server_close()


PASSWORD = "sesame-of-the-database"


@contextmanager
def postgresql() -> Iterator[str]:
    """The address of an empty database of a real PostgreSQL, with a password."""
    programs = postgresql_programs()
    assert programs is not None
    # It refuses to run as root.
    user: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="gtdl-postgresql-") as name:
        folder, port = Path(name), free_port()
        secret, data = folder / "secret", folder / "data"
        secret.write_text(PASSWORD)
        if user:
            shutil.chown(folder, "postgres")
            shutil.chown(secret, "postgres")

        def run(*command: object) -> None:
            subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL, cwd="/", **user)

        run(programs / "initdb", "-D", data, "-U", "gtdl", "--pwfile", secret, "--auth", "scram-sha-256")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        run(programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
        try:
            yield f"postgresql://gtdl:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            run(programs / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")


def postgresql_programs() -> Path | None:
    """Debian keeps them off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None
