"""Builds by the real CMake and compiler, of a tiny source package that the tests write. No network."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import psutil
import pytest
from helpers.project import ROOT, wait_until
from helpers.wheels import DRIVER_PYTHON, write_wheel

from gtdl_mlflow import config
from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.environments import Environment, EnvironmentFailed, ensure, list_environments, remove
from gtdl_mlflow.environments.toolchain import PackagesMissing, Toolchain
from gtdl_mlflow.files import cache_dir

pytestmark = pytest.mark.slow

# ``tinyc`` 1.0: an extension module whose function returns the option ANSWER. Its configuration adds a line to
# $TINY_LOG and then takes $TINY_S seconds.
SOURCES = {
    "PKG-INFO": "Metadata-Version: 2.2\nName: tinyc\nVersion: 1.0\n",
    "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
    "backend.py": """
import pathlib
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "tinyc-1.0.dist-info")
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\\nName: tinyc\\nVersion: 1.0\\n")
    return info.name
def build_wheel(folder, config_settings=None, metadata_directory=None):
    raise SystemExit("tinyc is built with CMake only")
""",
    "CMakeLists.txt": """
cmake_minimum_required(VERSION 3.18)
project(TinyC CXX)
set(ANSWER 42 CACHE STRING "value of answer()")
file(APPEND $ENV{TINY_LOG} "building\\n")
execute_process(COMMAND ${CMAKE_COMMAND} -E sleep $ENV{TINY_S})
add_library(answers MODULE tinyc/_tinyc.cpp)
target_compile_definitions(answers PRIVATE "ANSWER=${ANSWER}")
target_link_libraries(answers -lmathematics)
set_target_properties(answers PROPERTIES PREFIX "" OUTPUT_NAME _tinyc)
install(TARGETS answers DESTINATION python/tinyc)
install(FILES tinyc/__init__.py DESTINATION python/tinyc)
""",
    "tinyc/__init__.py": "from ._tinyc import answer\n",
    "tinyc/_tinyc.cpp": """
#include <Python.h>
extern "C" int undefined_function();
static PyObject* answer(PyObject*, PyObject*) { return PyLong_FromLong(ANSWER); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "_tinyc", "", -1, methods};
PyMODINIT_FUNC PyInit__tinyc() { return PyModule_Create(&module); }
""",
}

SYSTEM = {
    "cmake": config.SystemPackage(tools=["cmake"]),
    "make": config.SystemPackage(tools=["make"]),
    "g++": config.SystemPackage(tools=["c++"], headers=["vector"], libraries=["m"]),
    "python3-dev": config.SystemPackage(headers=["Python.h"]),
}

# Script of another driver: creates the environment of a pickled framework, and prints its interpreter.
CREATE = """
import pickle, sys
from gtdl_mlflow import environments
print(environments.ensure(pickle.loads(bytes.fromhex(sys.argv[1])), "cpu").python)
"""


def write_sources(folder: Path) -> str:
    """Write ``tinyc-1.0.tar.gz`` to ``folder`` and return its SHA-256."""
    path = folder / "tinyc-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in SOURCES.items():
            entry = tarfile.TarInfo(f"tinyc-1.0/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """SHA-256 of ``tinyc``, which is the only package beside ``tiny``; this machine's settings are removed."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    try:
        Toolchain(SYSTEM, Path(sys.executable)).check()
    except PackagesMissing as error:
        if os.environ.get("GTDL_REQUIRE_FRAMEWORKS"):
            raise
        pytest.skip(str(error))
    folder = tmp_path / "packages"
    write_wheel(folder, "tiny", "1.0")
    monkeypatch.setenv("GTDL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("TINY_LOG", str(tmp_path / "tiny.log"))
    monkeypatch.setenv("TINY_S", "0")
    return write_sources(folder)


def framework(
    sha256: str,
    *options: str,
    system: dict[str, config.SystemPackage] | None = None,
    edits: dict[str, dict[str, str]] | None = None,
) -> config.Framework:
    build = config.Build(
        source="tinyc==1.0",
        sha256=sha256,
        target="answers",
        package="python/tinyc",
        options=["-DCMAKE_BUILD_TYPE=Release", *options],
        aliases={"mathematics": "m"},
        edits=edits or {},
    )
    recipe = config.Recipe(["tiny==1.0"], system={**SYSTEM, **(system or {})}, build=build)
    return config.Framework(
        name="tinyc",
        version="1.0",
        adapter="tinyc:answer",
        python=config.Python(DRIVER_PYTHON, ">=3.8"),
        devices={"cpu": config.DeviceSupport(recipes=[recipe])},
    )


def start_driver(tinyc: config.Framework) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CREATE, pickle.dumps(tinyc).hex()],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(environment: Environment) -> int:
    return int(subprocess.check_output([environment.python, "-I", "-c", "import tinyc; print(tinyc.answer())"]))


def times_built() -> int:
    log = Path(os.environ["TINY_LOG"])
    return log.read_text().count("building") if log.exists() else 0


