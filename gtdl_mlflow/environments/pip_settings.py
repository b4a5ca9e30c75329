"""Translate pip's settings (indexes, find-links, constraints, certificates) for uv, and uv's for pip.

uv does not read pip's configuration: without this, a company's index or a folder of wheels that pip uses would be
missed. The user's settings for uv itself have priority. uv reads no configuration file here, because one could change
what is installed. This module reads uv's files of the user and of the system, for the settings that say where packages
come from; those of the working directory belong to another project.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..redaction import redact

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SECTIONS = ("global", "install", ":env:")
"""Sections of pip's configuration, lowest precedence first. Other commands' (download, wheel) do not apply here."""

ALIASES = {"default-timeout": "timeout", "pypi-url": "index-url"}
"""Second names of pip's options; a configuration may use either."""


UV_SETTINGS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "index-strategy": "UV_INDEX_STRATEGY",
    "keyring-provider": "UV_KEYRING_PROVIDER",
    "allow-insecure-host": "UV_INSECURE_HOST",
    "native-tls": "UV_NATIVE_TLS",
    "system-certs": "UV_SYSTEM_CERTS",
    "offline": "UV_OFFLINE",
    "cache-dir": "UV_CACHE_DIR",
    "python-install-mirror": "UV_PYTHON_INSTALL_MIRROR",
    "python-downloads": "UV_PYTHON_DOWNLOADS",
    "python-downloads-json-url": "UV_PYTHON_DOWNLOADS_JSON_URL",
    "python-preference": "UV_PYTHON_PREFERENCE",
}
"""Settings of a uv.toml for the sources of packages and interpreters, and the corresponding variables of uv."""

SEPARATORS = {"UV_FIND_LINKS": ","}
"""Separators of several values in one of uv's variables; the default is a space."""


class SettingsUnreadable(Exception):
    """Settings of pip or uv that cannot be read. An installation without them could use the wrong index."""


class UvSettings(NamedTuple):
    """What to add to uv's environment variables and to the arguments of ``uv pip install``."""

    environment: dict[str, str]
    arguments: list[str]


def for_uv() -> UvSettings:
    """Return the settings that pip would use, for uv, and those of uv's own files.

    Takes 0.5 s, because pip runs in a process of its own.

    Raises:
        SettingsUnreadable: the configuration of pip or uv is invalid.
    """
    result = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise SettingsUnreadable(f"pip's settings could not be read ({redact(lines[-1])}); run `pip config list`")
    own, no_index = read_uv_files(os.environ)
    environment, arguments = translate(parse(result.stdout), {**own, **os.environ})
    return UvSettings({**own, **environment}, ["--no-index"] if no_index else arguments)


def read_uv_files(environ: Mapping[str, str]) -> tuple[dict[str, str], bool]:
    """Return the sources of packages in uv's configuration files, as variables, and whether no index may be used.

    Variables that ``environ`` sets are left out.

    Raises:
        SettingsUnreadable: a file is not valid.
    """
    values: dict[str, list[str]] = {}
    no_index = False
    for path in _uv_files(environ):
        try:
            settings = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise SettingsUnreadable(f"uv's settings could not be read ({path}: {error})") from error
        own: dict[str, list[str]] = {}
        for table in (settings.get("pip"), settings):  # [pip] has precedence for `uv pip`
            if isinstance(table, dict):
                no_index |= table.get("no-index") is True
                for variable, words in _sources(table, path.parent):
                    own.setdefault(variable, words)
        for variable, words in own.items():
            if variable in ("UV_INDEX", "UV_FIND_LINKS"):  # the user's come before the system's
                values.setdefault(variable, []).extend(words)
            else:
                values.setdefault(variable, words)
    aliases = {"UV_DEFAULT_INDEX": "UV_INDEX_URL", "UV_INDEX": "UV_EXTRA_INDEX_URL"}
    return {
        variable: SEPARATORS.get(variable, " ").join(words)
        for variable, words in values.items()
        if words and not environ.get(variable) and not environ.get(aliases.get(variable, ""))
    }, no_index


