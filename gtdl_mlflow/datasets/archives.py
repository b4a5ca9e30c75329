"""The files in a publisher's folder or archive, one after the other; nothing is ever unpacked to disk.

An archive is a zip, or a tar as it is, in gzip or in compress (.Z). It may have been made to do harm: members that lead
out of a folder, links and devices are refused though nothing here would follow them, since no data set has any, and
what a member or a header claims to be is never believed further than the limits below.
"""

from __future__ import annotations

import gzip
import io
import re
import shutil
import stat
import struct
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from .base import REMEDY, DatasetError

UNPACKED_LIMIT = 2**30
"""Bytes that come out of one archive; CIFAR-10 has 184 million, Caltech-101 less."""

MEMBERS_LIMIT = 30_000
"""Files and folders in one archive; Caltech-101 has 9,247."""

DIRECTORY_LIMIT = 8 * 2**20
"""Bytes of a zip's directory, of which zipfile makes objects several times as large; Caltech-101's has 0.8 million."""

HEADER_LIMIT = 64 * 2**10
"""Bytes that one header of a tar may ask for: a name, or the attributes of a member."""

HEADERS_LIMIT = 64 * 2**20
"""Bytes in all headers of a tar; what they say is kept in memory."""

DEPTH_LIMIT = 4
"""Folders below the data set's own that are looked into, so that links in a circle come to an end."""

CHUNK = 2**16


@dataclass(frozen=True)
class ArchiveEntry:
    """A file or a folder; can be read until the next one is asked for."""

    name: str
    """Its path within the folder or archive, with ``/``; that of a folder ends with one."""
    where: str
    """What to call it in a message."""
    read: Callable[[int], bytes]
    """Given a limit, the content, or its first limit + 1 bytes, so that the caller sees there is more."""


def entries(source: Path, nested: Collection[str] = ()) -> Iterator[ArchiveEntry]:
    """All there is in a folder or an archive, in its own order (a folder's is that of the names).

    ``nested`` are names of tars that are looked into where a zip holds them.

    Raises:
        DatasetError: it cannot be unpacked, or holds what no data set does; one line that names it, and the member.
    """
    if source.is_dir():
        yield from _folder(source, "", DEPTH_LIMIT)
        return
    with _unpacking(str(source)), source.open("rb") as file:
        magic = file.peek(4)[:4]
        if magic[:2] == b"PK":
            yield from _zip(file, str(source), nested)
        elif magic[:2] == b"\x1f\x9d":
            with _compress(source) as unpacked:
                yield from _tar(unpacked, str(source))
        else:
            yield from _tarball(file, str(source))


def _folder(folder: Path, prefix: str, depth: int) -> Iterator[ArchiveEntry]:
    for path in sorted(folder.iterdir()):
        name = f"{prefix}{path.name}"
        if path.is_dir():
            yield ArchiveEntry(f"{name}/", _shown(str(path)), lambda limit: b"")
            if depth > 1:
                yield from _folder(path, f"{name}/", depth - 1)
        else:
            yield ArchiveEntry(name, _shown(str(path)), lambda limit, path=path: _content(path, limit))  # type: ignore[misc]


def _content(path: Path, limit: int) -> bytes:
    # Not a pipe, of which reading would never come to an end.
    if not path.is_file():
        raise DatasetError(f"{_shown(str(path))}: not a file; {REMEDY}")
    with path.open("rb") as file:
        return file.read(limit + 1)


class _Budget:
    """How much more may come out of an archive."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._bytes, self._members = UNPACKED_LIMIT, MEMBERS_LIMIT

    def spend(self, count: int) -> None:
        self._bytes -= count
        if self._bytes < 0:
            raise DatasetError(f"{self._where}: more than {UNPACKED_LIMIT:,} bytes unpacked; {REMEDY}")

    def member(self) -> None:
        self._members -= 1
        if self._members < 0:
            raise DatasetError(f"{self._where}: more than {MEMBERS_LIMIT:,} members; {REMEDY}")


# Zip


class _Bounded:
    """A zip file of which no more than a directory may be read at once, however long it claims that to be."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            at = self.tell()
            size = self.seek(0, io.SEEK_END) - at
            self.seek(at)
        if size > DIRECTORY_LIMIT:
            raise zipfile.BadZipFile(f"its directory claims {size} bytes")
        return self._file.read(size)


def _zip(file: IO[bytes], where: str, nested: Collection[str]) -> Iterator[ArchiveEntry]:
    budget = _Budget(where)
    with zipfile.ZipFile(cast("IO[bytes]", _Bounded(file))) as archive:
        for info in archive.infolist():
            budget.member()
            inside = _inside(where, info.filename)
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DatasetError(f"{inside}: a link or a device, which no data set has; {REMEDY}")
            # Other methods may take any amount of memory, and no publisher here uses them.
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DatasetError(f"{inside}: encrypted or packed in a way that is not read; {REMEDY}")
            if info.filename.rpartition("/")[2] in nested:
                with archive.open(info) as member:
                    yield from _tarball(io.BufferedReader(cast("io.RawIOBase", member)), inside)
            else:
                read = _zip_reader(archive, info, budget, inside)
                yield ArchiveEntry(info.filename, inside, read)


