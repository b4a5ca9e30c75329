"""Redaction of addresses: conceal secrets in everything that is printed or stored, and restore them for requests.

Command lines and configurations are redacted when they are read (``conceal``), so that Hydra, MLflow and the process
list get no secret. The code that opens an address restores it (``reveal``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

VARIABLE = "MLFLOW_TRACKING_URI"

MEMORY = "GTDL_CREDENTIALS"
"""Variable with the concealed addresses, separated by spaces. The processes of launchers inherit it, workers do not."""

_NEXT = r",[\w+.-]+://"
"""A comma ends an address only if another address follows."""

_WORD = rf"(?:(?!{_NEXT})(?:[^\s'\"]|['\"](?=[\w@])))*"
"""Rest of an address. A quote before punctuation or a space ends it."""

_USER = re.compile(
    rf"""
    # pip's address of a repository ends with a revision: git+https://user:password@host/repository@v1
    (\b(?:git|hg|svn|bzr)\+\w+://) [^\s'"/]*@
    |
    # After a user name, the password may contain "@", "/" and quotes: they end at the last "@" of the address.
    (\w://) (?: [^\s'"/:]*:{_WORD}@ | [^\s'"/]*@ )
    """,
    re.VERBOSE,
)

_PARAMETER = re.compile(rf"""([?&;\#])([^\s?&;\#='"<>]+)=((?:(?!{_NEXT}|;\s|;[\w.-]+=)[^\s&'"<>\])}}])+)""", re.VERBOSE)
"""A parameter of an address, with or without the address: errors of HTTP libraries quote the path alone."""

_SECRET_NAME = re.compile(
    r"pass|pwd|secret|token|sig|key|credential|auth|sas|session|jwt|code|ticket|policy|private|user|login|otp",
    re.IGNORECASE,
)

_SECRET_VALUE = re.compile(r"(?=.*[A-Za-z])(?=.*\d)[^.]{16,}")
"""A value that may be a secret whatever its name; a file name has a dot."""

_HIDDEN = "REDACTED"

_ADDRESS = re.compile(rf"[A-Za-z][\w+.-]*://{_WORD}")

_ORIGIN = re.compile(r"([\w+.-]+)://(\[[\da-f:.]+\]|[\w.-]+)(?::(\d+))?", re.IGNORECASE)

_PORTS = {"http": "80", "https": "443", "postgresql": "5432", "mysql": "3306"}


def redact(text: str) -> str:
    """Return ``text`` without user names and passwords of addresses, and without secret parameters of their queries.

    Where a password cannot be distinguished from a port and a path that contains "@", both are removed.
    """
    return _PARAMETER.sub(_redact_parameter, _USER.sub(r"\1\2", text))


def _redact_parameter(match: re.Match[str]) -> str:
    separator, name, value = match.groups()
    # A fragment may be the checksum of a package.
    secret = _SECRET_NAME.search(name) or (separator != "#" and _SECRET_VALUE.fullmatch(value))
    return f"{separator}{name}={_HIDDEN}" if secret else match[0]


def has_secrets(text: str) -> bool:
    """Return whether ``redact`` changes ``text``."""
    return redact(text) != text


def conceal(text: str) -> str:
    """Return ``text`` redacted. ``reveal`` restores its addresses, in this process and in those that it starts.

    An address that reads its secret from elsewhere, such as ``${oc.env:PASSWORD}``, is not changed.
    """
    return _each_address(text, _conceal_address)


def _conceal_address(address: str) -> str:
    hidden = redact(address)
    if hidden == address or "${" in address:
        return address
    known = os.environ.get(MEMORY, "").split()
    os.environ[MEMORY] = " ".join([address, *(each for each in known if redact(each) != hidden)])
    return hidden


def conceal_all(value: Any) -> Any:
    """Return ``value`` with every text in its dataclasses, dictionaries and lists concealed.

    Dataclasses are changed, dictionaries and lists are copied.
    """
    if isinstance(value, str):
        return conceal(value) if "://" in value else value
    if isinstance(value, dict):
        return {key: conceal_all(item) for key, item in value.items()}
    if isinstance(value, list):
        return [conceal_all(item) for item in value]
    if is_dataclass(value):
        for field in fields(value):
            object.__setattr__(value, field.name, conceal_all(getattr(value, field.name)))
    return value


def reveal(text: str) -> str:
    """Return ``text`` with the secrets of its addresses, as far as they are known.

    They are known from MLFLOW_TRACKING_URI and from what was concealed. A user name and a password are restored only
    for the scheme, host and port for which they were given.
    """
    return _each_address(text, _reveal_address)


def _reveal_address(address: str) -> str:
    known = [each for each in (*os.environ.get(MEMORY, "").split(), os.environ.get(VARIABLE, "")) if has_secrets(each)]
    for full in known:
        if redact(full) == address:
            return full
    for full in known:
        credentials = _USER.match(full, full.index("://") - 1)
        if credentials and not has_secrets(address) and _origin(address) == _origin(redact(full)) is not None:
            scheme, _, rest = address.partition("://")
            return f"{scheme}{credentials[0][1:]}{rest}"
    return address


def _origin(address: str) -> tuple[str, str, str] | None:
    """Return scheme, host and port; None for a file."""
    match = _ORIGIN.match(address)
    if match is None:
        return None
    scheme, host, port = (part.lower() if part else "" for part in match.groups())
    return scheme, host, port or _PORTS.get(scheme.partition("+")[0], "")


def _each_address(text: str, change: Callable[[str], str]) -> str:
    def replace(match: re.Match[str]) -> str:
        address, rest = match[0], ""
        for opening, closing in ("[]", "()", "{}") * 2:  # brackets around the address, not those of an IPv6 host
            while address.endswith(closing) and address.count(closing) > address.count(opening):
                address, rest = address[:-1], closing + rest
        return change(address) + rest

    return _ADDRESS.sub(replace, text)
