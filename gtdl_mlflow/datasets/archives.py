"""Read the files in a folder or an archive one after the other. Nothing is extracted to disk.

An archive is a zip or a tar. A tar may be compressed by gzip or by Unix's compress (``.Z``). Archives may be hostile:
paths that lead outside the archive, links and devices are refused, and the limits below bound memory and work whatever
sizes a member or a header states.
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
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from .base import REMEDY, DatasetError
from .file_types import describe

if TYPE_CHECKING:
    from typing_extensions import Self

UNPACKED_LIMIT = 2**29
"""Bytes in all members of an archive; CIFAR-10 has 184 million, Caltech-101 fewer."""

MEMBERS_LIMIT = 100_000
"""Files and folders in an archive or a folder; Caltech-101 has 9,247, MNIST as images 70,022."""

PATH_LIMIT = 2**9
"""Characters of a member's path."""

DIRECTORY_LIMIT = 8 * 2**20
"""Bytes of a zip's directory; ``zipfile`` needs several times as much memory. Caltech-101's has 0.8 million."""

HEADER_LIMIT = 8 * 2**10
"""Bytes of the headers before one member of a tar. ``tarfile`` reads them whole."""

EXTENSION_LIMIT = 4 * 2**10
"""Bytes of one extended header, which has a member's long name and its attributes."""

LONG_NUMBER = re.compile(rb"[0-9]{32}")
"""Refused in attributes: Python before 3.11.10 and 3.12.6 parses them in quadratic time (CVE-2024-6232)."""

HEADERS_LIMIT = 64 * 2**20
"""Bytes of all headers of a tar; with three blocks of 512 bytes per member, Caltech-101 has 14 million."""

