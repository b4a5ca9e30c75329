"""Generate docs/metrics.md, docs/frameworks/ and docs/datasets/: ``python scripts/generate_docs.py``."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

import yaml

from gtdl_mlflow import config
from gtdl_mlflow.config import CONF, Config, Recipe
from gtdl_mlflow.metrics import GROUPS, HEADLINE, METRICS
from gtdl_mlflow.redaction import reveal
from gtdl_mlflow.reporting.formats import markdown_table as table
from gtdl_mlflow.tags import TAGS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def main() -> None:
    (DOCS / "metrics.md").write_text(metrics(), encoding="utf-8")
    for name in config.choices("framework", own=False):
        (DOCS / "frameworks" / f"{name}.md").write_text(framework(name), encoding="utf-8")
    for name in config.choices("dataset", own=False):
        (DOCS / "datasets" / f"{name}.md").write_text(dataset(name), encoding="utf-8")


def generated_from(path: Path) -> str:
    return f"*Generated from `{path.relative_to(ROOT)}` by `scripts/generate_docs.py`.*"


def paragraphs(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


# docs/metrics.md


def metrics() -> str:
    headline = ", ".join(f"`{name}`" for name in HEADLINE)
    parts = [
        "# Metrics and tags",
        f"Every metric and tag of a run. Every finished run has {headline}.",
    ]
    for group, title in GROUPS.items():
        rows = [
            [
                f"`{metric.name}`",
                metric.unit,
                metric.better,
                metric.description,
                metric.recorded,
                metric.requires,
            ]
            for metric in METRICS.values()
            if metric.group == group
        ]
        parts += [f"## {title}", table(["metric", "unit", "better", "meaning", "recorded", "condition"], rows)]
    parts += ["## Tags", table(["tag", "meaning"], [[f"`{name}`", text] for name, text in TAGS.items()])]
    return paragraphs(
        *parts, "*Generated from `gtdl_mlflow/metrics.py` and `gtdl_mlflow/tags.py` by `scripts/generate_docs.py`.*"
    )


# docs/frameworks/


def framework(name: str) -> str:
    composed = config.compose([f"framework={name}"])
    chosen, path = composed.framework, CONF / "framework" / f"{name}.yaml"
    adapter = ROOT / f"{chosen.adapter.partition(':')[0].replace('.', '/')}.py"
    devices = [
        [device, "no", support.unavailable] if support.unavailable else [device, "yes", ""]
        for device, support in chosen.devices.items()
    ]
    return paragraphs(
        f"# {chosen.label} {chosen.version}",
        module_docstring(adapter),
        first_comment(path),
        f"```bash\ngtdl run framework={name}\n```",
        "## Devices",
        table(["device", "supported", "reason"], devices),
        "## Environment",
        *environment(composed),
        "## Default settings",
        defaults(name),
        "## Execution modes",
        f"`mode=default` is `{chosen.default_mode}`; `mode=best`, the default, is the one with the shortest training, "
        "compilation included. All modes compute the same function. [Execution modes](../modes.md) explains the "
        "choice.",
        table(
            ["mode", "what it is", "runs on", "compiles"],
            [mode_row(*item, chosen.devices) for item in chosen.modes.items()],
        ),
        "Precisions: " + "; ".join(f"{device}: {', '.join(some)}" for device, some in chosen.precisions.items()) + ".",
        f"`{path.relative_to(ROOT)}` lists the options of each mode, with their reasons.",
        generated_from(path),
    )


def mode_row(name: str, mode: config.Mode, devices: Mapping[str, config.DeviceSupport]) -> list[str]:
    """Return the row of an execution mode, with those of its devices that the framework supports."""
    condition = "" if mode.deterministic else "; needs `deterministic=false`"
    supported = [device for device in mode.devices if device in devices and not devices[device].unavailable]
    return [f"`{name}`", f"{mode.description}{condition}", ", ".join(supported), "yes" if mode.compiles else "no"]


def first_comment(path: Path) -> str:
    """Return the comment at the top of a file of conf/, without its first line, which is the command."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("#").strip() for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")]]
    return " ".join(comment[1:])


