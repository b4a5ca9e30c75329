"""Real CMake, real compilers, a tiny source package that is written here: no network."""

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
from helpers.project import ROOT
from helpers.wheels import HERE, wait_for, write_wheel

from gtdl_mlflow import cli, config
from gtdl_mlflow.environments import Environment, EnvironmentFailed, ensure, list_environments, remove
from gtdl_mlflow.environments.toolchain import PackagesMissing, Toolchain
from gtdl_mlflow.files import cache_dir

# ``tinyc`` 1.0: an extension module that answers what it was configured with. Configuring it says so in $TINY_LOG and
# then takes $TINY_S seconds.
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
set(ANSWER 42 CACHE STRING "what it answers")
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
extern "C" int nobody_has_this();
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

# A driver of its own: makes the environment of a pickled framework, and prints its interpreter.
MAKER = """
import pickle, sys
from gtdl_mlflow import environments
print(environments.ensure(pickle.loads(bytes.fromhex(sys.argv[1])), "cpu").python)
"""


def write_sources(folder: Path) -> str:
    """``tinyc-1.0.tar.gz`` in ``folder``; returns its SHA-256."""
    path = folder / "tinyc-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, text in SOURCES.items():
            entry = tarfile.TarInfo(f"tinyc-1.0/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def sha256(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of ``tinyc``, which is all that pip knows of beside ``tiny``; this machine's own settings are out."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    try:
        Toolchain(SYSTEM, Path(sys.executable)).demand()
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
        adapter="nowhere:Nothing",
        python=config.Python(HERE, ">=3.8"),
        devices={"cpu": config.DeviceSupport(recipes=[recipe])},
    )


def start_maker(wanted: config.Framework) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MAKER, pickle.dumps(wanted).hex()],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(made: Environment) -> int:
    return int(subprocess.check_output([made.python, "-I", "-c", "import tinyc; print(tinyc.answer())"]))


def times_built() -> int:
    log = Path(os.environ["TINY_LOG"])
    return log.read_text().count("building") if log.exists() else 0


def builds() -> list[Path]:
    """What looks finished."""
    return sorted(path.parent for path in (cache_dir() / "builds").glob("*/build.json"))


def left_behind() -> list[str]:
    """Folders in GTDL_HOME's rooms, finished or not."""
    return sorted(path.name for path in cache_dir().glob("*/*") if path.is_dir())


def test_built_once_and_copied_into_every_environment_that_wants_it(sha256: str) -> None:
    made = ensure(framework(sha256), "cpu")
    assert answer(made) == 42
    assert ensure(framework(sha256), "cpu") == made
    assert remove("tinyc") == [made.folder]
    again = ensure(framework(sha256), "cpu")
    assert (again.folder, answer(again)) == (made.folder, 42)
    assert times_built() == 1
    shutil.rmtree(cache_dir() / "builds")
    assert answer(again) == 42


def test_the_environment_says_what_was_built_and_with_what(sha256: str) -> None:
    made = ensure(framework(sha256, "-DANSWER=7"), "cpu")
    wheel, built, *details = made.packages
    assert wheel == "tiny==1.0"
    assert built == f"# tinyc==1.0 (sha256 {sha256}), built here with"
    assert details[0].startswith("#   cmake version ")
    assert any(re.search(r"/libm[-.\w]*$", line) for line in details)
    assert details[-1] == "#   cmake -DCMAKE_BUILD_TYPE=Release -DANSWER=7"


def test_another_option_is_another_build_beside_the_first(sha256: str) -> None:
    one, two = ensure(framework(sha256), "cpu"), ensure(framework(sha256, "-DANSWER={python_tag}"), "cpu")
    assert one.folder != two.folder
    assert [answer(one), answer(two)] == [42, int(HERE.replace(".", ""))]
    assert (times_built(), len(builds())) == (2, 2)


