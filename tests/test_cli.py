"""``gtdl``: help, invalid requests, and the commands that only list."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from helpers.project import ROOT

import gtdl_mlflow
from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.cli import common
from gtdl_mlflow.config import choices

SUBCOMMANDS = {
    "env": ["list", "create", "packages", "remove"],
    "data": ["list", "fetch", "verify", "export"],
    "track": ["list", "replay"],
}


def test_commands_and_their_subcommands() -> None:
    assert set(cli.gtdl.commands) == {
        *("run", "sweep", "answer", "report", "compare", "check", "reproduction", "ui", "predict", "machine", "tune"),
        *("export", "merge", "publish"),
        *SUBCOMMANDS
    }  # fmt: skip
    for name, subcommands in SUBCOMMANDS.items():
        group = cli.gtdl.commands[name]
        assert isinstance(group, click.Group)
        assert list(group.commands) == subcommands


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"gtdl, version {gtdl_mlflow.__version__}\n"


def test_help_imports_no_library() -> None:
    code = (
        "import sys; from gtdl_mlflow.cli import __main__ as cli; assert cli.main(['--help']) == 0\n"
        "sys.exit(any(name in sys.modules for name in ('hydra', 'mlflow', 'numpy', 'torch')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "gtdl answer --minutes 10" in done.stdout


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
    assert "verify  Check every byte" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("env create nonsense", "framework=nonsense: expected one of caffe, "),
        ("env create torch training.decayed=all", "training.decayed: renamed; write training.weight_decay_on=VALUE"),
        ("env packages nonsense", "framework=nonsense: expected one of caffe, "),
        ("data fetch nonsense", "dataset=nonsense: expected one of att_faces, "),
        ("data fetch limits.fetch_timeout_s=5", "limits.fetch_timeout_s=5: expected the name of a data set too"),
        ("data fetch mnist limits.fetch_timeout_s=0", "limits.fetch_timeout_s=0.0: must be above 0"),
        ("data verify nonsense", "dataset=nonsense: expected one of att_faces, "),
        ("machine hardware.threads=0", "hardware.threads=0: must be at least 1"),
        ("answer minutes=0", "Invalid value for '--minutes': 0.0 is not in the range"),
        ("answer --minutes nan", "Invalid value for '--minutes': nan: expected a number above 0"),
        ("answer minutes=ten", "Invalid value for '--minutes': 'ten' is not a valid float"),
        ("repot", "No such command 'repot'"),
        ("report --ouput=x", "No such option '--ouput'. Did you mean '--output'?; see `gtdl report --help`"),
        ("report output=no_such_folder/x.html", "no_such_folder/x.html: the folder no_such_folder does not exist"),
        ("report output=tests", "tests: is a folder"),
        ("answer --minutes", "Option '--minutes' requires an argument; see `gtdl answer --help`"),
        ("compare torch", "Missing argument 'SECOND'; see `gtdl compare --help`"),
        ("check gtdl", "Invalid value for 'FILE...': File 'gtdl' does not exist; see `gtdl check --help`"),
        ("check json=maybe", "json=maybe: expected json=true, or nothing"),
        ("ui port=70000", "Invalid value for '--port': 70000 is not in the range"),
        ("answer framework=torch,nonsense", "framework=nonsense: expected one of caffe, "),
        (
            "answer minutes=5 --training.checkpoint_every 3",
            "training.checkpoint_every: renamed; write training.checkpoint_every_s=VALUE",
        ),
        ("answer =3", "=3: expected key=value"),
        ("answer 10", "10: a number needs its option, such as --minutes 10"),
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


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "fra"], ["framework="]),
        (["run", "framework=t"], ["framework=tensorflow", "framework=theano", "framework=tinygrad", "framework=torch"]),
        (["sweep", "framework=mxnet,cat", ""], []),
        (["sweep", "framework=mxnet,ca"], ["framework=mxnet,caffe"]),
        (["run", "setting=caffe_m"], ["setting=caffe_mnist"]),
        (["env", "create", "mx"], ["mxnet"]),
        (["data", "fetch", "cifar1"], ["cifar10", "cifar100"]),
        (["compare", "to"], ["torch"]),
        (["report", "--exp"], ["--experiment"]),
    ],
)
def test_completion(words: list[str], expected: list[str]) -> None:
    completion = ShellComplete(cli.gtdl, {}, "gtdl", "_GTDL_COMPLETE")
    found = [each.value for each in completion.get_completions(words[:-1], words[-1])]
    if words[-1]:
        assert found == expected


def test_completion_in_bash_where_the_equals_sign_is_a_word() -> None:
    completion = ShellComplete(cli.gtdl, {}, "gtdl", "_GTDL_COMPLETE")
    found = completion.get_completions(["run", "framework", "="], "to")
    assert [each.value for each in found] == ["torch"]


@pytest.mark.slow
@pytest.mark.parametrize("command", [["run"], ["sweep", "seed=0,1"]])
def test_run_and_sweep_are_the_hydra_application(store: str, tmp_path: Path, command: list[str]) -> None:
    words = ["framework=reference", "--budget", "0.02", "hardware=cpu_1core", "setting=reference_mnist"]
    program = [sys.executable, "-m", "gtdl_mlflow.cli", *command, *words]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("MLflow run ") == (1 if command == ["run"] else 2)
    wrong = subprocess.run([*program, "framework=nonsense"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("gtdl: framework=nonsense: expected one of")


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


@pytest.mark.parametrize("arguments", ["machine", "tune framework=reference setting=reference_mnist"])
def test_locks_folder_that_cannot_be_created_is_one_line(
    arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GTDL_LOCKS", "/dev/null/locks")
    assert cli.main(arguments.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("gtdl: locks folder /dev/null/locks could not be created: Not a directory; ")
    assert err.count("\n") == 1


def test_output_is_checked_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(common.CommandFailed, match=r"absent does not exist$") as failure:
        common.check_output(tmp_path / "absent" / "report.html")
    assert failure.value.status == 2
    common.check_output(tmp_path / "report.html")
    common.write_output(tmp_path / "report.html", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_interrupt_is_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gtdl_mlflow.config.compose_unchecked", interrupt)
    assert cli.main(["data", "verify", "mnist"]) == 130
    assert capsys.readouterr().err == "gtdl: interrupted\n"
