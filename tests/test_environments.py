"""Real uv and real virtual environments, filled from tiny packages that are built here: no network."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import psutil
import pytest
import uv
from helpers.project import ROOT
from helpers.wheels import HERE, wait_for, write_wheel

from gtdl_mlflow import cli, config, environments
from gtdl_mlflow.environments import EnvironmentFailed, ensure, list_environments, remove
from gtdl_mlflow.files import cache_dir

# A driver of its own: makes the environment that its argument describes, and prints its folder.
MAKER = """
import json, sys
from types import SimpleNamespace
from gtdl_mlflow import environments
wanted = json.loads(sys.argv[1], object_hook=lambda values: values and SimpleNamespace(**values))
wanted.devices = vars(wanted.devices)
made = environments.ensure(wanted, "cpu")
print(json.dumps([str(made.python), made.python_version]))
"""


def write_slow_source(folder: Path) -> None:
    """``slow`` 1.0 as a source package: building it says so in $SLOW_LOG and then takes $SLOW_S seconds."""
    folder.mkdir(exist_ok=True)
    write_wheel(folder.parent / "inside", "slow", "1.0")
    built = folder.parent / "inside" / "slow-1.0-py3-none-any.whl"
    backend = f"""
        import os, shutil, time
        def build_wheel(place, config_settings=None, metadata_directory=None):
            with open(os.environ["SLOW_LOG"], "a") as log:
                log.write("building\\n")
            time.sleep(float(os.environ["SLOW_S"]))
            return shutil.copy({str(built)!r}, place).rpartition("/")[2]
    """
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "slow"\nversion = "1.0"\n',
        "PKG-INFO": "Metadata-Version: 2.2\nName: slow\nVersion: 1.0\n",
        "backend.py": textwrap.dedent(backend),
    }
    with tarfile.open(folder / "slow-1.0.tar.gz", "w:gz") as source:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"slow-1.0/{name}")
            entry.size = len(text.encode())
            source.addfile(entry, io.BytesIO(text.encode()))


@pytest.fixture(autouse=True)
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``tiny`` 1.0 and 2.0, the only thing that pip knows of; this machine's own settings are out."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    folder = tmp_path / "wheels"
    write_wheel(folder, "tiny", "1.0")
    write_wheel(folder, "tiny", "2.0")
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def framework(
    *recipes: config.Recipe | str, version: str = "1.0", preferred: str = HERE, supported: str = ">=3.8"
) -> config.Framework:
    made = [recipe if isinstance(recipe, config.Recipe) else config.Recipe([recipe]) for recipe in recipes]
    return config.Framework(
        name="tiny",
        version=version,
        adapter="nowhere:Nothing",
        python=config.Python(preferred, supported),
        devices={"cpu": config.DeviceSupport(recipes=made or [config.Recipe([f"tiny=={version}"])])},
    )


def start_maker(
    python: str = sys.executable, *, requirement: str = "slow==1.0", preferred: str = HERE
) -> subprocess.Popen[str]:
    wanted = {
        "name": "tiny",
        "version": "1.0",
        "python": {"preferred": preferred, "supported": ">=3.8"},
        "devices": {
            "cpu": {
                "unavailable": "",
                "recipes": [
                    {"requirements": [requirement], "options": [], "note": "", "system": {}, "build": None},
                ],
            }
        },
    }
    root = str(ROOT)
    return subprocess.Popen(
        [python, "-c", MAKER, json.dumps(wanted)],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def installed_version(python: Path) -> str:
    return subprocess.check_output([python, "-c", "import tiny; print(tiny.version)"], text=True).strip()


def test_made_once_then_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = framework(preferred="3.99")  # absent: choosing another one takes questions to uv
    made = ensure(wanted, "cpu")
    assert made.folder
    assert installed_version(made.python) == "1.0"
    assert made.packages == ["tiny==1.0"]
    assert made.python == made.folder / "bin" / "python"
    assert re.fullmatch(r"tiny-1\.0-cpu-[0-9a-f]{10}", made.folder.name)

    def no_process(*arguments: object, **options: object) -> None:
        raise AssertionError("a finished environment is found without starting anything")

    monkeypatch.setattr(subprocess, "Popen", no_process)
    assert ensure(wanted, "cpu") == made
    assert list_environments() == [made]


def test_no_recipe_means_the_drivers_own_interpreter() -> None:
    plain = framework()
    plain.devices["cpu"].recipes = []
    own = ensure(plain, "cpu")
    assert own.folder is None
    assert own.python == Path(sys.executable)
    assert any(package.startswith("pytest==") for package in own.packages)
    assert list_environments() == []


def test_a_device_it_cannot_use_says_why() -> None:
    plain = framework()
    plain.devices["gpu"] = config.DeviceSupport(unavailable="it was never built for one")
    with pytest.raises(EnvironmentFailed, match="tiny cannot run on gpu: it was never built for one"):
        ensure(plain, "gpu")
    with pytest.raises(EnvironmentFailed, match="tiny says nothing about device tpu, only about: cpu, gpu"):
        ensure(plain, "tpu")


def test_two_versions_side_by_side_and_removed_together() -> None:
    one, two = ensure(framework(version="1.0"), "cpu"), ensure(framework(version="2.0"), "cpu")
    assert [installed_version(made.python) for made in (one, two)] == ["1.0", "2.0"]
    assert list_environments() == [one, two]
    assert remove("tin") == []
    assert remove("tiny") == [one.folder, two.folder]
    assert list_environments() == []
    assert not one.python.exists()


def test_another_pin_is_another_environment() -> None:
    one = ensure(framework("tiny"), "cpu")
    two = ensure(framework("tiny<2"), "cpu")
    assert one.folder != two.folder
    assert [made.packages for made in (one, two)] == [["tiny==2.0"], ["tiny==1.0"]]


def test_an_environment_whose_interpreter_is_gone_is_made_anew() -> None:
    made = ensure(framework(), "cpu")
    made.python.unlink()
    made.python.symlink_to("/nowhere/python")
    assert list_environments() == []
    assert installed_version(ensure(framework(), "cpu").python) == "1.0"


def test_first_recipe_out_of_reach_takes_the_second_with_its_note(capfd: pytest.CaptureFixture[str]) -> None:
    second = config.Recipe(["tiny==1.0"], note="this one is larger")
    made = ensure(framework(config.Recipe(["tiny==1.0+cpu"], note="never said"), second), "cpu")
    assert made.requirements == ["tiny==1.0"]
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 4
    assert "tiny==1.0+cpu cannot be had" in said[1]
    assert said[2] == "gtdl: tiny: this one is larger"


def test_first_recipe_in_reach_is_taken_alone(capfd: pytest.CaptureFixture[str]) -> None:
    made = ensure(framework("tiny==2.0", config.Recipe(["tiny==1.0"], note="never said")), "cpu")
    assert made.packages == ["tiny==2.0"]
    assert len(capfd.readouterr().err.splitlines()) == 2  # making, made


def test_a_recipe_that_fails_while_installing_leaves_nothing_to_the_next(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_slow_source(wheels)
    monkeypatch.setenv("SLOW_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("SLOW_S", "not a number: the build fails")
    made = ensure(framework("slow", config.Recipe(["tiny==1.0"], note="the other way")), "cpu")
    assert made.packages == ["tiny==1.0"]
    assert "gtdl: tiny: the other way" in capfd.readouterr().err


def test_all_recipes_failing_is_one_line_about_each_and_leaves_nothing() -> None:
    with pytest.raises(EnvironmentFailed) as failed:
        ensure(framework("tiny==8", "tiny==9"), "cpu")
    reason = str(failed.value)
    assert "\n" not in reason
    assert "tiny==8 cannot be had" in reason
    assert "tiny==9 cannot be had" in reason
    assert reason.endswith("gtdl env create tiny")
    assert list_environments() == []
    assert not [path for path in (cache_dir() / "environments").iterdir() if path.is_dir()]


def test_an_index_that_does_not_answer_is_given_up_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the port of "discard": nobody listens
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")  # the user's own word: for the last recipe too
    with pytest.raises(EnvironmentFailed, match=r"127\.0\.0\.1:9"):
        ensure(framework("absent==1", "absent==2"), "cpu")


def test_credentials_are_never_shown_or_kept(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://ann:s3cret@127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(EnvironmentFailed) as failed:
        ensure(framework("absent==1", "absent @ http://ann:s3cret@127.0.0.1:9/absent-1-py3-none-any.whl"), "cpu")
    captured = capfd.readouterr()
    assert "127.0.0.1:9" in str(failed.value)
    assert "s3cret" not in f"{failed.value}{captured.out}{captured.err}"


def test_pips_configuration_reaches_uv_and_uvs_own_word_wins(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    (tmp_path / "pip.conf").write_text(f"[global]\nfind-links = {wheels}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    assert ensure(framework("tiny"), "cpu").packages == ["tiny==2.0"]
    remove("tiny")

    write_wheel(tmp_path / "other", "tiny", "1.5")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "other"))
    assert ensure(framework("tiny"), "cpu").packages == ["tiny==1.5"]


def test_two_processes_at_once_make_it_once(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_slow_source(wheels)
    log = tmp_path / "log"
    monkeypatch.setenv("SLOW_LOG", str(log))
    monkeypatch.setenv("SLOW_S", "2")
    first = start_maker()
    wait_for(log)
    second = start_maker()
    (out, err), (other_out, other_err) = first.communicate(timeout=60), second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0), err + other_err
    assert out == other_out
    assert err.count("gtdl: made") == 1
    assert "gtdl: making" not in other_err
    assert other_err.count("gtdl: waiting for another process") == 1
    assert log.read_text() == "building\n"


def test_a_kill_halfway_leaves_nothing_that_looks_finished(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_slow_source(wheels)
    log = tmp_path / "log"
    monkeypatch.setenv("SLOW_LOG", str(log))
    monkeypatch.setenv("SLOW_S", "20")
    maker = start_maker()
    wait_for(log)
    below = psutil.Process(maker.pid).children(recursive=True)
    assert any(process.name() == "uv" for process in below)
    maker.kill()
    if sys.platform == "linux":  # the build that uv started, too
        assert psutil.wait_procs(below, timeout=5)[1] == []
    for process in below:
        if process.is_running():
            process.kill()
    maker.communicate()
    [half] = (cache_dir() / "environments").glob("tiny-*-cpu-??????????")
    assert (half / "bin" / "python").exists()
    assert list_environments() == []

    monkeypatch.setenv("SLOW_S", "0")
    made = ensure(framework("slow==1.0"), "cpu")
    assert made.folder == half
    assert made.packages == ["slow==1.0"]


def test_an_interrupt_takes_the_half_made_folder_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(python: Path) -> list[str]:
        assert python.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(environments, "_freeze", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure(framework(), "cpu")
    assert not [path for path in (cache_dir() / "environments").iterdir() if path.is_dir()]


def test_a_half_made_folder_is_removed_too() -> None:
    half = cache_dir() / "environments" / "tiny-1.0-cpu-0123456789"
    half.mkdir(parents=True)
    assert list_environments() == []
    assert remove("tiny") == [half]


def test_a_home_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "file"))
    with pytest.raises(EnvironmentFailed, match="GTDL_HOME to another folder") as failed:
        ensure(framework(), "cpu")
    assert "\n" not in str(failed.value)


def test_no_uv_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> str:
        raise FileNotFoundError("/nowhere/uv")

    monkeypatch.setattr(uv, "find_uv_bin", absent)
    with pytest.raises(EnvironmentFailed, match="uv, which makes the environments, is not installed"):
        ensure(framework(), "cpu")


# Which Python


def other_pythons() -> dict[str, str]:
    """Interpreters on this machine that are not of the driver's version, by version: asked of uv, and of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser() / "versions"
    search = os.pathsep.join([os.environ["PATH"], *map(str, pyenv.glob("*/bin"))])
    listed = subprocess.run(
        [uv.find_uv_bin(), "python", "list", "--only-installed", "--offline", "--output-format", "json"],
        env={**os.environ, "PATH": search},
        capture_output=True,
        text=True,
        check=True,
    )
    found = {}
    for python in json.loads(listed.stdout):
        minor = f"{python['version_parts']['major']}.{python['version_parts']['minor']}"
        if python["implementation"] == "cpython" and python["variant"] == "default" and "shims" not in python["path"]:
            found[minor] = python["path"]
    return {minor: path for minor, path in found.items() if minor != HERE}


