"""Translation of pip's settings for uv, and of uv's for pip."""

from __future__ import annotations

from pathlib import Path

import pytest

from gtdl_mlflow.environments import pip_settings
from gtdl_mlflow.environments.pip_settings import for_pip, parse, translate


def test_later_sections_take_precedence_and_empty_values_are_ignored() -> None:
    listing = r"""
:env:.find-links='/env'
:env:.index-url=''
:env:.default-timeout='180'
download.index-url='https://download'
global.find-links='/global'
global.index-url='https://global'
install.index-url='https://install'
global.extra-index-url='https://one\nhttps://two  https://three'
a line without a value
"""
    assert parse(listing) == {
        "find-links": "/env",
        "index-url": "https://install",
        "timeout": "180",
        "extra-index-url": "https://one\nhttps://two  https://three",
    }


def test_all_settings_are_translated_for_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("wheels", "more"):
        (tmp_path / name).mkdir()
    settings = translate(
        {
            "index-url": "https://ann:pw@index/simple",
            "extra-index-url": "https://one\nhttps://two",
            "find-links": f"{tmp_path}/wheels ~/more {tmp_path}/absent https://page",
            "constraint": "~/c.txt d.txt",
            "trusted-host": "one two:8080",
            "cert": "~/ca.pem",
            "client-cert": "/me.pem",
            "proxy": "http://proxy:3128",
            "timeout": "15.0",
            "no-index": "true",
            "quiet": "1",
        },
        {},
    )
    assert settings.environment == {
        "UV_DEFAULT_INDEX": "https://ann:pw@index/simple",
        "UV_INDEX": "https://one https://two",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": f"{tmp_path}/wheels,{tmp_path}/more,https://page",
        "UV_CONSTRAINT": f"{tmp_path}/c.txt d.txt",
        "UV_INSECURE_HOST": "one two:8080",
        "SSL_CERT_FILE": f"{tmp_path}/ca.pem",
        "SSL_CLIENT_CERT": "/me.pem",
        "ALL_PROXY": "http://proxy:3128",
        "UV_HTTP_TIMEOUT": "15",
    }
    assert settings.arguments == ["--no-index"]


def test_no_settings_translate_to_none() -> None:
    assert translate({"no-index": "false"}, {}) == ({}, [])


@pytest.mark.parametrize(
    ("option", "variable"),
    [
        ("index-url", "UV_DEFAULT_INDEX"),
        ("index-url", "UV_INDEX_URL"),
        ("extra-index-url", "UV_INDEX"),
        ("extra-index-url", "UV_EXTRA_INDEX_URL"),
        ("find-links", "UV_FIND_LINKS"),
        ("constraint", "UV_CONSTRAINT"),
        ("trusted-host", "UV_INSECURE_HOST"),
        ("timeout", "UV_HTTP_TIMEOUT"),
        ("proxy", "ALL_PROXY"),
    ],
)
def test_uvs_own_settings_take_precedence(option: str, variable: str) -> None:
    assert translate({option: "https://pip"}, {}).environment
    assert translate({option: "https://pip"}, {variable: "uv's own"}).environment == {}


def test_uvs_settings_are_translated_for_pip() -> None:
    environ = {
        "UV_DEFAULT_INDEX": "https://index/simple",
        "UV_INDEX_URL": "https://older/simple",
        "UV_INDEX": "company=https://one https://two/?a=b",
        "UV_FIND_LINKS": "/wheels,https://page",
        "UV_INSECURE_HOST": "one two",
        "UV_CACHE_DIR": "/cache",
    }
    assert for_pip(environ) == {
        "PIP_INDEX_URL": "https://index/simple",
        "PIP_EXTRA_INDEX_URL": "https://one https://two/?a=b",
        "PIP_FIND_LINKS": "/wheels https://page",
        "PIP_TRUSTED_HOST": "one two",
    }
    assert for_pip({"UV_INDEX_URL": "", "PIP_INDEX_URL": "https://index"}) == {}