def test_edited_sources_are_another_build_and_the_environment_says_so(sha256: str) -> None:
    edits = {"tinyc/_tinyc.cpp": {"PyLong_FromLong(ANSWER)": "PyLong_FromLong(-ANSWER)"}}
    plain, edited = ensure(framework(sha256), "cpu"), ensure(framework(sha256, edits=edits), "cpu")
    assert [answer(plain), answer(edited)] == [42, -42]
    assert (times_built(), len(builds())) == (2, 2)
    assert edited.packages[-1] == "#   tinyc/_tinyc.cpp: PyLong_FromLong(-ANSWER)"


@pytest.mark.parametrize(("old", "times"), [("no_such_text", 0), ("answer", 3)])
def test_an_edit_of_what_the_sources_do_not_have_once_is_refused(sha256: str, old: str, times: int) -> None:
    with pytest.raises(EnvironmentFailed) as failed:
        ensure(framework(sha256, edits={"tinyc/_tinyc.cpp": {old: "something else"}}), "cpu")
    reason = f"tinyc==1.0 cannot be edited: tinyc/_tinyc.cpp has '{old}' {times} times, not once"
    assert str(failed.value) == f"tinyc 1.0 cannot be made: {reason}"
    assert times_built() == 0
    assert left_behind() == []