def test_the_preferred_python_is_found_past_the_drivers_environment() -> None:
    others = other_pythons()
    if not others:
        pytest.skip(f"no Python but {HERE} is installed")
    minor = next(iter(others))
    made = ensure(framework(preferred=minor), "cpu")
    assert made.python_version.startswith(f"{minor}.")
    assert installed_version(made.python) == "1.0"
    # The same one is found again, and the driver's own version is another environment.
    assert ensure(framework(preferred=minor), "cpu") == made
    assert ensure(framework(supported=f"=={HERE}.*"), "cpu").folder != made.folder


def test_the_drivers_version_is_taken_where_the_preferred_one_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    made = ensure(framework(preferred="3.99"), "cpu")
    assert made.python_version.startswith(f"{HERE}.")


def test_no_python_that_fits_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    with pytest.raises(EnvironmentFailed, match=r"tiny needs a Python >=3\.98 \(best: 3\.99\)") as failed:
        ensure(framework(preferred="3.99", supported=">=3.98"), "cpu")
    assert "\n" not in str(failed.value)
    assert list_environments() == []


def test_a_3_12_driver_makes_a_3_11_environment(tmp_path: Path) -> None:
    pythons = {HERE: sys.executable, **other_pythons()}
    missing = {"3.11", "3.12"} - pythons.keys()
    if missing:
        pytest.skip(f"no Python {' and '.join(sorted(missing))} installed")
    driver = tmp_path / "driver"
    subprocess.run(
        [uv.find_uv_bin(), "venv", "--quiet", "--no-project", "--python", pythons["3.12"], driver], check=True
    )
    # What the driver needs is pure Python but for uv, which it looks for beside its own interpreter.
    [packages] = (driver / "lib").glob("python*/site-packages")
    (packages / "tests.pth").write_text(str(Path(uv.__file__).parents[1]))
    (driver / "bin" / "uv").symlink_to(uv.find_uv_bin())
    maker = start_maker(str(driver / "bin" / "python"), requirement="tiny==2.0", preferred="3.11")
    out, err = maker.communicate(timeout=60)
    assert maker.returncode == 0, err
    python, version = json.loads(out)
    assert version.startswith("3.11.")
    assert installed_version(Path(python)) == "2.0"


