"""A password in a tracker's address goes where nothing prints it: Hydra shows overrides, MLflow a run's address."""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

VARIABLE = "MLFLOW_TRACKING_URI"


def hide(address: str | None = None) -> None:
    """Have ``address``, by default the one in the environment, in MLFLOW_TRACKING_URI, a server's without its password.

    A server's user name and password go into MLflow's own variables for them, which launchers' processes inherit.
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


def has_one(address: str) -> bool:
    """Whether there is a user name or password in it."""
    return re.search(r"\w://[^/@\s]+@", address) is not None
