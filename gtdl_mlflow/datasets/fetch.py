"""Data sets from their publishers or mirrors: whole and as published, or not at all.

A file is written under a temporary name beside its place, goes on from there after an interruption, and is moved into
place once it has its published checksum. What is already there is never replaced.

``requests`` carries the bytes: MLflow brings it, and it knows proxies and certificates by the usual environment
variables. Passed over: ``pooch``, which starts again from the first byte after an interruption and takes one address a
file; ``tenacity``, for one loop that has to look at the file between two tries; clients that fetch in parallel pieces,
which spare nobody's time at these sizes and burden servers that give the files away.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import requests
import urllib3

from .. import __version__
from ..config import Dataset, Download
from ..console import info
from ..files import datasets_dir, hold_folder_lock
from .base import DatasetError, FilesNotFound
from .prepare import read

PAUSES_S = (1.0, 3.0, 9.0)
"""Before each new try of an address that has brought nothing new; then it is given up."""

PASSING = {408, 425, 429, 500, 502, 503, 504}
"""Answers that may be others a little later."""

CHUNK = 2**16


class _Interrupted(Exception):
    """This try failed; the next one may not."""


class _Refused(Exception):
    """No try of this address will do."""


def fetch(dataset: Dataset, timeout_s: float) -> str:
    """Have all of the publisher's files in their folder; returns one line of report.

    ``timeout_s`` is the longest silence of a server.

    Raises:
        DatasetError: they cannot be had, or what is there is not what was published.
    """
    if not dataset.downloads:
        return f"{dataset.name}: nothing to fetch, {', '.join(dataset.files)} is built in"
    folder = datasets_dir() / dataset.name
    here = f"{dataset.name}: already in {folder}"
    try:
        # Before the lock, which cannot be had in a folder that others keep for this user.
        if _is_here(dataset, folder):
            return here
        folder.mkdir(parents=True, exist_ok=True)
        with hold_folder_lock(folder):
            # Another process may have fetched it while this one waited.
            if _is_here(dataset, folder):
                return here
            _fetch_missing(dataset, folder, timeout_s)
    except OSError as error:
        place = error.filename or folder
        raise DatasetError(f"{place}: {error.strerror or error}; GTDL_DATA chooses another place") from error
    return f"{dataset.name}: fetched into {folder}"


def _is_here(dataset: Dataset, folder: Path) -> bool:
    """Whether all of the data set is in its folder: the downloads themselves, or what the reader takes for it."""
    if all(any(_matches(folder / each.file, each) for each in part) for part in _parts(dataset)):
        return True
    try:
        read(dataset, folder)
    except FilesNotFound:
        return False
    except DatasetError as error:
        raise _kept(dataset, error) from error
    return True


def _kept(dataset: Dataset, error: DatasetError) -> DatasetError:
    remedy = f"it is left as it is: move it away, and `gtdl data fetch {dataset.name}` gets another"
    return DatasetError(f"{error}; {remedy}")


def _parts(dataset: Dataset) -> list[list[Download]]:
    """What makes up the data set; each part with the files that hold it in other packings, in the order to try."""
    downloads = dataset.downloads
    return [
        [first, *(each for each in downloads.values() if each.instead_of == name)]
        for name, first in downloads.items()
        if not first.instead_of
    ]


def _fetch_missing(dataset: Dataset, folder: Path, timeout_s: float) -> None:
    parts = _parts(dataset)
    there = [part for part in parts if any((folder / each.file).exists() for each in part)]
    missing = [part for part in parts if part not in there]
    with requests.Session() as session:
        # requests itself knows only REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE, which still come first.
        session.verify = os.environ.get("SSL_CERT_FILE") or True
        # Some servers take .gz for an encoding to be undone on the way; what is checked and kept is the file itself.
        session.headers.update({"Accept-Encoding": "identity", "User-Agent": f"gtdl-mlflow/{__version__}"})
        transfer = _Transfer(session, dataset, folder, timeout_s)
        for done, part in enumerate(missing):
            failures: list[str] = []
            if not any(transfer.fetch(each, failures) for each in part):
                names = ", ".join(" or ".join(each.file for each in part) for part in missing[done:])
                raise DatasetError(
                    f"{dataset.name}: cannot be fetched: {'; '.join(failures)}; put {names} into {folder}, "
                    f"or set GTDL_DATA to the folder that holds {dataset.name}/ ({dataset.source} describes it)"
                )
    if not all(any(_matches(folder / each.file, each) for each in part) for part in there):
        # Was there before, with another checksum: packed again by somebody, or damaged. The reader can tell.
        try:
            read(dataset, folder)
        except DatasetError as error:
            raise _kept(dataset, error) from error


class _Partial:
    """What has come of a file so far, and which version of it on which server it is."""

    def __init__(self, path: Path, download: Download) -> None:
        self.path = path
        self.download = download
        self.pieced = False
        """Whether it consists of more than one answer, which may not belong together."""
        self._origin = path.with_name(f"{path.name}.json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def start(self, url: str, headers: Mapping[str, str]) -> None:
        """Begin anew, with the version of the file that these headers are about."""
        self.drop()
        etag = headers.get("ETag", "")
        # RFC 9110: a weak one does not vouch for the same bytes.
        validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
        self._origin.write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")
        self.pieced = False

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        self._origin.unlink(missing_ok=True)

    def validator(self, url: str) -> str | None:
        """The ETag or date by which ``url``'s server can tell whether it still has the same version."""
        try:
            origin = json.loads(self._origin.read_text(encoding="utf-8"))
            return str(origin["validator"]) if origin["url"] == url and origin["validator"] else None
        except (OSError, ValueError, LookupError, TypeError):
            return None  # killed before it was written, at worst: then the checksum decides


