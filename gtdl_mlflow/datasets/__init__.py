"""Data sets: download the published files, verify and read them, and save them as ``.npy`` files for the workers.

``fetch`` downloads the files, ``source_files`` finds them, ``published`` notices when they change, ``archives`` reads
archives, ``images`` decodes and resizes images, ``splits`` divides them into training and test images, ``prepare``
creates prepared data, ``prepared`` defines their folders, ``export`` writes them for other programs, and
``contact_sheet`` draws samples of them. ``base`` has the types that readers use. Each of the other modules reads one
publisher's format.
"""

from .base import Arrays, DatasetError, FilesNotFound
from .prepare import locate, prepare, verify
from .prepared import PreparedDataset

__all__ = ["Arrays", "DatasetError", "FilesNotFound", "PreparedDataset", "locate", "prepare", "verify"]
