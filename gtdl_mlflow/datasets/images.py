"""Decode images in publishers' formats and resize them."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from .base import REMEDY, DatasetError
from .file_types import describe, describe_length

PIXELS_LIMIT = 2**24
"""Pixels of a JPEG; decoded, that many need 50 MB. Caltech-101's largest has less than a tenth."""

SCANS_LIMIT = 100
"""Scans of a JPEG. A progressive one has about ten; with many more, a small file occupies a decoder for hours."""

WORK_PER_BYTE, WORK_PER_PIXEL = 64, 4
"""Work of the decoder. The unit is one pixel in one scan, 1 to 2 ns. The bytes count most in segments of four bytes."""

WORK_RESERVE, WORK_PER_IMAGE = 2**30, 2**22
"""Work that a data set's JPEGs may need: two seconds, and three times as much per image as Caltech-101's."""

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
        scans = contents.count(b"\xff\xda")
        if scans > SCANS_LIMIT:
            raise DatasetError(f"{where}: {scans} scans in one JPEG, expected at most {SCANS_LIMIT}; {REMEDY}")
        self._spend(len(contents) * WORK_PER_BYTE - WORK_PER_IMAGE, f"{where}: {len(contents):,} bytes")
        try:
            with warnings.catch_warnings():
                # Pillow warns of unusual metadata, which is not used here, and of large sizes, which are checked below.
                warnings.simplefilter("ignore")
                image = Image.open(io.BytesIO(contents), formats=["JPEG"])
                size = f"{where}: {image.width} x {image.height} pixels"
                pixels = image.width * image.height
                if pixels > PIXELS_LIMIT:
                    raise DatasetError(f"{size}, expected at most {PIXELS_LIMIT:,}; {REMEDY}")
                self._spend(pixels * (scans + WORK_PER_PIXEL), f"{size} in {scans} scan(s)")
                return np.asarray(image.convert("RGB"))
        except DatasetError:
            raise
        except Image.DecompressionBombError as error:  # Pillow's own limit, which is higher
            raise DatasetError(f"{where}: more than {PIXELS_LIMIT:,} pixels ({error}); {REMEDY}") from error
        except UnidentifiedImageError as error:
            raise DatasetError(f"{where}: not a JPEG image ({describe(contents)}); {REMEDY}") from error
        except Exception as error:  # Pillow's parsers raise any exception
            raise DatasetError(f"{where}: damaged JPEG image ({' '.join(str(error).split())}); {REMEDY}") from error

    def _spend(self, work: int, image: str) -> None:
        self._work -= work
        if self._work < 0:
            raise DatasetError(f"{image}: decoding the images up to this one takes too long; {REMEDY}")


def resize(pixels: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return an image (H, W) or (H, W, 3), stretched to another size by bilinear, antialiased interpolation."""
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