def _zip_reader(archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: _Budget, where: str) -> Callable[[int], bytes]:
    def read(limit: int) -> bytes:
        with _unpacking(where), archive.open(info) as member:
            found = member.read(limit + 1)
        budget.spend(len(found))
        return found

    return read


# Tar


def _tarball(file: io.BufferedReader, where: str) -> Iterator[ArchiveEntry]:
    # Not by the name: browsers unpack some downloads on the way and keep the .gz.
    if file.peek(2)[:2] == b"\x1f\x8b":
        with gzip.GzipFile(fileobj=file) as unpacked:
            yield from _tar(cast("IO[bytes]", unpacked), where)
    else:
        yield from _tar(file, where)


@contextmanager
def _compress(path: Path) -> Iterator[IO[bytes]]:
    """What is in a file of Unix's compress, by way of the program gzip.

    Not by a package: those in Python unfold a hundred kilobytes made for it into gigabytes of memory before they can be
    stopped, and the one in C has to be compiled where it has no wheel, on Python 3.13 for one.
    """
    program = shutil.which("gzip")
    if program is None:
        raise DatasetError(f"{path}: packed by compress, and gzip, which unpacks it, is not on the PATH; install gzip")
    with (
        path.open("rb") as packed,
        subprocess.Popen([program, "-dc"], stdin=packed, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            yield process.stdout
            complaint = process.stderr.read().decode(errors="replace")
            # 2 is a warning, as of something behind the end.
            if process.wait() not in (0, 2):
                raise DatasetError(f"{path}: cannot be unpacked ({' '.join(complaint.split())}); {REMEDY}")
        finally:
            process.kill()


class _Forward(io.RawIOBase):
    """A tar as ``tarfile`` reads it: only ever forwards, and no header longer than a header can be."""

    def __init__(self, stream: IO[bytes], where: str) -> None:
        self._stream, self._position = stream, 0
        self._budget, self._headers = _Budget(where), HEADERS_LIMIT
        self.block = b""
        """The last that was read as a header."""

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or position < self._position:
            raise tarfile.ReadError("a header leads back")
        while self._position < position and self.take(min(CHUNK, position - self._position)):
            pass
        return self._position

    def read(self, size: int = -1) -> bytes:
        self._headers -= size
        if not 0 <= size <= HEADER_LIMIT or self._headers < 0:
            raise tarfile.ReadError("too long a header")
        self.block = self.take(size)
        return self.block

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer at the end only."""
        parts = []
        while size and (part := self._stream.read(min(CHUNK, size))):
            self._budget.spend(len(part))
            self._position += len(part)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def member(self) -> None:
        self._budget.member()


def _tar(unpacked: IO[bytes], where: str) -> Iterator[ArchiveEntry]:
    # Also where the caller has an archive around this one: the innermost is the one to name.
    with _unpacking(where):
        stream = _Forward(unpacked, where)
        with tarfile.open(fileobj=cast("IO[bytes]", stream), mode="r:") as archive:
            while info := archive.next():
                stream.member()
                archive.members.clear()  # type: ignore[attr-defined]  # kept for random access
                inside = _inside(where, info.name)
                if info.size < 0:
                    raise tarfile.ReadError("a header claims less than nothing")
                if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or info.issparse():
                    raise DatasetError(f"{inside}: a link, a device or sparse, which no data set has; {REMEDY}")
                name = f"{info.name}/" if info.isdir() else info.name
                yield ArchiveEntry(name, inside, _tar_reader(stream, info, inside))
        # tarfile takes a broken header for the end; the end is a block of zeros. What follows has to be read as well,
        # because the checksum of all of it comes last.
        if not stream.block or stream.block.strip(b"\0"):
            raise tarfile.ReadError("breaks off, or a header is damaged")
        while stream.take(CHUNK):
            pass


def _tar_reader(stream: _Forward, info: tarfile.TarInfo, where: str) -> Callable[[int], bytes]:
    def read(limit: int) -> bytes:
        with _unpacking(where):
            stream.seek(info.offset_data)
            found = stream.take(min(info.size, limit + 1))
            if len(found) < min(info.size, limit + 1):
                raise tarfile.ReadError("breaks off")
        return found

    return read


# What both have in common


@contextmanager
def _unpacking(where: str) -> Iterator[None]:
    """Whatever the libraries stumble over becomes one line about the archive."""
    try:
        yield
    except DatasetError:
        raise
    except (
        *(tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
        # Fields that are no numbers, or impossible ones; methods and flags that zipfile knows by name only; headers
        # that announce headers without end.
        *(ValueError, LookupError, OverflowError, RuntimeError),
    ) as error:
        reason = " ".join(str(error).split())
        raise DatasetError(f"{where}: cannot be unpacked ({reason}); {REMEDY}") from error


def _inside(where: str, name: str) -> str:
    """What to call a member in a message, if its name is one that stays inside."""
    inside = f"{where}: {_shown(name)}"
    if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or re.match(r"[A-Za-z]:", name):
        raise DatasetError(f"{inside}: leads out of the archive, which no data set does; {REMEDY}")
    return inside


def _shown(name: str) -> str:
    """A name on one line."""
    name = name if len(name) <= 200 else f"{name[:200]}..."
    return name if name.isprintable() else ascii(name)