# gtdl env


def test_list_and_remove(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "list"]) == 0
    assert "no environment" in capsys.readouterr().out
    made = ensure(framework(), "cpu")
    assert made.folder
    assert cli.main(["env", "list"]) == 0
    header, row, place = capsys.readouterr().out.splitlines()
    assert header.split() == ["FRAMEWORK", "VERSION", "DEVICE", "PYTHON", "SIZE", "FOLDER"]
    assert row.split()[:4] == ["tiny", "1.0", "cpu", made.python_version]
    assert row.endswith(made.folder.name)
    assert f"GTDL_HOME={cache_dir()}" in place
    assert cli.main(["env", "remove", "tinny"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "gtdl: no environment of tinny to remove; there are environments of: tiny"
    ]
    assert cli.main(["env", "remove", "tiny"]) == 0
    assert capsys.readouterr().out == f"removed {made.folder}\n"
    assert list_environments() == []


def test_create_composes_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "create", "reference"]) == 0
    assert "needs no environment" in capsys.readouterr().out
    needs = "framework.devices.cpu.recipes=[{requirements:[%s]}]"
    assert cli.main(["env", "create", "reference", needs % "'tiny==2.0'"]) == 0
    [made] = list_environments()
    assert capsys.readouterr().out.endswith(f": {made.folder}\n")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["refference"], 2), (["reference", "framework.devices.cpu.recipes=[{requirements:[absent]}]"], 1)],
)
def test_create_fails_in_one_line(arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "create", *arguments]) == status
    *progress, reason = capsys.readouterr().err.splitlines()
    assert reason.startswith("gtdl: ")
    assert "reference" in reason
    assert all(line.startswith("gtdl: making") for line in progress)
