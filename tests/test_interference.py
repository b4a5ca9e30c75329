"""Interference during a run, and the samples of the machine's and the worker's use."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.processes import kill, read_line
from helpers.project import Command, runs, start, wait_for_worker

from gtdl_mlflow import config, environments
from gtdl_mlflow.config import checks
from gtdl_mlflow.hardware import interference
from gtdl_mlflow.hardware.gpu import Gpu
from gtdl_mlflow.hardware.system_metrics import CpuEnergy, ProcessUsage, Sampler
from gtdl_mlflow.metrics import METRICS

BEFORE = interference.Snapshot(
    time=0, busy_s=100, stolen_s=0, total_s=1000, driver_s=1, load=0.1, mhz=None, throttle_count=None
)


def after(**changes: Any) -> interference.Snapshot:
    """Return the snapshot 10 s later on two cores, of which the worker used 9 s of CPU time."""
    values = {"time": 10, "busy_s": 109, "stolen_s": 0, "total_s": 1020, "driver_s": 1, **changes}
    return replace(BEFORE, **values)


def test_undisturbed_worker_has_no_warning() -> None:
    metrics = interference.metrics_between(BEFORE, after(driver_s=1.05, busy_s=109.1), 9)
    assert metrics["interference/foreign_cpu_percent"] == pytest.approx(0.25)
    assert metrics["interference/driver_cpu_percent"] == pytest.approx(0.5)
    assert interference.warnings(metrics) == []
    assert not any("mhz" in key or "throttle" in key for key in metrics)  # the machine does not report them


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"busy_s": 113}, "other processes used 20 % of the machine's CPU time"),
        ({"stolen_s": 1}, "the host withheld 5 % of this virtual machine's CPU time"),
    ],
)
def test_interference_is_described(changes: dict[str, float], text: str) -> None:
    assert interference.warnings(interference.metrics_between(BEFORE, after(**changes), 9)) == [text]


def test_throttling_is_counted_where_the_machine_reports_it(tmp_path: Path) -> None:
    for core, count in ((0, 3), (1, 4)):
        folder = tmp_path / f"cpu{core}" / "thermal_throttle"
        folder.mkdir(parents=True)
        (folder / "core_throttle_count").write_text(f"{count}\n")
    before = interference.Snapshot.now(tmp_path)
    assert before.throttle_count == 7
    metrics = interference.metrics_between(before, replace(before, throttle_count=9), 0)
    assert metrics["interference/cpu_throttle_count"] == 2
    assert interference.warnings(metrics) == ["the processor was throttled 2 times"]


def test_interference_on_the_gpu_is_described() -> None:
    before = interference.GpuSnapshot(other_processes=0, mhz=345, throttled_s=1.5, joules=1000)
    alone = replace(before, mhz=1980, joules=1250)
    metrics = interference.metrics_between(replace(BEFORE, gpu=before), after(gpu=alone), 9)
    assert metrics["interference/gpu_mhz_before"] == 345
    assert metrics["interference/gpu_mhz_after"] == 1980
    assert metrics["system/gpu_energy_j"] == 250
    assert interference.warnings(metrics) == []
    disturbed = replace(alone, other_processes=2, throttled_s=1.75)
    for first, second in (
        (before, disturbed),
        (replace(before, other_processes=2), replace(alone, throttled_s=1.75)),
    ):
        metrics = interference.metrics_between(replace(BEFORE, gpu=first), after(gpu=second), 9)
        assert interference.warnings(metrics) == [
            "other processes computed on the GPU: 2",
            "the GPU was throttled for 0.25 s",
        ]


def test_values_that_the_gpu_does_not_report_are_left_out() -> None:
    unknown = interference.GpuSnapshot(other_processes=None, mhz=None, throttled_s=None, joules=None)
    metrics = interference.metrics_between(replace(BEFORE, gpu=unknown), after(gpu=unknown), 9)
    assert not any("gpu" in key for key in metrics)


@pytest.mark.frameworks
@pytest.mark.skipif(not checks.has_gpu(), reason="no GPU")
def test_other_processes_on_the_gpu_do_not_include_the_worker_and_its_children() -> None:
    gpu = Gpu.find()
    assert gpu is not None
    framework = config.compose(["framework=torch", "setting=reference_mnist"]).framework
    python = environments.ensure(framework, "gpu").python
    script = "import torch; torch.ones(9, device='cuda').sum().item(); print('computed', flush=True); input()"
    process = subprocess.Popen([python, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert read_line(process, process.stdout, timeout_s=120) == "computed\n"
        # There may be more processes, of other tests.
        all_processes = interference.GpuSnapshot.now(gpu, worker=0).other_processes
        assert all_processes is not None
        assert all_processes >= 1
        assert gpu.other_processes(process.pid) == gpu.other_processes(os.getpid()) == all_processes - 1
    finally:
        kill(process)


def test_cpu_times_are_split_into_busy_idle_and_stolen(monkeypatch: pytest.MonkeyPatch) -> None:
    # The kernel counts the time of guests (3 + 1) a second time, in user and nice.
    names = "user nice system idle iowait irq softirq steal guest guest_nice"
    times = namedtuple("times", names)(10.0, 2.0, 4.0, 70.0, 5.0, 0.5, 0.5, 8.0, 3.0, 1.0)
    monkeypatch.setattr(psutil, "cpu_times", lambda: times)
    snapshot = interference.Snapshot.now()
    assert (snapshot.busy_s, snapshot.stolen_s, snapshot.total_s) == (17.0, 8.0, 100.0)


def test_another_process_that_computes_is_foreign_load() -> None:
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    before = interference.Snapshot.now()
    subprocess.run([sys.executable, "-c", burn], check=True, timeout=120)
    now = interference.Snapshot.now()
    percent = interference.metrics_between(before, now, worker_s=0)["interference/foreign_cpu_percent"]
    seconds_of_all_cores = (now.time - before.time) * os.cpu_count()
    assert percent / 100 * seconds_of_all_cores > 0.4


def test_own_cpu_time_is_no_other_load() -> None:
    before = interference.Snapshot.now()
    other = replace(before, busy_s=before.busy_s - 100, total_s=before.total_s - 200)
    assert "this machine is busy" in interference.busy_warning(other)
    assert interference.busy_warning(replace(other, driver_s=other.driver_s - 100)) == ""


def test_children_of_a_process_are_sampled() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    process = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    try:
        time.sleep(0.5)
        usage = ProcessUsage(process.pid)
        time.sleep(0.5)
        sample = usage.sample()
        assert sample["worker_cpu_user_percent"] > 10  # the child's; this machine may be busy
        assert sample["worker_memory_mb"] > 5
        assert sample["worker_threads"] == 1  # the parent, which waits, is not part of the worker
        assert usage.cpu_s > 0
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)
    assert usage.sample() == {}


def test_energy_is_the_packages_and_its_counter_may_overflow(tmp_path: Path) -> None:
    package, core = tmp_path / "intel-rapl:0", tmp_path / "intel-rapl:0:0"  # part of the package: not counted twice
    for folder, name in ((package, "package-0"), (core, "core")):
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text("100000000\n")
        (folder / "energy_uj").write_text("99000000\n")
    energy = CpuEnergy(tmp_path)
    time.sleep(0.1)
    (package / "energy_uj").write_text("4000000\n")  # 5 J later
    (core / "energy_uj").write_text("4000000\n")
    watts = energy.sample()["cpu_power_w"]
    assert energy.joules == pytest.approx(5)
    assert 0 < watts <= 5 / 0.1


def test_energy_is_left_out_where_the_machine_does_not_count_it(tmp_path: Path) -> None:
    assert CpuEnergy(tmp_path).sample() == {}


def test_gpu_that_cannot_be_sampled_is_reported_once(capfd: pytest.CaptureFixture[str]) -> None:
    sampler = Sampler(0.05, "gpu")
    with subprocess.Popen(["sleep", "60"]) as worker:
        sampler.start(os.getpid())
        time.sleep(0.3)
        metrics = sampler.stop()
        worker.kill()
    assert any(metric.key == "system/worker_memory_mb" for metric in metrics)
    if not any("gpu" in metric.key for metric in metrics):
        assert capfd.readouterr().err.count("the GPU's use is not sampled") == 1


@pytest.mark.slow
def test_run_records_interference(gtdl: Command, store: str) -> None:
    done = gtdl("framework=reference", "training.epochs=2")
    assert done.returncode == 0, done.stderr
    (run,) = runs(store)
    recorded, tags = run.data.metrics, run.data.tags
    expected = {
        name for name, metric in METRICS.items() if metric.group in ("interference", "worker") and not metric.requires
    }
    assert "interference/foreign_cpu_percent" in expected
    assert expected <= recorded.keys()
    assert recorded["worker/peak_memory_mb"] > 20
    assert recorded["worker/cpu_user_s"] + recorded["worker/cpu_system_s"] < 100
    assert tags["gtdl.interference"] == ("; ".join(interference.warnings(recorded)) or "ok")
    assert ("these times are not reliable" in done.stderr) == (tags["gtdl.interference"] != "ok")
    assert run.data.params["worker.framework_files"] in ("cold", "warm")
    assert run.data.params["worker.data_files"] in ("cold", "warm")


@pytest.fixture
def busy_machine(all_cores: None) -> Iterator[None]:
    """Keep all cores busy beside the test, without a lock on the CPU."""
    burn = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(burn, text=True) for _ in range(os.cpu_count() or 1)]
    yield
    kill(*processes)


BUSY = re.compile(
    r"gtdl: this machine is busy \(other processes use \d+\.\d of \d+ cores\): times will not be reliable; "
    r"stop other work, or compare frameworks with experiment=paired"
)

DISTURBED = re.compile(r"gtdl: other processes used \d+ % of the machine's CPU time.*: these times are not reliable")


def matching(pattern: re.Pattern[str], text: str) -> list[str]:
    """Return the lines that match ``pattern``."""
    return [line for line in text.splitlines() if pattern.fullmatch(line)]


@pytest.mark.slow
def test_busy_machine_is_reported_before_a_run_and_after_it(gtdl: Command, store: str, busy_machine: None) -> None:
    done = gtdl("framework=reference", "training.epochs=100")
    assert done.returncode == 0, done.stderr
    assert len(matching(BUSY, done.stderr)) == 1
    assert len(matching(DISTURBED, done.stderr)) == 1
    (run,) = runs(store)
    assert run.data.tags["gtdl.interference"] in done.stderr


@pytest.mark.slow
def test_busy_machine_is_reported_once_before_a_sweep_and_after_each_cell(
    gtdl: Command, store: str, busy_machine: None
) -> None:
    done = gtdl("-m", "framework=reference", "training.epochs=100", "seed=0,1")
    assert done.returncode == 0, done.stderr
    assert len(matching(BUSY, done.stderr)) == 1
    assert len(matching(DISTURBED, done.stderr)) == 2
    marked = [line for line in done.stdout.splitlines() if line.startswith("  finished") and line.endswith(" *")]
    assert len(marked) == 2
    assert "  * disturbed by other load: times are not reliable" in done.stdout
    (summary,) = Path("multirun").rglob("summary.csv")
    assert summary.read_text().count("other processes used") == 2


@pytest.mark.slow
def test_another_run_is_waited_for_and_is_no_other_load(store: str) -> None:
    first = start("framework=reference", "training.epochs=1000000")
    wait_for_worker(first)
    second = start("framework=reference", "training.epochs=1", "seed=1")
    try:
        assert "waiting: another gtdl run" in read_line(second, second.stderr, timeout_s=240)
    finally:
        for process in (second, first):
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.frameworks
@pytest.mark.skipif(not checks.has_gpu(), reason="no GPU")
def test_run_on_a_gpu_records_interference(gtdl: Command, store: str) -> None:
    done = gtdl("framework=torch", "hardware=gpu", "training.epochs=2", "tracking.system_metrics_interval_s=0.2")
    assert done.returncode == 0, done.stderr
    (run,) = runs(store)
    recorded, params = run.data.metrics, run.data.params
    assert run.data.tags["gtdl.device"] == "gpu"
    assert (params["worker.device"], params["worker.tf32"]) == ("gpu", "False")
    assert params["worker.gpu"] in params["machine.gpus"]
    assert params["worker.gpu_driver"]
    assert recorded["worker/peak_gpu_memory_mb"] > 1
    assert "interference/gpu_other_processes" in recorded  # other tests may use the GPU
    assert recorded["interference/gpu_mhz_after"] > 0
    assert recorded["system/gpu_energy_j"] > 0
    assert recorded["system/gpu_0_power_usage_watts"] > 0
    assert recorded["accuracy_percent"] > 50
