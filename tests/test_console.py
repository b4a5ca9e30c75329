"""Messages and tables on the terminal."""

from __future__ import annotations

import sys

import pytest

from gtdl_mlflow import console


def test_columns_are_aligned_without_trailing_spaces() -> None:
    assert console.aligned([["", "n", "note"], ["torch", "5", ""], ["mxnet 1.9", "10", "x"]]) == [
        "           n   note",
        "torch      5",
        "mxnet 1.9  10  x",
    ]


def test_a_message_replaces_the_status_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    console.status_line("reading")
    console.info("all right")
    console.status_line("drawing")
    console.output("done")
    clear = "\r\x1b[K"
    shown = capsys.readouterr()
    assert shown.err == f"{clear}reading{clear}gtdl: all right\n{clear}drawing{clear}"
    assert shown.out == "done\n"


def test_messages_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    console.info("all right")
    assert console.fail("no such data set", status=2) == 2
    assert capsys.readouterr() == ("", "gtdl: all right\ngtdl: no such data set\n")
