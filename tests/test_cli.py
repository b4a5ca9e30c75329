"""``gtdl``: help, wrong requests, and the commands that only list."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.project import ROOT

from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.cli import common
from gtdl_mlflow.config import choices

VERBS = {
    "env": ["list", "create", "packages", "remove"],
    "data": ["list", "fetch", "verify"],
    "track": ["list", "replay"],
}


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action.choices
    return {}


def test_commands_and_their_verbs() -> None:
    commands = subparsers(cli.parser())
    assert list(commands) == [*VERBS, "machine", "answer", "report", "compare", "reproduction", "check", "ui"]
    for name, verbs in VERBS.items():
        assert list(subparsers(commands[name])) == verbs


def test_help_imports_no_library() -> None:
    code = (
        "import sys; from gtdl_mlflow.cli import __main__ as cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit as end: assert end.code == 0\n"
        "sys.exit(any(name in sys.modules for name in ('hydra', 'mlflow', 'numpy', 'torch')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "COMMAND" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("arguments", ["env create nonsense", "data fetch nonsense", "answer framework=nonsense"])
def test_wrong_request_does_not_import_mlflow(arguments: str) -> None:
    code = (
        f"import sys; from gtdl_mlflow.cli import __main__ as cli; assert cli.main({arguments.split()}) == 2\n"
        "sys.exit('mlflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_module_runs_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gtdl_mlflow.cli", "data"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "VERB" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("env create nonsense", "framework=nonsense: expected one of caffe, "),
        ("env create torch training.decayed=all", "training.decayed: renamed to training.weight_decay_on"),
        ("env packages nonsense", "framework=nonsense: expected one of caffe, "),
        ("data fetch nonsense", "dataset=nonsense: expected one of att_faces, "),
        ("data fetch limits.fetch_timeout_s=5", "limits.fetch_timeout_s=5: expected the name of a data set too"),
        ("data fetch mnist limits.fetch_timeout_s=0", "limits.fetch_timeout_s=0.0: must be above 0"),
        ("data verify nonsense", "dataset=nonsense: expected one of att_faces, "),
        ("machine hardware.threads=0", "hardware.threads=0: must be at least 1"),
        ("answer minutes=0", "minutes=0: expected a number above 0, such as minutes=10"),
        ("answer minutes=nan", "minutes=nan: expected a number above 0, such as minutes=10"),
        ("answer framework=torch,nonsense", "framework=nonsense: expected one of caffe, "),
        (
            "answer minutes=5 --training.checkpoint_every 3",
            "training.checkpoint_every: renamed to training.checkpoint_every_s",
        ),
        ("answer =3", "=3: expected key=value"),
    ],
)
def test_wrong_request_is_one_line_and_status_2(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"gtdl: {message}")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_data_list_shows_every_data_set_and_its_state(
    cache_folders: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "list"]) == 0
    header, *rows, folder = capsys.readouterr().out.splitlines()
    assert header.split() == ["DATA", "SET", "IMAGES", "STATE"]
    assert [row.split()[0] for row in rows] == choices("dataset")
    cells = {row.split()[0]: re.split(" {2,}", row)[1:] for row in rows}
    assert cells["mnist"] == ["60,000 + 10,000", "not downloaded, not prepared"]
    assert cells["mnist_5k"] == ["4,000 + 1,000", "built in, not prepared"]
    assert cells["att_faces"][0] == "5 + 5 per class, 40 classes"
    assert folder == f"folder: {tmp_path / 'data'} (GTDL_DATA), a subfolder per data set"


def test_track_list_without_undelivered_runs(cache_folders: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["track", "list"]) == 0
    assert capsys.readouterr().out == "no undelivered runs\n"


def test_missing_output_folder_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(common.CommandFailed, match=r"report\.html: No such file or directory$") as failure:
        common.write_output(tmp_path / "absent" / "report.html", "text")
    assert failure.value.status == 1
    common.write_output(tmp_path / "report.html", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_interrupt_is_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gtdl_mlflow.config.compose", interrupt)
    assert cli.main(["data", "verify", "mnist"]) == 130
    assert capsys.readouterr().err == "gtdl: interrupted\n"
