"""Decode images in publishers' formats and resize them."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from .archives import ArchiveEntry
from .base import REMEDY, DatasetError
from .file_types import describe, describe_length

PIXELS_LIMIT = 2**24
"""Pixels of a JPEG; decoded, that many need 50 MB. Caltech-101's largest has less than a tenth."""

OWN_PIXELS_LIMIT = 2**26
"""Pixels of an image of the user; decoded, that many need 200 MB."""

SCANS_LIMIT = 100
"""Scans of a JPEG. A progressive one has about ten; with many more, a small file occupies a decoder for hours."""

WORK_PER_BYTE, WORK_PER_PIXEL = 64, 4
"""Work of the decoder. The unit is one pixel in one scan, 1 to 2 ns. The bytes count most in segments of four bytes."""

WORK_RESERVE, WORK_PER_IMAGE = 2**30, 2**22
"""Work that a data set's JPEGs may need: two seconds, and three times as much per image as Caltech-101's."""

Name = TypeVar("Name", bound=Hashable)

_COMMENT = rb"#[^\r\n]*[\r\n]"
_SPACE = rb"(?:\s|" + _COMMENT + rb")+"
PGM_HEADER = re.compile(
    _SPACE.join([b"P5", *[rb"([0-9]{1,5})"] * 3]) + rb"(?:" + _COMMENT + rb"|\s)",
)
"""Header of a binary PGM: width, height, white. Like netpbm, it allows a comment wherever it allows a space."""


