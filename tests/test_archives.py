"""Every packing of a data set is read; damaged and hostile archives are refused."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.data_files import (
    assert_refused,
    cifar10,
    compressed,
    lzw_bomb,
    prepare_in_process,
    tar,
    write_files,
    zipped,
)

from gtdl_mlflow.datasets import archives
from gtdl_mlflow.datasets.prepare import read

pytestmark = pytest.mark.usefixtures("cache_folders")

SMALL, FILES = cifar10()
BATCH = "cifar-10-batches-bin/data_batch_1.bin"
NAME = "cifar-10-binary.tar.gz"
GB = 10**9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of CIFAR-10's files."""
    folder = tmp_path / "data" / "cifar10"
    folder.mkdir(parents=True)
    return folder


def zeros(size: int) -> bytes:
    """Return a gzip of zeros; it consists of several gzip files, which is valid."""
    piece = gzip.compress(bytes(2**26), compresslevel=1)
    return piece * (size // 2**26)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


PACKINGS: dict[str, Callable[[Path], object]] = {
    "unpacked": lambda folder: write_files(FILES, folder),
    "unpacked without its folder": lambda folder: write_files({Path(name).name: FILES[name] for name in FILES}, folder),
    "tar.gz": lambda folder: (folder / NAME).write_bytes(tar(FILES)),
    "plain tar named .gz": lambda folder: (folder / NAME).write_bytes(tar(FILES, "w")),
    "tar with PAX headers": lambda folder: (folder / NAME).write_bytes(
        tar({"long/" * 50 + name: FILES[name] for name in FILES})
    ),
    "tar.Z": lambda folder: (folder / NAME).write_bytes(compressed(tar(FILES, "w"))),
    "zip": lambda folder: (folder / NAME).write_bytes(zipped(FILES)),
    "other order": lambda folder: (folder / NAME).write_bytes(tar(dict(reversed(FILES.items())))),
}


@pytest.mark.parametrize("write", PACKINGS.values(), ids=PACKINGS)
def test_all_packings_result_in_the_same_arrays(folder: Path, write: Callable[[Path], object]) -> None:
    write(folder)
    arrays = read(SMALL, folder)
    for number in range(5):
        records = np.frombuffer(FILES[f"cifar-10-batches-bin/data_batch_{number + 1}.bin"], np.uint8).reshape(2, 3073)
        assert arrays.train_labels[2 * number : 2 * number + 2].tolist() == records[:, 0].tolist()
        for image, record in zip(arrays.train_images[2 * number : 2 * number + 2], records, strict=True):
            # Red, green and blue planes, each row by row.
            assert image[5, 7].tolist() == [record[1 + 5 * 32 + 7 + color * 1024] for color in range(3)]
            assert image.transpose(2, 0, 1).tobytes() == record[1:].tobytes()
    assert arrays.test_labels.tolist() == [FILES["cifar-10-batches-bin/test_batch.bin"][at] for at in (0, 3073)]


def test_unpacked_files_are_preferred_to_an_archive(folder: Path) -> None:
    write_files(FILES, folder)
    (folder / NAME).write_bytes(b"")
    read(SMALL, folder)


def test_unfinished_download_is_ignored(folder: Path) -> None:
    write_files({f"fetch.partial/{NAME}": tar(FILES)}, folder)
    assert_refused(SMALL, f"{NAME} not found in {folder}, nor data_batch_1.bin unpacked", "GTDL_DATA")


# Paths that lead outside, links and devices


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "..", "..\\evil", "C:evil", "\\evil"])
@pytest.mark.parametrize("pack", [tar, lambda files: compressed(tar(files, "w")), zipped], ids=["tar", "tar.Z", "zip"])
def test_path_outside_the_archive_is_refused(folder: Path, name: str, pack: Callable[..., bytes]) -> None:
    (folder / NAME).write_bytes(pack({name: b"evil", **FILES}))
    assert_refused(
        SMALL, f"{folder / NAME}: ", "evil" if "evil" in name else "..", "the path leads outside the archive"
    )


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE],
)
def test_link_or_device_in_a_tar_is_refused(folder: Path, kind: bytes) -> None:
    info = tarfile.TarInfo(BATCH)
    info.type, info.linkname = kind, "/etc/passwd"
    (folder / NAME).write_bytes(tar(FILES, extra=[info]))
    assert_refused(SMALL, f"{folder / NAME}: {BATCH}: a link, a device or a sparse file")


