"""The description of the machine: limits of this process change it, and nothing else does."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from helpers import cores

from gtdl_mlflow import cgroups, config, processor, worker_process
from gtdl_mlflow.hardware import host

DESCRIBE = (
    "import json; from gtdl_mlflow.hardware import host; print(json.dumps(host.describe())); print(host.fingerprint())"
)


@pytest.fixture(autouse=True)
def _uncached() -> Iterator[None]:
    host.describe.cache_clear()
    yield
    host.describe.cache_clear()


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Make a machine with ``count`` cores and no limits."""
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: count)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(count)))
    monkeypatch.setattr(cgroups, "cpu_quota", lambda: None)


def test_fingerprint_of_a_machine_without_limits_has_no_entries_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    free(monkeypatch, 4)
    description = host.describe()
    assert list(description) == [
        "cpu", "cpu_model", "vector_extensions", "cores", "logical_cores", "memory_gib", "gpus", "system"]  # fmt: skip
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:8]
    processor = f"{description['cpu']} ({description['cpu_model']})"
    parts = [processor, "4 cores", f"{description['memory_gib']} GiB", *description["gpus"]]
    assert host.fingerprint() == f"{', '.join(parts)} ({digest})"


EPYC = """processor\t: 0
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC
stepping\t: 1
flags\t\t: fpu sse2 avx2 avx512f avx512_bf16 hypervisor

processor\t: 1
model\t\t: 99
"""


def test_processors_of_one_name_are_different_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free(monkeypatch, 2)
    monkeypatch.setattr(processor, "PROCESSORS", tmp_path / "cpuinfo")

    def fingerprint(text: str) -> str:
        (tmp_path / "cpuinfo").write_text(text)
        host.describe.cache_clear()
        return host.fingerprint()

    known = fingerprint(EPYC)
    assert known.startswith("AMD EPYC (25-17-1), 2 cores, ")
    assert host.describe()["vector_extensions"] == "avx2 avx512_bf16 avx512f sse2"
    newer = fingerprint(EPYC.replace("family\t: 25", "family\t: 26"))
    assert newer.startswith("AMD EPYC (26-17-1), 2 cores, ")
    withheld = fingerprint(EPYC.replace(" avx512_bf16", ""))
    assert withheld.startswith("AMD EPYC (25-17-1), 2 cores, ")
    assert len({known, newer, withheld}) == 3
    assert fingerprint(EPYC.replace(" hypervisor", "")) == known
    arm = "processor\t: 0\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"
    assert " (0x41-0xd40), 2 cores, " in fingerprint(arm)
    assert host.describe()["vector_extensions"] == "asimd sve"


@pytest.mark.parametrize(
    ("extensions", "kernels"),
    [
        ("avx avx2 fma avx512f avx512dq avx512cd avx512bw avx512vl", "SkylakeX"),
        ("avx avx2 fma avx512f avx512cd", "Haswell"),  # a Xeon Phi
        ("avx", ""),
    ],
)
def test_kernels_of_openblas_fit_the_vector_extensions(
    extensions: str, kernels: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(EPYC.replace("sse2 avx2 avx512f avx512_bf16", extensions))
    monkeypatch.setattr(processor, "PROCESSORS", tmp_path / "cpuinfo")
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    assert worker_process.worker_environment(1, {}).get("OPENBLAS_CORETYPE", "") == kernels
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Zen")
    assert worker_process.worker_environment(1, {})["OPENBLAS_CORETYPE"] == "Zen"


@pytest.mark.parametrize(("quota", "text"), [(0.1, "0.1"), (1.5, "1.5"), (1 / 3, "0.33"), (3, "3")])
def test_quota_is_part_of_the_fingerprint(monkeypatch: pytest.MonkeyPatch, quota: float, text: str) -> None:
    free(monkeypatch, 4)
    before = host.fingerprint()
    host.describe.cache_clear()
    monkeypatch.setattr(cgroups, "cpu_quota", lambda: quota)
    assert f", 4 cores, limited to {text} CPUs, " in host.fingerprint()
    assert host.fingerprint()[-9:] != before[-9:]


@pytest.mark.parametrize("quota", [4, 8.0])
def test_quota_above_the_cores_limits_nothing(monkeypatch: pytest.MonkeyPatch, quota: float) -> None:
    free(monkeypatch, 4)
    before = host.fingerprint()
    host.describe.cache_clear()
    monkeypatch.setattr(cgroups, "cpu_quota", lambda: quota)
    assert host.fingerprint() == before


@pytest.mark.skipif(len(cores.ALL) < 2, reason="one core")
def test_affinity_is_part_of_the_fingerprint_and_of_the_default_threads(all_cores: None) -> None:
    core = str(min(cores.ALL))
    script = f"{DESCRIBE}; from gtdl_mlflow import config; print(config.compose([]).threads)"
    command = ["taskset", "-c", core, sys.executable, "-c", script]
    pinned, machine, threads = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=True
    ).stdout.splitlines()
    assert json.loads(pinned) == {**host.describe(), "usable_cores": 1}
    assert f"{os.cpu_count()} cores, 1 of them usable, " in machine
    assert threads == "1"


@pytest.mark.parametrize(
    ("cores", "text"),
    [
        ("[0,0]", "each core may be listed once"),
        ("[-1]", "expected some of"),
        ("[0,-1]", "expected some of"),
        ("[9999]", "expected some of"),
        ("[]", "expected some of"),
    ],
)
def test_cores_that_cannot_be_used_are_refused(cores: str, text: str, all_cores: None) -> None:
    with pytest.raises(config.ConfigError, match=text):
        config.check(config.compose([f"hardware.cores={cores}"]))
