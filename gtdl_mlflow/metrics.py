"""Every metric of a run, once: name, unit, direction, when it is recorded, and what it means.

The report's breakdown of a run, the MLPerf log, ``gtdl check`` and ``docs/metrics.md`` derive from this registry. A new
metric is one entry here and the line that measures it. Standard library only: workers import it too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

LOWER, HIGHER = "lower", "higher"

GROUPS = {
    "run": "The run as a whole",
    "setup": "Setup",
    "train": "Training",
    "eval": "Evaluations during training",
    "test": "Testing",
    "save": "Saving",
    "latency": "Single operations: total time",
    "train_step": "Single operations: training steps",
    "inference": "Single operations: inference",
    "parity": "Parity check",
    "worker": "The worker's process",
    "interference": "Interference: other load while the worker ran",
    "system": "Use of the machine over time",
    "sweep": "Parent run of a sweep",
    "stability": "Parent run of a stability study",
    "paired": "Parent run of a paired measurement",
}
"""Title of every group of metrics, in the order of the documentation."""

EVALUATION = "at every evaluation"
SAMPLE = "every `tracking.system_metrics_interval_s` seconds"
SAMPLED = "a worker that runs longer than `tracking.system_metrics_interval_s`"
BATCH_SIZE = "for every batch size of `latency.batch_sizes`; the step is the batch size"


@dataclass(frozen=True)
class Metric:
    """One metric, or one family of metrics whose name has ``{placeholders}``."""

    name: str
    unit: str
    """Empty for a plain number."""
    description: str
    better: str = ""
    """``LOWER``, ``HIGHER``, or empty where neither is better."""
    recorded: str = "once"
    requires: str = ""
    """Condition under which it is recorded; empty if every finished run has it."""
    phase: str = ""
    """Label of this part of the worker's wall time; empty for a metric that is no part of it."""
    section: str = "run"
    """Group of a metric whose name has no prefix."""
    label: str = ""
    """Name in charts and tables; empty for a metric that the report does not draw."""

    @property
    def group(self) -> str:
        """Key of ``GROUPS``: the prefix of the name, or ``section``."""
        prefix, slash, _ = self.name.partition("/")
        return prefix if slash else self.section

    @property
    def title(self) -> str:
        """Label and unit, as on an axis: ``training time, s``."""
        return f"{self.label}, {self.unit}"


