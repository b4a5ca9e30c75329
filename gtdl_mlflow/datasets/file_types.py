"""File types by content, so that an error message can state why a file is not of the type of its name."""

from __future__ import annotations

import re

TYPES = {
    b"\x1f\x8b": "gzip",
    b"\x1f\x9d": "Unix compress",
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\x89PNG": "a PNG image",
    b"GIF8": "a GIF image",
    b"BM": "a BMP image",
    b"RIFF": "a WebP image",
    b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image",
    b"\xff\xd8\xff": "a JPEG image",
    b"P2": "a PGM image as text",
    b"P5": "a binary PGM image",
    b"P6": "a PPM image",
    b"%PDF": "a PDF file",
    b"\x93NUMPY": "a NumPy array",
    b"version https://git-lfs": "a pointer of Git LFS",
}
"""File types by their first bytes."""

_WEB_PAGE = re.compile(rb"\s*<(?:!doctype\s+html|html|head|body|title|meta|script|style|\?xml|!--)", re.IGNORECASE)


def is_web_page(contents: bytes) -> bool:
    """Return whether a file starts like HTML or XML: a login or error page of a server."""
    # Without the byte order mark, and the zero bytes of UTF-16.
    return bool(_WEB_PAGE.match(contents[:512].lstrip(b"\xef\xbb\xbf\xff\xfe\0").replace(b"\0", b"")))


def describe(contents: bytes) -> str:
    """Return what a file is: its type, if that is known, or its first bytes."""
    if not contents:
        return "empty"
    if is_web_page(contents):
        return "a web page"
    known = (name for magic, name in TYPES.items() if contents.startswith(magic))
    return next(known, f"starts with {contents[:8]!r}")


def describe_length(contents: bytes, expected: int) -> str:
    """Return the length of a file that should have ``expected`` bytes and was cut to at most one byte more."""
    if len(contents) <= expected:
        return f"{len(contents)} bytes"
    lines = contents.count(b"\n")
    converted = lines > 0 and contents.count(b"\r\n") == lines
    return f"more than {expected} bytes{' (line ends were converted, as by FTP in text mode)' if converted else ''}"
