"""User names and passwords are removed from addresses."""

from __future__ import annotations

import os

import pytest

from gtdl_mlflow.redaction import VARIABLE, has_credentials, hide_credentials, redact

USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"


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
        ("'http://a:s@one/x', \"postgresql://b:p@ss@two/y\"", "'http://one/x', \"postgresql://two/y\""),
    ],
)
def test_credentials_are_removed(text: str, redacted: str) -> None:
    assert redact(text) == redacted
    assert has_credentials(text) == (text != redacted)
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
        "torch==2.13.0",
        "me@example.org",
        '{"uri": "http://host:80/x","mail": "me@example.org"}',
        "",
    ],
)
def test_text_without_credentials_is_unchanged(text: str) -> None:
    assert redact(text) == text
    assert not has_credentials(text)


def test_server_credentials_move_into_mlflows_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VARIABLE, USER, PASSWORD):
        monkeypatch.setenv(name, "")
    hide_credentials("https://ann:p%40ss@host:5000/mlflow")
    assert (os.environ[VARIABLE], os.environ[USER], os.environ[PASSWORD]) == ("https://host:5000/mlflow", "ann", "p@ss")


def test_credentials_of_the_current_address_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (USER, PASSWORD):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv(VARIABLE, "http://token@host")
    hide_credentials()
    assert (os.environ[VARIABLE], os.environ[USER], os.environ[PASSWORD]) == ("http://host", "token", "")


@pytest.mark.parametrize("address", ["postgresql://u:p@db/x", "sqlite:///x.db", "http://host:5000"])
def test_other_addresses_are_stored_as_they_are(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VARIABLE, USER, PASSWORD):
        monkeypatch.setenv(name, "")
    hide_credentials(address)
    assert (os.environ[VARIABLE], os.environ[USER], os.environ[PASSWORD]) == (address, "", "")


def test_no_address_is_set_where_there_was_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    hide_credentials()
    assert VARIABLE not in os.environ
