"""Write docs/frameworks/ and docs/datasets/ from conf/ and the adapters: ``python scripts/pages.py``."""

from __future__ import annotations

import ast
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from gtdl_mlflow import config
from gtdl_mlflow.config import CONF, Config, Recipe
from gtdl_mlflow.report.reproduction import table

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def main() -> None:
    for name in config.choices("framework"):
        (DOCS / "frameworks" / f"{name}.md").write_text(framework(name), encoding="utf-8")
    for name in config.choices("dataset"):
        (DOCS / "datasets" / f"{name}.md").write_text(dataset(name), encoding="utf-8")


def said(path: Path) -> str:
    """The comment that a file of conf/ begins with, less its first line, the command, which every page has."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("#").strip() for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")]]
    return " ".join(comment[1:])


def origin(path: Path) -> str:
    return f"*Made from `{path.relative_to(ROOT)}` by `scripts/pages.py`.*"


def paragraphs(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def framework(name: str) -> str:
    composed = config.compose([f"framework={name}"])
    of, path = composed.framework, CONF / "framework" / f"{name}.yaml"
    adapter = ROOT / f"{of.adapter.partition(':')[0].replace('.', '/')}.py"
    about = ast.get_docstring(ast.parse(adapter.read_text(encoding="utf-8"))) or ""
    devices = [[device, "no", offer.unavailable] if offer.unavailable else [device, "yes", ""]
               for device, offer in of.devices.items()]  # fmt: skip
    return paragraphs(
        f"# {name} {of.version}", about, said(path), "```bash\npython -m gtdl_mlflow framework=" + name + "\n```",
        "## What it can run on", table(["device", "can be used", "why not"], devices),
        "## Its environment", *environment(composed),
        "## Its defaults", defaults(name),
        "## Its settings for speed",
        "`tuning=best`, the default, or `tuning=plain`; both compute the same.",
        "```yaml\n" + OmegaConf.to_yaml(OmegaConf.structured(of).tuning).rstrip() + "\n```",
        "The file says why each of them is there.", origin(path),
    )  # fmt: skip


def environment(composed: Config) -> list[str]:
    of, parts = composed.framework, []
    for device, offer in of.devices.items():
        for number, recipe in enumerate(offer.recipes):
            first = f"On the {device}:" if number == 0 else f"On the {device}, where that cannot be had:"
            parts += [first, "\n".join(needs(recipe))]
    if not parts:
        return ["None: it runs in the driver's own interpreter."]
    python = f"Python {of.python.preferred} where there is one, otherwise any of `{of.python.supported}`."
    return [python, f"Made when it is first needed, or by `gtdl env create {of.name}`.", *parts]


def needs(recipe: Recipe) -> list[str]:
    lines = [f"- packages: {', '.join(f'`{each}`' for each in recipe.requirements)}"]
    if recipe.options:
        lines.append(f"- installed with {' '.join(f'`{each}`' for each in recipe.options)}")
    if recipe.system:
        lines.append(f"- of the system, by Debian's names: {', '.join(f'`{each}`' for each in recipe.system)}")
    if recipe.build:
        edits = [f"`{new}` in `{name}`" for name, changes in recipe.build.edits.items() for new in changes.values()]
        changed = f" (changed: {', '.join(edits)})" if edits else ""
        lines.append(f"- compiled from `{recipe.build.source}`{changed}, once")
    if recipe.note:
        lines.append(f"- {recipe.note}")
    return lines


def defaults(name: str) -> str:
    rows = []
    for data in ("mnist", "cifar10"):
        composed = config.compose([f"framework={name}", f"dataset={data}"])
        training, network, images = composed.training, composed.network, composed.dataset.train_images
        assert images is not None  # of the two that have defaults
        steps = training.steps(images - training.validation.count(images), 1.0)
        rows.append([
            f"`{training.name}`", f"{network.parameter_count:,}", f"{network.flops_per_image / 1e6:,.2f}",
            training.optimizer.value, f"{training.learning_rate:g}", f"{training.batch_size}", f"{steps:,}",
        ])  # fmt: skip
    header = ["setting", "parameters", "MFLOP an image", "optimizer", "learning rate", "batch", "iterations"]
    return table(header, rows)


def dataset(name: str) -> str:
    of, path = config.compose([f"dataset={name}"]).dataset, CONF / "dataset" / f"{name}.yaml"
    height, width, channels = of.image_shape
    counts = [f"{count:,}" if count is not None else f"at most {each} of a class"
              for count, each in ((of.train_images, of.train_per_class), (of.test_images, of.test_per_class))]  # fmt: skip
    facts = [
        ["images to train on", counts[0]], ["images to test on", counts[1]], ["classes", f"{of.classes}"],
        ["an image", f"{height} x {width}, {'grey' if channels == 1 else 'colour'}"],
        ["default setting", f"`FRAMEWORK_{of.family}`"],
        ["accuracy", "the mean over the classes" if of.mean_per_class else "of all test images"],
        ["time to target", f"until {of.target_accuracy_percent:g} %"],
    ]  # fmt: skip
    files = [[f"`{each.file}`", f"{each.bytes:,}" if each.sha256 or each.md5 else f"at most {each.bytes:,}",
              f"SHA-256 `{each.sha256}`" if each.sha256 else f"MD5 `{each.md5}`" if each.md5 else "none published",
              "<br>".join(f"<{url}>" for url in each.urls)] for each in of.downloads.values()]  # fmt: skip
    get = f"```bash\ngtdl data fetch {name}\npython -m gtdl_mlflow dataset={name}\n```" if files else \
          f"```bash\npython -m gtdl_mlflow dataset={name}\n```"  # fmt: skip
    if files:
        got = ["Fetched, checked and then read from the publisher's files; without a network, put them into the "
               f"folder `{name}/` of `GTDL_DATA`.",
               table(["file", "bytes", "digest", "from"], files)]  # fmt: skip
    else:
        got = [f"Part of a Python package: {', '.join(f'`{each}`' for each in of.files)}. Nothing is fetched."]
    return paragraphs(
        f"# {name}", said(path), get, table(["", name], facts),
        "## What is in it", *looked_at(name),
        "## Protocol", *protocol(of),
        "## Where it comes from", f"<{of.source}>. Terms: {of.terms}.", *got, origin(path),
    )  # fmt: skip


def looked_at(name: str) -> list[str]:
    """What ``scripts/data_statistics.py`` found."""
    made = f"`python scripts/data_statistics.py {name}`"
    found = yaml.safe_load((DOCS / "datasets" / "statistics.yaml").read_text(encoding="utf-8")).get(name)
    if found is None:
        return [f"Its files were not at hand when this page was made; {made} looks at them."]
    train, test = (" to ".join(dict.fromkeys(f"{count:,}" for count in found["of_a_class"][part]))
                   for part in ("train", "test"))  # fmt: skip
    channels = "" if len(found["mean"]) == 1 else ", by channel"
    statistics = [
        ["images of a class to train on", train], ["images of a class to test on", test],
        [f"mean of the training pixels, from 0 to 1{channels}", ", ".join(f"{each:.4f}" for each in found["mean"])],
        [f"their standard deviation{channels}", ", ".join(f"{each:.4f}" for each in found["deviation"])],
    ]  # fmt: skip
    names = ", ".join(each.replace("_", " ") for each in found["classes"])
    copy = f" of {found['copy']}" if "copy" in found else ""
    return [
        f"![Training images of {name}, class by class](../pictures/{name}.png)", table(["", name], statistics),
        f"Classes, in the order of their labels: {names}.", f"Picture and figures are made by {made}{copy}.",
    ]  # fmt: skip


def protocol(of: config.Dataset) -> list[str]:
    """How it is read, split and scored."""
    reader = ROOT / f"{of.reader.partition(':')[0].replace('.', '/')}.py"
    read = ast.get_docstring(ast.parse(reader.read_text(encoding="utf-8"))) or ""
    if of.split_seed is not None:
        split = (f"The split is drawn with `dataset.split_seed={of.split_seed}`: of each class at most "
                 f"{of.train_per_class} images for training, at most {of.test_per_class} of the others for testing.")  # fmt: skip
    elif of.archives or of.downloads:
        split = "The split into training and testing is the publisher's."
    else:
        split = ""  # the reader has said it
    scored = "the mean over the classes, as they are of different sizes" if of.mean_per_class else "over all of them"
    return [
        read, split,
        "A run trains on the training images, less what its setting holds back for validation, and classifies all "
        f"test images once, at the end: the accuracy is {scored}.",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
