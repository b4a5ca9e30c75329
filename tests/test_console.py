"""Messages and tables on the terminal."""

from __future__ import annotations

import pytest

from gtdl_mlflow import console


def test_columns_are_aligned_without_trailing_spaces() -> None:
    assert console.aligned([["", "n", "note"], ["torch", "5", ""], ["mxnet 1.9", "10", "x"]]) == [
        "           n   note",
        "torch      5",
        "mxnet 1.9  10  x",
    ]


def test_messages_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    console.info("all right")
    assert console.fail("no such data set", status=2) == 2
    assert capsys.readouterr() == ("", "gtdl: all right\ngtdl: no such data set\n")