def builds() -> list[Path]:
    """Return the folders of all complete builds."""
    return sorted(path.parent for path in (cache_dir() / "builds").glob("*/build.json"))


def folders() -> list[str]:
    """Return the names of the folders of all builds and environments, complete or not."""
    return sorted(path.name for path in cache_dir().glob("*/*") if path.is_dir())


def test_build_is_reused_by_every_environment(sha256: str) -> None:
    created = ensure(framework(sha256), "cpu")
    assert answer(created) == 42
    assert ensure(framework(sha256), "cpu") == created
    assert remove("tinyc") == [created.folder]
    again = ensure(framework(sha256), "cpu")
    assert (again.folder, answer(again)) == (created.folder, 42)
    assert times_built() == 1
    shutil.rmtree(cache_dir() / "builds")
    assert answer(again) == 42


def test_environment_lists_what_was_built_and_how(sha256: str) -> None:
    created = ensure(framework(sha256, "-DANSWER=7"), "cpu")
    wheel, built, *details = created.packages
    assert wheel == "tiny==1.0"
    assert built == f"# tinyc==1.0 (sha256 {sha256}), built on this machine with"
    assert details[0].startswith("#   cmake version ")
    assert any(re.search(r"/libm[-.\w]*$", line) for line in details)
    assert details[-1] == "#   cmake -DCMAKE_BUILD_TYPE=Release -DANSWER=7"


def test_another_option_creates_another_build(sha256: str) -> None:
    one, two = ensure(framework(sha256), "cpu"), ensure(framework(sha256, "-DANSWER={python_tag}"), "cpu")
    assert one.folder != two.folder
    assert [answer(one), answer(two)] == [42, int(DRIVER_PYTHON.replace(".", ""))]
    assert (times_built(), len(builds())) == (2, 2)


def test_edits_create_another_build_and_are_listed(sha256: str) -> None:
    edits = {"tinyc/_tinyc.cpp": {"PyLong_FromLong(ANSWER)": "PyLong_FromLong(-ANSWER)"}}
    plain, edited = ensure(framework(sha256), "cpu"), ensure(framework(sha256, edits=edits), "cpu")
    assert [answer(plain), answer(edited)] == [42, -42]
    assert (times_built(), len(builds())) == (2, 2)
    assert edited.packages[-1] == "#   tinyc/_tinyc.cpp: PyLong_FromLong(-ANSWER)"


@pytest.mark.parametrize(("old", "times"), [("no_such_text", 0), ("answer", 3)])
def test_edit_of_text_that_does_not_occur_once_is_refused(sha256: str, old: str, times: int) -> None:
    with pytest.raises(EnvironmentFailed) as failed:
        ensure(framework(sha256, edits={"tinyc/_tinyc.cpp": {old: "something else"}}), "cpu")
    reason = f"tinyc==1.0 could not be edited: tinyc/_tinyc.cpp contains '{old}' {times} times; expected once"
    assert str(failed.value) == f"tinyc 1.0 could not be installed: {reason}"
    assert times_built() == 0
    assert folders() == []