class _Transfer:
    """Brings files of one data set into its folder, one after the other."""

    def __init__(self, session: requests.Session, dataset: Dataset, folder: Path, timeout_s: float) -> None:
        self._session = session
        self._dataset = dataset
        self._folder = folder
        self._timeout_s = timeout_s
        self._news = ""

    def fetch(self, download: Download, failures: list[str]) -> bool:
        """Whether one of the addresses brought the file; what was wrong with the others is added to ``failures``."""
        partial = _Partial(self._folder / f"{download.file}.partial", download)
        for url in download.urls:
            # Said once, when something comes: if nothing does, all failures are told in the end, in one line.
            passed_over = f" ({'; '.join(failures)})" if failures else ""
            self._news = f"{self._dataset.name}: fetching {download.file} from {url}{passed_over}"
            try:
                self._fetch_from(url, partial)
            except KeyboardInterrupt:
                if partial.size():
                    info(f"{partial.path} is kept: the next `gtdl data fetch {self._dataset.name}` goes on from there")
                raise
            except _Refused as failure:
                failures.append(f"{_host(url)} {failure}")
            else:
                return True
            finally:
                if not partial.size():
                    partial.drop()
        return False

    def _fetch_from(self, url: str, partial: _Partial) -> None:
        """As many tries as it takes while they bring something new."""
        furthest, pauses = partial.size(), iter(PAUSES_S)
        while True:
            try:
                self._continue(url, partial)
                self._put_in_place(partial)
                return
            except _Interrupted as failure:
                if partial.size() > furthest:
                    furthest, pauses = partial.size(), iter(PAUSES_S)
                pause = next(pauses, None)
                if pause is None:
                    raise _Refused(str(failure)) from failure
                info(f"{self._dataset.name}: {_host(url)} {failure}; trying again in {pause:g} s")
                time.sleep(pause)

    def _continue(self, url: str, partial: _Partial) -> None:
        """One request for what is missing, appended as it comes."""
        download = partial.download
        exact = bool(download.sha256 or download.md5)
        validator = partial.validator(url)
        if not exact and not validator:
            partial.drop()  # nothing could tell whether the rest belongs to it
        offset = partial.size()
        if exact and offset == download.size_bytes:
            partial.pieced = True  # for all that is known: stopped after the last byte, before the check
            return
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        if offset and validator:
            headers["If-Range"] = validator
        try:
            response = self._session.get(url, headers=headers, stream=True, timeout=self._timeout_s)
        except OSError as error:  # RequestException is one; others are about the certificates' file
            raise self._failure(error) from error
        with response:
            if response.status_code == 416:
                # RFC 9110: "bytes */LENGTH". All there was has come, or it was not the start of this file.
                if response.headers.get("Content-Range") == f"bytes */{offset}":
                    return
                partial.drop()
                raise _Interrupted(f"has nothing after byte {offset:,}")
            size = _total_size(response, offset)
            if size is not None and (size > download.size_bytes or (exact and size != download.size_bytes)):
                most = "" if exact else "at most "
                raise _Refused(f"offers {size:,} bytes, expected {most}{download.size_bytes:,}: not this file")
            if response.status_code == 206:
                partial.pieced = True
            else:  # the whole file: asked for, or because the server has a new version, or does not know ranges
                partial.start(url, response.headers)
            if self._news:
                info(self._news)
                self._news = ""
            came = self._append(response, partial, size or download.size_bytes)
        if came > download.size_bytes:
            partial.drop()
            raise _Refused(f"sends more than the {download.size_bytes:,} bytes expected: not this file")
        if exact and came < download.size_bytes:
            raise _Interrupted(f"ended after {came:,} of {download.size_bytes:,} bytes")

    def _append(self, response: requests.Response, partial: _Partial, size: int) -> int:
        """Write what comes behind what is there; returns how much there is, or more than is wanted and not written."""
        came = partial.size()
        with partial.path.open("ab") as file, _Bar(partial.download.file, size) as bar:
            try:
                for chunk in response.raw.stream(CHUNK, decode_content=False):
                    came += len(chunk)
                    if came > partial.download.size_bytes:
                        break
                    file.write(chunk)
                    bar.show(came)
            except urllib3.exceptions.HTTPError as error:
                raise self._failure(error) from error
            # A full disk, or a quota, may be heard of only now; and a rename must not overtake the content.
            os.fsync(file.fileno())
        return came

    def _failure(self, error: Exception) -> _Interrupted | _Refused:
        """What a request's exception means, in a few words."""
        cause = error.args[0] if error.args else None
        silence = (requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError)
        if isinstance(error, silence) or isinstance(cause, silence):
            return _Interrupted(f"was silent for {self._timeout_s:g} s")
        connected = not isinstance(cause, urllib3.exceptions.MaxRetryError)
        if connected and isinstance(error, (requests.ConnectionError, urllib3.exceptions.HTTPError)):
            return _Interrupted(f"broke off ({_innermost(error)})")
        # No connection at all: another address is a better bet than the same one in a second.
        return _Refused(f"cannot be reached ({_innermost(error)})")

    def _put_in_place(self, partial: _Partial) -> None:
        download = partial.download
        place = self._folder / download.file
        if not (download.sha256 or download.md5):
            # Nobody has published a checksum: the reader has to find the whole data set in it before it has its place.
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=f"{place.name}.", suffix=".check") as folder:
                checked = partial.path.rename(Path(folder) / place.name)
                try:
                    read(self._dataset, Path(folder))
                except DatasetError as error:
                    partial.drop()
                    raise _Refused(f"sent something else ({str(error).replace(f'{folder}/', '')})") from error
                checked.rename(partial.path)
        elif not _matches(partial.path, download):
            pieced = partial.pieced
            partial.drop()
            published = f"SHA-256 {download.sha256}" if download.sha256 else f"MD5 {download.md5}"
            reason = f"sent something else than the file with {published}"
            raise _Interrupted(reason) if pieced else _Refused(reason)
        partial.path.replace(place)


