"""Decode images in publishers' formats and resize them."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from .base import REMEDY, DatasetError

PIXELS_LIMIT = 2**24
"""Pixels of a JPEG; decoded, that many need 50 MB. Caltech-101's largest has less than a tenth."""

SCANS_LIMIT = 100
"""Scans of a JPEG. A progressive one has about ten; with many more, a small file occupies a decoder for hours."""

PGM_HEADER = re.compile(rb"P5\s+([0-9]{1,5})\s+([0-9]{1,5})\s+([0-9]{1,5})\s")


def decode_pgm(contents: bytes, where: str, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Return the pixels (height, width) of a binary PGM with 256 grey levels; http://netpbm.sourceforge.net/doc/pgm.html.

    Raises:
        DatasetError: it is not a PGM of that size. The message starts with ``where``.
    """
    header = PGM_HEADER.match(contents)
    if not header:
        raise DatasetError(
            f"{where}: not a PGM image (starts with {contents[:8]!r}, expected P5 and its size); {REMEDY}"
        )
    size = tuple(map(int, header.groups()))
    if size != (width, height, 255):
        raise DatasetError(
            f"{where}: {' x '.join(map(str, size))} (width, height, white), expected {width} x {height} x 255"
        )
    pixels = len(contents) - header.end()
    if pixels != width * height:
        length = "more" if pixels > width * height else str(pixels)
        raise DatasetError(f"{where}: {length} bytes of pixels, expected {width * height}; {REMEDY}")
    return np.frombuffer(contents, np.uint8, offset=header.end()).reshape(height, width)


def decode_jpeg(contents: bytes, where: str) -> npt.NDArray[np.uint8]:
    """Return the pixels (height, width, 3) of a JPEG; a grey one gets three equal channels.

    Raises:
        DatasetError: it is not a JPEG, is damaged, or exceeds a limit. The message starts with ``where``.
    """
    scans = contents.count(b"\xff\xda")
    if scans > SCANS_LIMIT:
        raise DatasetError(f"{where}: {scans} scans in one JPEG, expected at most {SCANS_LIMIT}; {REMEDY}")
    try:
        with warnings.catch_warnings():
            # Pillow warns of unusual metadata, which is not used here, and of large sizes, which are checked below.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(contents), formats=["JPEG"])
            if image.width * image.height > PIXELS_LIMIT:
                raise DatasetError(
                    f"{where}: {image.width} x {image.height} pixels, expected at most {PIXELS_LIMIT:,}; {REMEDY}"
                )
            return np.asarray(image.convert("RGB"))
    except DatasetError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, which is higher
        raise DatasetError(f"{where}: more than {PIXELS_LIMIT:,} pixels ({error}); {REMEDY}") from error
    except UnidentifiedImageError as error:
        raise DatasetError(f"{where}: not a JPEG image (starts with {contents[:8]!r}); {REMEDY}") from error
    except Exception as error:  # Pillow's parsers raise any exception
        raise DatasetError(f"{where}: damaged JPEG image ({' '.join(str(error).split())}); {REMEDY}") from error


def resize(pixels: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return an image (H, W) or (H, W, 3), stretched to another size by bilinear, antialiased interpolation."""
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
