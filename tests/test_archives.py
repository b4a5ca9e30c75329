"""Archives are looked into as far as they are what a publisher makes, and no further."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.data_files import cifar10, compressed, lay_out, lzw_bomb, prepared_elsewhere, refuses, tar, zipped

from gtdl_mlflow.datasets import archives
from gtdl_mlflow.datasets.prepare import read

pytestmark = pytest.mark.usefixtures("cache_folders")

SMALL, FILES = cifar10()
BATCH = "cifar-10-batches-bin/data_batch_1.bin"
NAME = "cifar-10-binary.tar.gz"
GB = 10**9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where CIFAR-10's files are."""
    folder = tmp_path / "data" / "cifar10"
    folder.mkdir(parents=True)
    return folder


def zeros(size: int) -> bytes:
    """A gzip of so many zeros, in pieces, which is a gzip too."""
    piece = gzip.compress(bytes(2**26), compresslevel=1)
    return piece * (size // 2**26)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


PACKINGS: dict[str, Callable[[Path], object]] = {
    "unpacked": lambda folder: lay_out(FILES, folder),
    "unpacked without its folder": lambda folder: lay_out({Path(name).name: FILES[name] for name in FILES}, folder),
    "tar.gz": lambda folder: (folder / NAME).write_bytes(tar(FILES)),
    "tar that kept .gz": lambda folder: (folder / NAME).write_bytes(tar(FILES, "w")),
    "tar of pax": lambda folder: (folder / NAME).write_bytes(tar({"long/" * 50 + name: FILES[name] for name in FILES})),
    "tar.Z": lambda folder: (folder / NAME).write_bytes(compressed(tar(FILES, "w"))),
    "zip": lambda folder: (folder / NAME).write_bytes(zipped(FILES)),
    "other order": lambda folder: (folder / NAME).write_bytes(tar(dict(reversed(FILES.items())))),
}


@pytest.mark.parametrize("lay", PACKINGS.values(), ids=PACKINGS)
def test_every_packing_is_the_same(folder: Path, lay: Callable[[Path], object]) -> None:
    lay(folder)
    found = read(SMALL, folder)
    for number in range(5):
        records = np.frombuffer(FILES[f"cifar-10-batches-bin/data_batch_{number + 1}.bin"], np.uint8).reshape(2, 3073)
        assert found.train_labels[2 * number : 2 * number + 2].tolist() == records[:, 0].tolist()
        for image, record in zip(found.train_images[2 * number : 2 * number + 2], records, strict=True):
            # Red, then green, then blue, each row by row.
            assert image[5, 7].tolist() == [record[1 + 5 * 32 + 7 + color * 1024] for color in range(3)]
            assert image.transpose(2, 0, 1).tobytes() == record[1:].tobytes()
    assert found.test_labels.tolist() == [FILES["cifar-10-batches-bin/test_batch.bin"][at] for at in (0, 3073)]


def test_what_is_unpacked_comes_before_an_archive(folder: Path) -> None:
    lay_out(FILES, folder)
    (folder / NAME).write_bytes(b"")
    read(SMALL, folder)


def test_a_download_that_is_being_checked_is_not_taken(folder: Path) -> None:
    lay_out({f"{NAME}.x.check/{NAME}": tar(FILES)}, folder)
    refuses(SMALL, f"{NAME} not found in {folder}, nor data_batch_1.bin unpacked", "GTDL_DATA")


# What leads out, or is no file


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "..", "..\\evil", "C:evil", "\\evil"])
@pytest.mark.parametrize("pack", [tar, lambda files: compressed(tar(files, "w")), zipped], ids=["tar", "tar.Z", "zip"])
def test_a_member_that_leads_out_is_refused(folder: Path, name: str, pack: Callable[..., bytes]) -> None:
    (folder / NAME).write_bytes(pack({name: b"evil", **FILES}))
    refuses(SMALL, f"{folder / NAME}: ", "evil" if "evil" in name else "..", "leads out of the archive")


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE],
)
def test_a_link_or_device_in_a_tar_is_refused(folder: Path, kind: bytes) -> None:
    info = tarfile.TarInfo(BATCH)
    info.type, info.linkname = kind, "/etc/passwd"
    (folder / NAME).write_bytes(tar(FILES, extra=[info]))
    refuses(SMALL, f"{folder / NAME}: {BATCH}: a link, a device or sparse")


