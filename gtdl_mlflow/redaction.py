"""Remove user names and passwords from addresses before they are printed or stored."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

VARIABLE = "MLFLOW_TRACKING_URI"

# A password may itself hold "@", and after a user name also "/": the credentials end at the last "@" of the word.
_CREDENTIALS = re.compile(r"(\w://)(?:[^\s'\"/:]*:[^\s'\"]*@|[^\s'\"/]*@)")


def redact(text: str) -> str:
    """Return ``text`` without the user names and passwords of the addresses in it."""
    return _CREDENTIALS.sub(r"\1", text)


def has_credentials(address: str) -> bool:
    """Return whether ``address`` holds a user name or a password."""
    return _CREDENTIALS.search(address) is not None


def hide_credentials(address: str | None = None) -> None:
    """Set MLFLOW_TRACKING_URI to ``address`` (default: its current value), without the credentials of a server.

    A server's user name and password go into MLflow's own variables, which the processes of launchers inherit. A
    database's address keeps its credentials: MLflow has no other place for them.
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
