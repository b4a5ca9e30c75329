"""Run uv, which creates the environments and installs packages into them."""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from collections.abc import Mapping, Sequence

import uv

from ..redaction import redact, reveal
from . import subprocesses
from .environment import EnvironmentFailed


def run(
    arguments: Sequence[str], environment: Mapping[str, str] | None = None, *, show_progress: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run uv to its end. With ``show_progress``, its standard error goes to the terminal and is not in the result.

    Raises:
        EnvironmentFailed: uv is not installed.
    """
    try:
        command = [uv.find_uv_bin(), *map(reveal, arguments)]
    except FileNotFoundError as error:
        raise EnvironmentFailed(f"uv is required to create environments ({error}); pip install uv") from error
    stderr = None if show_progress else subprocess.PIPE
    return subprocesses.run(command, {**os.environ, **(environment or {})}, stderr=stderr)


def failure_reason(result: subprocess.CompletedProcess[str]) -> str:
    """Return uv's error message as one line: what failed, and the two deepest causes."""
    if result.stderr is None:
        return "see uv's message above"
    lines = [re.sub(r"^(error|cause): ", "", line.strip()) for line in redact(result.stderr).splitlines()]
    lines = [line for line in lines if line and not line.startswith(("Using ", "Resolved ", "Prepared ", "hint: "))]
    reason = ": ".join(textwrap.shorten(line, 200, placeholder=" ...") for line in [*lines[:1], *lines[1:][-2:]])
    return reason.rstrip(".") or f"uv exited with status {result.returncode}"


def short_timeouts() -> dict[str, str]:
    """Return variables that make uv give up quickly on an index that does not answer. The user's have priority."""
    variables = {} if os.environ.get("UV_HTTP_RETRIES") else {"UV_HTTP_RETRIES": "0"}
    if not any(os.environ.get(name) for name in ("UV_HTTP_TIMEOUT", "UV_REQUEST_TIMEOUT", "HTTP_TIMEOUT")):
        variables["UV_HTTP_TIMEOUT"] = "10"
    return variables