def test_sparse_file_is_refused(folder: Path) -> None:
    info = tarfile.TarInfo(BATCH)
    info.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.map": "0,1",
        "GNU.sparse.size": str(2**40),
    }
    (folder / NAME).write_bytes(tar(FILES, extra=[info]))
    assert_refused(SMALL, f"{folder / NAME}: {BATCH}: a link, a device or a sparse file")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_link_or_device_in_a_zip_is_refused(folder: Path, kind: int) -> None:
    info = zipfile.ZipInfo(BATCH)
    info.external_attr = (kind | 0o777) << 16
    (folder / NAME).write_bytes(zipped({}, {info: b"/etc/passwd"}))
    assert_refused(SMALL, f"{folder / NAME}: {BATCH}: a link or a device")


def test_pipe_in_a_folder_is_refused(folder: Path) -> None:
    write_files(FILES, folder)
    (folder / BATCH).unlink()
    os.mkfifo(folder / BATCH)
    assert_refused(SMALL, f"{folder / BATCH}: not a regular file")


def test_circular_links_end(folder: Path) -> None:
    write_files(FILES, folder)
    (folder / "cifar-10-batches-bin" / "again").symlink_to(folder)
    assert_refused(SMALL, "occurs twice")


# Damage


def test_file_that_is_no_archive_is_named(folder: Path) -> None:
    for content in (b"", b"<html>Not found</html>", b"\x1f\x8b", b"\x1f\x9d", b"PK\x03\x04", os.urandom(2000)):
        (folder / NAME).write_bytes(content)
        assert_refused(SMALL, f"{folder / NAME}: ", "replace it with the publisher's file")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.85])
@pytest.mark.parametrize(
    "pack",
    [tar, lambda files: tar(files, "w"), lambda files: compressed(tar(files, "w")), zipped],
    ids=["tar.gz", "tar", "tar.Z", "zip"],
)
def test_truncated_archive_is_named(folder: Path, share: float, pack: Callable[..., bytes]) -> None:
    whole = pack({**FILES, "notes.txt": bytes(40_000)})
    (folder / NAME).write_bytes(whole[: int(len(whole) * share)])
    assert_refused(SMALL, f"{folder / NAME}: ", "replace it with the publisher's file")


def test_missing_member_is_named(folder: Path) -> None:
    incomplete = dict(list(FILES.items())[:-1])
    (folder / NAME).write_bytes(tar(incomplete))
    assert_refused(SMALL, f"{folder / NAME}: test_batch.bin missing")


def test_damaged_header_in_a_tar_is_named(folder: Path) -> None:
    whole = bytearray(tar({**FILES, "notes.txt": b"notes"}, "w"))
    at = whole.index(b"notes.txt")
    whole[at + 150] ^= 1
    (folder / NAME).write_bytes(whole)
    assert_refused(SMALL, f"{folder / NAME}: could not be read (truncated, or a header is damaged)")


def test_checksum_at_the_end_of_a_gzip_is_verified(folder: Path) -> None:
    whole = bytearray(tar(FILES))
    whole[-6] ^= 1
    (folder / NAME).write_bytes(whole)
    assert_refused(SMALL, f"{folder / NAME}: could not be read (CRC check failed")


