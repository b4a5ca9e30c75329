"""The guide: its commands mean something, no link is broken, its made pages are those of ``conf/``, and it builds."""

from __future__ import annotations

import itertools
import re
import runpy
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from helpers.project import ROOT

from gtdl_mlflow import cli, config, datasets
from gtdl_mlflow.config import CONF

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

LINKING = [*PAGES, ROOT / "CHANGELOG.md"]

SHELL = ("python3 -m venv", "pip install", "apt-get install", "export MLFLOW_TRACKING_", "pytest", "python -m pytest")
"""Beginnings of lines that are not ours to check."""


def commands(page: Path) -> list[str]:
    """The lines of a page's bash blocks, without comments, which may be lines too; ``a && b`` is two."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [f" {line}".partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip()]


RUN_ELSEWHERE = ROOT / "docs" / "adding.md"
"""Its commands are about what the page itself adds; ``test_adding.py`` runs them."""

TYPED = sorted(
    {(page.relative_to(ROOT).as_posix(), command) for page in PAGES if page != RUN_ELSEWHERE
     for command in commands(page)}
)  # fmt: skip


def composes(words: list[str]) -> None:
    """Every value of every choice, one by one, beside the first of the others."""
    values = {key: value.split(",") if "interval(" not in value else ["0.1"]
              for key, _, value in (word.partition("=") for word in words)}  # fmt: skip
    first = {key: several[0] for key, several in values.items() if not key.startswith("hydra")}
    for key, several in values.items():
        for value in several:
            if key.startswith("hydra/"):
                assert value == "optuna" or (CONF / key / f"{value}.yaml").exists(), f"{key}={value}"
            elif not key.startswith("hydra."):
                with suppress(config.Unavailable):  # on this machine; what it means is clear
                    config.compose([f"{name}={each}" for name, each in {**first, key: value}.items()])


def means_something(command: str) -> None:
    """Fails if a program of ours would not know what is asked.

    Raises:
        AssertionError, SystemExit, config.ConfigError: it would not.
    """
    words = shlex.split(command)
    if words[:3] == ["python", "-m", "gtdl_mlflow"]:
        composes([word for word in words[3:] if word not in ("-m", "--help")])
    elif words[0] == "gtdl":
        cli.parser().parse_args(words[1:])
        if words[1] == "answer":
            composes([word for word in words[2:] if not word.startswith(("minutes=", "output="))])
    elif words[:3] == ["mlflow", "run", "."]:
        entry_points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
        assert words[words.index("-e") + 1] in entry_points if "-e" in words else True
        composes([word for flag, word in itertools.pairwise(words) if flag == "-P"])
    elif words[0] == "python" and words[1].startswith(("benchmarks/", "scripts/")):
        assert (ROOT / words[1]).is_file()
    else:
        assert command.startswith(SHELL) or command == ". .venv/bin/activate", command


@pytest.mark.parametrize(("page", "command"), TYPED)
def test_a_command_means_something(page: str, command: str) -> None:
    means_something(command)


@pytest.mark.parametrize(
    "wrong",
    [
        "python -m gtdl_mlflow -m framework=torch,tensorflo",
        "python -m gtdl_mlflow experiment=no_such",
        "python -m gtdl_mlflow -m hydra/launcher=no_such",
        "gtdl repot",
        "gtdl compare torch",
        "mlflow run . -e no_such",
        "mlflow run . -P setting=no_such",
        "python benchmarks/no_such.py",
        "curl example.org",
    ],
)
def test_one_that_does_not_is_found(wrong: str) -> None:
    with pytest.raises((AssertionError, SystemExit, config.ConfigError)):
        means_something(wrong)


@pytest.mark.parametrize(
    "command", sorted({command for _, command in TYPED if re.match(r"gtdl (env|data|track) (list|packages)", command)})
)
def test_what_only_looks_is_run(store: str, command: str) -> None:
    assert cli.main(shlex.split(command)[1:]) == 0


@pytest.mark.parametrize("group", ["framework", "dataset"])
def test_made_pages_are_those_of_the_configuration(group: str) -> None:
    pages = runpy.run_path(str(ROOT / "scripts" / "pages.py"))
    for name in config.choices(group):
        page = ROOT / "docs" / f"{group}s" / f"{name}.md"
        assert page.read_text(encoding="utf-8") == pages[group](name), "python scripts/pages.py makes it anew"


@pytest.mark.parametrize("name", yaml.safe_load((ROOT / "docs" / "datasets" / "statistics.yaml").read_text()))
def test_statistics_are_those_of_the_data(name: str) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "data_statistics.py"))
    told = yaml.safe_load((ROOT / "docs" / "datasets" / "statistics.yaml").read_text(encoding="utf-8"))[name]
    told.pop("copy", None)
    dataset = config.compose([f"dataset={name}"]).dataset
    try:
        data = datasets.prepare(dataset)
    except datasets.FilesNotFound as error:
        pytest.skip(str(error))
    if data.digest != told["digest"]:
        pytest.skip(f"the copy of {name} at hand is another one")
    assert script["statistics"](dataset, data) == told


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "pictures").iterdir()), ids=lambda path: path.name)
def test_a_picture_is_small_and_shown(picture: Path) -> None:
    assert picture.stat().st_size < 150_000
    assert any(f"pictures/{picture.name})" in page.read_text(encoding="utf-8") for page in PAGES)


LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """What a code host and MkDocs call the page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    return [link for link in LINK.findall(prose(page)) if not link.startswith(("http://", "https://"))]


def broken(page: Path, link: str) -> str:
    """Why a link within the project leads nowhere; empty if it leads somewhere."""
    file, _, anchor = link.partition("#")
    target = (page.parent / file).resolve() if file else page
    if not target.exists():
        return "there is no such file"
    if page.is_relative_to(ROOT / "docs") and not target.is_relative_to(ROOT / "docs"):
        return "the site does not have it"
    return "there is no such heading" if anchor and anchor not in anchors(target) else ""


LINKS = sorted({(page.relative_to(ROOT).as_posix(), link) for page in LINKING for link in links(page)})


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_a_link_leads_somewhere(page: str, link: str) -> None:
    assert broken(ROOT / page, link) == ""


@pytest.mark.parametrize("wrong", ["no_such.md", "mnist.md#no-such-heading", "#no-such-heading", "../README.md"])
def test_one_that_does_not_is_broken(wrong: str) -> None:
    assert broken(ROOT / "docs" / "index.md", wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_a_page_names_are_there(page: Path) -> None:
    # An X or a NAME in it stands for any.
    named = re.findall(r"`((?:\.ci|benchmarks|conf|docs|gtdl_mlflow|scripts|tests)/[\w./-]+)`", prose(page))
    assert [
        name for name in named
        if not re.search("X|NAME", name) and not (ROOT / name).exists() and page != RUN_ELSEWHERE
    ] == []  # fmt: skip


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "mnist" / "index.html").read_text(encoding="utf-8")
    assert "Benchmarking on MNIST" in page
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://(?!localhost)[^"]+"', page)