ATTRIBUTES = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
EXTENSIONS = (*ATTRIBUTES, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
"""Types of extended headers."""

DEPTH_LIMIT = 6
"""Levels of subfolders that are read, so that circular links end."""


@dataclass(frozen=True)
class ArchiveEntry:
    """A file or a folder. Its contents can be read until the next entry is requested."""

    name: str
    """Path within the folder or archive, with ``/``; a folder's ends with ``/``."""
    where: str
    """Archive and member, for error messages."""
    read: Callable[[int], bytes]
    """Function of a limit in bytes. Returns the contents, cut to limit + 1 bytes so that the caller notices more."""


def entries(source: Path, nested: Collection[str] = ()) -> Iterator[ArchiveEntry]:
    """Return the entries of a folder, sorted by name, or of an archive, in its order.

    A member of a zip whose file name is in ``nested`` is a tar; its members are returned in its stead.

    Raises:
        DatasetError: the archive is damaged, exceeds a limit or holds a link, a device or a path that leads outside.
    """
    budget = _Budget(str(source), "remove some" if source.is_dir() else REMEDY)
    if source.is_dir():
        yield from _folder(source, "", DEPTH_LIMIT, budget)
        return
    with _translate_errors(str(source)), source.open("rb") as file:
        magic = file.peek(4)[:4]
        if magic[:2] == b"PK":
            yield from _zip(file, str(source), nested, budget)
        elif magic[:2] == b"\x1f\x9d":
            with _uncompress(source) as unpacked:
                yield from _tar(unpacked, str(source), budget)
        else:
            yield from _tar_or_gzip(file, str(source), budget)


def _folder(folder: Path, prefix: str, depth: int, budget: _Budget) -> Iterator[ArchiveEntry]:
    for path in sorted(islice(folder.iterdir(), MEMBERS_LIMIT + 1)):
        budget.add_member(0)
        name, where = f"{prefix}{path.name}", _printable(str(path))
        if path.is_dir():
            yield ArchiveEntry(f"{name}/", where, lambda limit: b"")
            if depth > 1:
                yield from _folder(path, f"{name}/", depth - 1, budget)
        else:
            yield _entry(name, where, lambda path=path: _open_regular(path))  # type: ignore[misc]


def _open_regular(path: Path) -> IO[bytes]:
    # Opening a pipe would never end.
    if not path.is_file():
        raise DatasetError(f"{_printable(str(path))}: not a regular file; {REMEDY}")
    return path.open("rb")


class _Budget:
    """Remaining limits on bytes and members of an archive or a folder, including a nested tar."""

    def __init__(self, archive: str, remedy: str) -> None:
        self._archive, self._bytes, self._members, self._remedy = archive, UNPACKED_LIMIT, MEMBERS_LIMIT, remedy

    def add_member(self, size: int) -> None:
        self._bytes -= size
        self._members -= 1
        if self._members < 0:
            raise DatasetError(f"{self._archive}: more than {MEMBERS_LIMIT:,} files and folders; {self._remedy}")
        if self._bytes < 0:
            raise DatasetError(f"{self._archive}: more than {UNPACKED_LIMIT:,} bytes unpacked; {self._remedy}")


class _Metered:
    """A binary file that raises ValueError when more than ``quota`` bytes, or hostile attributes, are read from it."""

    def __init__(self, file: IO[bytes], quota: int) -> None:
        self._file, self.quota = file, quota
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self.last = b""
        """Result of the last reading."""
        self.attributes = 0
        """Bytes of attributes in a tar that follow."""

    def read(self, size: int = -1) -> bytes:
        allowed = self.quota + 1
        self.last = self._file.read(allowed if size < 0 else min(size, allowed))
        self.quota -= len(self.last)
        if self.quota < 0:
            raise ValueError("a header or directory is too long")
        if self.attributes > 0:
            self.attributes -= len(self.last)
            if LONG_NUMBER.search(self.last):
                raise ValueError("a header has a number of more than 31 digits")
        return self.last


def _zip(file: IO[bytes], where: str, nested: Collection[str], budget: _Budget) -> Iterator[ArchiveEntry]:
    metered = _Metered(file, DIRECTORY_LIMIT)
    with zipfile.ZipFile(cast("IO[bytes]", metered)) as archive:
        metered.quota = UNPACKED_LIMIT
        for info in archive.infolist():
            inside = _check_path(where, info.filename)
            # zipfile never returns more than this size, so that it needs no second check while reading.
            budget.add_member(info.file_size)
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DatasetError(f"{inside}: a link or a device; {REMEDY}")
            # Other methods may take any amount of memory, and no publisher here uses them.
            if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DatasetError(f"{inside}: encrypted, or compressed by an unsupported method; {REMEDY}")
            if info.filename.rpartition("/")[2] in nested:
                with archive.open(info) as member:
                    yield from _tar_or_gzip(member, inside, budget)
            else:
                yield _entry(info.filename, inside, lambda info=info: archive.open(info))  # type: ignore[misc]


def _tar_or_gzip(file: IO[bytes], where: str, budget: _Budget) -> Iterator[ArchiveEntry]:
    # The name does not decide: browsers unpack some downloads in transit and keep the .gz.
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    # tarfile's own gzip does not verify the checksum.
    yield from _tar(cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if packed else file, where, budget)


@contextmanager
def _uncompress(path: Path) -> Iterator[IO[bytes]]:
    """Open a file of Unix's compress with the program gzip.

    Python packages are no alternative: the pure ones expand a hostile file of a hundred kilobytes to gigabytes of
    memory before they can be stopped, and the one in C has no wheel for Python 3.13, among others.
    """
    program = shutil.which("gzip")
    if program is None:
        raise DatasetError(f"{path}: the program gzip, which unpacks .Z files, is not on the PATH; install gzip")
    with (
        path.open("rb") as packed,
        subprocess.Popen([program, "-dc"], stdin=packed, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            yield process.stdout
            errors = process.stderr.read().decode(errors="replace")
            # 2 is a warning, for example about trailing bytes.
            if process.wait() not in (0, 2):
                raise DatasetError(f"{path}: could not be read ({' '.join(errors.split())}); {REMEDY}")
        finally:
            process.kill()


def _header_type(metered: _Metered) -> type[tarfile.TarInfo]:
    """Return the class of the headers of the tar in ``metered``, which limits the work of parsing extended headers."""

    class Header(tarfile.TarInfo):
        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            header = super().frombuf(buf, encoding, errors)
            if header.type in EXTENSIONS and header.size > EXTENSION_LIMIT:
                raise ValueError("a header or directory is too long")
            if header.type in ATTRIBUTES:
                metered.attributes = header.size
            return header

    return Header


def _tar(unpacked: IO[bytes], where: str, budget: _Budget) -> Iterator[ArchiveEntry]:
    # A tar in a zip has the zip around it: the error must name the inner one.
    with _translate_errors(where):
        metered = _Metered(unpacked, HEADER_LIMIT)
        headers = HEADERS_LIMIT
        start = cast("io.BufferedReader", unpacked).peek(tarfile.BLOCKSIZE)
        try:
            # Blocks of the size of a header: nothing is read ahead, and the last block read is the last header.
            archive = tarfile.open(  # noqa: SIM115
                fileobj=cast("IO[bytes]", metered),
                mode="r|",
                bufsize=tarfile.BLOCKSIZE,
                tarinfo=_header_type(metered),
            )
        except tarfile.ReadError as error:
            raise DatasetError(f"{where}: not a tar archive ({error}; {describe(start)}); {REMEDY}") from error
        with archive:
            while info := archive.next():
                headers -= HEADER_LIMIT - metered.quota
                # tarfile skips the size in the member's own header, not a global one.
                if info.size < 0 or headers < 0 or "size" in archive.pax_headers:
                    raise tarfile.ReadError("a header states an invalid size, or there are too many headers")
                # tarfile keeps both, for random access and for the next members.
                archive.members.clear()  # type: ignore[attr-defined]
                archive.pax_headers.clear()  # type: ignore[attr-defined]
                inside = _check_path(where, info.name)
                if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or info.issparse():
                    raise DatasetError(f"{inside}: a link, a device or a sparse file; {REMEDY}")
                size = 0 if info.isdir() else info.size
                budget.add_member(size)
                metered.quota = -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE + HEADER_LIMIT
                name = f"{info.name}/" if info.isdir() else info.name
                yield _entry(name, inside, lambda info=info: archive.extractfile(info) or io.BytesIO())  # type: ignore[misc]
        # tarfile also stops at a damaged header and at the end of the file. The true end is a block of zeros.
        if not metered.last or metered.last.strip(b"\0"):
            raise tarfile.ReadError("truncated, or a header is damaged")
        # The checksum of a gzip comes last.
        metered.quota = UNPACKED_LIMIT
        while metered.read(2**16):
            pass


def _entry(name: str, where: str, open_file: Callable[[], IO[bytes]]) -> ArchiveEntry:
    def read(limit: int) -> bytes:
        with _translate_errors(where), open_file() as file:
            return file.read(limit + 1)

    return ArchiveEntry(name, where, read)


@contextmanager
def _translate_errors(where: str) -> Iterator[None]:
    """Raise DatasetError for every error of the libraries that unpack."""
    try:
        yield
    except DatasetError:
        raise
    except (
        *(tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError),
        # Fields that are no numbers or out of range, unsupported methods and flags of a zip, chains of headers that
        # exceed the depth of recursion.
        *(ValueError, LookupError, OverflowError, RuntimeError),
    ) as error:
        raise DatasetError(f"{where}: could not be read ({' '.join(str(error).split())}); {REMEDY}") from error


def _check_path(where: str, name: str) -> str:
    """Return archive and member for error messages. Raise DatasetError if the path leads outside the archive.

    ``tarfile.data_filter`` would accept absolute paths, does not serve zips, and Debian 12's Python 3.11.2 lacks it.
    """
    inside = f"{where}: {_printable(name)}"
    if len(name) > PATH_LIMIT:
        raise DatasetError(f"{inside}: the path has {len(name)} characters, expected at most {PATH_LIMIT}; {REMEDY}")
    if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or re.match(r"[A-Za-z]:", name):
        raise DatasetError(f"{inside}: the path leads outside the archive; {REMEDY}")
    return inside


def _printable(name: str) -> str:
    name = name if len(name) <= 200 else f"{name[:200]}..."
    return name if name.isprintable() else ascii(name)
