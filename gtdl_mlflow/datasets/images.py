"""Images in the formats that publishers use, and in the size that a network takes."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from .base import REMEDY, DatasetError

PIXELS_LIMIT = 2**24
"""In a JPEG; decoded, that many take 50 MB. Caltech-101's largest has less than a tenth."""

SCANS_LIMIT = 100
"""In a JPEG. A progressive one has about ten; with enough of them, a small file keeps a decoder busy for hours."""

PGM_HEADER = re.compile(rb"P5\s+([0-9]{1,5})\s+([0-9]{1,5})\s+([0-9]{1,5})\s")


def pgm(content: bytes, where: str, width: int, height: int) -> npt.NDArray[np.uint8]:
    """The pixels (height, width) of a binary PGM of that size and 256 greys; http://netpbm.sourceforge.net/doc/pgm.html.

    Raises:
        DatasetError: it is something else; ``where`` names it.
    """
    header = PGM_HEADER.match(content)
    if not header:
        raise DatasetError(f"{where}: no PGM image (starts with {content[:8]!r}, expected P5 and its size); {REMEDY}")
    given = tuple(map(int, header.groups()))
    if given != (width, height, 255):
        raise DatasetError(f"{where}: {_product(given)} (width, height, white), expected {width} x {height} x 255")
    pixels = len(content) - header.end()
    if pixels != width * height:
        length = "more" if pixels > width * height else str(pixels)
        raise DatasetError(f"{where}: {length} bytes of pixels, expected {width * height}; {REMEDY}")
    return np.frombuffer(content, np.uint8, offset=header.end()).reshape(height, width)


def jpeg(content: bytes, where: str) -> npt.NDArray[np.uint8]:
    """The pixels (height, width, 3) of a JPEG; a grey one gets three equal channels.

    Raises:
        DatasetError: it is something else, damaged, or larger than any photograph here; ``where`` names it.
    """
    scans = content.count(b"\xff\xda")
    if scans > SCANS_LIMIT:
        raise DatasetError(f"{where}: {scans} scans in one JPEG, expected at most {SCANS_LIMIT}; {REMEDY}")
    try:
        with warnings.catch_warnings():
            # Oddities in metadata that is not used here; the size is checked below.
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content), formats=["JPEG"])
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
        raise DatasetError(f"{where}: no JPEG image (starts with {content[:8]!r}); {REMEDY}") from error
    except Exception as error:  # Pillow lets through whatever its parsers stumble over
        raise DatasetError(f"{where}: damaged JPEG image ({' '.join(str(error).split())}); {REMEDY}") from error


def resized(pixels: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """An image (H, W) or (H, W, 3) in another size, stretched if its sides are in another ratio.

    Bilinear, with as many pixels of the original under each new one as belong there (no aliasing).
    """
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def _product(numbers: tuple[int, ...]) -> str:
    return " x ".join(map(str, numbers))