def test_pips_configuration_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.conf").write_text("[global]\nextra-index-url =\n    https://one\n    https://two\n")
    for variable in ("UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://index")
    environment = pip_settings.for_uv().environment
    assert environment["UV_INDEX"] == "https://one https://two"
    assert environment["UV_DEFAULT_INDEX"] == "https://index"


def test_sources_in_uvs_own_files_are_read(tmp_path: Path) -> None:
    user, system = tmp_path / "user" / "uv", tmp_path / "system" / "uv"
    for folder in (user, system):
        folder.mkdir(parents=True)
    (user / "uv.toml").write_text("""
        required-version = "<0.5"
        override-dependencies = ["numpy==1"]
        cache-dir = "cache"
        native-tls = true
        [[index]]
        name = "company"
        url = "https://company/simple"
        [[index]]
        url = "https://default/simple"
        default = true
        [[index]]
        url = "wheels"
        format = "flat"
        [[index]]
        name = "torch"
        url = "https://torch/simple"
        explicit = true
        [pip]
        target = "vendored"
        allow-insecure-host = ["company"]
    """)
    (system / "uv.toml").write_text('extra-index-url = ["https://mirror/simple"]\nnative-tls = false\n')
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "user"), "XDG_CONFIG_DIRS": str(tmp_path / "system")}
    assert pip_settings.read_uv_files(environ) == (
        {
            "UV_DEFAULT_INDEX": "https://default/simple",
            "UV_INDEX": "company=https://company/simple https://mirror/simple",
            "UV_FIND_LINKS": str(user / "wheels"),
            "UV_CACHE_DIR": str(user / "cache"),
            "UV_NATIVE_TLS": "true",
            "UV_INSECURE_HOST": "company",
        },
        False,
    )
    own = {"UV_INDEX_URL": "https://mine", "UV_INDEX": "https://mine", "UV_CACHE_DIR": "/mine"}
    assert set(pip_settings.read_uv_files({**environ, **own})[0]) == {
        "UV_FIND_LINKS",
        "UV_NATIVE_TLS",
        "UV_INSECURE_HOST",
    }
    assert pip_settings.read_uv_files({**environ, "UV_NO_CONFIG": "1"}) == ({}, False)
    (tmp_path / "own.toml").write_text("no-index = true\n")
    assert pip_settings.read_uv_files({**environ, "UV_CONFIG_FILE": str(tmp_path / "own.toml")}) == ({}, True)
    (tmp_path / "own.toml").write_text("no table\n")
    with pytest.raises(pip_settings.SettingsUnreadable, match=r"own\.toml"):
        pip_settings.read_uv_files({"UV_CONFIG_FILE": str(tmp_path / "own.toml")})


@pytest.mark.parametrize(
    ("settings", "environ", "expected"),
    [
        (
            {"cert": "/pip.pem"},
            {"REQUESTS_CA_BUNDLE": "/r.pem", "SSL_CERT_FILE": "/s.pem"},
            {"SSL_CERT_FILE": "/pip.pem"},
        ),
        ({}, {"REQUESTS_CA_BUNDLE": "/r.pem", "CURL_CA_BUNDLE": "/c.pem"}, {"SSL_CERT_FILE": "/r.pem"}),
        ({}, {"CURL_CA_BUNDLE": "/c.pem", "SSL_CERT_FILE": "/s.pem"}, {"SSL_CERT_FILE": "/c.pem"}),
        ({}, {"REQUESTS_CA_BUNDLE": "/"}, {"SSL_CERT_DIR": "/"}),
        ({}, {"SSL_CERT_FILE": "/s.pem", "SSL_CERT_DIR": "/"}, {}),  # inherited by uv
    ],
)
def test_certificates_are_those_that_pip_uses(
    settings: dict[str, str], environ: dict[str, str], expected: dict[str, str]
) -> None:
    assert translate(settings, environ).environment == expected


def test_invalid_configuration_of_pip_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pip.conf").write_text("no section\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    with pytest.raises(pip_settings.SettingsUnreadable, match="pip config list") as failed:
        pip_settings.for_uv()
    assert "\n" not in str(failed.value)