def test_another_version_of_a_system_library_is_another_build(
    sha256: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBRARY_PATH", str(tmp_path))
    wanted = framework(sha256, system={"libours-dev": config.SystemPackage(libraries=["ours"])})
    for version in ("1.2.3", "1.2.4"):
        library = tmp_path / f"libours.so.{version}"
        subprocess.run(["c++", "-shared", "-x", "c++", os.devnull, "-o", library], check=True)
        (tmp_path / "libours.so").unlink(missing_ok=True)
        (tmp_path / "libours.so").symlink_to(library)
        made = ensure(wanted, "cpu")
        assert f"#   {library}" in made.packages
        remove("tinyc")
    assert (times_built(), len(builds())) == (2, 2)


def test_what_is_left_over_in_a_shell_changes_nothing(sha256: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CXXFLAGS", "LDFLAGS", "CXX", "CMAKE_GENERATOR"):
        monkeypatch.setenv(name, "--no-such-thing")
    assert answer(ensure(framework(sha256), "cpu")) == 42


def test_all_that_is_missing_is_named_at_once_and_nothing_is_downloaded(
    sha256: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = {
        "libfirst-dev": config.SystemPackage(headers=["vector", "first/of/all.h"]),
        "libsecond-dev": config.SystemPackage(libraries=["second{python_tag}"]),
        "third": config.SystemPackage(tools=["third-tool"]),
    }
    with pytest.raises(EnvironmentFailed) as failed:
        ensure(framework(sha256, system=lacking), "cpu")
    tag = HERE.replace(".", "")
    assert str(failed.value) == (
        f"tinyc 1.0 needs what this machine lacks: not found: header first/of/all.h, library second{tag},"
        " program third-tool; on Debian: apt-get install libfirst-dev libsecond-dev third"
    )
    assert not (tmp_path / "uv-cache").exists() or not list((tmp_path / "uv-cache").rglob("*tiny*"))
    assert left_behind() == []
    assert times_built() == 0


def test_headers_are_found_in_the_folder_that_a_package_names(sha256: str, tmp_path: Path) -> None:
    (tmp_path / "aside").mkdir()
    (tmp_path / "aside" / "ours.h").touch()
    package = config.SystemPackage(headers=["ours.h"], include=str(tmp_path / "aside"))
    assert answer(ensure(framework(sha256, system={"libours-dev": package}), "cpu")) == 42


def test_without_compiler_and_cmake_all_packages_are_named(
    sha256: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = shutil.which("c++")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(EnvironmentFailed, match=r"program cmake, program make, program c\+\+, .* Python\.h") as failed:
        ensure(framework(sha256), "cpu")
    assert str(failed.value).endswith("; on Debian: apt-get install cmake make g++ python3-dev")
    (tmp_path / "bin" / "c++").symlink_to(str(compiler))
    with pytest.raises(
        EnvironmentFailed,
        match=r"lacks: not found: program cmake, program make; on Debian: apt-get install cmake make$",
    ):
        ensure(framework(sha256), "cpu")


def test_a_compile_error_is_one_line_with_its_cause_and_the_log(sha256: str) -> None:
    with pytest.raises(EnvironmentFailed) as failed:
        ensure(framework(sha256, "-DANSWER=no_such_name"), "cpu")
    reason = str(failed.value)
    assert "\n" not in reason
    assert reason.startswith("tinyc 1.0 cannot be made: tinyc==1.0 cannot be built: ")
    assert "_tinyc.cpp:" in reason
    assert "no_such_name" in reason
    log = Path(reason.rpartition("the log is ")[2])
    assert "no_such_name" in log.read_text()
    assert left_behind() == []
    assert answer(ensure(framework(sha256), "cpu")) == 42


def test_a_mistake_in_cmakes_configuration_is_one_line(sha256: str) -> None:
    with pytest.raises(EnvironmentFailed, match=r"tinyc==1\.0 cannot be built: CMake Error") as failed:
        ensure(framework(sha256, "-GNo such generator"), "cpu")
    assert "\n" not in str(failed.value)
    assert left_behind() == []


def test_a_build_that_cannot_be_imported_is_not_kept(sha256: str) -> None:
    with pytest.raises(EnvironmentFailed, match=r"tinyc cannot be imported: ImportError: .*nobody_has_this"):
        ensure(framework(sha256, "-DANSWER=nobody_has_this()"), "cpu")
    assert left_behind() == []


def test_a_source_package_of_another_hash_is_refused_before_it_runs(sha256: str) -> None:
    with pytest.raises(EnvironmentFailed, match=r"tinyc==1\.0 cannot be had .*HASHES") as failed:
        ensure(framework("0" * 64), "cpu")
    assert "\n" not in str(failed.value)
    assert times_built() == 0
    assert left_behind() == []


def test_what_uv_was_told_reaches_the_fetching_of_the_source(
    sha256: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "packages"))
    assert answer(ensure(framework(sha256), "cpu")) == 42


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_in_the_middle_it_leaves_no_process_and_is_built_again(
    sha256: str, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    monkeypatch.setenv("TINY_S", "30")
    maker = start_maker(framework(sha256))
    wait_for(Path(os.environ["TINY_LOG"]))
    below = psutil.Process(maker.pid).children(recursive=True)
    assert any(process.name() == "cmake" for process in below)
    maker.send_signal(how)
    maker.communicate(timeout=10)
    if sys.platform == "linux":
        assert psutil.wait_procs(below, timeout=5)[1] == []
    assert list_environments() == []
    assert builds() == []
    if how == signal.SIGINT:
        assert left_behind() == []

    monkeypatch.setenv("TINY_S", "0")
    made = ensure(framework(sha256), "cpu")
    assert answer(made) == 42
    assert times_built() == 2
    assert made.folder
    assert left_behind() == sorted([made.folder.name, *(build.name for build in builds())])


def test_two_processes_at_once_build_it_once(sha256: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINY_S", "15")  # longer than a busy machine takes to make the second environment
    first = start_maker(framework(sha256))
    wait_for(Path(os.environ["TINY_LOG"]))
    # Another environment, so that the two meet at the build and not before it.
    other = framework(sha256)
    other.devices["cpu"].recipes[0].options = ["--no-cache"]
    second = start_maker(other)
    (out, err), (other_out, other_err) = first.communicate(timeout=60), second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0), err + other_err
    assert times_built() == 1
    assert err.count("gtdl: built tinyc==1.0") == 1
    assert "waiting for another process that is making" in other_err
    assert [answer(made) for made in list_environments()] == [42, 42]
    assert {str(made.python) for made in list_environments()} == {out.strip(), other_out.strip()}


# gtdl env packages


def test_the_packages_that_a_framework_needs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "packages", "reference"]) == 0
    assert capsys.readouterr().out == ""
    assert cli.main(["env", "packages", "caffe"]) == 0
    needed = capsys.readouterr().out.split()
    assert {"cmake", "g++", "libopenblas-dev"} <= set(needed)
    assert cli.main(["env", "packages"]) == 0
    assert set(needed) <= set(capsys.readouterr().out.split())
    assert cli.main(["env", "packages", "cafe"]) == 2
    assert capsys.readouterr().err.startswith("gtdl: framework=cafe: expected one of ")
