"""Data sets: found as published, checked, read from the publishers' formats, kept as ``.npy`` files for the workers.

``base`` is what a reader of a new format works with; ``published`` finds publishers' files, ``archives`` looks inside,
``images`` decodes and resizes, ``splits`` decides what is for training; ``prepared`` keeps the result, ``fetch`` gets
the files. Every other module here is the reader of one format.
"""

from .base import Arrays, DatasetError, FilesNotFound
from .prepare import PreparedDataset, locate, prepare, verify

__all__ = ["Arrays", "DatasetError", "FilesNotFound", "PreparedDataset", "locate", "prepare", "verify"]
