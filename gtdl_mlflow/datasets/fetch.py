"""Download data sets from their publishers or mirrors with pooch.

pooch verifies checksums and gives a file its name only when it is complete. This module adds mirrors, alternative
packings, limits on size and time, and files without a published checksum. Existing files are never replaced, and no
request resumes an earlier one.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pooch
import requests

from .. import __version__
from ..config import Dataset, Download
from ..console import info, printable, status_line
from ..files import datasets_dir, hold_folder_lock
from ..redaction import redact, reveal
from .base import REMEDY, DatasetError, FilesNotFound
from .file_types import is_web_page
from .prepare import read
from .source_files import find_all

# Its messages would repeat ours.
pooch.get_logger().setLevel(logging.WARNING)

SLOWEST = 10_000
"""Bytes per second that a server must send on average over twice the timeout."""


def fetch(dataset: Dataset, timeout_s: float) -> str:
    """Download the publisher's files that are missing. Return one line of report.

    A server that sends nothing for ``timeout_s`` seconds has failed.

    Raises:
        DatasetError: no server sent the file, or an existing file is not the published one.
    """
    if not dataset.downloads:
        if not dataset.files:
            folder = datasets_dir() / dataset.name
            try:
                find_all(dataset, folder)
            except FilesNotFound:
                names = " or ".join(dataset.archives) or "its files"
                return f"{dataset.name}: nothing to fetch; copy {names} into {folder}"
            return f"{dataset.name}: already in {folder}"
        return f"{dataset.name}: nothing to fetch, {', '.join(dataset.files)} is built in"
    try:
        folder = datasets_dir() / dataset.name
    except NotADirectoryError as error:
        raise DatasetError(f"{error.filename}: {error.strerror}") from error
    present = f"{dataset.name}: already in {folder}"
    try:
        # Before the lock, which needs write access: a shared folder may be read-only.
        if _is_complete(dataset, folder):
            return present
        folder.mkdir(parents=True, exist_ok=True)
        with hold_folder_lock(folder):
            # Another process may have fetched the files while this one waited.
            if _is_complete(dataset, folder):
                return present
            _fetch_missing(dataset, folder, timeout_s)
            _is_complete(dataset, folder)
    except OSError as error:
        path, reason = error.filename or folder, error.strerror or error
        raise DatasetError(f"{path}: {reason}; set GTDL_DATA to another folder") from error
    return f"{dataset.name}: fetched into {folder}"


def _is_complete(dataset: Dataset, folder: Path) -> bool:
    """Return whether the folder has the published files, or others that the reader accepts."""
    if all(any(_is_published(folder / each.file, each) for each in packings) for packings in _parts(dataset)):
        return True
    try:
        read(dataset, folder)
    except FilesNotFound:
        return False
    except DatasetError as error:
        remedy = f"it was not replaced: move it away and run `gtdl data fetch {dataset.name}`"
        raise DatasetError(f"{error}; {remedy}") from error
    return True


def _is_published(path: Path, download: Download) -> bool:
    algorithm, _, checksum = (_checksum(download) or "").partition(":")
    return bool(checksum) and path.is_file() and pooch.file_hash(str(path), algorithm) == checksum


def _checksum(download: Download) -> str | None:
    """Return the published checksum in pooch's notation."""
    return f"sha256:{download.sha256}" if download.sha256 else f"md5:{download.md5}" if download.md5 else None


def _parts(dataset: Dataset) -> list[list[Download]]:
    """Return the parts of the data set. Each is a list of alternative packings, in the order to try them."""
    downloads = dataset.downloads
    return [
        [first, *(each for each in downloads.values() if each.instead_of == name)]
        for name, first in downloads.items()
        if not first.instead_of
    ]


def _fetch_missing(dataset: Dataset, folder: Path, timeout_s: float) -> None:
    missing = [part for part in _parts(dataset) if not any((folder / each.file).exists() for each in part)]
    for position, part in enumerate(missing):
        failures: list[str] = []
        if not any(_fetch_file(dataset, each, url, folder, timeout_s, failures) for each in part for url in each.urls):
            names = ", ".join(" or ".join(each.file for each in part) for part in missing[position:])
            raise DatasetError(
                f"{dataset.name}: could not be downloaded: {'; '.join(failures)}; put {names} into {folder}, "
                f"or set GTDL_DATA to the folder that contains {dataset.name}/ (see {dataset.source})"
            )


def _fetch_file(
    dataset: Dataset, download: Download, url: str, folder: Path, timeout_s: float, failures: list[str]
) -> bool:
    """Return whether ``url`` sent the file. Otherwise append the reason to ``failures``."""
    earlier = f" ({'; '.join(failures)})" if failures else ""
    transfer = _Transfer(download, timeout_s, f"{dataset.name}: fetching {download.file} from {redact(url)}{earlier}")
    checksum = _checksum(download)
    temporary = folder / "fetch.partial"  # readers ignore folders with a dot in their name
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # a killed process may have left it
        path = Path(pooch.retrieve(reveal(url), checksum, download.file, temporary, downloader=transfer))
        if not checksum:
            read(dataset, temporary)
        path.replace(folder / download.file)
        return True
    except DatasetError as error:
        reason = str(error).replace(f"{temporary}/", "").replace(f"; {REMEDY}", "")
    except requests.RequestException as error:
        reason = _reason(error, timeout_s)
    except ValueError as error:  # pooch: another checksum
        reason = str(error).partition(". Deleted")[0]
    except OSError as error:
        if error.errno is not None:
            raise  # the disk, or the folder
        reason = str(error)  # requests: no such file of certificates
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    target = f" (redirected to {transfer.redirected_to})" if transfer.redirected_to else ""
    address = redact(url)
    failures.append(f"{urlsplit(address).netloc or address}: {printable(redact(' '.join((reason + target).split())))}")
    return False


