"""The sentences and tables of the report in Markdown, for pages and pull requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from . import formats
from .ranking import Conditions, group_by_conditions
from .runs import LoadedRuns, NothingFound
from .sections import Section, compare_groups, paired_by_conditions, section
from .tables import Table


def markdown(loaded: LoadedRuns, title: str) -> str:
    """Return a section for each of the conditions under which frameworks were compared.

    Args:
        loaded: all runs of the report.
        title: name of the experiments or of the result files.

    Raises:
        NothingFound: there is no run.
    """
    if not loaded.runs:
        raise NothingFound(f"{title}: no run yet")
    parts = [f"# {formats.markdown(title)}", *_list(loaded.remarks), *sections(loaded)]
    return "\n\n".join(parts) + "\n"


def sections(loaded: LoadedRuns, selected: Callable[[Conditions], bool] = lambda _: True) -> list[str]:
    """Return the paragraphs of the sections of the ``selected`` conditions."""
    paired = paired_by_conditions(loaded)
    parts: list[str] = []
    for conditions, frameworks in compare_groups(group_by_conditions(loaded.runs), paired):
        if selected(conditions):
            parts += _section(section(conditions, frameworks, [*paired.get(conditions, {}).values()], None))
    return parts


def _section(each: Section) -> list[str]:
    """Return the paragraphs of a section, with its heading."""
    several = len(each.paired) > 1
    tables = [
        *((f"Paired measurement{_of(some) if several else ''}, relative to the fastest", some) for some in each.paired),
        ("Whole runs", each.ranking),
        ("Cost of the abstraction, relative to the framework that it runs on", each.abstraction),
        ("Candidates of mode=best, with the time of a training step relative to the fastest", each.modes),
    ]
    parts = [
        f"## {formats.markdown(f'{each.conditions.text}; {each.conditions.processor}')}",
        f"Machine: {formats.markdown(each.conditions.machine)}",
        *_list(each.sentences),
    ]
    for caption, some in tables:
        if some is not None:
            parts += [f"{caption}:", _table(some)]
    if each.same:
        parts.append(f"The same for all: {formats.markdown('; '.join(each.same))}.")
    return parts + _list(each.remarks)


def _of(some: Table) -> str:
    return f" of {', '.join(formats.markdown(row[0]) for row in some.rows)}"


def _table(some: Table) -> str:
    """Return a table of the report. A cell with several lines keeps them."""
    return formats.markdown_table(
        [formats.markdown(title) for title in some.header],
        [["<br>".join(map(formats.markdown, cell.splitlines())) for cell in row] for row in some.rows],
    )


def _list(lines: Iterable[str]) -> list[str]:
    """Return a list as one paragraph; nothing without lines."""
    text = "\n".join(f"- {formats.markdown(line)}" for line in lines)
    return [text] if text else []