def test_a_sparse_member_is_refused(folder: Path) -> None:
    info = tarfile.TarInfo(BATCH)
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,1",
                        "GNU.sparse.size": str(2**40)}  # fmt: skip
    (folder / NAME).write_bytes(tar(FILES, extra=[info]))
    refuses(SMALL, f"{folder / NAME}: {BATCH}: a link, a device or sparse")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_a_link_or_device_in_a_zip_is_refused(folder: Path, kind: int) -> None:
    info = zipfile.ZipInfo(BATCH)
    info.external_attr = (kind | 0o777) << 16
    (folder / NAME).write_bytes(zipped({}, {info: b"/etc/passwd"}))
    refuses(SMALL, f"{folder / NAME}: {BATCH}: a link or a device")


def test_a_pipe_in_a_folder_is_refused(folder: Path) -> None:
    lay_out(FILES, folder)
    (folder / BATCH).unlink()
    os.mkfifo(folder / BATCH)
    refuses(SMALL, f"{folder / BATCH}: not a file")


def test_links_in_a_circle_come_to_an_end(folder: Path) -> None:
    lay_out(FILES, folder)
    (folder / "cifar-10-batches-bin" / "again").symlink_to(folder)
    refuses(SMALL, "is there twice")


# Damage


def test_what_is_no_archive_is_named(folder: Path) -> None:
    for content in (b"", b"<html>Not found</html>", b"\x1f\x8b", b"\x1f\x9d", b"PK\x03\x04", os.urandom(2000)):
        (folder / NAME).write_bytes(content)
        refuses(SMALL, f"{folder / NAME}: ", "put the publisher's file in its place")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.85])
@pytest.mark.parametrize(
    "pack", [tar, lambda files: tar(files, "w"), lambda files: compressed(tar(files, "w")), zipped],
    ids=["tar.gz", "tar", "tar.Z", "zip"],
)  # fmt: skip
def test_an_archive_that_breaks_off_is_named(folder: Path, share: float, pack: Callable[..., bytes]) -> None:
    whole = pack({**FILES, "notes.txt": bytes(40_000)})
    (folder / NAME).write_bytes(whole[: int(len(whole) * share)])
    refuses(SMALL, f"{folder / NAME}: ", "put the publisher's file in its place")


def test_a_file_that_is_missing_is_named(folder: Path) -> None:
    one_too_few = dict(list(FILES.items())[:-1])
    (folder / NAME).write_bytes(tar(one_too_few))
    refuses(SMALL, f"{folder / NAME}: lacks test_batch.bin")


def test_a_damaged_header_within_a_tar_is_named(folder: Path) -> None:
    whole = bytearray(tar({**FILES, "notes.txt": b"notes"}, "w"))
    at = whole.index(b"notes.txt")
    whole[at + 150] ^= 1
    (folder / NAME).write_bytes(whole)
    refuses(SMALL, f"{folder / NAME}: cannot be unpacked (breaks off, or a header is damaged)")


def test_the_checksum_at_the_end_of_a_gzip_is_looked_at(folder: Path) -> None:
    whole = bytearray(tar(FILES))
    whole[-6] ^= 1
    (folder / NAME).write_bytes(whole)
    refuses(SMALL, f"{folder / NAME}: cannot be unpacked (CRC check failed")


def test_the_checksum_of_a_zips_member_is_looked_at(folder: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    whole = bytearray(file.getvalue())
    whole[1000] ^= 1
    (folder / NAME).write_bytes(whole)
    refuses(SMALL, f"{folder / NAME}: {BATCH}: cannot be unpacked (Bad CRC-32")


def test_a_member_that_is_there_twice_is_named(folder: Path) -> None:
    twice = {**FILES, "copy/data_batch_1.bin": FILES[BATCH]}
    for content in (tar(twice), zipped(twice)):
        (folder / NAME).write_bytes(content)
        refuses(SMALL, f"{folder / NAME}: copy/data_batch_1.bin: is there twice")


def test_headers_without_end_are_refused(folder: Path) -> None:
    endless = b"".join(
        header("x", 20, tarfile.XHDTYPE) + b"20 path=0123456789a\n".ljust(512, b"\0") for _ in range(3000)
    )
    (folder / NAME).write_bytes(endless + tar(FILES, "w"))
    refuses(SMALL, f"{folder / NAME}: cannot be unpacked")


@pytest.mark.parametrize("size", [-1, -512, -(2**20)])
def test_a_header_that_leads_back_is_refused(folder: Path, size: int) -> None:
    back = bytearray(header("cifar-10-batches-bin/data_batch_1.bin", 0))
    back[124:136] = (size % 2**96).to_bytes(12, "big")  # base 256
    back[148:156] = b" " * 8
    back[148:156] = b"%06o\0 " % sum(back)
    (folder / NAME).write_bytes(bytes(back) + tar(FILES, "w"))
    refuses(SMALL, f"{folder / NAME}: cannot be unpacked (a header ")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 99])
