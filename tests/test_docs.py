"""The guide: its commands compose, no link is broken, generated pages are up to date, and the site builds."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from helpers.guide import check_command, commands, steps, write_file
from helpers.project import ROOT

from gtdl_mlflow import config, datasets
from gtdl_mlflow.cli import __main__ as cli
from gtdl_mlflow.files import datasets_dir
from gtdl_mlflow.metrics import METRICS
from gtdl_mlflow.tags import TAGS

SHARED = ROOT.parent / "shared" / "datasets"

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

LINKING = [*PAGES, ROOT / "CHANGELOG.md"]

OWN_DATA = ROOT / "docs" / "own_data.md"

RUN_ELSEWHERE = [ROOT / "docs" / "extending.md", OWN_DATA, ROOT / "docs" / "models.md"]
"""Their commands need files or a model; ``test_extension_guide.py`` and ``test_prediction.py`` run them."""

TYPED = {command: page.name for page in PAGES if page not in RUN_ELSEWHERE for command in commands(page)}
"""The commands of the pages, each with one page that has it."""


@pytest.mark.slow
@pytest.mark.usefixtures("hydra_restore_singletons")  # other tests must not know the network of a page
@pytest.mark.parametrize("command", TYPED, ids=lambda command: f"{TYPED[command]}: {command}")
def test_every_command_is_accepted(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("images.npy", "epyc.csv", "laptop.csv", "results.csv"):  # the reader's own files
        (tmp_path / name).touch()
    (tmp_path / "results").symlink_to(ROOT / "results")
    for _, name, content in steps(OWN_DATA):
        if name:
            write_file(tmp_path, name, content)
    monkeypatch.setenv("GTDL_CONF", "my_conf")
    monkeypatch.chdir(tmp_path)
    check_command(command)


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
def test_a_wrong_command_is_refused(wrong: str) -> None:
    with pytest.raises((AssertionError, click.ClickException, config.ConfigError)):
        check_command(wrong)


@pytest.mark.parametrize(
    "command", [command for command in TYPED if re.match(r"gtdl (env|data|track) (list|packages)", command)]
)
def test_listing_commands_run(store: str, command: str) -> None:
    assert cli.main(shlex.split(command)[1:]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("group", ["framework", "dataset"])
def test_generated_pages_match_the_configuration(group: str) -> None:
    generator = runpy.run_path(str(ROOT / "scripts" / "generate_docs.py"))
    for name in config.choices(group):
        page = ROOT / "docs" / f"{group}s" / f"{name}.md"
        assert page.read_text(encoding="utf-8") == generator[group](name), "run python scripts/generate_docs.py"


def test_generated_page_matches_the_registry_of_metrics() -> None:
    generator = runpy.run_path(str(ROOT / "scripts" / "generate_docs.py"))
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == generator["metrics"](), "run python scripts/generate_docs.py"
    assert all(f"| `{name}` |" in page for name in [*METRICS, *TAGS])


@pytest.mark.slow
@pytest.mark.usefixtures("cache_folders")
@pytest.mark.parametrize("name", yaml.safe_load((ROOT / "docs" / "datasets" / "statistics.yaml").read_text()))
def test_statistics_match_the_data(name: str) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "data_statistics.py"))
    recorded = yaml.safe_load((ROOT / "docs" / "datasets" / "statistics.yaml").read_text(encoding="utf-8"))[name]
    recorded.pop("copy", None)
    dataset = config.compose([f"dataset={name}"]).dataset
    if dataset.downloads:
        if not SHARED.is_dir():
            pytest.skip("the published files are not in ../shared/datasets")
        unpack = [sys.executable, SHARED / "unpack.py", datasets_dir(), name]
        subprocess.run(unpack, check=True, capture_output=True, timeout=300)
    data = datasets.prepare(dataset)
    if data.digest != recorded["digest"]:
        pytest.skip(f"another copy of {name} than the recorded one")
    computed = script["statistics"](dataset, data)
    if computed["classes"] == [str(label) for label in range(data.classes)]:  # a copy without class names
        del computed["classes"], recorded["classes"]
    assert computed == recorded


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "pictures").iterdir()), ids=lambda path: path.name)
def test_every_picture_is_small_and_used(picture: Path) -> None:
    assert picture.stat().st_size < 150_000
    assert any(f"pictures/{picture.name})" in page.read_text(encoding="utf-8") for page in PAGES)


LINK = re.compile(r"\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Return the anchors of the page's headings, as code hosts and MkDocs name them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    return [link for link in LINK.findall(prose(page)) if not link.startswith(("http://", "https://"))]


def broken(page: Path, link: str) -> str:
    """Return why a link within the project is broken; empty if it is not."""
    file, _, anchor = link.partition("#")
    target = (page.parent / file).resolve() if file else page
    if not target.exists():
        return "the file does not exist"
    if page.is_relative_to(ROOT / "docs") and not target.is_relative_to(ROOT / "docs"):
        return "the file is not part of the site"
    return "the heading does not exist" if anchor and anchor not in anchors(target) else ""


LINKS = sorted({(page.relative_to(ROOT).as_posix(), link) for page in LINKING for link in links(page)})


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_every_link_has_a_target(page: str, link: str) -> None:
    assert broken(ROOT / page, link) == ""


@pytest.mark.parametrize("wrong", ["no_such.md", "mnist.md#no-such-heading", "#no-such-heading", "../README.md"])
def test_a_broken_link_is_found(wrong: str) -> None:
    assert broken(ROOT / "docs" / "index.md", wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_named_by_a_page_exist(page: Path) -> None:
    # X and NAME are placeholders.
    named = re.findall(r"`((?:\.ci|benchmarks|conf|docs|gtdl_mlflow|scripts|tests)/[\w./-]+)`", prose(page))
    assert [
        name for name in named
        if not re.search("X|NAME", name) and not (ROOT / name).exists() and page not in RUN_ELSEWHERE
    ] == []  # fmt: skip


def test_the_guide_warns_that_a_logged_model_runs_its_code() -> None:
    page = (ROOT / "docs" / "models.md").read_text()
    assert "**Loading a logged model with MLflow runs its code**" in page.partition("## Security")[2]


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "mnist" / "index.html").read_text(encoding="utf-8")
    assert "Benchmarking on MNIST" in page
    assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://(?!localhost)[^"]+"', page)
