"""Environments, created by the real uv from tiny packages that the tests build. No network."""

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
from helpers.project import ROOT, wait_until
from helpers.wheels import DRIVER_PYTHON, write_wheel

from gtdl_mlflow import config
from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.environments import EnvironmentFailed, create, ensure, list_environments, remove
from gtdl_mlflow.files import cache_dir

pytestmark = pytest.mark.slow

# Script of another driver: creates the environment of a framework that is given as JSON, and prints its interpreter.
CREATE = """
import json, sys
from types import SimpleNamespace
from gtdl_mlflow import environments
framework = json.loads(sys.argv[1], object_hook=lambda values: values and SimpleNamespace(**values))
framework.devices = vars(framework.devices)
environment = environments.ensure(framework, "cpu")
print(json.dumps([str(environment.python), environment.python_version]))
"""


def write_slow_source(folder: Path) -> None:
    """Write the source package ``slow`` 1.0: its build adds a line to $SLOW_LOG and then takes $SLOW_S seconds."""
    folder.mkdir(exist_ok=True)
    write_wheel(folder.parent / "built", "slow", "1.0")
    built = folder.parent / "built" / "slow-1.0-py3-none-any.whl"
    backend = f"""
        import os, shutil, time
        def build_wheel(folder, config_settings=None, metadata_directory=None):
            with open(os.environ["SLOW_LOG"], "a") as log:
                log.write("building\\n")
            time.sleep(float(os.environ["SLOW_S"]))
            return shutil.copy({str(built)!r}, folder).rpartition("/")[2]
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
    """A folder with ``tiny`` 1.0 and 2.0, the only source of packages; this machine's settings are removed."""
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
    *recipes: config.Recipe | str,
    version: str = "1.0",
    preferred: str = DRIVER_PYTHON,
    supported: str = ">=3.8",
    adapter: str = "json:loads",
) -> config.Framework:
    all_recipes = [recipe if isinstance(recipe, config.Recipe) else config.Recipe([recipe]) for recipe in recipes]
    return config.Framework(
        name="tiny",
        version=version,
        adapter=adapter,
        python=config.Python(preferred, supported),
        devices={"cpu": config.DeviceSupport(recipes=all_recipes or [config.Recipe([f"tiny=={version}"])])},
    )


