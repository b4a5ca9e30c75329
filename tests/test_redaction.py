"""Secrets of addresses are removed, and restored only for the address for which they were given."""

from __future__ import annotations

import os

import pytest

from gtdl_mlflow import config
from gtdl_mlflow.__main__ import to_overrides
from gtdl_mlflow.redaction import MEMORY, VARIABLE, conceal, has_secrets, redact, reveal


@pytest.fixture(autouse=True)
def no_known_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without concealed addresses, and forget those of the test."""
    monkeypatch.setenv(MEMORY, "")
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("postgresql://u:p@db/x", "postgresql://db/x"),
        ("postgresql://u:p@ss@db/x", "postgresql://db/x"),
        ("postgresql+psycopg://u:p@s/s@db:5432/x", "postgresql+psycopg://db:5432/x"),
        ("postgresql://u:p'w\"d@db/x", "postgresql://db/x"),
        ("postgresql://u:p:w?d#e@db/x", "postgresql://db/x"),
        ("mysql://u:@db/x", "mysql://db/x"),
        ("http://user:a/b@host", "http://host"),
        ("http://user:80/b@host", "http://host"),
        ("http://:password@host:5000/path", "http://host:5000/path"),
        ("https://tok@host", "https://host"),
        ("https://user:%40%2F@host", "https://host"),
        ("git+https://u:p@host/x@v1", "git+https://host/x@v1"),
        ("git+https://u:p@ss@host/x@v1", "git+https://host/x@v1"),
        ("git+https://u:a/b@host/x", "git+https://host/x"),
        (
            "no route from http://a:s3@one/x to https://b:s3@two/y (tried http://s3@three)",
            "no route from http://one/x to https://two/y (tried http://three)",
        ),
        ("uri=http://a:s3@one,http://b:s3@two/y", "uri=http://one,http://two/y"),
        ("{uri: http://a:s3@one:5000}", "{uri: http://one:5000}"),
        ("[http://a:s3@[::1]:80,http://b:s3@[::1]]", "[http://[::1]:80,http://[::1]]"),
        ("http://h/x?X-Amz-Signature=s3&X-Amz-Expires=60", "http://h/x?X-Amz-Signature=REDACTED&X-Amz-Expires=60"),
        ("url: /x.gz?token=s3 (Caused by it)", "url: /x.gz?token=REDACTED (Caused by it)"),
        ("urls=[http://h/x?sig=s3,http://h/y?sig=s4]", "urls=[http://h/x?sig=REDACTED,http://h/y?sig=REDACTED]"),
        ("https://h/b?sv=2024-01-01&sr=c&sig=a%2Bb%3D", "https://h/b?sv=2024-01-01&sr=c&sig=REDACTED"),
        ("https://h/a.gz?d=5f4dcc3b5aa765d61d8327deb882cf99", "https://h/a.gz?d=REDACTED"),
        ("https://h/#access_token=s3", "https://h/#access_token=REDACTED"),
        (
            "postgresql://db/x?user=ann&password=s3&sslmode=on",
            "postgresql://db/x?user=REDACTED&password=REDACTED&sslmode=on",
        ),
        ("'http://a:s@one/x', \"postgresql://b:p@ss@two/y\"", "'http://one/x', \"postgresql://two/y\""),
    ],
)
def test_credentials_are_removed(text: str, redacted: str) -> None:
    assert redact(text) == redacted
    assert has_secrets(text) == (text != redacted)
    assert redact(redacted) == redacted


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///x.db",
        "sqlite:////home/me@work/x.db",
        "http://127.0.0.1:5000",
        "https://host/path@v1",
        "https://plain/@scope",
        "git+https://host/x@v1",
        "file:///home/a:b@c/x",
        "s3://bucket/key@1",
        "sqlite:///x.db?timeout=30",
        "https://host/download?file=train-images-idx3-ubyte.gz",
        "https://host/x.whl#sha256=9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "torch==2.13.0",
        "me@example.org",
        '{"uri": "http://host:80/x","mail": "me@example.org"}',
        "",
    ],
)
def test_text_without_credentials_is_unchanged(text: str) -> None:
    assert redact(text) == text
    assert not has_secrets(text)


@pytest.mark.parametrize(
    ("override", "concealed"),
    [
        ("tracking.uri=http://a:s3@h:5000", "tracking.uri=http://h:5000"),
        ("++tracking.uri='http://a:s3@h:5000'", "++tracking.uri='http://h:5000'"),
        ('+tracking.uri="http://a:s3@h:5000"', '+tracking.uri="http://h:5000"'),
        ("~tracking.uri=http://a:s3@h:5000", "~tracking.uri=http://h:5000"),
        ("--tracking.uri=http://a:s3@h:5000", "tracking.uri=http://h:5000"),
        ("tracking={uri:http://a:s3@h:5000}", "tracking={uri:http://h:5000}"),
        ("tracking.uri=http://a:s3@h:5000,http://b:s4@i", "tracking.uri=http://h:5000,http://i"),
        ("tracking.uri=choice(http://a:s3@h,http://b:s4@i)", "tracking.uri=choice(http://h,http://i)"),
        ("hydra.sweeper.params={tracking.uri:'http://a:s3@h'}", "hydra.sweeper.params={tracking.uri:'http://h'}"),
        ('any.key=["http://a:s3@h/x?sig=s4"]', 'any.key=["http://h/x?sig=REDACTED"]'),
    ],
)
def test_every_spelling_of_an_override_is_concealed_and_restored(override: str, concealed: str) -> None:
    assert to_overrides([override]) == [concealed]
    assert reveal(concealed) == override.removeprefix("--")


def test_the_value_of_an_option_is_concealed() -> None:
    assert to_overrides(["--tracking.uri", "http://a:s3@h"]) == ["tracking.uri=http://h"]


def test_an_address_that_reads_its_password_from_the_environment_is_unchanged() -> None:
    assert conceal("tracking.uri=http://a:${oc.env:PASSWORD}@h") == "tracking.uri=http://a:${oc.env:PASSWORD}@h"


@pytest.mark.parametrize(
    ("address", "revealed"),
    [
        ("http://host:5000", "http://ann:s3@host:5000"),
        ("http://HOST:5000/mlflow", "http://ann:s3@HOST:5000/mlflow"),
        ("http://other:x@host:5000", "http://other:x@host:5000"),
        ("https://host:5000", "https://host:5000"),
        ("http://host", "http://host"),
        ("http://host:5001", "http://host:5001"),
        ("http://host.attacker:5000", "http://host.attacker:5000"),
        ("http://attacker/?http://host:5000", "http://attacker/?http://host:5000"),
        ("sqlite:///host:5000", "sqlite:///host:5000"),
    ],
)
@pytest.mark.parametrize("given", ["environment", "typed"])
def test_a_password_is_restored_for_its_scheme_host_and_port_only(
    given: str, address: str, revealed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if given == "environment":
        monkeypatch.setenv(VARIABLE, "http://ann:s3@host:5000/")
    else:
        assert conceal("http://ann:s3@host:5000/") == "http://host:5000/"
    assert reveal(address) == revealed


def test_the_default_port_is_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "https://ann:s3@host")
    assert reveal("https://host:443/x") == "https://ann:s3@host:443/x"
    assert reveal("https://host:80/x") == "https://host:80/x"


def test_a_signature_is_restored_for_its_own_address_only() -> None:
    hidden = conceal("http://host/x.gz?sig=s3")
    assert reveal(hidden) == "http://host/x.gz?sig=s3"
    assert reveal("http://host/y.gz?sig=REDACTED") == "http://host/y.gz?sig=REDACTED"


def test_the_last_typed_password_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "http://ann:s3@host")
    conceal("http://bob:s4@host")
    conceal("http://eve:s5@host")
    assert reveal("http://host") == "http://eve:s5@host"
    assert "bob" not in os.environ[MEMORY]


def test_no_password_reaches_mlflows_own_variables_or_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "http://ann:one-secret@host:5000")
    mirror = "dataset.downloads.test_labels.urls=['http://m:two-secret@mirror/x.gz?token=three-secret']"
    composed = config.compose_unchecked(["dataset=mnist", mirror])
    assert composed.tracking.uri == "http://host:5000"
    assert composed.dataset.downloads["test_labels"].urls == ["http://mirror/x.gz?token=REDACTED"]
    assert "-secret" not in str(composed)
    assert (
        reveal(composed.dataset.downloads["test_labels"].urls[0])
        == "http://m:two-secret@mirror/x.gz?token=three-secret"
    )
    assert os.environ[VARIABLE] == "http://ann:one-secret@host:5000"
    assert "MLFLOW_TRACKING_USERNAME" not in os.environ
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ


@pytest.mark.parametrize(
    "override", ["seed=http://m:one-secret@h/x", "framework=http://m:one-secret@h/x?sig=two-secret"]
)
def test_errors_about_the_configuration_have_no_secrets(override: str) -> None:
    with pytest.raises(config.ConfigError) as caught:
        config.compose_unchecked([override])
    assert "http://h/x" in str(caught.value)
    assert "-secret" not in str(caught.value)
