"""Every MLflow tag that this project sets: its name and what it holds. docs/metrics.md is generated from it."""

from __future__ import annotations

TAGS: dict[str, str] = {}
"""Tag name to description, in the order of the documentation."""


def _tag(name: str, description: str) -> str:
    full_name = f"gtdl.{name}"
    TAGS[full_name] = description
    return full_name


FRAMEWORK = _tag("framework", "Framework, as in `framework=`.")
FRAMEWORK_VERSION = _tag("framework_version", "Version that the framework itself reports.")
DATASET = _tag("dataset", "Data set, as in `dataset=`.")
MODEL = _tag("model", "Network, as in `model=`.")
TRAINING = _tag("training", "Hyper-parameters, as in `training=`.")
HARDWARE = _tag("hardware", "Hardware choice, as in `hardware=`.")
SETTING = _tag("setting", "Network and hyper-parameters, as in `setting=`; both with `+` if their names differ.")
DEVICE = _tag("device", "Device that the framework reports: `cpu` or `gpu`.")
SEED = _tag("seed", "Seed of the initial weights, the batch order, the augmentation and dropout.")
BUDGET = _tag("budget", "Share of the training's iterations.")
MODE = _tag("mode", "Execution mode of the run, one of the framework's.")
MODE_REQUESTED = _tag("mode_requested", "Execution mode, as in `mode=`: `best`, `default` or the name of one.")
MODE_CANDIDATES = _tag(
    "mode_candidates",
    "With `mode=best`: the measured modes, the chosen one first, with the time of a step relative to the fastest step, "
    "and the reason for each mode that was not measured.",
)
PRECISION = _tag("precision", "Precision of convolutions and matrix products, as in `precision=`.")
DETERMINISTIC = _tag("deterministic", "`true` if the same seed has to give the same bits, as in `deterministic=`.")
COMPILE_CACHE = _tag(
    "compile_cache", "`warm` if all compiled code came from the cache, `cold` if some was compiled; modes that compile."
)
SIDE_BY_SIDE = _tag("side_by_side", "`true` if other runs were allowed on other cores at the same time.")
LABELS = _tag("labels", "Kind of labels, for data sets that have several.")
IMAGE_SIZE = _tag("image_size", "Side, or [height, width], of the resized images in pixels, for resized data sets.")
TRAIN_LIMIT = _tag("train_limit", "Largest number of training images, if limited.")
TEST_LIMIT = _tag("test_limit", "Largest number of test images, if limited.")
SPLIT_SEED = _tag("split_seed", "Seed that selects the training and the test images, if the data set has no split.")
TRAIN_PER_CLASS = _tag("train_per_class", "Largest number of training images per class, if the data set has no split.")
TEST_PER_CLASS = _tag("test_per_class", "Largest number of test images per class, if the data set has no split.")
SERIES = _tag(
    "series",
    "Framework, with its version, mode and precision if requested, setting, data set and budget: the run's name "
    "without its seed.",
)
CONFIG_HASH = _tag("config_hash", "Hash of everything in the configuration that can change a result.")
CELL = _tag("cell", "Hash of the same values as `gtdl.config_hash` without the seed: runs of one cell are repeats.")
WORK = _tag(
    "work",
    "Hash of data set, network and training, without framework, hardware, budget and seed: frameworks with the same "
    "hash do the same work.",
)
ENVIRONMENT = _tag("environment", "Hash of what is installed in the framework's environment.")
ENVIRONMENT_LOCKED = _tag(
    "environment_locked", "What a lock determined of the environment: `versions and hashes`, `versions` or `no`."
)
DATA_DIGEST = _tag("data_digest", "SHA-256 of the prepared arrays and the settings of their preparation.")
MACHINE = _tag(
    "machine",
    "Processor with family, model and stepping, cores, memory and GPUs, with a hash, also of the vector extensions.",
)
VERSION = _tag("version", "Version of gtdl_mlflow.")
CODE = _tag("code", "Version of gtdl_mlflow with a hash of the worker's code.")
WEIGHTS_SHA256 = _tag("weights_sha256", "SHA-256 of the trained weights: equal for runs that are identical bit by bit.")
QUALITY = _tag("quality", "`ok`, or the rule of the quality gate that the run failed.")
INTERFERENCE = _tag("interference", "`ok`, or what disturbed the run.")
RESUMED = _tag("resumed", "The iteration and the run from which a killed training was resumed.")
REMARKS = _tag("remarks", "What failed without stopping the run, such as a checkpoint on a full disk.")
CHECK = _tag("check", "`ok`, or the rules of `gtdl check` that the run or its cell breaks.")
FAILURE = _tag("failure", "Why the run did not finish.")
UNAVAILABLE = _tag("unavailable", "Why the run cannot run on this machine.")
SWEEP = _tag("sweep", "Overrides of a sweep, on its parent run.")
SWEEP_ID = _tag("sweep_id", "Hash of a sweep's overrides, the worker's code and the machine.")
SWEEP_POSITION = _tag("sweep_position", "Position of a run in its sweep, from 0.")
SWEEP_ORDER = _tag("sweep_order", "Order of a sweep's runs, as in `sweep.order=`.")
RECORD = _tag("record", "Key of the local record that the run was delivered from.")
PROCESS = _tag("process", "Host, PID, start, namespaces, boot and machine ID of the process that records the run.")

DATASET_VARIANTS = (LABELS, IMAGE_SIZE, TRAIN_LIMIT, TEST_LIMIT, SPLIT_SEED, TRAIN_PER_CLASS, TEST_PER_CLASS)
"""Tags of the settings that select a variant of a data set. Accuracies on different variants are not comparable."""