def _uv_files(environ: Mapping[str, str]) -> list[Path]:
    """Return uv's configuration files of the user and of the system, highest precedence first."""
    if environ.get("UV_NO_CONFIG", "").lower() in {"1", "true", "yes", "on"}:
        return []
    if chosen := environ.get("UV_CONFIG_FILE"):
        return [Path(chosen).absolute()]
    user = Path(environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
    system = [Path(folder) for folder in (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep) if folder]
    files = [*(folder / "uv" / "uv.toml" for folder in system), Path("/etc/uv/uv.toml")]
    return [user / "uv" / "uv.toml", *[path for path in files if path.is_file()][:1]]


def _sources(table: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield uv's variables, and their values, for the settings in a table of a uv.toml in ``folder``."""

    def location(value: object) -> str:
        return str(value) if re.match(r"\w+:", str(value)) else str(folder / str(value))

    def words(setting: str) -> list[str]:
        value = table.get(setting, [])
        return [str(word).lower() if isinstance(word, bool) else str(word) for word in _as_list(value)]

    indexes = [each for each in _as_list(table.get("index", [])) if isinstance(each, dict) and "url" in each]
    flat = [location(each["url"]) for each in indexes if each.get("format") == "flat"]
    others = [each for each in indexes if each.get("format") != "flat" and not each.get("explicit")]
    named = [(f"{each['name']}=" if "name" in each else "") + location(each["url"]) for each in others]
    if default := [name for name, each in zip(named, others, strict=True) if each.get("default")]:
        yield "UV_DEFAULT_INDEX", default[:1]
    extra = [name for name, each in zip(named, others, strict=True) if not each.get("default")]
    if extra:
        yield "UV_INDEX", [*extra, *map(location, words("extra-index-url"))]
    if flat:
        yield "UV_FIND_LINKS", [*flat, *map(location, words("find-links"))]
    for setting, variable in UV_SETTINGS.items():
        if values := words(setting):
            is_location = setting in ("index-url", "extra-index-url", "find-links", "cache-dir")
            yield variable, [location(word) for word in values] if is_location else values


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def parse(listing: str) -> dict[str, str]:
    """Return the value that ``pip install`` would use for each option in the output of ``pip config list``."""
    values: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in listing.splitlines():
        key, equals, literal = line.partition("=")
        section, dot, option = key.rpartition(".")
        if not (equals and dot and section in values):
            continue
        try:
            value = str(ast.literal_eval(literal))
        except (ValueError, SyntaxError):
            value = literal
        # Like pip, ignore an empty value and use that of the next lower section.
        if value.strip():
            values[section][ALIASES.get(option, option)] = value
    return {option: value for section in SECTIONS for option, value in values[section].items()}


def translate(settings: Mapping[str, str], environ: Mapping[str, str]) -> UvSettings:
    """Return pip's ``settings`` for uv, without those that ``environ`` already sets for uv."""
    environment: dict[str, str] = {}

    def export(variable: str, value: str, *, unless: tuple[str, ...] = ()) -> None:
        if value and not any(environ.get(name) for name in (variable, *unless)):
            environment[variable] = value

    def words(option: str) -> list[str]:
        return settings.get(option, "").split()

    def path(option: str) -> str:
        return os.path.expanduser(settings.get(option, "").strip())  # noqa: PTH111 (may be empty, which a Path cannot)

    # As environment variables: an index's address may contain a password, and `ps` shows all users the arguments.
    export("UV_DEFAULT_INDEX", settings.get("index-url", "").strip(), unless=("UV_INDEX_URL",))
    export("UV_INDEX", " ".join(words("extra-index-url")), unless=("UV_EXTRA_INDEX_URL",))
    if "UV_INDEX" in environment:
        # pip takes the best version of all indexes. uv by default reads only the first index that has the package, so
        # a company's index that mirrors some versions of a package would hide the others.
        export("UV_INDEX_STRATEGY", "unsafe-best-match")
    export("UV_FIND_LINKS", ",".join(_existing_find_links(words("find-links"))))
    export("UV_CONSTRAINT", " ".join(os.path.expanduser(word) for word in words("constraint")))  # noqa: PTH111 (or URL)
    export("UV_INSECURE_HOST", " ".join(words("trusted-host")))
    timeout_s = settings.get("timeout", "").partition(".")[0].strip()
    export("UV_HTTP_TIMEOUT", timeout_s, unless=("UV_REQUEST_TIMEOUT", "HTTP_TIMEOUT"))
    # In pip's order. SSL_CERT_FILE and SSL_CERT_DIR apply to both programs where none of these is set.
    certificates = path("cert") or environ.get("REQUESTS_CA_BUNDLE") or environ.get("CURL_CA_BUNDLE") or ""
    if certificates:
        is_folder = Path(certificates).is_dir()
        environment["SSL_CERT_DIR" if is_folder else "SSL_CERT_FILE"] = certificates
    export("SSL_CLIENT_CERT", path("client-cert"))
    export("ALL_PROXY", settings.get("proxy", "").strip(), unless=("all_proxy",))

    no_index = settings.get("no-index", "").strip().lower() in {"1", "true", "yes", "on", "y", "t"}
    return UvSettings(environment, ["--no-index"] if no_index else [])


def _existing_find_links(locations: list[str]) -> list[str]:
    """Return the addresses and the existing folders. pip ignores a folder that does not exist; uv would fail."""
    existing = []
    for location in locations:
        if "://" in location:
            existing.append(location)
        elif (folder := Path(location).expanduser()).is_dir():
            existing.append(str(folder))
    return existing


def for_pip(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that ``environ`` has for uv, as environment variables for pip."""
    settings: dict[str, str] = {}
    for variable, option in (
        ("UV_DEFAULT_INDEX", "PIP_INDEX_URL"),
        ("UV_INDEX_URL", "PIP_INDEX_URL"),
        ("UV_INDEX", "PIP_EXTRA_INDEX_URL"),
        ("UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL"),
        ("UV_FIND_LINKS", "PIP_FIND_LINKS"),
        ("UV_INSECURE_HOST", "PIP_TRUSTED_HOST"),
    ):
        if value := environ.get(variable, "").strip():
            words = re.split(r"[\s,]+", value) if variable == "UV_FIND_LINKS" else value.split()
            # uv's indexes may have names: name=https://...
            settings.setdefault(option, " ".join(re.sub(r"^[\w.-]+=(?=\w+:)", "", word) for word in words))
    return settings