def test_a_zip_packed_otherwise_is_refused(folder: Path, method: int) -> None:
    whole = bytearray(zipped(FILES))
    at = whole.index(b"PK\x01\x02")
    struct.pack_into("<H", whole, at + 10, method)
    (folder / NAME).write_bytes(whole)
    refuses(SMALL, f"{folder / NAME}: {BATCH}: encrypted or packed in a way that is not read")


def test_an_encrypted_zip_is_refused(folder: Path) -> None:
    whole = bytearray(zipped(FILES))
    whole[whole.index(b"PK\x01\x02") + 8] |= 1
    (folder / NAME).write_bytes(whole)
    refuses(SMALL, f"{folder / NAME}: {BATCH}: encrypted")


def test_a_name_that_is_no_text_is_shown_on_one_line(folder: Path) -> None:
    (folder / NAME).write_bytes(tar({"../a\nb\x1b[31m\x80": b""}))
    refuses(SMALL, r"../a\nb\x1b[31m\x80")
    (folder / NAME).write_bytes(tar({"../" + "long" * 1000: b""}))
    refuses(SMALL, "longl...: leads out")


def test_without_the_program_gzip_the_error_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / NAME).write_bytes(compressed(tar(FILES, "w")))
    monkeypatch.setenv("PATH", "")
    refuses(SMALL, f"{folder / NAME}: ", "install gzip")


# Bombs: what they unfold into is never in memory


def test_a_gzip_bomb_beside_the_files(folder: Path) -> None:
    bomb = gzip.compress(header("bomb", 2**33)) + zeros(2**31)
    (folder / NAME).write_bytes(bomb)
    said, memory = prepared_elsewhere(SMALL)
    assert said.startswith(f"{folder / NAME}: more than 1,073,741,824 bytes unpacked")
    assert memory < GB / 4


def test_a_gzip_bomb_called_as_a_file(folder: Path) -> None:
    (folder / NAME).write_bytes(gzip.compress(header(BATCH, 2**31)) + zeros(2**31))
    said, memory = prepared_elsewhere(SMALL)
    assert said.startswith(f"{folder / NAME}: {BATCH}: more than 6146 bytes, expected 6146")
    assert memory < GB / 4


def test_a_name_of_two_gigabytes(folder: Path) -> None:
    (folder / NAME).write_bytes(gzip.compress(header("././@LongLink", 2**31, tarfile.GNUTYPE_LONGNAME)) + zeros(2**31))
    said, memory = prepared_elsewhere(SMALL)
    assert said.startswith(f"{folder / NAME}: cannot be unpacked (too long a header)")
    assert memory < GB / 4


def test_a_name_longer_than_any(folder: Path) -> None:
    (folder / NAME).write_bytes(tar({"long/" * 14_000: b"", **FILES}))
    refuses(SMALL, f"{folder / NAME}: cannot be unpacked (too long a header)")


def test_a_zip_bomb(folder: Path) -> None:
    with (
        zipfile.ZipFile(folder / NAME, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(BATCH, "w", force_zip64=True) as member,
    ):
        for _ in range(20):
            member.write(bytes(2**26))
    said, memory = prepared_elsewhere(SMALL)
    assert said.startswith(f"{folder / NAME}: {BATCH}: more than 6146 bytes, expected 6146")
    assert memory < GB / 4


def test_a_zip_that_lies_about_a_members_size(folder: Path) -> None:
    whole = bytearray(zipped({**FILES, BATCH: bytes(10**6)}))
    struct.pack_into("<I", whole, whole.index(b"PK\x01\x02") + 24, len(FILES[BATCH]))
    (folder / NAME).write_bytes(whole)
    refuses(SMALL, f"{folder / NAME}: {BATCH}: ")


def test_a_zips_directory_that_claims_gigabytes(folder: Path) -> None:
    whole = zipped({})
    with (folder / NAME).open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(2**31)  # sparse on disk
        file.seek(2**31)
        end = bytearray(whole[-22:])
        struct.pack_into("<II", end, 12, 2**31 - 4, 4)
        file.write(end)
    said, memory = prepared_elsewhere(SMALL)
    assert said.startswith(f"{folder / NAME}: cannot be unpacked (its directory claims 2147483644 bytes)")
    assert memory < GB / 4


def test_a_compress_bomb(folder: Path) -> None:
    (folder / NAME).write_bytes(lzw_bomb())
    said, memory = prepared_elsewhere(SMALL)
    assert said.startswith(f"{folder / NAME}: ")
    assert memory < GB / 4


@pytest.mark.parametrize("pack", [tar, zipped], ids=["tar", "zip"])
def test_too_many_members(folder: Path, pack: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MEMBERS_LIMIT", 100)
    (folder / NAME).write_bytes(pack({f"{number}": b"" for number in range(101)}))
    refuses(SMALL, f"{folder / NAME}: more than 100 members")