def module_docstring(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.replace("``", "`")


def environment(composed: Config) -> list[str]:
    chosen, parts = composed.framework, []
    for device, support in chosen.devices.items():
        for number, recipe in enumerate(support.recipes):
            title = f"On the {device}:" if number == 0 else f"On the {device}, if the recipe above cannot be installed:"
            parts += [title, "\n".join(requirements(recipe))]
    if not parts:
        return ["None: it runs in the driver's own interpreter."]
    python = f"Python {chosen.python.preferred} if it is installed, otherwise any of `{chosen.python.supported}`."
    return [python, f"Created on first use, or by `gtdl env create {chosen.name}`.", *parts]


def requirements(recipe: Recipe) -> list[str]:
    lines = [f"- packages: {', '.join(f'`{each}`' for each in recipe.requirements)}"]
    if recipe.options:
        lines.append(f"- installed with {' '.join(f'`{each}`' for each in recipe.options)}")
    if recipe.system:
        lines.append(f"- Debian packages: {', '.join(f'`{each}`' for each in recipe.system)}")
    if recipe.build:
        changed = ", ".join(f"`{name}`" for name in recipe.build.edits)
        change = f", with a change in {changed}" if changed else ""
        lines.append(f"- built once from the source package `{recipe.build.source}`{change}")
    if recipe.note:
        lines.append(f"- {recipe.note}")
    return lines


def defaults(name: str) -> str:
    rows = []
    for data in ("mnist", "cifar10"):
        composed = config.compose([f"framework={name}", f"dataset={data}"])
        training, network, images = composed.training, composed.network, composed.dataset.train_images
        assert images is not None  # both data sets have a fixed number of images
        steps = training.steps(images - training.validation.count(images), 1.0)
        rows.append([
            f"`{training.name}`", f"{network.parameter_count:,}", f"{network.flops_per_image / 1e6:,.2f}",
            training.optimizer.value, f"{training.learning_rate:g}", f"{training.batch_size}", f"{steps:,}",
        ])  # fmt: skip
    header = ["setting", "parameters", "MFLOP per image", "optimizer", "learning rate", "batch size", "iterations"]
    note = "The iterations are those on all images. A setting that counts epochs runs fewer of them on `mnist_5k`."
    return f"{table(header, rows)}\n\n{note}"


# docs/datasets/


def dataset(name: str) -> str:
    chosen, path = config.compose([f"dataset={name}"]).dataset, CONF / "dataset" / f"{name}.yaml"
    command = f"gtdl run dataset={name}"
    if chosen.downloads:
        command = f"gtdl data fetch {name}\n{command}"
    return paragraphs(
        f"# {name}",
        first_comment(path),
        f"```bash\n{command}\n```",
        table(["", name], properties(chosen)),
        "## Contents",
        *statistics(name),
        "## Protocol",
        *protocol(chosen),
        "## Source",
        f"<{chosen.source}>. Terms: {chosen.terms}.",
        *downloads(chosen),
        generated_from(path),
    )


def properties(chosen: config.Dataset) -> list[list[str]]:
    height, width, channels = chosen.image_shape
    train, test = (
        f"{count:,}" if count is not None else f"at most {limit} per class"
        for count, limit in (
            (chosen.train_images, chosen.train_per_class), (chosen.test_images, chosen.test_per_class)
        )
    )  # fmt: skip
    return [
        ["training images", train],
        ["test images", test],
        ["classes", f"{chosen.classes}"],
        ["image", f"{height} x {width}, {'grey' if channels == 1 else 'colour'}"],
        ["default setting", f"`FRAMEWORK_{chosen.family}`"],
        ["accuracy", "mean over the classes" if chosen.mean_per_class else "share of all test images"],
        ["target accuracy", f"{chosen.target_accuracy_percent:g} %"],
    ]


def statistics(name: str) -> list[str]:
    """Return what ``scripts/data_statistics.py`` has recorded."""
    command = f"`python scripts/data_statistics.py {name}`"
    recorded = yaml.safe_load((DOCS / "datasets" / "statistics.yaml").read_text(encoding="utf-8")).get(name)
    if recorded is None:
        return [f"No statistics are recorded; {command} computes them from the downloaded files."]
    train, test = (
        " to ".join(dict.fromkeys(f"{count:,}" for count in recorded["of_a_class"][part])) for part in ("train", "test")
    )
    channels = "" if len(recorded["mean"]) == 1 else ", by channel"
    rows = [
        ["training images per class", train],
        ["test images per class", test],
        [f"mean of the training pixels, from 0 to 1{channels}", ", ".join(f"{each:.4f}" for each in recorded["mean"])],
        [f"their standard deviation{channels}", ", ".join(f"{each:.4f}" for each in recorded["deviation"])],
    ]
    classes = ", ".join(each.replace("_", " ") for each in recorded["classes"])
    copy = f" of {recorded['copy']}" if "copy" in recorded else ""
    return [
        f"![Training images of {name}, class by class](../pictures/{name}.png)",
        table(["", name], rows),
        f"Classes, in the order of their labels: {classes}.",
        f"The figure and the numbers are computed by {command}{copy}.",
    ]


def protocol(chosen: config.Dataset) -> list[str]:
    reader = ROOT / f"{chosen.reader.partition(':')[0].replace('.', '/')}.py"
    split = ""  # otherwise the reader's docstring describes it
    if chosen.split_seed is not None:
        split = (
            f"The split is drawn with `dataset.split_seed={chosen.split_seed}`: at most {chosen.train_per_class} "
            f"images per class for training, and at most {chosen.test_per_class} of the others for testing."
        )
    elif chosen.archives or chosen.downloads:
        split = "The split into training and test set is the publisher's."
    accuracy = (
        "the mean over the classes of the share that is classified correctly, because the classes differ in size"
        if chosen.mean_per_class
        else "the share of all of them that is classified correctly"
    )
    return [
        module_docstring(reader),
        split,
        "A run trains on the training images, without those that its setting holds back for validation. It classifies "
        f"all test images once at the end; the accuracy is {accuracy}.",
    ]


def downloads(chosen: config.Dataset) -> list[str]:
    if not chosen.downloads and chosen.archives:
        names = " or ".join(f"`{each}`" for each in chosen.archives)
        return [f"No download: put {names} into the folder `{chosen.name}/` of `GTDL_DATA`."]
    if not chosen.downloads:
        return [f"Part of a Python package: {', '.join(f'`{each}`' for each in chosen.files)}. No download is needed."]
    rows = []
    for each in chosen.downloads.values():
        digest = f"SHA-256 `{each.sha256}`" if each.sha256 else f"MD5 `{each.md5}`" if each.md5 else "none published"
        size = f"{each.size_bytes:,}" if each.sha256 or each.md5 else f"at most {each.size_bytes:,}"
        rows.append([f"`{each.file}`", size, digest, "<br>".join(f"<{reveal(url)}>" for url in each.urls)])
    return [
        "The publisher's files are downloaded, verified and read as they are. Without a network, put them into the "
        f"folder `{chosen.name}/` of `GTDL_DATA`.",
        table(["file", "bytes", "digest", "source"], rows),
    ]


if __name__ == "__main__":
    main()