def start_driver(
    python: str = sys.executable, *, requirement: str = "slow==1.0", preferred: str = DRIVER_PYTHON
) -> subprocess.Popen[str]:
    recipe = {"requirements": [requirement], "options": [], "lock": "", "note": "", "system": {}, "build": None}
    values = {
        "name": "tiny",
        "version": "1.0",
        "adapter": "json:loads",
        "python": {"preferred": preferred, "supported": ">=3.8"},
        "tuning": {},
        "devices": {"cpu": {"unavailable": "", "recipes": [recipe]}},
    }
    return subprocess.Popen(
        [python, "-c", CREATE, json.dumps(values)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def installed_version(python: Path) -> str:
    return subprocess.check_output([python, "-c", "import tiny; print(tiny.version)"], text=True).strip()


def folders() -> list[Path]:
    """Return the folders of all environments, complete or not."""
    return [path for path in (cache_dir() / "environments").iterdir() if path.is_dir()]


def test_environment_is_created_once_and_then_found_without_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = framework(preferred="3.99")  # not installed: uv has to search for another one
    created = ensure(tiny, "cpu")
    assert created.folder
    assert installed_version(created.python) == "1.0"
    assert created.packages == ["tiny==1.0"]
    assert created.python == created.folder / "bin" / "python"
    assert re.fullmatch(r"tiny-1\.0-cpu-[0-9a-f]{10}", created.folder.name)

    def no_process(*arguments: object, **options: object) -> None:
        raise AssertionError("a process was started for a complete environment")

    monkeypatch.setattr(subprocess, "Popen", no_process)
    assert ensure(tiny, "cpu") == created
    assert list_environments() == [created]


def test_framework_without_recipes_uses_the_drivers_interpreter() -> None:
    plain = framework()
    plain.devices["cpu"].recipes = []
    own = ensure(plain, "cpu")
    assert own.folder is None
    assert own.python == Path(sys.executable)
    assert any(package.startswith("pytest==") for package in own.packages)
    assert list_environments() == []


def test_unavailable_device_is_refused_with_its_reason() -> None:
    tiny = framework()
    tiny.devices["gpu"] = config.DeviceSupport(unavailable="it is built for the CPU only")
    with pytest.raises(EnvironmentFailed, match="tiny cannot run on gpu: it is built for the CPU only"):
        ensure(tiny, "gpu")
    with pytest.raises(EnvironmentFailed, match="tiny does not define device tpu; defined: cpu, gpu"):
        ensure(tiny, "tpu")


def test_versions_have_separate_environments_that_are_removed_together() -> None:
    one, two = ensure(framework(version="1.0"), "cpu"), ensure(framework(version="2.0"), "cpu")
    assert [installed_version(each.python) for each in (one, two)] == ["1.0", "2.0"]
    assert list_environments() == [one, two]
    assert remove("tin") == []
    assert remove("tiny") == [one.folder, two.folder]
    assert list_environments() == []
    assert not one.python.exists()


def test_another_requirement_creates_another_environment() -> None:
    one = ensure(framework("tiny"), "cpu")
    two = ensure(framework("tiny<2"), "cpu")
    assert one.folder != two.folder
    assert [each.packages for each in (one, two)] == [["tiny==2.0"], ["tiny==1.0"]]


def test_environment_without_its_base_interpreter_is_created_again() -> None:
    created = ensure(framework(), "cpu")
    created.python.unlink()
    created.python.symlink_to("/nowhere/python")
    assert list_environments() == []
    assert installed_version(ensure(framework(), "cpu").python) == "1.0"


def test_second_recipe_is_installed_where_the_first_is_not_available(capfd: pytest.CaptureFixture[str]) -> None:
    second = config.Recipe(["tiny==1.0"], note="this one is larger")
    created = ensure(framework(config.Recipe(["tiny==1.0+cpu"], note="not printed"), second), "cpu")
    assert created.requirements == ["tiny==1.0"]
    creating, failure, note, done = capfd.readouterr().err.splitlines()
    assert creating.startswith("gtdl: creating tiny 1.0 (cpu, Python ")
    assert failure.startswith("gtdl: tiny==1.0+cpu could not be installed: ")
    assert note == "gtdl: tiny: this one is larger"
    assert done.startswith("gtdl: created tiny 1.0 in ")


def test_second_recipe_is_ignored_where_the_first_is_available(capfd: pytest.CaptureFixture[str]) -> None:
    created = ensure(framework("tiny==2.0", config.Recipe(["tiny==1.0"], note="not printed")), "cpu")
    assert created.packages == ["tiny==2.0"]
    assert len(capfd.readouterr().err.splitlines()) == 2  # creating, created


def test_recipe_that_fails_during_installation_leaves_no_files(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_slow_source(wheels)
    monkeypatch.setenv("SLOW_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("SLOW_S", "not a number: the build fails")
    created = ensure(framework("slow", config.Recipe(["tiny==1.0"], note="the second recipe")), "cpu")
    assert created.packages == ["tiny==1.0"]
    assert "gtdl: tiny: the second recipe" in capfd.readouterr().err


def test_failure_of_all_recipes_is_one_line_with_each_reason() -> None:
    with pytest.raises(EnvironmentFailed) as failed:
        ensure(framework("tiny==8", "tiny==9"), "cpu")
    reason = str(failed.value)
    assert "\n" not in reason
    assert "tiny==8 could not be installed" in reason
    assert "tiny==9 could not be installed" in reason
    assert reason.endswith("gtdl env create tiny")
    assert folders() == []


def test_unreachable_index_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the port of "discard": no server
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")  # the user's setting applies to the last recipe too
    with pytest.raises(EnvironmentFailed, match=r"127\.0\.0\.1:9"):
        ensure(framework("absent==1", "absent==2"), "cpu")


def test_credentials_are_not_printed(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://ann:s3cret@127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    with pytest.raises(EnvironmentFailed) as failed:
        ensure(framework("absent==1", "absent @ http://ann:s3cret@127.0.0.1:9/absent-1-py3-none-any.whl"), "cpu")
    captured = capfd.readouterr()
    assert "127.0.0.1:9" in str(failed.value)
    assert "s3cret" not in f"{failed.value}{captured.out}{captured.err}"


def test_uv_uses_pips_configuration_unless_it_has_its_own(
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


def test_two_drivers_create_an_environment_once(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_slow_source(wheels)
    log = tmp_path / "log"
    monkeypatch.setenv("SLOW_LOG", str(log))
    monkeypatch.setenv("SLOW_S", "2")
    first = start_driver()
    wait_until(log.exists, "the build starts", first)
    second = start_driver()
    (out, err), (other_out, other_err) = first.communicate(timeout=60), second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0), err + other_err
    assert out == other_out
    assert err.count("gtdl: created") == 1
    assert "gtdl: creating" not in other_err
    assert other_err.count("gtdl: waiting: another process is creating") == 1
    assert log.read_text() == "building\n"


def test_killed_driver_leaves_no_process_and_no_complete_environment(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_slow_source(wheels)
    log = tmp_path / "log"
    monkeypatch.setenv("SLOW_LOG", str(log))
    monkeypatch.setenv("SLOW_S", "20")
    driver = start_driver()
    wait_until(log.exists, "the build starts", driver)
    descendants = psutil.Process(driver.pid).children(recursive=True)
    assert any(process.name() == "uv" for process in descendants)
    driver.kill()
    if sys.platform == "linux":  # the build that uv started, too
        assert psutil.wait_procs(descendants, timeout=5)[1] == []
    for process in descendants:
        if process.is_running():
            process.kill()
    driver.communicate(timeout=30)
    [incomplete] = (cache_dir() / "environments").glob("tiny-*-cpu-??????????")
    assert (incomplete / "bin" / "python").exists()
    assert list_environments() == []

    monkeypatch.setenv("SLOW_S", "0")
    created = ensure(framework("slow==1.0"), "cpu")
    assert created.folder == incomplete
    assert created.packages == ["slow==1.0"]


def test_interrupt_removes_the_incomplete_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(python: Path) -> list[str]:
        assert python.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(create, "_freeze", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ensure(framework(), "cpu")
    assert folders() == []


def test_incomplete_folder_is_removed_too() -> None:
    incomplete = cache_dir() / "environments" / "tiny-1.0-cpu-0123456789"
    incomplete.mkdir(parents=True)
    assert list_environments() == []
    assert remove("tiny") == [incomplete]


def test_unwritable_cache_directory_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "file"))
    with pytest.raises(EnvironmentFailed, match="GTDL_HOME to another folder") as failed:
        ensure(framework(), "cpu")
    assert "\n" not in str(failed.value)


def test_missing_uv_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> str:
        raise FileNotFoundError("/nowhere/uv")

    monkeypatch.setattr(uv, "find_uv_bin", absent)
    with pytest.raises(EnvironmentFailed, match=r"uv is required to create environments .*; pip install uv"):
        ensure(framework(), "cpu")


# The choice of a Python


def other_pythons() -> dict[str, str]:
    """Return this machine's interpreters of other versions than the driver's, by version, as uv and pyenv list them."""
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
    return {minor: path for minor, path in found.items() if minor != DRIVER_PYTHON}


def test_preferred_python_is_found_outside_the_drivers_environment() -> None:
    others = other_pythons()
    if not others:
        pytest.skip(f"no Python but {DRIVER_PYTHON} is installed")
    minor = next(iter(others))
    created = ensure(framework(preferred=minor), "cpu")
    assert created.python_version.startswith(f"{minor}.")
    assert installed_version(created.python) == "1.0"
    # The same environment is found again, and the driver's own version has another one.
    assert ensure(framework(preferred=minor), "cpu") == created
    assert ensure(framework(supported=f"=={DRIVER_PYTHON}.*"), "cpu").folder != created.folder


def test_drivers_python_is_used_where_the_preferred_one_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    created = ensure(framework(preferred="3.99"), "cpu")
    assert created.python_version.startswith(f"{DRIVER_PYTHON}.")


def test_missing_supported_python_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_PYTHON_DOWNLOADS", "never")
    with pytest.raises(EnvironmentFailed, match=r"tiny requires Python >=3\.98 \(preferred: 3\.99\)") as failed:
        ensure(framework(preferred="3.99", supported=">=3.98"), "cpu")
    assert "\n" not in str(failed.value)
    assert list_environments() == []


def test_3_12_driver_creates_a_3_11_environment(tmp_path: Path) -> None:
    pythons = {DRIVER_PYTHON: sys.executable, **other_pythons()}
    missing = {"3.11", "3.12"} - pythons.keys()
    if missing:
        pytest.skip(f"no Python {' and '.join(sorted(missing))} installed")
    venv = tmp_path / "venv"
    subprocess.run([uv.find_uv_bin(), "venv", "--quiet", "--no-project", "--python", pythons["3.12"], venv], check=True)
    # The driver's requirements are pure Python but for uv, which searches its program beside its own interpreter.
    [packages] = (venv / "lib").glob("python*/site-packages")
    (packages / "tests.pth").write_text(str(Path(uv.__file__).parents[1]))
    (venv / "bin" / "uv").symlink_to(uv.find_uv_bin())
    driver = start_driver(str(venv / "bin" / "python"), requirement="tiny==2.0", preferred="3.11")
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 0, err
    python, version = json.loads(out)
    assert version.startswith("3.11.")
    assert installed_version(Path(python)) == "2.0"


# gtdl env


def test_environments_are_listed_and_removed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "list"]) == 0
    assert "no environment" in capsys.readouterr().out
    created = ensure(framework(), "cpu")
    assert created.folder
    assert cli.main(["env", "list"]) == 0
    header, row, folder = capsys.readouterr().out.splitlines()
    assert header.split() == ["FRAMEWORK", "VERSION", "DEVICE", "PYTHON", "SIZE", "FOLDER"]
    assert row.split()[:4] == ["tiny", "1.0", "cpu", created.python_version]
    assert row.endswith(created.folder.name)
    assert f"GTDL_HOME={cache_dir()}" in folder
    assert cli.main(["env", "remove", "tinny"]) == 1
    [reason] = capsys.readouterr().err.splitlines()
    assert reason.startswith("gtdl: no environment of tinny")
    assert "tiny" in reason.split()
    assert cli.main(["env", "remove", "tiny"]) == 0
    assert capsys.readouterr().out == f"removed {created.folder}\n"
    assert list_environments() == []


def test_env_create_composes_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "create", "reference"]) == 0
    assert "needs no environment" in capsys.readouterr().out
    recipes = "framework.devices.cpu.recipes=[{requirements:['tiny==2.0']}]"
    assert cli.main(["env", "create", "reference", recipes, "framework.adapter=json:loads"]) == 0
    [created] = list_environments()
    assert capsys.readouterr().out.endswith(f": {created.folder}\n")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(["refference"], 2), (["reference", "framework.devices.cpu.recipes=[{requirements:[absent]}]"], 1)],
)
def test_env_create_fails_in_one_line(arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "create", *arguments]) == status
    *progress, reason = capsys.readouterr().err.splitlines()
    assert reason.startswith("gtdl: ")
    assert "reference" in reason
    assert all(line.startswith("gtdl: creating") for line in progress)
