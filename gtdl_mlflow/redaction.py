"""Remove user names and passwords from addresses before they are printed or stored."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

VARIABLE = "MLFLOW_TRACKING_URI"

_CREDENTIALS = re.compile(
    r"""
    # pip's address of a repository ends with a revision: git+https://user:password@host/repository@v1
    (\b(?:git|hg|svn|bzr)\+\w+://) [^\s'"/]*@
    |
    # After a user name, the password may contain "@", "/" and quotes: the credentials end at the last "@" of the word.
    # A quote before punctuation or a space ends the word.
    (\w://) (?: [^\s'"/:]*:(?:[^\s'"]|['"](?=[\w@]))*@ | [^\s'"/]*@ )
    """,
    re.VERBOSE,
)


def redact(text: str) -> str:
    """Return ``text`` without the user names and passwords of the addresses in it.

    Where a password cannot be distinguished from a port and a path that contains "@", both are removed.
    """
    return _CREDENTIALS.sub(r"\1\2", text)


def has_credentials(address: str) -> bool:
    """Return whether ``address`` contains a user name or a password."""
    return _CREDENTIALS.search(address) is not None


def hide_credentials(address: str | None = None) -> None:
    """Set MLFLOW_TRACKING_URI to ``address`` (default: its current value), without the credentials of a server.

    A server's user name and password go into MLflow's own variables, which the processes of launchers inherit. A
    database's address keeps its credentials: MLflow has no other variable for them.
    """
    address = os.environ.get(VARIABLE) if address is None else address
    if not address:
        return
    parts = urlsplit(address)
    if parts.scheme in ("http", "https") and parts.username:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
        address = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    os.environ[VARIABLE] = address
