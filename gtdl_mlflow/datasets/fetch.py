"""Download data sets from their publishers or mirrors with pooch.

pooch verifies checksums and gives a file its name only when it is complete. This module adds mirrors, alternative
packings, a limit on the size, and files without a published checksum. Existing files are never replaced.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pooch
import requests

from .. import __version__
from ..config import Dataset, Download
from ..console import info, status_line
from ..files import datasets_dir, hold_folder_lock
from ..redaction import redact, reveal
from .base import REMEDY, DatasetError, FilesNotFound
from .prepare import read

# Its messages would repeat ours.
pooch.get_logger().setLevel(logging.WARNING)


def fetch(dataset: Dataset, timeout_s: float) -> str:
    """Download the publisher's files that are missing. Return one line of report.

    A server that sends nothing for ``timeout_s`` seconds has failed.

    Raises:
        DatasetError: no server sent the file, or an existing file is not the published one.
    """
    if not dataset.downloads:
        return f"{dataset.name}: nothing to fetch, {', '.join(dataset.files)} is built in"
    folder = datasets_dir() / dataset.name
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
    transfer = _Transfer(download, timeout_s, f"{dataset.name}: fetching {download.file} from {url}{earlier}")
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
    failures.append(f"{urlsplit(url).netloc or url}: {redact(reason)}")
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
    """Downloader for ``pooch.retrieve`` and its progress bar: limits the size, draws one line on a terminal."""

    PERIOD_S = 0.1

    def __init__(self, download: Download, timeout_s: float, message: str) -> None:
        self._download, self._timeout_s, self._message = download, timeout_s, message
        self._start_s = self._drawn_s = time.monotonic()

    def __call__(self, url: str, output_file: str, manager: None) -> None:
        self._path = Path(output_file)
        download = pooch.HTTPDownloader(
            progressbar=self,
            chunk_size=2**16,
            timeout=self._timeout_s,
            headers={"Accept-Encoding": "identity", "User-Agent": f"gtdl-mlflow/{__version__}"},
            verify=os.environ.get("SSL_CERT_FILE") or True,  # requests ignores this variable
            hooks={"response": _keep_packed},
        )
        try:
            download(url, output_file, manager)
        finally:
            self.close()

    def _start(self, size: int) -> None:
        exact, expected = _checksum(self._download) is not None, self._download.size_bytes
        if size > expected or (exact and 0 < size != expected):
            raise DatasetError(f"offers {size:,} bytes, expected {'' if exact else 'at most '}{expected:,}")
        info(self._message)

    total = property(fset=_start, doc="Bytes that the server states, or 0; pooch sets it before the first byte.")

    def update(self, _: int) -> None:
        """Draw the bar. Raise DatasetError if the server sends too much."""
        size, expected, now = self._path.stat().st_size, self._download.size_bytes, time.monotonic()
        if size > expected:
            raise DatasetError(f"sends more than the {expected:,} bytes expected")
        if now - self._drawn_s >= self.PERIOD_S:
            self._drawn_s = now
            speed = size / (now - self._start_s) / 1e6
            status_line(f"{self._download.file}: {size / expected:.0%} of {expected / 1e6:.1f} MB, {speed:.1f} MB/s")

    def reset(self) -> None:
        """Do nothing: ``update`` measures the size of the file."""

    def close(self) -> None:
        """Erase the bar."""
        status_line("")


def _keep_packed(response: requests.Response, **_: Any) -> None:
    # Some servers call .gz an encoding of the transfer, which requests would undo.
    response.raw.headers.pop("Content-Encoding", None)