def test_checksum_of_a_member_of_a_zip_is_verified(folder: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    whole = bytearray(file.getvalue())
    whole[1000] ^= 1
    (folder / NAME).write_bytes(whole)
    assert_refused(SMALL, f"{folder / NAME}: {BATCH}: could not be read (Bad CRC-32")


def test_member_that_occurs_twice_is_named(folder: Path) -> None:
    twice = {**FILES, "copy/data_batch_1.bin": FILES[BATCH]}
    for content in (tar(twice), zipped(twice)):
        (folder / NAME).write_bytes(content)
        assert_refused(SMALL, f"{folder / NAME}: copy/data_batch_1.bin: occurs twice")


def test_endless_headers_are_refused(folder: Path) -> None:
    endless = b"".join(
        header("x", 20, tarfile.XHDTYPE) + b"20 path=0123456789a\n".ljust(512, b"\0") for _ in range(3000)
    )
    (folder / NAME).write_bytes(endless + tar(FILES, "w"))
    assert_refused(SMALL, f"{folder / NAME}: could not be read")


@pytest.mark.parametrize("size", [-1, -512, -(2**20)])
def test_negative_size_in_a_header_is_refused(folder: Path, size: int) -> None:
    negative = bytearray(header("cifar-10-batches-bin/data_batch_1.bin", 0))
    negative[124:136] = (size % 2**96).to_bytes(12, "big")  # base 256
    negative[148:156] = b" " * 8
    negative[148:156] = b"%06o\0 " % sum(negative)
    (folder / NAME).write_bytes(bytes(negative) + tar(FILES, "w"))
    assert_refused(SMALL, f"{folder / NAME}: could not be read (")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 99])
def test_unsupported_method_in_a_zip_is_refused(folder: Path, method: int) -> None:
    whole = bytearray(zipped(FILES))
    at = whole.index(b"PK\x01\x02")
    struct.pack_into("<H", whole, at + 10, method)
    (folder / NAME).write_bytes(whole)
    assert_refused(SMALL, f"{folder / NAME}: {BATCH}: encrypted, or compressed by an unsupported method")


def test_encrypted_zip_is_refused(folder: Path) -> None:
    whole = bytearray(zipped(FILES))
    whole[whole.index(b"PK\x01\x02") + 8] |= 1
    (folder / NAME).write_bytes(whole)
    assert_refused(SMALL, f"{folder / NAME}: {BATCH}: encrypted")


def test_unprintable_name_is_escaped_and_shortened(folder: Path) -> None:
    (folder / NAME).write_bytes(tar({"../a\nb\x1b[31m\x80": b""}))
    assert_refused(SMALL, r"../a\nb\x1b[31m\x80")
    (folder / NAME).write_bytes(tar({"../" + "long" * 100: b""}))
    assert_refused(SMALL, "longl...: the path leads outside")


def test_missing_program_gzip_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / NAME).write_bytes(compressed(tar(FILES, "w")))
    monkeypatch.setenv("PATH", "")
    assert_refused(SMALL, f"{folder / NAME}: ", "install gzip")


def test_member_of_a_zip_may_be_larger_than_its_directory(folder: Path) -> None:
    contents = os.urandom(2 * archives.DIRECTORY_LIMIT)
    with zipfile.ZipFile(folder / NAME, "w") as archive:
        archive.writestr("large", contents)
    assert [entry.read(GB) for entry in archives.entries(folder / NAME)] == [contents]


# Bombs: their contents are never in memory


def assert_refused_in_little_memory(*words: str) -> None:
    output, memory = prepare_in_process(SMALL)
    for word in words:
        assert word in output
    assert memory < GB / 4


@pytest.mark.slow
def test_gzip_bomb_beside_the_files_is_refused(folder: Path) -> None:
    (folder / NAME).write_bytes(gzip.compress(header("bomb", 2**33)) + zeros(2**31))
    assert_refused_in_little_memory(f"{folder / NAME}: more than 536,870,912 bytes unpacked")


@pytest.mark.slow
def test_gzip_bomb_behind_the_end_of_a_tar_is_refused(folder: Path) -> None:
    (folder / NAME).write_bytes(tar(FILES) + zeros(2**31))
    assert_refused_in_little_memory(f"{folder / NAME}: could not be read")


@pytest.mark.slow
def test_gzip_bomb_with_the_name_of_a_file_is_refused(folder: Path) -> None:
    (folder / NAME).write_bytes(gzip.compress(header(BATCH, 2**29)) + zeros(2**29))
    assert_refused_in_little_memory(f"{folder / NAME}: {BATCH}: more than 6146 bytes, expected 6146")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "words"),
    [(2**28, "data_batch_1.bin: more than 6146 bytes, expected 6146"), (2**31, "more than 536,870,912")],
)
def test_zip_bomb_is_refused(folder: Path, size: int, words: str) -> None:
    with zipfile.ZipFile(folder / NAME, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(BATCH, "w", force_zip64=True) as member:
            member.write(bytes(2**28))
        archive.filelist[0].file_size = size
    assert_refused_in_little_memory(str(folder / NAME), words)


def test_bombs_in_one_zip_share_the_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "UNPACKED_LIMIT", 10**6)
    bomb = tar({"readme.txt": bytes(600_000)})
    (folder / NAME).write_bytes(zipped({f"1/{NAME}": bomb, f"2/{NAME}": bomb}))
    assert_refused(SMALL, f"{folder / NAME}: more than 1,000,000 bytes unpacked")


