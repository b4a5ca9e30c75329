"""What a run says of the machine while it ran: who else used it, what the worker used, how hot it got."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.project import Command, runs

from gtdl_mlflow import config, environments
from gtdl_mlflow.config import checks
from gtdl_mlflow.hardware import interference
from gtdl_mlflow.hardware.gpu import Gpu
from gtdl_mlflow.hardware.system_metrics import CpuEnergy, ProcessUsage, Sampler

QUIET = interference.Snapshot(time=0, busy_s=100, stolen_s=0, total_s=1000, own_s=1, load=0.1, mhz=None, throttles=None)


def after(**change: Any) -> interference.Snapshot:
    """Ten seconds of two cores later, the worker having had 9 s of them."""
    given = {"time": 10, "busy_s": 109, "stolen_s": 0, "total_s": 1020, "own_s": 1, **change}
    return replace(QUIET, **given)


def test_a_worker_alone_is_not_flagged() -> None:
    found = interference.metrics_between(QUIET, after(own_s=1.05, busy_s=109.1), 9)
    assert found["interference/foreign_cpu_percent"] == pytest.approx(0.25)
    assert found["interference/driver_cpu_percent"] == pytest.approx(0.5)
    assert interference.warnings(found) == []
    assert not any("mhz" in key or "throttles" in key for key in found)  # the machine does not tell


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"busy_s": 113}, "other processes had 20 % of the machine's CPU time"),
        ({"stolen_s": 1}, "the virtual machine's host kept 5 % of its CPU time"),
    ],
)
def test_what_disturbed_it_is_named(change: dict[str, float], words: str) -> None:
    assert interference.warnings(interference.metrics_between(QUIET, after(**change), 9)) == [words]


def test_throttling_is_counted_where_the_machine_tells(tmp_path: Path) -> None:
    for core, count in ((0, 3), (1, 4)):
        place = tmp_path / f"cpu{core}" / "thermal_throttle"
        place.mkdir(parents=True)
        (place / "core_throttle_count").write_text(f"{count}\n")
    before = interference.Snapshot.now(tmp_path)
    assert before.throttles == 7
    later = interference.metrics_between(before, replace(before, throttles=9), 0)
    assert later["interference/cpu_throttle_count"] == 2
    assert interference.warnings(later) == ["the processor was throttled 2 times"]


def test_what_was_on_the_gpu_is_named() -> None:
    before = interference.GpuSnapshot(others=0, mhz=345, throttled_s=1.5, joules=1000)
    alone = replace(before, mhz=1980, joules=1250)
    found = interference.metrics_between(replace(QUIET, gpu=before), after(gpu=alone), 9)
    assert found.items() >= {
        "interference/gpu_mhz_before": 345, "interference/gpu_mhz_after": 1980, "system/gpu_energy_j": 250
    }.items()  # fmt: skip
    assert interference.warnings(found) == []
    disturbed = replace(alone, others=2, throttled_s=1.75)
    for moments in ((before, disturbed), (replace(before, others=2), replace(alone, throttled_s=1.75))):
        figures = interference.metrics_between(replace(QUIET, gpu=moments[0]), after(gpu=moments[1]), 9)
        assert interference.warnings(figures) == [
            "other processes were on the GPU: 2",
            "the GPU was throttled for 0.25 s",
        ]
    untold = interference.GpuSnapshot(others=None, mhz=None, throttled_s=None, joules=None)
    assert not any(
        "gpu" in key for key in interference.metrics_between(replace(QUIET, gpu=untold), after(gpu=untold), 9)
    )


@pytest.mark.skipif(not checks.has_gpu(), reason="no GPU")
def test_another_process_on_the_gpu_is_seen() -> None:
    """The worker's own is not, nor is a process that the worker started."""
    found = Gpu.found()
    assert found is not None
    framework = config.compose(["framework=torch", "setting=reference_mnist"]).framework
    python = environments.ensure(framework, "gpu").python
    script = "import torch; torch.ones(9, device='cuda').sum().item(); print('there', flush=True); input()"
    with subprocess.Popen(
        [python, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == "there\n"
        # There may be more of them: another test's.
        everybody = interference.GpuSnapshot.now(found, worker=0).others
        assert everybody is not None
        assert everybody >= 1
        assert found.others(other.pid) == found.others(os.getpid()) == everybody - 1
        other.communicate("\n")


def test_this_machine_is_measured_as_it_is() -> None:
    """A process that burns a core shows as foreign unless it is the worker's."""
    before = interference.Snapshot.now()
    burner = multiprocessing.get_context("spawn").Process(target=burn, args=(1.0,))
    burner.start()
    burner.join()
    now = interference.Snapshot.now()
    foreign = interference.metrics_between(before, now, 0)["interference/foreign_cpu_percent"]
    own = interference.metrics_between(before, now, 1.0)["interference/foreign_cpu_percent"]
    share = 100 * 1.0 / (now.total_s - before.total_s)
    assert foreign - own == pytest.approx(share, rel=0.01)
    assert foreign > 0.8 * share


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_a_process_and_its_children_are_sampled() -> None:
    script = ("import subprocess, sys\nburn = 'while True: pass'\n"
              "subprocess.Popen([sys.executable, '-c', burn]).wait()")  # fmt: skip
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    try:
        time.sleep(0.5)
        found = ProcessUsage(process.pid)
        time.sleep(0.5)
        sample = found.sample()
        assert sample["worker_cpu_user_percent"] > 10  # the child's; this machine may be busy
        assert sample["worker_memory_mb"] > 10
        assert sample["worker_threads"] == 2
    finally:
        os.killpg(process.pid, 9)
        process.wait()
    assert found.sample() == {}


def test_energy_is_that_of_the_packages_and_survives_the_counters_turn(tmp_path: Path) -> None:
    package, core = tmp_path / "intel-rapl:0", tmp_path / "intel-rapl:0:0"  # a part of the package: not counted twice
    for place, name in ((package, "package-0"), (core, "core")):
        place.mkdir()
        (place / "name").write_text(f"{name}\n")
        (place / "max_energy_range_uj").write_text("100000000\n")
        (place / "energy_uj").write_text("99000000\n")
    energy = CpuEnergy(tmp_path)
    time.sleep(0.1)
    (package / "energy_uj").write_text("4000000\n")  # 5 J later
    (core / "energy_uj").write_text("4000000\n")
    watts = energy.sample()["cpu_power_w"]
    assert energy.joules == pytest.approx(5)
    assert 5 / 0.3 < watts <= 5 / 0.1


def test_energy_is_absent_where_nobody_tells(tmp_path: Path) -> None:
    assert CpuEnergy(tmp_path).sample() == {}


def test_a_gpu_that_cannot_be_asked_is_said_once_and_stops_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    sampler = Sampler(0.05, "gpu")
    sampler.start(os.getpid())
    time.sleep(0.3)
    metrics = sampler.stop()
    assert any(metric.key == "system/worker_memory_mb" for metric in metrics)
    if not any("gpu" in metric.key for metric in metrics):
        assert capfd.readouterr().err.count("the GPU's use is not sampled") == 1


def test_a_run_has_the_evidence(gtdl: Command, store: str) -> None:
    done = gtdl("framework=reference", "training.epochs=2")
    assert done.returncode == 0, done.stderr
    (run,) = runs(store)
    metrics, tags = run.data.metrics, run.data.tags
    for name in ("interference/load_before", "interference/load_after", "interference/foreign_cpu_percent", "interference/steal_percent",
                 "interference/driver_cpu_percent", "worker/cpu_user_s", "worker/cpu_system_s", "worker/peak_memory_mb",
                 "worker/context_switches", "worker/involuntary_context_switches", "worker/disk_read_mb",
                 "worker/disk_write_mb"):  # fmt: skip
        assert name in metrics
    assert metrics["worker/peak_memory_mb"] > 20
    assert metrics["worker/cpu_user_s"] + metrics["worker/cpu_system_s"] < 100
    assert tags["gtdl.interference"] == ("; ".join(interference.warnings(metrics)) or "ok")
    assert run.data.params["worker.framework_files"] in ("cold", "warm")
    assert run.data.params["worker.data_files"] in ("cold", "warm")


@pytest.mark.skipif(not checks.has_gpu(), reason="no GPU")
def test_a_run_on_a_gpu_has_the_evidence(gtdl: Command, store: str) -> None:
    done = gtdl("framework=torch", "hardware=gpu", "training.epochs=2", "tracking.system_metrics_interval_s=0.2")
    assert done.returncode == 0, done.stderr
    (run,) = runs(store)
    metrics, params = run.data.metrics, run.data.params
    assert run.data.tags["gtdl.device"] == "gpu"
    assert (params["worker.device"], params["worker.tf32"]) == ("gpu", "False")
    assert params["worker.gpu"] in params["machine.gpus"]
    assert params["worker.gpu_driver"]
    assert metrics["worker/peak_gpu_memory_mb"] > 1
    assert "interference/gpu_other_processes" in metrics  # another test's may be there
    assert metrics["interference/gpu_mhz_after"] > 0
    assert metrics["system/gpu_energy_j"] > 0
    assert metrics["system/gpu_0_power_usage_watts"] > 0
    assert metrics["accuracy_percent"] > 50