def _total_size(response: requests.Response, offset: int) -> int | None:
    """The whole file's size, as the server states it; None if it does not.

    Raises:
        _Refused, _Interrupted: this answer is not the file, or not its part from ``offset`` on.
    """
    if response.status_code in PASSING:
        raise _Interrupted(_answer(response))
    if response.status_code == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not found or int(found[1]) != offset:
            raise _Refused(f"answered with another part than was asked for, {_answer(response)}")
        return None if found[2] == "*" else int(found[2])
    if response.status_code != 200:
        raise _Refused(_answer(response))
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _answer(response: requests.Response) -> str:
    return f"answered {response.status_code} {response.reason}".strip()


def _host(url: str) -> str:
    return urlsplit(url).netloc or url


def _innermost(error: BaseException) -> str:
    """The reason that the operating system gave, under the layers that pass it on."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(str(reason).split()) or type(error).__name__


def _matches(path: Path, download: Download) -> bool:
    """Whether there is a file of the published size and checksum; without a checksum, nothing can be said."""
    published = download.sha256 or download.md5
    if not published or not path.is_file() or path.stat().st_size != download.size_bytes:
        return False
    # An MD5 is against accidents, as it is for the readers; FIPS systems allow it only when that is said.
    digest = hashlib.sha256() if download.sha256 else hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest() == published


class _Bar:
    """One line that grows on standard error while a file comes, if that is a terminal."""

    WIDTH = 30
    PERIOD_S = 0.1

    def __init__(self, name: str, size: int) -> None:
        self._name = name
        self._size = size
        self._shown = sys.stderr.isatty()
        self._first: tuple[float, int] | None = None
        self._last_s = 0.0

    def __enter__(self) -> _Bar:
        return self

    def show(self, came: int) -> None:
        """``came`` bytes are there."""
        now = time.monotonic()
        self._first = self._first or (now, came)
        if not self._shown or now - self._last_s < self.PERIOD_S:
            return
        self._last_s = now
        share = came / self._size
        speed = (came - self._first[1]) / max(now - self._first[0], self.PERIOD_S)
        self._write(
            f"{self._name} [{'#' * round(share * self.WIDTH):<{self.WIDTH}}] {share:4.0%} of "
            f"{self._size / 1e6:.1f} MB, {speed / 1e6:.1f} MB/s"
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            self._write("")

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
