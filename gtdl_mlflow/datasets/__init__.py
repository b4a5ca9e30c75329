"""Data sets: found as published, checked, read from the publishers' formats, kept as ``.npy`` files for the workers.

``base`` is what a reader of a new format works with, ``published`` finds and unpacks publishers' files, ``prepared``
keeps the result; every other module here is the reader of one format.
"""

from .base import Arrays, DatasetError, FilesNotFound
from .prepared import Prepared, locate, prepare, verify

__all__ = ["Arrays", "DatasetError", "FilesNotFound", "Prepared", "locate", "prepare", "verify"]
