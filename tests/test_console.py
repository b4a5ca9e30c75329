"""Tables of words."""

from __future__ import annotations

import csv
from pathlib import Path

from gtdl_mlflow import console, files


def test_columns_stand_below_each_other_and_nothing_trails() -> None:
    assert console.aligned([["", "n", "note"], ["torch", "5", ""], ["mxnet 1.9", "10", "x"]]) == [
        "           n   note",
        "torch      5",
        "mxnet 1.9  10  x",
    ]


def test_csv_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [["a, b", 'say "c"'], ["two\nlines", "ü"]]
    files.write_csv(tmp_path / "table.csv", ["one", "other"], rows)
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["one", "other"], *rows]
