"""Run uv, which creates the environments and installs packages into them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import uv

from ..redaction import redact, reveal
from . import subprocesses
from .environment import EnvironmentFailed, environments_dir

INHERITED = {
    # where packages and interpreters come from, and which versions are excluded where no lock selects them
    "UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_INDEX_STRATEGY",
    "UV_CONSTRAINT", "UV_OFFLINE", "UV_S3_ENDPOINT_URL", "UV_GCS_ENDPOINT_URL", "UV_AZURE_ENDPOINT_URL",
    "UV_PYTHON_INSTALL_DIR", "UV_PYTHON_INSTALL_MIRROR", "UV_PYTHON_DOWNLOADS", "UV_PYTHON_DOWNLOADS_JSON_URL",
    "UV_PYTHON_CACHE_DIR", "UV_PYTHON_PREFERENCE", "UV_MANAGED_PYTHON", "UV_NO_MANAGED_PYTHON", "UV_PYTHON_SEARCH_PATH",
    # how they are reached
    "UV_KEYRING_PROVIDER", "UV_CREDENTIALS_DIR", "UV_GITHUB_TOKEN", "UV_INSECURE_HOST", "UV_NATIVE_TLS",
    "UV_SYSTEM_CERTS", "UV_HTTP_TIMEOUT", "UV_REQUEST_TIMEOUT", "UV_HTTP_CONNECT_TIMEOUT", "UV_HTTP_RETRIES",
    # how uv works
    "UV_CACHE_DIR", "UV_NO_CACHE", "UV_LOCK_TIMEOUT", "UV_NO_PROGRESS", "UV_CONCURRENT_DOWNLOADS",
    "UV_CONCURRENT_BUILDS", "UV_CONCURRENT_INSTALLS",
}  # fmt: skip
"""Variables of uv that it inherits. All others could change what is installed (overrides, pre-releases, a target
folder, no dependencies, ...), which only the recipe and its lock determine.
Constraints are the user's, and without effect where there is a lock."""

INDEX_CREDENTIALS = re.compile(r"UV_INDEX_\w+_(USERNAME|PASSWORD)")

NOT_INHERITED = {"PYTHONPATH", "PYTHONHOME"}
"""Variables that would make the user's modules importable when a package is built."""

PATHS = {
    "UV_DEFAULT_INDEX": "", "UV_INDEX_URL": "", "UV_INDEX": " ", "UV_EXTRA_INDEX_URL": " ", "UV_FIND_LINKS": ",",
    "UV_CONSTRAINT": " ", "UV_CACHE_DIR": "", "UV_PYTHON_INSTALL_DIR": "", "UV_PYTHON_CACHE_DIR": "",
    "UV_CREDENTIALS_DIR": "", "SSL_CERT_FILE": "", "SSL_CERT_DIR": ":", "SSL_CLIENT_CERT": "", "NETRC": "",
}  # fmt: skip
"""Variables that may contain relative paths, and what separates several values."""


def run(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, *, show_progress: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run uv to its end. With ``show_progress``, its standard error goes to the terminal and is not in the result.

    uv reads no configuration file and runs in the folder of the environments: the settings of a project in the user's
    working directory do not apply.

    Raises:
        EnvironmentFailed: uv is not installed.
    """
    try:
        command = [uv.find_uv_bin(), *map(reveal, arguments)]
    except FileNotFoundError as error:
        raise EnvironmentFailed(f"uv is required to create environments ({error}); pip install uv") from error
    folder = environments_dir()
    folder.mkdir(parents=True, exist_ok=True)
    stderr = None if show_progress else subprocess.PIPE
    return subprocesses.run(command, variables(environment or {}), stderr=stderr, folder=folder)


def variables(additional: Mapping[str, str]) -> dict[str, str]:
    """Return uv's environment variables: those of the user that it inherits, and ``additional`` ones."""
    inherited = {name: value for name, value in os.environ.items() if _is_inherited(name)}
    selected = {**inherited, **additional, "UV_NO_CONFIG": "1"}
    return {name: _absolute(value, PATHS[name]) if name in PATHS else value for name, value in selected.items()}


def _is_inherited(name: str) -> bool:
    if name.startswith("UV_"):
        return name in INHERITED or INDEX_CREDENTIALS.fullmatch(name) is not None
    return name not in NOT_INHERITED


def _absolute(value: str, separator: str) -> str:
    """Make the relative paths in ``value`` absolute."""
    if not separator:
        return _absolute_path(value)
    return separator.join(_absolute_path(word) for word in value.split(separator))


def _absolute_path(word: str) -> str:
    # An index may have a name: NAME=ADDRESS.
    name, path = re.fullmatch(r"([\w.-]+=)?(.*)", word, re.DOTALL).groups(default="")  # type: ignore[union-attr]
    return word if not path.strip() or re.match(r"\w+:", path) else f"{name}{Path(path).absolute()}"


def _shorten(line: str) -> str:
    """Shorten a long line in its middle: the cause of a failure is often at its end, after two paths."""
    return line if len(line) <= 200 else f"{line[:100]} ... {line[-95:]}"


NOT_REASONS = ("Using ", "Resolved ", "Prepared ", "hint: ")
"""Beginnings of lines in uv's output that do not contain the reason of a failure."""


def failure_reason(result: subprocess.CompletedProcess[str]) -> str:
    """Return uv's error message as one line: what failed, and the two deepest causes."""
    if subprocesses.is_killed(result.returncode):
        return f"uv {subprocesses.ending(result.returncode)}"
    if result.stderr is None:
        return "see uv's message above"
    output = re.sub(r"\A.*?^(?=error: )", "", redact(result.stderr), flags=re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"^(error|cause): ", "", line.strip()) for line in output.splitlines()]
    lines = [line for line in lines if line and not line.startswith(NOT_REASONS)]
    reason = ": ".join(_shorten(line) for line in [*lines[:1], *lines[1:][-2:]])
    return reason.rstrip(".") or f"uv {subprocesses.ending(result.returncode)}"


def hash_mismatch(result: subprocess.CompletedProcess[str]) -> str:
    """Return the package whose file has another hash than its lock names; empty if uv failed for another reason."""
    found = re.search(r"Hash mismatch for `([^`]+)`", result.stderr or "")
    return found[1] if found else ""


def short_timeouts() -> dict[str, str]:
    """Return variables that make uv give up quickly on an index that does not answer. The user's have priority."""
    variables = {} if os.environ.get("UV_HTTP_RETRIES") else {"UV_HTTP_RETRIES": "0"}
    if not any(os.environ.get(name) for name in ("UV_HTTP_TIMEOUT", "UV_REQUEST_TIMEOUT", "HTTP_TIMEOUT")):
        variables["UV_HTTP_TIMEOUT"] = "10"
    return variables
