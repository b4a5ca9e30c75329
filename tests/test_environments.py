"""Environments, created by the real uv from tiny packages that the tests build. No network."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import tarfile
import textwrap
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import uv
from helpers.project import ROOT, wait_until
from helpers.wheels import DRIVER_PYTHON, write_wheel

from gtdl_mlflow import config
from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.environments import (
    EnvironmentFailed,
    create,
    ensure,
    find,
    list_environments,
    locks,
    remove,
    uv_command,
)
from gtdl_mlflow.environments.environment import environments_dir
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
        "modes": {},
        "default_mode": "",
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


# What decides the contents

PROJECTS = {
    "override": ("pyproject.toml", '[tool.uv]\noverride-dependencies = ["tiny==2.0"]\n'),
    "target": ("uv.toml", '[pip]\ntarget = "vendored"\n'),
    "no dependencies": ("uv.toml", "[pip]\nno-deps = true\n"),
    "another uv": ("uv.toml", 'required-version = "<0.5"\n'),
    "not a file of uv": ("uv.toml", "no table\n"),
}


def pair(wheels: Path) -> config.Framework:
    """A framework that requires ``tiny`` in version 1."""
    write_wheel(wheels, "pair", "1.0", requires="tiny<2")
    return framework("pair==1.0")


@pytest.mark.parametrize("project", PROJECTS)
def test_settings_of_uv_in_the_working_directory_do_not_apply(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: str
) -> None:
    name, text = PROJECTS[project]
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / name).write_text(text)
    monkeypatch.chdir(tmp_path / "project")
    assert ensure(pair(wheels), "cpu").packages == ["pair==1.0", "tiny==1.0"]
    assert [path.name for path in (tmp_path / "project").iterdir()] == [name]


def test_users_uv_toml_says_where_packages_come_from_and_not_which(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "uv").mkdir()
    settings = f'required-version = "<0.5"\n[pip]\nno-deps = true\ntarget = "x"\nfind-links = ["{wheels}"]\n'
    (tmp_path / "uv" / "uv.toml").write_text(settings)
    assert ensure(pair(wheels), "cpu").packages == ["pair==1.0", "tiny==1.0"]
    assert [path.name for path in (tmp_path / "uv").iterdir()] == ["uv.toml"]


def test_variables_that_would_change_what_is_installed_are_ignored(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "override.txt").write_text("tiny==2.0\n")
    for name, value in {
        "UV_OVERRIDE": str(tmp_path / "override.txt"),
        "UV_BUILD_CONSTRAINT": str(tmp_path / "absent.txt"),
        "UV_CONFIG_FILE": os.devnull,
        "UV_TARGET": str(tmp_path / "target"),
        "UV_PREFIX": str(tmp_path / "prefix"),
        "UV_NO_DEPS": "1",
        "UV_RESOLUTION": "lowest",
        "UV_EXCLUDE_NEWER": "2001-01-01",
        "UV_SYSTEM_PYTHON": "1",
        "UV_PYTHON": "3.99",
        "UV_PROJECT": str(tmp_path / "absent"),
        "UV_WORKING_DIR": str(tmp_path / "absent"),
        "UV_REQUIRE_HASHES": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert ensure(pair(wheels), "cpu").packages == ["pair==1.0", "tiny==1.0"]
    assert not (tmp_path / "target").exists()
    assert not (tmp_path / "prefix").exists()


@pytest.mark.parametrize("variable", ["PIP_FIND_LINKS", "UV_FIND_LINKS"])
def test_relative_folder_of_wheels_is_one_in_the_working_directory(
    wheels: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.chdir(wheels.parent)
    monkeypatch.setenv(variable, wheels.name)
    assert ensure(framework(), "cpu").packages == ["tiny==1.0"]


@pytest.fixture
def locked(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> config.Framework:
    """A framework that requires any version of ``tiny``; its lock has 1.0."""
    write_wheel(wheels, "pair", "1.0", requires="tiny")
    (tmp_path / "locks").mkdir()
    monkeypatch.setattr(locks, "locks_dir", lambda: tmp_path / "locks")
    write_lock(tmp_path / "locks" / "pair.txt", wheels)
    return framework(config.Recipe(["pair==1.0"], lock="pair"))


def write_lock(path: Path, wheels: Path, *, platform: str = "", python: str = DRIVER_PYTHON) -> None:
    lines = [f"# platform: {platform or locks.current_platform()}", f"# python: 3.99 {python}"]
    for name in ("pair", "tiny"):
        sha256 = hashlib.sha256((wheels / f"{name}-1.0-py3-none-any.whl").read_bytes()).hexdigest()
        lines.append(f"{name}==1.0 \\\n    --hash=sha256:{sha256}")
    path.write_text("\n".join(lines) + "\n")


def test_lock_decides_the_versions_of_all_packages(
    locked: config.Framework, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(tmp_path / "other", "tiny", "999.0")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{os.environ['PIP_FIND_LINKS']} {tmp_path / 'other'}")
    (tmp_path / "constraints.txt").write_text("tiny>=2\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "constraints.txt"))
    created = ensure(locked, "cpu")
    assert created.packages == ["pair==1.0", "tiny==1.0"]
    assert created.locked == "versions and hashes"
    assert find(locked, "cpu") == created


def test_file_with_another_hash_is_refused_unless_hashes_are_off(
    locked: config.Framework, wheels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(wheels, "tiny", "1.0", code="rebuilt = True\n")
    locked.devices["cpu"].recipes.append(config.Recipe(["tiny==2.0"]))  # must not be a way around the lock
    with pytest.raises(EnvironmentFailed, match=r"the file of tiny==1\.0 has another hash") as failed:
        ensure(locked, "cpu")
    assert "GTDL_VERIFY_HASHES=0" in str(failed.value)
    assert "\n" not in str(failed.value)
    assert folders() == []
    monkeypatch.setenv("GTDL_VERIFY_HASHES", "0")
    created = ensure(locked, "cpu")
    assert created.packages == ["pair==1.0", "tiny==1.0"]
    assert created.locked == "versions"
    monkeypatch.delenv("GTDL_VERIFY_HASHES")
    assert find(locked, "cpu") is None  # an unverified environment does not count where hashes are required


@pytest.mark.parametrize("difference", ["platform", "python", "version", "requirement", "no file"])
def test_what_a_lock_does_not_cover_is_resolved(
    locked: config.Framework, wheels: Path, tmp_path: Path, difference: str
) -> None:
    path, [recipe] = tmp_path / "locks" / "pair.txt", locked.devices["cpu"].recipes
    if difference == "platform":
        write_lock(path, wheels, platform="amiga m68k")
    elif difference == "python":
        write_lock(path, wheels, python="3.98")
    elif difference == "version":
        write_wheel(wheels, "pair", "2.0", requires="tiny")
        recipe.requirements = ["pair==2.0"]
    elif difference == "requirement":
        recipe.requirements.append("tiny>1")
    else:
        path.unlink()
    created = ensure(locked, "cpu")
    assert "tiny==2.0" in created.packages
    assert created.locked == "no"


def test_another_lock_creates_another_environment(locked: config.Framework, wheels: Path, tmp_path: Path) -> None:
    one = ensure(locked, "cpu")
    path = tmp_path / "locks" / "pair.txt"
    path.write_text(path.read_text().replace("# platform", "# refreshed\n# platform"))
    two = ensure(locked, "cpu")
    assert one.folder != two.folder
    assert one.key == two.key  # with the same contents


def test_locks_of_the_project_cover_its_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "current_platform", lambda: "linux x86_64")
    for name in config.choices("framework"):
        composed = config.compose([f"framework={name}"]).framework
        for device, support in composed.devices.items():
            for recipe in support.recipes:
                lock = locks.find_lock(recipe, composed.python.preferred)
                assert lock, f"{name}, {device}: scripts/lock_environments.py {recipe.lock}"
                pins = list(locks.read_pins(lock.text))
                assert len(pins) >= len(recipe.requirements)
                lines = [line for line in lock.text.replace("\\\n", " ").splitlines() if not line.startswith("#")]
                assert all(" --hash=sha256:" in line for line in lines)


# What is there


def test_key_is_that_of_the_contents(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(home: str, requirement: str = "tiny<2") -> str:
        monkeypatch.setenv("GTDL_HOME", str(tmp_path / home))
        monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / f"cache of {home}"))
        return ensure(framework(requirement), "cpu").key

    original = key("first")
    assert key("a folder with another name") == original
    assert key("first", "tiny==1.0") == original  # another request with the same contents
    write_wheel(wheels, "tiny", "1.0", code="rebuilt = True\n")
    rebuilt = key("second")
    write_wheel(wheels, "tiny", "1.1")
    newer = key("third")
    assert len({original, rebuilt, newer}) == 3


def test_key_of_the_driver_is_that_of_its_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = framework()
    plain.devices["cpu"].recipes = []
    before = ensure(plain, "cpu").key
    assert ensure(plain, "cpu").key == before
    packages = ensure(plain, "cpu").packages
    monkeypatch.setattr("gtdl_mlflow.environments.environment._driver_packages", lambda: [*packages, "numpy==0"])
    assert ensure(plain, "cpu").key != before


@pytest.mark.parametrize("change", ["version", "same version", "another package", "module", "removed"])
def test_environment_that_was_changed_is_refused(
    wheels: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    created = ensure(framework(), "cpu")
    assert created.folder
    install = [uv.find_uv_bin(), "pip", "install", "--quiet", "--python", created.python, "--find-links", wheels]
    [packages] = created.folder.glob("lib/python*/site-packages")
    if change == "version":
        subprocess.run([*install, "tiny==2.0"], check=True)
        expected = "tiny-1.0.dist-info is missing, tiny-2.0.dist-info was added"
    elif change == "same version":
        (packages / "tiny-1.0.dist-info" / "RECORD").write_text("tiny.py,sha256=0,0\n")
        expected = "tiny-1.0.dist-info was replaced"
    elif change == "another package":
        write_wheel(wheels, "pair", "1.0")
        subprocess.run([*install, "pair"], check=True)
        expected = "pair-1.0.dist-info was added, pair.py was added"
    elif change == "module":
        (packages / "sitecustomize.py").touch()
        expected = "sitecustomize.py was added"
    else:
        shutil.rmtree(packages / "tiny-1.0.dist-info")
        expected = "tiny-1.0.dist-info is missing"
    assert find(framework(), "cpu") is None
    with pytest.raises(EnvironmentFailed) as failed:
        ensure(framework(), "cpu")
    assert str(failed.value) == (
        f"tiny 1.0: packages in {created.folder} were changed after it was created ({expected});"
        " delete it with `gtdl env remove tiny`, then the next run creates it again"
    )
    assert cli.main(["env", "list"]) == 0
    assert expected in capsys.readouterr().out
    assert remove("tiny") == [created.folder]
    assert ensure(framework(), "cpu").packages == ["tiny==1.0"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import absent\n", "ModuleNotFoundError: No module named 'absent'"),
        ("import os; os.kill(os.getpid(), 4)\n", "Python was killed by SIGILL"),
    ],
)
def test_framework_that_cannot_be_imported_is_no_environment(wheels: Path, code: str, reason: str) -> None:
    write_wheel(wheels, "broken", "1.0", code=code)
    with pytest.raises(EnvironmentFailed) as failed:
        ensure(framework("broken", adapter="broken:Broken"), "cpu")
    assert str(failed.value) == f"tiny 1.0 was installed, but broken cannot be imported: {reason}"
    assert folders() == []


UNREADABLE = {
    "empty": "",
    "torn": '{"format": 2, "fra',
    "another type": "[]",
    "binary": "\0",
    "a key is missing": '{"format": 2, "framework": "other"}',
    "nested": "[" * 100_000,
}


@pytest.mark.parametrize("content", UNREADABLE)
def test_unreadable_record_of_another_environment_is_set_aside(
    content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cache_dir() / "environments" / "other-1.0-cpu-0123456789"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "environment.json").write_text(UNREADABLE[content])
    created = ensure(framework(), "cpu")
    assert list_environments() == [created]
    [remark] = [line for line in capsys.readouterr().err.splitlines() if ": unreadable (" in line]
    assert remark.startswith(f"gtdl: {folder / 'environment.json'}: unreadable (")
    assert remove("other") == [folder]


@pytest.mark.parametrize("key", ["framework", "python_version", "packages", "entries", "key"])
def test_record_with_a_value_of_another_type_is_set_aside(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    created = ensure(framework(), "cpu")
    assert created.folder
    record = created.folder / "environment.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), key: [3]}))
    assert list_environments() == []
    assert f"unreadable (missing, unknown or invalid: {key})" in capsys.readouterr().err
    assert ensure(framework(), "cpu") == created


def test_record_of_another_version_is_ignored_without_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    folder = cache_dir() / "environments" / "other-1.0-cpu-0123456789"
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text('{"format": 1}')
    assert list_environments() == []
    assert capsys.readouterr().err == ""
    assert remove("other") == [folder]


# Certificates


class _Index(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.mark.parametrize(
    "variable", ["PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"]
)
def test_index_with_a_certificate_of_an_own_authority_is_reached(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS", "PIP_CERT", *CERTIFICATES):
        monkeypatch.delenv(name, raising=False)
    page = tmp_path / "www" / "simple" / "tiny"
    page.mkdir(parents=True)
    wheel = shutil.copy(wheels / "tiny-1.0-py3-none-any.whl", page)
    (page / "index.html").write_text(f'<a href="{Path(wheel).name}">{Path(wheel).name}</a>')
    authority, chain = write_certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Index, directory=str(tmp_path / "www"))) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PIP_INDEX_URL", f"https://localhost:{server.server_port}/simple")
        monkeypatch.setenv("UV_HTTP_RETRIES", "0")
        with pytest.raises(EnvironmentFailed, match=r"localhost:\d+"):
            ensure(framework(), "cpu")
        monkeypatch.setenv(variable, str(authority.parent if variable == "SSL_CERT_DIR" else authority))
        try:
            assert ensure(framework(), "cpu").packages == ["tiny==1.0"]
        finally:
            server.shutdown()


CERTIFICATES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR")


def write_certificates(folder: Path) -> tuple[Path, Path]:
    """Write the certificate of an authority, and a key with its certificate for localhost, by openssl."""
    authority, key, chain = folder / "authority" / "ca.pem", folder / "key.pem", folder / "chain.pem"
    authority.parent.mkdir()

    def openssl(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)

    new = ("-newkey", "rsa:2048", "-nodes")
    openssl("req", "-x509", *new, "-keyout", "ca-key.pem", "-out", authority, "-subj", "/CN=authority", "-days", "2")
    openssl("req", *new, "-keyout", key, "-out", "request.pem", "-subj", "/CN=localhost")
    (folder / "names.txt").write_text("subjectAltName=DNS:localhost\nextendedKeyUsage=serverAuth\n")
    signing = ("-CA", authority, "-CAkey", "ca-key.pem", "-CAcreateserial", "-days", "2", "-extfile", "names.txt")
    openssl("x509", "-req", "-in", "request.pem", *signing, "-out", "certificate.pem")
    chain.write_text(key.read_text() + (folder / "certificate.pem").read_text())
    # OpenSSL finds a certificate in a folder by the hash of its subject.
    openssl("rehash", authority.parent)
    return authority, chain


# Interruptions


def slow_build(wheels: Path, log: Path, monkeypatch: pytest.MonkeyPatch, seconds: int = 20) -> subprocess.Popen[str]:
    """Start to create an environment whose build takes ``seconds`` and writes to ``log``; return when it has begun."""
    write_slow_source(wheels)
    monkeypatch.setenv("SLOW_LOG", str(log))
    monkeypatch.setenv("SLOW_S", str(seconds))
    driver = start_driver()
    wait_until(log.exists, "the build starts", driver)
    return driver


def test_two_drivers_create_an_environment_once(wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log"
    first = slow_build(wheels, log, monkeypatch, seconds=2)
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
    driver = slow_build(wheels, tmp_path / "log", monkeypatch)
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


@pytest.mark.parametrize("victim", ["driver by SIGTERM", "driver by SIGHUP", "uv by SIGKILL"])
def test_stopped_creation_leaves_no_process_and_no_complete_environment(
    wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    driver = slow_build(wheels, tmp_path / "log", monkeypatch)
    descendants = psutil.Process(driver.pid).children(recursive=True)
    [uv_process] = [process for process in descendants if process.name() == "uv"]
    (driver if victim.startswith("driver") else uv_process).send_signal(signal.Signals[victim.split()[-1]])
    _, err = driver.communicate(timeout=30)
    assert driver.returncode != 0
    if victim.startswith("uv"):
        assert "could not be installed: uv was killed by SIGKILL" in err
        assert folders() == []
    if sys.platform == "linux":
        assert psutil.wait_procs(descendants, timeout=5)[1] == []
    assert list_environments() == []


FILL = """
mount -t tmpfs -o size=3m none "$GTDL_HOME" && exec "$@"
"""


def test_full_disk_is_reported_in_one_line_and_leaves_nothing(wheels: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    write_wheel(wheels, "tiny", "1.0", code=f"data = {os.urandom(4_000_000).hex()!r}\n")
    script = tmp_path / "fill.sh"
    command = [sys.executable, "-m", "gtdl_mlflow.cli", "env", "create", "reference"]
    command += ["framework.adapter=json:loads", "framework.devices.cpu.recipes=[{requirements:['tiny==1.0']}]"]
    script.write_text(f'{FILL.strip().replace("exec", "")}; status=$?; ls "$GTDL_HOME"/*; exit $status\n')
    result = subprocess.run(
        ["unshare", "--mount", "sh", script, *command],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if "unshare failed" in result.stderr or "permission denied" in result.stderr.lower():
        pytest.skip(f"mounting needs more rights: {result.stderr}")
    assert result.returncode == 1, result.stderr
    creating, reason = result.stderr.splitlines()
    assert creating.startswith("gtdl: creating reference")
    assert "No space left on device" in reason
    assert [line for line in result.stdout.split() if not line.endswith((".lock", ":"))] == []


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


def test_uv_runs_in_the_folder_of_the_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "uv"
    program.write_text("#!/bin/sh\npwd\n")
    program.chmod(0o755)
    monkeypatch.setattr(uv, "find_uv_bin", lambda: str(program))
    assert uv_command.run([]).stdout == f"{environments_dir()}\n"


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
    assert cli.main(["env", "remove", "tinny"]) == 2
    assert capsys.readouterr().err.endswith("(did you mean tiny?)\n")
    assert cli.main(["env", "remove", "torch"]) == 1
    assert capsys.readouterr().err == "gtdl: no environment of torch to remove; there are environments of: tiny\n"
    assert cli.main(["env", "remove", "tiny"]) == 0
    assert capsys.readouterr().out == f"removed {created.folder}\n"
    assert list_environments() == []


def test_env_create_composes_the_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("reference", "framework=reference"):
        assert cli.main(["env", "create", name]) == 0
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
