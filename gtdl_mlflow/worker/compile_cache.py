"""The folder of compiled code that later runs of an environment reuse."""

from __future__ import annotations

from pathlib import Path


class CompileCache:
    """A cache of compiled code, with its number of files at the time this object was created."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._before = self._files()

    @property
    def state(self) -> dict[str, str]:
        """``compile_cache``: ``cold`` if files were added after this object was created, else ``warm``.

        Empty without a cache.
        """
        if not self._folder:
            return {}
        return {"compile_cache": "warm" if self._files() <= self._before else "cold"}

    def _files(self) -> int:
        return sum(1 for path in Path(self._folder).rglob("*") if path.is_file()) if self._folder else 0