def decode_pgm(contents: bytes, where: str, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Return the pixels (height, width) of a binary PGM with 256 grey levels; http://netpbm.sourceforge.net/doc/pgm.html.

    Lines of the header may end with CR LF, which an editor may have written.

    Raises:
        DatasetError: it is not a PGM of that size. The message starts with ``where``.
    """
    header = PGM_HEADER.match(contents)
    if not header:
        raise DatasetError(f"{where}: not a binary PGM image (P5) with its size, but {describe(contents)}; {REMEDY}")
    *size, white = map(int, header.groups())
    if size != [width, height]:
        raise DatasetError(f"{where}: {size[0]} x {size[1]} pixels, expected {width} x {height}; {REMEDY}")
    if white != 255:
        raise DatasetError(f"{where}: grey levels 0 to {white}, expected 0 to 255; {REMEDY}")
    start, pixels = header.end(), width * height
    # Only the length distinguishes the second half of CR LF from a pixel.
    if contents[start - 1 : start + 1] == b"\r\n" and len(contents) > start + pixels:
        start += 1
    if len(contents) != start + pixels:
        raise DatasetError(
            f"{where}: {describe_length(contents[start:], pixels)} of pixels, expected {pixels}; {REMEDY}"
        )
    return np.frombuffer(contents, np.uint8, offset=start).reshape(height, width)


class JpegDecoder:
    """Decoder of a data set's JPEGs. It limits the work for each of them and for all of them together."""

    def __init__(self) -> None:
        self._work = WORK_RESERVE

    def decode(self, contents: bytes, where: str) -> npt.NDArray[np.uint8]:
        """Return the pixels (height, width, 3) of a JPEG; a grey one gets three equal channels.

        Raises:
            DatasetError: it is not a JPEG, is damaged, or exceeds a limit. The message starts with ``where``.
        """
        scans = _count_scans(contents, where, REMEDY)
        self._spend(len(contents) * WORK_PER_BYTE - WORK_PER_IMAGE, f"{where}: {len(contents):,} bytes")
        with _open(contents, where, ["JPEG"], PIXELS_LIMIT, REMEDY) as image:
            size = f"{where}: {image.width} x {image.height} pixels in {scans} scan(s)"
            self._spend(image.width * image.height * (scans + WORK_PER_PIXEL), size)
            return np.asarray(image.convert("RGB"))

    def _spend(self, work: int, image: str) -> None:
        self._work -= work
        if self._work < 0:
            raise DatasetError(f"{image}: decoding the images up to this one takes too long; {REMEDY}")


def decode_image(contents: bytes, where: str, channels: int) -> npt.NDArray[np.uint8]:
    """Return the pixels (height, width), or (height, width, 3) with 3 ``channels``, of an image file of the user.

    Grey and colour images are converted into each other, the orientation in EXIF data is applied, and transparency is
    dropped. Pillow scales colours of 16 bits to 8.

    Raises:
        DatasetError: it is not a BMP, JPEG, PNG, PGM or PPM file, is damaged, exceeds a limit, or is grey with more
            than 8 bits. The message starts with ``where``.
    """
    remedy = "convert or remove it"
    if contents.startswith(b"\xff\xd8"):
        _count_scans(contents, where, remedy)
    with _open(contents, where, ["BMP", "JPEG", "PNG", "PPM"], OWN_PIXELS_LIMIT, remedy) as image:
        if image.mode.startswith(("I", "F")):  # Pillow would cut these values off at 255
            raise DatasetError(f"{where}: grey with more than 8 bits per pixel; {remedy}")
        return np.asarray(ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB"))


def read_contents(entry: ArchiveEntry, limit: int, remedy: str = REMEDY) -> bytes:
    """Return the contents of an image file. Raise DatasetError if it has more than ``limit`` bytes."""
    contents = entry.read(limit)
    if len(contents) > limit:
        raise DatasetError(f"{entry.where}: more than {limit:,} bytes for one image; {remedy}")
    return contents


def _count_scans(contents: bytes, where: str, remedy: str) -> int:
    """Return the number of scans of a JPEG. Raise DatasetError if it is above ``SCANS_LIMIT``."""
    scans = contents.count(b"\xff\xda")
    if scans > SCANS_LIMIT:
        raise DatasetError(f"{where}: {scans} scans in one JPEG, expected at most {SCANS_LIMIT}; {remedy}")
    return scans


@contextmanager
def _open(contents: bytes, where: str, formats: list[str], limit: int, remedy: str) -> Iterator[Image.Image]:
    """Open an image of at most ``limit`` pixels. Raise DatasetError for each error of Pillow, also within the block."""
    expected = f"{', '.join(formats)} image"
    try:
        with warnings.catch_warnings():
            # Pillow warns of unusual metadata, which is not used here, and of large sizes, which are checked below.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(contents), formats=formats)
            if image.width * image.height > limit:
                size = f"{image.width} x {image.height} pixels"
                raise DatasetError(f"{where}: {size}, expected at most {limit:,}; {remedy}")
            yield image
    except DatasetError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, which is higher
        raise DatasetError(f"{where}: more than {limit:,} pixels ({error}); {remedy}") from error
    except UnidentifiedImageError as error:
        raise DatasetError(f"{where}: not a {expected} ({describe(contents)}); {remedy}") from error
    except Exception as error:  # Pillow's parsers raise any exception
        raise DatasetError(f"{where}: damaged {expected} ({' '.join(str(error).split())}); {remedy}") from error


def decode_all(
    images: Iterable[tuple[Name, ArchiveEntry]],
    parts: Sequence[Sequence[Name]],
    decode: Callable[[ArchiveEntry], npt.NDArray[np.uint8]],
    shape: Sequence[int],
    source: Path,
) -> list[npt.NDArray[np.uint8]]:
    """Return an array (N, *shape) for each part, with its images decoded and stretched to ``shape``, in its order.

    ``images`` has each image of ``source``, a folder or an archive, once and in any order. ``shape`` is height, width
    and channels. An image that no part has is not read.

    Raises:
        DatasetError: an image of a part is missing or cannot be decoded.
    """
    height, width, _ = shape
    arrays = [np.empty((len(names), *shape), np.uint8) for names in parts]
    positions = {
        name: (array, row) for array, names in zip(arrays, parts, strict=True) for row, name in enumerate(names)
    }
    for name, entry in images:
        if name in positions:
            array, row = positions.pop(name)
            array[row] = resize(decode(entry), height, width).reshape(shape)
    if positions:
        raise DatasetError(f"{source}: changed while it was read; run the command again")
    return arrays


def resize(pixels: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return an image (H, W) or (H, W, 3), stretched to another size by bilinear, antialiased interpolation."""
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