def test_another_version_of_a_system_library_creates_another_build(
    sha256: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBRARY_PATH", str(tmp_path))
    tinyc = framework(sha256, system={"libours-dev": config.SystemPackage(libraries=["ours"])})
    for version in ("1.2.3", "1.2.4"):
        library = tmp_path / f"libours.so.{version}"
        subprocess.run(["c++", "-shared", "-x", "c++", os.devnull, "-o", library], check=True)
        (tmp_path / "libours.so").unlink(missing_ok=True)
        (tmp_path / "libours.so").symlink_to(library)
        created = ensure(tinyc, "cpu")
        assert f"#   {library}" in created.packages
        remove("tinyc")
    assert (times_built(), len(builds())) == (2, 2)


def test_compiler_variables_of_the_shell_are_ignored(sha256: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CXXFLAGS", "LDFLAGS", "CXX", "CMAKE_GENERATOR"):
        monkeypatch.setenv(name, "--no-such-thing")
    assert answer(ensure(framework(sha256), "cpu")) == 42


def test_all_missing_packages_are_reported_before_any_download(
    sha256: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = {
        "libfirst-dev": config.SystemPackage(headers=["vector", "first/header.h"]),
        "libsecond-dev": config.SystemPackage(libraries=["second{python_tag}"]),
        "third": config.SystemPackage(tools=["third-tool"]),
    }
    with pytest.raises(EnvironmentFailed) as failed:
        ensure(framework(sha256, system=missing), "cpu")
    tag = DRIVER_PYTHON.replace(".", "")
    assert str(failed.value) == (
        f"tinyc 1.0 requires system packages: not found: header first/header.h, library second{tag},"
        " program third-tool; on Debian: apt-get install libfirst-dev libsecond-dev third"
    )
    assert not (tmp_path / "uv-cache").exists() or not list((tmp_path / "uv-cache").rglob("*tiny*"))
    assert folders() == []
    assert times_built() == 0


def test_headers_are_searched_in_the_packages_include_folder(sha256: str, tmp_path: Path) -> None:
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "ours.h").touch()
    package = config.SystemPackage(headers=["ours.h"], include=str(tmp_path / "include"))
    assert answer(ensure(framework(sha256, system={"libours-dev": package}), "cpu")) == 42


def test_all_packages_are_reported_without_compiler_and_cmake(
    sha256: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = shutil.which("c++")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(EnvironmentFailed, match=r"program cmake, program make, program c\+\+, .* Python\.h") as failed:
        ensure(framework(sha256), "cpu")
    assert str(failed.value).endswith("; on Debian: apt-get install cmake make g++ python3-dev")
    (tmp_path / "bin" / "c++").symlink_to(str(compiler))
    missing = r"not found: program cmake, program make; on Debian: apt-get install cmake make$"
    with pytest.raises(EnvironmentFailed, match=missing):
        ensure(framework(sha256), "cpu")


def test_compile_error_is_one_line_with_its_cause_and_the_log(sha256: str) -> None:
    with pytest.raises(EnvironmentFailed) as failed:
        ensure(framework(sha256, "-DANSWER=no_such_name"), "cpu")
    reason = str(failed.value)
    assert "\n" not in reason
    assert reason.startswith("tinyc 1.0 could not be installed: tinyc==1.0 could not be built: ")
    assert "_tinyc.cpp:" in reason
    assert "no_such_name" in reason
    log = Path(reason.rpartition("log: ")[2])
    assert "no_such_name" in log.read_text()
    assert folders() == []
    assert answer(ensure(framework(sha256), "cpu")) == 42


def test_configuration_error_of_cmake_is_one_line(sha256: str) -> None:
    with pytest.raises(EnvironmentFailed, match=r"tinyc==1\.0 could not be built: CMake Error") as failed:
        ensure(framework(sha256, "-GNo such generator"), "cpu")
    assert "\n" not in str(failed.value)
    assert folders() == []


def test_build_that_cannot_be_imported_is_deleted(sha256: str) -> None:
    with pytest.raises(EnvironmentFailed, match=r"tinyc cannot be imported: ImportError: .*undefined_function"):
        ensure(framework(sha256, "-DANSWER=undefined_function()"), "cpu")
    assert folders() == []


def test_source_package_with_another_hash_is_refused_before_its_code_runs(sha256: str) -> None:
    with pytest.raises(EnvironmentFailed, match=r"tinyc==1\.0 could not be downloaded .*HASHES") as failed:
        ensure(framework("0" * 64), "cpu")
    assert "\n" not in str(failed.value)
    assert times_built() == 0
    assert folders() == []


def test_download_uses_uvs_settings(sha256: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "packages"))
    assert answer(ensure(framework(sha256), "cpu")) == 42


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_build_leaves_no_process_and_is_repeated(
    sha256: str, monkeypatch: pytest.MonkeyPatch, stop: signal.Signals
) -> None:
    monkeypatch.setenv("TINY_S", "30")
    driver = start_driver(framework(sha256))
    wait_until(Path(os.environ["TINY_LOG"]).exists, "the build starts", driver)
    descendants = psutil.Process(driver.pid).children(recursive=True)
    assert any(process.name() == "cmake" for process in descendants)
    driver.send_signal(stop)
    driver.communicate(timeout=10)
    if sys.platform == "linux":
        assert psutil.wait_procs(descendants, timeout=5)[1] == []
    assert list_environments() == []
    assert builds() == []
    if stop == signal.SIGINT:
        assert folders() == []

    monkeypatch.setenv("TINY_S", "0")
    created = ensure(framework(sha256), "cpu")
    assert answer(created) == 42
    assert times_built() == 2
    assert created.folder
    assert folders() == sorted([created.folder.name, *(build.name for build in builds())])


def test_two_drivers_build_once(sha256: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_S", "15")  # longer than a busy machine takes to create the second environment
    first = start_driver(framework(sha256))
    wait_until(Path(os.environ["TINY_LOG"]).exists, "the build starts", first)
    # Another environment, so that the second driver waits for the build and not for the environment.
    other = framework(sha256)
    other.devices["cpu"].recipes[0].options = ["--no-cache"]
    second = start_driver(other)
    (out, err), (other_out, other_err) = first.communicate(timeout=60), second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0), err + other_err
    assert times_built() == 1
    assert err.count("gtdl: built tinyc==1.0") == 1
    assert "waiting: another process is creating" in other_err
    assert [answer(each) for each in list_environments()] == [42, 42]
    assert {str(each.python) for each in list_environments()} == {out.strip(), other_out.strip()}


# gtdl env packages


def test_system_packages_of_a_framework_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "packages", "reference"]) == 0
    assert capsys.readouterr().out == ""
    assert cli.main(["env", "packages", "caffe"]) == 0
    needed = capsys.readouterr().out.split()
    assert {"cmake", "g++", "libopenblas-dev"} <= set(needed)
    assert cli.main(["env", "packages"]) == 0
    assert set(needed) <= set(capsys.readouterr().out.split())
    assert cli.main(["env", "packages", "cafe"]) == 2
    assert capsys.readouterr().err.startswith("gtdl: framework=cafe: expected one of ")