_ALL = (
    # The run as a whole.
    Metric("wall_time_s", "s", "The whole run in the driver, without the wait for the device.", LOWER),
    Metric("device_wait_s", "s", "Time that the run waited for the device.", LOWER),
    # Setup.
    Metric("setup/start_s", "s", "Start of the interpreter, with NumPy.", LOWER, phase="interpreter"),
    Metric("setup/import_s", "s", "Import of the framework and its adapter.", LOWER, phase="import"),
    Metric("setup/parity_s", "s", "Parity check.", LOWER, requires="`parity=true`", phase="parity"),
    Metric("setup/build_s", "s", "Initial weights and network.", LOWER, phase="build"),
    Metric("setup/compile_s", "s", "Ahead-of-time compilation, before the first batch.", LOWER,
           phase="ahead-of-time compilation"),
    Metric("setup/verify_data_s", "s", "Reading the prepared images and labels and checking their SHA-256.", LOWER,
           phase="data verification"),
    Metric("setup/data_s", "s", "Preprocessing of the images, such as scaling.", LOWER, phase="data"),
    # Training.
    Metric("training_time_s", "s", "Training, from before the first batch until the device has finished the last step. "
           "Batching, augmentation and transfer to the device are included; preprocessing, compilation before the "
           "first batch, evaluation, validation and checkpoints are excluded.", LOWER, phase="training",
           section="train", label="training time"),
    Metric("train/images_per_s", "images/s", "Training throughput, the first step included.", HIGHER),
    Metric("train/steady_state_images_per_s", "images/s", "Training throughput after the warm-up steps.", HIGHER),
    Metric("train/first_step_s", "s", "First training step.", LOWER),
    Metric("train/first_step_overhead_s", "s", "First training step minus a step after the warm-up: allocation, and "
           "kernels that are compiled or selected when they are first used.", LOWER),
    Metric("train/evaluation_s", "s", "Evaluations on the test set, clock stopped.", LOWER, phase="evaluation"),
    Metric("train/validation_s", "s", "Validations of early stopping, clock stopped.", LOWER,
           phase="validation"),
    Metric("train/checkpoint_s", "s", "Checkpoints, clock stopped.", LOWER, phase="checkpoints"),
    Metric("train/cpu_utilization_percent", "%", "CPU time of the training, divided by training time x threads.",
           label="CPU use in training"),
    Metric("train/iterations", "", "Training steps."),
    Metric("train/best_iteration", "", "Step with the lowest validation error, whose model is tested.",
           requires="`training.early_stopping`"),
    Metric("train/epoch", "epochs", "Passes over the training images so far.", recorded=EVALUATION),
    Metric("train/elapsed_s", "s", "Training time so far.", recorded=EVALUATION),
    Metric("train/loss", "nats", "Mean training loss since the last evaluation.", LOWER, recorded=EVALUATION),
    Metric("train/time_to_target_s", "s", "Training time until an evaluation reached "
           "`training.target_accuracy_percent`.", LOWER, requires="the target was reached"),
    Metric("eval/accuracy_percent", "%", "Test accuracy during training, measured as `accuracy_percent`.", HIGHER,
           recorded=EVALUATION, requires="`training.evaluate_every_epochs` from 1 to less than the run's epochs"),
    Metric("eval/validation_error_percent", "%", "Share of the validation images that are misclassified.", LOWER,
           recorded="at every validation", requires="`training.early_stopping`"),
    # Testing and saving.
    Metric("test/warm_up_s", "s", "One batch before the timed pass over the test set.", LOWER, phase="test warm-up"),
    Metric("testing_time_s", "s", "One pass over the test set, with batching and transfer, after one batch of warm-up.",
           LOWER, phase="testing", section="test", label="testing time"),
    Metric("accuracy_percent", "%", "Share of the test images that are classified correctly. For a data set with "
           "`dataset.mean_per_class=true` (Caltech-101): the mean over the classes of that share.", HIGHER,
           section="test", label="test accuracy"),
    Metric("test/images_per_s", "images/s", "Testing throughput.", HIGHER),
    Metric("test/overall_accuracy_percent", "%", "Share of the test images that are classified correctly.", HIGHER),
    Metric("test/mean_class_accuracy_percent", "%", "Mean over the classes of the share that is classified correctly.",
           HIGHER),
    Metric("test/top5_accuracy_percent", "%", "Share of the test images whose class is among the five highest scores.",
           HIGHER),
    Metric("test/loss", "nats", "Mean cross-entropy on the test set.", LOWER),
    Metric("test/cpu_utilization_percent", "%", "CPU time of the testing, divided by testing time x threads."),
    Metric("save/model_s", "s", "Saving the trained model.", LOWER, phase="saving"),
    # Single operations.
    Metric("latency/time_s", "s", "Timing of single operations.", LOWER, requires="`latency.repeats` above 0",
           phase="single operations"),
    *(Metric(f"train_step/p{rank}_ms", "ms", f"{rank}th percentile of a synchronised training step.", LOWER,
             requires="`latency.repeats` above 0") for rank in (50, 90, 99)),
    Metric("train_step/samples", "", "Training steps that were timed.", requires="`latency.repeats` above 0"),
    *(Metric(f"inference/p{rank}_ms", "ms", f"{rank}th percentile of the time to classify a batch.", LOWER,
             recorded=BATCH_SIZE, requires="`latency.batch_sizes`") for rank in (50, 90, 99)),
    Metric("inference/samples", "", "Batches that were timed.", recorded=BATCH_SIZE, requires="`latency.batch_sizes`"),
    Metric("inference/images_per_s", "images/s", "Throughput of inference.", HIGHER, recorded=BATCH_SIZE,
           requires="`latency.batch_sizes`"),
    Metric("inference/saturation_batch_size", "images", "Smallest batch with 95 % of the highest throughput.",
           requires="`latency.batch_sizes`"),
    Metric("inference/highest_images_per_s", "images/s", "Highest throughput over all batch sizes.", HIGHER,
           requires="`latency.batch_sizes`"),
    # Parity.
    *(Metric(f"parity/{name}_difference", "", f"Largest relative difference of the {name} from the float64 NumPy "
             "network.", LOWER, requires="`parity=true`") for name in ("logits", "gradient", "loss")),
    # Roofline.
    *(Metric(f"{phase}/{name}", unit, f"{text}, in {phase}ing.", better, requires=condition)
      for phase in ("train", "test")
      for name, unit, text, better, condition in (
          ("gflops", "GFLOP/s", "Useful operations per second", HIGHER, ""),
          ("flops_per_byte", "FLOP/B", "Arithmetic intensity", "", ""),
          ("peak_share_percent", "%", "Share of the machine's peak", HIGHER,
           "`precision=float32`, and the machine's peak could be measured"),
      )),
    # The worker's process.
    Metric("worker/wall_s", "s", "The worker from its start to its end, without its wait for the job.", LOWER),
    Metric("worker/cpu_user_s", "s", "User CPU time of the worker and its children.", LOWER),
    Metric("worker/cpu_system_s", "s", "System CPU time of the worker and its children.", LOWER),
    Metric("worker/peak_memory_mb", "MB", "Largest resident memory of the worker's process: interpreter, framework, "
           "images and network. 1 MB is 10^6 bytes.", LOWER, label="peak memory"),
    Metric("worker/peak_gpu_memory_mb", "MB", "Largest GPU memory that the framework allocated.", LOWER,
           requires="`hardware=gpu`, and a framework that reports it", label="peak GPU memory"),
    Metric("worker/context_switches", "", "Voluntary context switches.", LOWER),
    Metric("worker/involuntary_context_switches", "", "Involuntary context switches.", LOWER),
    Metric("worker/disk_read_mb", "MB", "Data read from the disk.", LOWER),
    Metric("worker/disk_write_mb", "MB", "Data written to the disk.", LOWER),
    # Interference: other load on the machine while the worker ran.
    Metric("interference/load_before", "processes", "Load average of the last minute, before.", LOWER),
    Metric("interference/load_after", "processes", "Load average of the last minute, after.", LOWER),
    Metric("interference/foreign_cpu_percent", "%", "Share of the machine's CPU time used by other processes.", LOWER),
    Metric("interference/steal_percent", "%", "Share of the CPU time withheld by a virtual machine's host.", LOWER),
    Metric("interference/driver_cpu_percent", "%", "CPU use of the driver.", LOWER),
    *(Metric(f"interference/cpu_mhz_{when}", "MHz", f"Clock frequency of the processor, {when} the worker ran.",
             requires="a machine that reports it") for when in ("before", "after")),
    Metric("interference/cpu_throttle_count", "", "Times that the processor was throttled.", LOWER,
           requires="a machine that reports it"),
    Metric("interference/quota_throttle_count", "", "Times that the limit on CPU time of a control group stopped the "
           "run.", LOWER, requires="a limit on CPU time"),
    Metric("interference/quota_throttled_s", "s", "Time for which that limit stopped the run, summed over the CPUs.",
           LOWER, requires="a limit on CPU time"),
    Metric("interference/gpu_other_processes", "", "Other processes that computed on the GPU.", LOWER,
           requires="`hardware=gpu`"),
    *(Metric(f"interference/gpu_mhz_{when}", "MHz", f"Clock frequency of the GPU, {when} the worker ran.",
             requires="`hardware=gpu`") for when in ("before", "after")),
    Metric("interference/gpu_throttled_s", "s", "Time for which the GPU was throttled by heat.", LOWER,
           requires="`hardware=gpu`"),
    # Samples over the run: MLflow's own system metrics, and the worker's.
    Metric("system/cpu_utilization_percentage", "%", "CPU use of the machine.", recorded=SAMPLE),
    Metric("system/system_memory_usage_megabytes", "MB", "Memory in use on the machine.", recorded=SAMPLE),
    Metric("system/system_memory_usage_percentage", "%", "Share of the machine's memory in use.", recorded=SAMPLE),
    Metric("system/disk_usage_percentage", "%", "Share of the disk in use.", recorded=SAMPLE),
    Metric("system/disk_usage_megabytes", "MB", "Disk space in use.", recorded=SAMPLE),
    Metric("system/disk_available_megabytes", "MB", "Free disk space.", recorded=SAMPLE),
    Metric("system/network_receive_megabytes", "MB", "Data received since the first sample.", recorded=SAMPLE),
    Metric("system/network_transmit_megabytes", "MB", "Data sent since the first sample.", recorded=SAMPLE),
    *(Metric(f"system/gpu_{{index}}_{name}", unit, text, recorded=SAMPLE, requires="`hardware=gpu`")
      for name, unit, text in (
          ("memory_usage_percentage", "%", "Share of the GPU's memory in use."),
          ("memory_usage_megabytes", "MB", "GPU memory in use."),
          ("utilization_percentage", "%", "Share of the time in which a kernel ran."),
          ("power_usage_watts", "W", "Power of the GPU."),
          ("power_usage_percentage", "%", "Power of the GPU, relative to its limit."),
      )),
    Metric("system/worker_cpu_user_percent", "%", "User CPU use of the worker; 100 is one core.", recorded=SAMPLE,
           requires=SAMPLED),
    Metric("system/worker_cpu_system_percent", "%", "System CPU use of the worker; 100 is one core.", recorded=SAMPLE,
           requires=SAMPLED),
    Metric("system/worker_context_switches_per_s", "1/s", "Context switches of the worker.", recorded=SAMPLE,
           requires=SAMPLED),
    Metric("system/worker_disk_read_mb_per_s", "MB/s", "Data that the worker reads from the disk.", recorded=SAMPLE,
           requires=SAMPLED),
    Metric("system/worker_disk_write_mb_per_s", "MB/s", "Data that the worker writes to the disk.", recorded=SAMPLE,
           requires=SAMPLED),
    Metric("system/worker_memory_mb", "MB", "Resident memory of the worker.", recorded=SAMPLE,
           requires=SAMPLED),
    Metric("system/worker_threads", "", "Threads of the worker.", recorded=SAMPLE,
           requires=SAMPLED),
    Metric("system/cpu_power_w", "W", "Power of all processor packages.", recorded=SAMPLE,
           requires="readable RAPL counters"),
    Metric("system/cpu_energy_j", "J", "Energy of all processor packages during the run. Other processes are included.",
           LOWER, requires="readable RAPL counters", label="CPU energy"),
    Metric("system/gpu_energy_j", "J", "Energy of the whole GPU during the run. Other processes are included.", LOWER,
           requires="`hardware=gpu`", label="GPU energy"),
    # On the parent run of a sweep.
    Metric("sweep/finished", "cells", "Cells that finished.", HIGHER, requires="the parent run of a sweep"),
    Metric("sweep/failed", "cells", "Cells that failed.", LOWER, requires="the parent run of a sweep"),
    Metric("sweep/unavailable", "cells", "Cells that cannot run on this machine.", LOWER,
           requires="the parent run of a sweep"),
    Metric("sweep/running", "cells", "Cells that another process is running.", requires="the parent run of a sweep"),
    Metric("sweep/missing", "cells", "Cells that were not started.", LOWER, requires="the parent run of a sweep"),
    Metric("sweep/time_s", "s", "Time of the sweep over all of its starts.", LOWER,
           requires="the parent run of a sweep"),
    Metric("stability/{clock}/{activity}/{framework}/round_noise_percent", "%", "Standard deviation of the ratio of "
           "two workers of one framework between the rounds of a restart, estimated from the median absolute "
           "deviation.", LOWER, requires="`experiment=stability`"),
    Metric("stability/{clock}/{activity}/{framework}/restart_noise_percent", "%", "Standard deviation of that ratio "
           "between restarts.", LOWER, requires="`experiment=stability`"),
    Metric("stability/{clock}/{activity}/{framework}/half_width_percent", "%", "Half-width of the interval of that "
           "ratio.", LOWER, requires="`experiment=stability`"),
    Metric("stability/{clock}/{activity}/{framework}/restarts_needed", "restarts", "Restarts that show a difference of "
           "2 % with a probability of 80 %.", LOWER, requires="`experiment=stability`"),
    Metric("paired/{clock}/{activity}/{framework}/ratio", "", "Time relative to that of the best framework, by CPU "
           "time (`cpu`) or wall clock (`wall`), in training, testing or the latency of single images. With the suffix "
           "`_over_plain`: relative to the framework that it runs on, such as Keras on JAX relative to JAX.", LOWER,
           requires="`experiment=paired`"),
    Metric("paired/{clock}/{activity}/{framework}/ratio_low", "", "Lower end of the interval of that ratio.",
           requires="`experiment=paired`"),
    Metric("paired/{clock}/{activity}/{framework}/ratio_high", "", "Upper end of the interval of that ratio.",
           requires="`experiment=paired`"),
    Metric("paired/{clock}/{activity}/{framework}/restart_ratio", "", "That ratio in each restart: the step is the "
           "number of the restart.", requires="`experiment=paired`"),
    Metric("paired/{clock}/{activity}/{framework}/time_ms", "ms", "Median time of a training step, a test batch or a "
           "single image.", LOWER, requires="`experiment=paired`"),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""All metrics by name, in the order of the documentation."""

HEADLINE = ("training_time_s", "testing_time_s", "accuracy_percent")
"""The three metrics that every finished run has, and that GTDLBench published."""

PHASES: tuple[Metric, ...] = tuple(metric for metric in _ALL if metric.phase)
"""The parts of the worker's wall time, in the order in which they happen. The rest of ``worker/wall_s`` is unnamed."""

WALL_TIME = "worker/wall_s"

OTHER = "other"
"""Label of the part of the worker's wall time that belongs to no phase."""


def phase_times(values: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of each phase of the worker, with the rest of its wall time as ``OTHER``.

    Args:
        values: metrics by name. Those that are not finite are ignored.
    """
    known = {name: value for name, value in values.items() if math.isfinite(value)}
    times = {metric.phase: known[metric.name] for metric in PHASES if metric.name in known}
    if WALL_TIME in known:
        times[OTHER] = max(0.0, known[WALL_TIME] - sum(times.values()))
    return times


def find(name: str) -> Metric | None:
    """Return the metric called ``name``, or the family that it belongs to; None if it is not registered."""
    if name in METRICS:
        return METRICS[name]
    return next((metric for metric in _ALL if "{" in metric.name and _pattern(metric.name).fullmatch(name)), None)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{\w+\\\}", r"[^/]+", re.escape(name)))