@pytest.mark.slow
def test_compress_bomb_is_refused(folder: Path) -> None:
    (folder / NAME).write_bytes(lzw_bomb())
    assert_refused_in_little_memory(f"{folder / NAME}: ")


def test_wrong_size_in_the_directory_of_a_zip_is_refused(folder: Path) -> None:
    whole = bytearray(zipped({**FILES, BATCH: bytes(10**6)}))
    struct.pack_into("<I", whole, whole.index(b"PK\x01\x02") + 24, len(FILES[BATCH]))
    (folder / NAME).write_bytes(whole)
    assert_refused(SMALL, f"{folder / NAME}: {BATCH}: ")


# Headers and directories: neither long nor many


@pytest.mark.slow
def test_name_of_two_gigabytes_is_refused(folder: Path) -> None:
    (folder / NAME).write_bytes(gzip.compress(header("././@LongLink", 2**31, tarfile.GNUTYPE_LONGNAME)) + zeros(2**31))
    assert_refused_in_little_memory(f"{folder / NAME}: could not be read (a header or directory is too long)")


def test_name_of_70_kilobytes_is_refused(folder: Path) -> None:
    (folder / NAME).write_bytes(tar({"long/" * 14_000: b"", **FILES}))
    assert_refused(SMALL, f"{folder / NAME}: could not be read (a header or directory is too long)")


@pytest.mark.slow
def test_map_of_a_sparse_file_is_not_read_without_a_limit(folder: Path) -> None:
    info = tarfile.TarInfo(BATCH)
    info.size = 2**30 - 2**20
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1"}
    start = info.tobuf(tarfile.PAX_FORMAT) + b"9999999999\n"
    (folder / NAME).write_bytes(gzip.compress(start) + gzip.compress(b"0\n" * 10**6) * 100)
    assert_refused_in_little_memory(f"{folder / NAME}: could not be read (a header or directory is too long)")


@pytest.mark.slow
def test_global_size_does_not_allow_a_long_header(folder: Path) -> None:
    # Only the member's own header decides what tarfile skips: a global size would be an allowance for the next header.
    size = 2**30 - 2**20
    attributes = tarfile.TarInfo.create_pax_global_header({"size": str(size)})
    bomb = attributes + header("file", 0) + header("././@LongLink", size, tarfile.GNUTYPE_LONGNAME)
    (folder / NAME).write_bytes(gzip.compress(bomb) + zeros(2**30))
    assert_refused_in_little_memory(f"{folder / NAME}: could not be read (a header states an invalid size")


@pytest.mark.slow
def test_many_attributes_are_not_kept_in_memory(folder: Path) -> None:
    with gzip.open(folder / NAME, "w", compresslevel=1) as file:
        for number in range(20_000):
            file.write(tarfile.TarInfo.create_pax_global_header({f"key{number}": "x" * 3000}) + header("readme", 0))
    assert_refused_in_little_memory(
        f"{folder / NAME}: could not be read (a header states an invalid size, or there are"
    )


@pytest.mark.parametrize("kind", archives.EXTENSIONS)
def test_extended_header_of_more_than_4_kilobytes_is_refused(folder: Path, kind: bytes) -> None:
    (folder / NAME).write_bytes(gzip.compress(header("x", 4097, kind) + b"a/" * 2304 + tar(FILES, "w")))
    assert_refused(SMALL, f"{folder / NAME}: could not be read (a header or directory is too long)")