def _reason(error: requests.RequestException, timeout_s: float) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP status {error.response.status_code} {error.response.reason}".strip()
    cause: BaseException = error
    while inner := cause.__cause__ or cause.__context__:
        cause = inner
    if isinstance(cause, TimeoutError):
        return f"no data for {timeout_s:g} s"
    detail = " ".join(str((isinstance(cause, OSError) and cause.strerror) or cause).split()) or type(cause).__name__
    return f"{'could not connect' if isinstance(error, requests.ConnectionError) else 'failed'} ({detail})"


class _Transfer:
    """Downloader for ``pooch.retrieve``: limits the size and the time, draws one line on a terminal.

    A thread receives the file. requests limits only the silence between two bytes, so that a server can occupy it for
    ever; the calling thread then abandons it.
    """

    PERIOD_S = 0.1

    def __init__(self, download: Download, timeout_s: float, message: str) -> None:
        self._download, self._timeout_s, self._message = download, timeout_s, message
        self._received, self._abandoned = 0, False
        self._error: Exception | None = None
        self.redirected_to = ""
        """Address to which the server redirected the request."""

    def __call__(self, url: str, output_file: str, _: object) -> None:
        thread = threading.Thread(target=self._run, args=(url, Path(output_file)), daemon=True)
        thread.start()
        try:
            self._watch(thread)
        finally:
            self._abandoned = True
            status_line("")
        if self._error:
            raise self._error

    def _watch(self, thread: threading.Thread) -> None:
        """Return when ``thread`` has ended. Raise DatasetError if the server is too slow."""
        expected = self._download.size_bytes
        # Connecting may take the silence allowed for each of a host's addresses.
        period_s = 2 * self._timeout_s
        start_s = mark_s = time.monotonic()
        mark = 0
        while thread.is_alive():
            thread.join(self.PERIOD_S)
            now, received = time.monotonic(), self._received
            if now - mark_s >= period_s:
                if received - mark < SLOWEST * period_s:
                    raise DatasetError(f"sends less than {SLOWEST / 1000:g} kB/s for {period_s:g} s")
                mark_s, mark = now, received
            if received:
                speed = received / (now - start_s) / 1e6
                progress = f"{received / expected:.0%} of {expected / 1e6:.1f} MB, {speed:.1f} MB/s"
                status_line(f"{self._download.file}: {progress}")

    def _run(self, url: str, path: Path) -> None:
        try:
            with path.open("wb") as file:
                for block in self._blocks(url):
                    if self._abandoned:
                        return
                    file.write(block)
        except (DatasetError, OSError) as error:  # the errors of requests are of OSError
            self._error = error
        except Exception as error:  # http.client and urllib3 raise others for malformed answers
            self._error = DatasetError(f"invalid response ({' '.join(str(error).split()) or type(error).__name__})")

    def _blocks(self, url: str) -> Iterator[bytes]:
        with requests.get(
            url,
            stream=True,
            timeout=self._timeout_s,
            headers={"Accept-Encoding": "identity", "User-Agent": f"gtdl-mlflow/{__version__}"},
            verify=os.environ.get("SSL_CERT_FILE") or True,  # requests ignores this variable
            hooks={"response": self._on_response},
        ) as response:
            response.raise_for_status()
            exact, expected = _checksum(self._download) is not None, self._download.size_bytes
            length = response.headers.get("Content-Length", "")
            offered = int(length) if re.fullmatch("[0-9]{1,18}", length) else None
            wrong = offered is not None and (offered > expected or (exact and offered != expected))
            blocks = response.iter_content(2**12 if wrong else 2**16)
            first = next(blocks, b"")
            if is_web_page(first):
                raise DatasetError("sends a web page instead of the file")
            if wrong:
                raise DatasetError(f"offers {offered:,} bytes, expected {'' if exact else 'at most '}{expected:,}")
            info(self._message)
            for block in itertools.chain([first], blocks):
                self._received += len(block)
                if self._received > expected:
                    raise DatasetError(f"sends more than the {expected:,} bytes expected")
                yield block
        if exact and self._received < expected:
            raise DatasetError(f"sends {self._received:,} bytes, expected {expected:,}")

    def _on_response(self, response: requests.Response, **_: Any) -> None:
        # Some servers call .gz an encoding of the transfer, which requests would undo.
        response.raw.headers.pop("Content-Encoding", None)
        if response.is_redirect:
            self.redirected_to = urljoin(response.url, response.headers["Location"])
            response.close()  # requests would read its contents, of any length