@pytest.mark.parametrize("kind", archives.ATTRIBUTES)
@pytest.mark.parametrize("number", [b"9" * 4000, b"9" * 700, b" " * 490 + b"9" * 64 + b" " * 470])
def test_long_number_in_attributes_is_refused_at_once(folder: Path, kind: bytes, number: bytes) -> None:
    # Python before 3.11.10 and 3.12.6 needs 12 ms for 4,000 digits: minutes for this archive of less than a megabyte.
    payload = number + bytes(-len(number) % 512)
    member = header("x", len(number), kind) + payload + header("readme", 0)
    (folder / NAME).write_bytes(gzip.compress(member * 29_000, compresslevel=1))
    start = time.process_time()
    assert_refused(SMALL, f"{folder / NAME}: could not be read (a header has a number of more than 31 digits)")
    assert time.process_time() - start < 5


def test_long_path_is_refused(folder: Path) -> None:
    for pack in (tar, zipped):
        (folder / NAME).write_bytes(pack({"a/" * 256 + "readme": b""}))
        assert_refused(SMALL, "a/...: the path has 518 characters, expected at most 512")


def test_file_of_another_kind_is_named(folder: Path) -> None:
    page = b"\xef\xbb\xbf\n<!DOCTYPE html><html><title>Log in</title></html>"
    for content, kind in {
        b"": "empty",
        page: "a web page",
        "<html>".encode("utf-16"): "a web page",
        gzip.compress(page): "a web page",
        gzip.compress(tar(FILES)): "gzip",
        b"7z\xbc\xaf\x27\x1c" + bytes(600): "a 7z archive",
        b"version https://git-lfs.github.com/spec/v1\n": "a pointer of Git LFS",
        b"some text": "starts with b'some tex'",
    }.items():
        (folder / NAME).write_bytes(content)
        assert_refused(SMALL, f"{folder / NAME}: not a tar archive (", f"; {kind}); replace")


@pytest.mark.parametrize("pack", [tar, zipped], ids=["tar", "zip"])
def test_too_many_members_are_refused(
    folder: Path, pack: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MEMBERS_LIMIT", 100)
    (folder / NAME).write_bytes(pack({f"{number}/readme": b"" for number in range(101)}))
    assert_refused(SMALL, f"{folder / NAME}: more than 100 files and folders")


def test_too_many_files_in_a_folder_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MEMBERS_LIMIT", 100)
    write_files({**FILES, **{f"{number % 3}/{number}.txt~": b"" for number in range(101)}}, folder)
    assert_refused(SMALL, f"{folder}: more than 100 files and folders")


@pytest.mark.slow
def test_million_members_of_a_tar_are_refused(folder: Path) -> None:
    member = header("readme", 0)
    (folder / NAME).write_bytes(gzip.compress(member * 10**4, compresslevel=1) * 100)
    assert_refused_in_little_memory(f"{folder / NAME}: more than 100,000 files and folders")


@pytest.mark.slow
def test_million_members_of_a_zip_are_refused(folder: Path) -> None:
    whole = zipped({"f": b""})
    start, end = whole.index(b"PK\x01\x02"), whole.index(b"PK\x05\x06")
    directory = whole[start:end] * 10**6
    tail = bytearray(whole[end:])
    struct.pack_into("<I", tail, 12, len(directory))
    (folder / NAME).write_bytes(whole[:start] + directory + tail)
    assert_refused_in_little_memory(f"{folder / NAME}: could not be read (a header or directory is too long)")


@pytest.mark.slow
def test_largest_directory_of_a_zip_needs_little_memory(folder: Path) -> None:
    whole = zipped({"readme": b""})
    start, end = whole.index(b"PK\x01\x02"), whole.index(b"PK\x05\x06")
    directory = whole[start:end] * (8 * 10**6 // (end - start))
    tail = bytearray(whole[end:])
    struct.pack_into("<I", tail, 12, len(directory))
    (folder / NAME).write_bytes(whole[:start] + directory + tail)
    assert_refused_in_little_memory(f"{folder / NAME}: more than 100,000 files and folders")


@pytest.mark.slow
def test_directory_of_gigabytes_in_a_zip_is_refused(folder: Path) -> None:
    whole = zipped({})
    with (folder / NAME).open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(2**31)  # sparse on disk
        file.seek(2**31)
        end = bytearray(whole[-22:])
        struct.pack_into("<II", end, 12, 2**31 - 4, 4)
        file.write(end)
    assert_refused_in_little_memory(f"{folder / NAME}: could not be read (a header or directory is too long)")
