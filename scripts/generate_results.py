"""Write the tables of measured results into README.md and docs/: ``python scripts/generate_results.py``.

The tables are generated from the result files in ``results/``, one per machine. Each replaces the text between the
comments ``<!-- results: NAME -->`` and ``<!-- end of results -->`` of a page.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

from gtdl_mlflow import config
from gtdl_mlflow.config import display
from gtdl_mlflow.reporting import formats, markdown_report, published_figures, reproduction
from gtdl_mlflow.reporting.formats import format_number
from gtdl_mlflow.reporting.formats import markdown_table as table
from gtdl_mlflow.reporting.ranking import (
    REFERENCE,
    Conditions,
    FrameworkResults,
    answers,
    group_by_conditions,
    processor_name,
)
from gtdl_mlflow.reporting.ratios import CPU, UNITS, Ranked, Ranking
from gtdl_mlflow.reporting.result_file import ResultFiles
from gtdl_mlflow.reporting.runs import BenchmarkRun, read
from gtdl_mlflow.reporting.sections import paired_by_conditions
from gtdl_mlflow.reporting.tables import Paired, paired_rankings
from gtdl_mlflow.tags import CODE, MACHINE, MODE, SWEEP

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "reproduction.md")
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)

GTDLBENCH = ("torch", "tensorflow", "mxnet", "theano", "caffe")
"""Frameworks that GTDLBench compared."""

BUILD = ("python", "numpy", "blas", "compiler", "compiler_flags", "cpu_capability", "backend_version")
"""Params of a worker that describe the environment of a framework."""

BUILD_FLAGS = re.compile(r" [A-Z]+(_[A-Z]+)+(=\d+)?")
"""Words of OpenBLAS's description that are the same in each build, such as ``DYNAMIC_ARCH``."""

PARITY = tuple(f"parity/{name}_difference" for name in ("logits", "gradient", "loss"))


def main() -> None:
    results = Results(sorted((ROOT / "results").glob("*.csv")))
    for page in PAGES:
        page.write_text(fill(page.read_text(encoding="utf-8"), results), encoding="utf-8")


def fill(text: str, results: Results) -> str:
    """Return the text of a page with the tables of ``results``."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{getattr(results, block[2])()}\n\n{block[3]}", text)


@dataclass(frozen=True)
class Results:
    """The tables of the pages. A method is a block of its name."""

    paths: list[Path]

    @cached_property
    def files(self) -> ResultFiles:
        return ResultFiles(self.paths)

    @cached_property
    def paired(self) -> dict[Conditions, Paired]:
        """The ratios of the paired measurement of the most frameworks under each of the conditions."""
        return {each: max(some, key=len) for each, some in paired_by_conditions(self.files.loaded).items()}

    @cached_property
    def groups(self) -> dict[Conditions, list[FrameworkResults]]:
        return group_by_conditions(self.files.loaded.runs)

    def cpu_rankings(self, conditions: Conditions) -> list[Ranking]:
        """Return the paired rankings by CPU time, that of a training step first."""
        rankings = paired_rankings(self.paired[conditions], [each.label for each in self.groups[conditions]])
        return [each for each in rankings if each.clock == CPU]

    def ranking(self) -> str:
        """Return the paired ranking of the most frameworks whose runs have a parity check.

        If several have as many, it is the one with the smallest intervals.

        Columns are the times relative to the best, the accuracy, the memory and the parity. A sentence about the
        accuracies follows.
        """
        checked = [
            each
            for each in self.paired
            if all(PARITY[0] in run.metrics for some in self.groups[each] for run in some.finished)
        ]
        conditions = max(checked, key=lambda each: (len(self.groups[each]), -self._width(each)))
        by_label = {each.label: each for each in self.groups[conditions]}
        rankings = self.cpu_rankings(conditions)
        cells = {
            (each.activity, place.framework): paired_cell(place, index)
            for each in rankings
            for index, place in enumerate(each.frameworks)
        }
        rows = []
        for label in dict.fromkeys(place.framework for each in rankings for place in each.frameworks):
            some = by_label[label]
            accuracy = some.sample("accuracy_percent").values
            rows.append(
                [
                    released(some),
                    *(cells.get((activity, label), "") for activity in UNITS),
                    f"{statistics.fmean(accuracy):.2f} ({min(accuracy):.2f} to {max(accuracy):.2f})",
                    f"{statistics.median(some.sample('worker/peak_memory_mb').values):,.0f}",
                    f"{max(run.metrics[name] for run in some.finished for name in PARITY):.1e}",
                ]
            )
        header = ["framework, mode", *UNITS.values(), "accuracy %", "memory, MB", "difference"]
        (answer,) = [each for each in answers([*by_label.values()]) if each.question.largest]
        parts = conditions_text(conditions), table(header, rows), formats.markdown(answer.sentence)
        return "\n\n".join(parts)

    def _width(self, conditions: Conditions) -> float:
        """Return the median over the frameworks of the upper end of a ratio's interval, divided by its lower end."""
        _, *others = self.cpu_rankings(conditions)[0].frameworks
        return statistics.median(each.ratio.high / each.ratio.low for each in others)

    def of_frameworks(self) -> list[Conditions]:
        """Return the conditions of paired measurements of frameworks, without those of modes or precisions."""
        names = {each: [some.framework for some in self.groups[each]] for each in self.paired}
        return [each for each, some in names.items() if len({*some}) == len(some) > 2 and self.cpu_rankings(each)]

    def summary(self) -> str:
        """Return the three shortest training steps of each paired measurement of frameworks, a line for each."""
        lines = []
        for conditions in self.of_frameworks():
            first, *others = self.cpu_rankings(conditions)[0].frameworks[:3]
            ratios = ", ".join(f"{place.framework} {place.ratio.text}" for place in others)
            where = f"{conditions.dataset}, {conditions.setting}, {conditions.processor}"
            lines.append(f"- {where}: {first.framework} {format_number(1e3 * first.unit_s)} ms, {ratios}")
        return "\n".join(formats.markdown(line) for line in lines)

    def agreement(self) -> str:
        """Return the paired ratios of a training step on several machines, under the same conditions."""
        columns: dict[str, dict[str, Mapping[str, str]]] = defaultdict(dict)
        for conditions in self.paired:
            training, *_ = self.cpu_rankings(conditions)
            cells = {place.framework: paired_cell(place, index) for index, place in enumerate(training.frameworks)}
            columns[conditions.text][conditions.machine] = cells
        parts = []
        for text, by_machine in columns.items():
            if len(by_machine) > 1:
                labels = dict.fromkeys(label for cells in by_machine.values() for label in cells)
                rows = [[label, *(cells.get(label, "") for cells in by_machine.values())] for label in labels]
                parts += [f"*{formats.markdown(text)}*", table(["framework", *map(formats.markdown, by_machine)], rows)]
        return "\n\n".join(parts)

    def baseline(self) -> str:
        """Return the accuracies of the frameworks' own defaults, beside those that GTDLBench published."""
        original = published_figures.load()
        rows = []
        for cell in self.baseline_cells():
            published = original.figures(cell.key.dataset, cell.key.framework, "cpu")
            mean = cell.value(reproduction.ACCURACY)
            rows.append(
                [
                    cell.key.dataset,
                    cell.key.label,
                    f"{cell.value('train/iterations'):,.0f}",
                    f"{len(cell.runs)}",
                    cell.accuracy,
                    f"{published.accuracy_percent:.2f}" if published else "none",
                    f"{mean - published.accuracy_percent:+.2f}" if published else "",
                ]
            )
        return table(["data set", "framework", "iterations", "seeds", "accuracy %", "published %", "difference"], rows)

    def baseline_cells(self) -> list[reproduction.ReproductionCell]:
        """Return the own defaults of GTDLBench's frameworks with all of their iterations, on MNIST first."""
        cells = reproduction.group_by_cell(self.files.loaded.runs)
        own = [each for each in cells if each.key.is_default and each.key.framework in GTDLBENCH]
        full = [each for each in own if each.key.budget == 1]
        return [each for dataset in ("mnist", "cifar10") for each in full if each.key.dataset == dataset]

    def devices(self) -> str:
        """Return what each framework runs on."""
        rows = []
        frameworks = [config.compose([f"framework={name}"]).framework for name in config.choices("framework")]
        for chosen in sorted(frameworks, key=lambda each: (display.last_release(each.name) or 0, each.label)):
            if chosen.name == REFERENCE:
                continue
            devices = ["yes" if not support.unavailable else "no" for support in chosen.devices.values()]
            page = f"docs/frameworks/{chosen.name}.md"
            rows.append([f"[{chosen.label} {chosen.version}]({page})", *devices, ", ".join(chosen.modes)])
        return table(["framework", "CPU", "GPU", "execution modes"], rows)

    def sections(self) -> str:
        """Return all comparisons, each with its sentences and tables."""
        return "\n\n".join(markdown_report.sections(self.files.loaded))

    def memory(self) -> str:
        """Return the median peak memory of each framework in the whole runs of the paired measurements, in MB."""
        columns = {
            each: {
                some.label: f"{statistics.median(values):,.0f}"
                for some in self.groups[each]
                if (values := some.sample("worker/peak_memory_mb").values)
            }
            for each in self.of_frameworks()
        }
        labels = sorted({label for cells in columns.values() for label in cells})
        rows = [[label, *(cells.get(label, "") for cells in columns.values())] for label in labels]
        titles = (f"{each.dataset}, {each.setting}, {each.processor}" for each in columns)
        return table(["framework", *map(formats.markdown, titles)], rows)

    def machines(self) -> str:
        """Return the machine, the number of runs, the days and the version of the code of each result file."""
        rows = []
        for path in self.paths:
            runs = read(self.files.runs_of(path)).runs
            machines, codes = (
                sorted({formats.markdown(run.tags.get(tag, "")) for run in runs}) for tag in (MACHINE, CODE)
            )
            started = [run.started_ms for run in runs]
            days = dict.fromkeys((day(min(started)), day(max(started))))
            row = [", ".join(machines), f"{len(runs)}", " to ".join(days), ", ".join(codes)]
            rows.append([f"`results/{path.name}`", *row])
        return table(["file", "machine", "runs", "measured", "code"], rows)

    def sweeps(self) -> str:
        """Return each sweep with its machine, and the median load by other processes during its runs."""
        commands = {run.info.run_id: run.data.tags[SWEEP] for run in self.files.runs if SWEEP in run.data.tags}
        runs: dict[tuple[str, str], list[BenchmarkRun]] = defaultdict(list)
        for run in self.files.loaded.runs:
            if run.finished:
                runs[run.key.machine, commands.get(run.parent_id, "single runs")].append(run)
        rows = []
        for (machine, command), some in sorted(runs.items(), key=lambda each: min(run.started_ms for run in each[1])):
            measured = (
                [run.metrics[name] for run in some if name in run.metrics]
                for name in ("interference/foreign_cpu_percent", "train/cpu_utilization_percent")
            )
            medians = [f"{statistics.median(values):.0f}" if values else "" for values in measured]
            rows.append([f"`{command}`", formats.markdown(processor_name(machine)), f"{len(some)}", *medians])
        return table(["sweep", "machine", "runs", "other load, %", "CPU use in training, %"], rows)

    def environments(self) -> str:
        """Return the interpreter, the libraries and the compiler of each framework."""
        found: dict[str, dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
        for run in sorted(self.files.loaded.runs, key=lambda run: run.key.label):
            for name in BUILD:
                if name in run.reported:
                    label = f"{display.label(run.key.framework)} {run.key.version}"
                    found[label][name][BUILD_FLAGS.sub("", run.reported[name])] = None
        rows = [
            [label, ", ".join(some.pop("python", ())), ", ".join(some.pop("numpy", ())), formats.markdown(
                "; ".join(f"{name} {' or '.join(values)}" for name, values in some.items())
            )]
            for label, some in found.items()
        ]  # fmt: skip
        return table(["framework", "Python", "NumPy", "libraries and compiler"], rows)

    def reproduction(self) -> str:
        """Return GTDLBench's tables beside ours."""
        cells = reproduction.group_by_cell(self.files.loaded.runs)
        names = ", ".join(path.name for path in self.paths)
        return reproduction.markdown(cells, names, self.files).partition("\n\n")[2].rstrip()


def day(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, timezone.utc).date().isoformat()


def conditions_text(conditions: Conditions) -> str:
    return f"*{formats.markdown(conditions.text)}; {formats.markdown(conditions.machine)}*"


def paired_cell(place: Ranked, index: int) -> str:
    return f"**{format_number(1e3 * place.unit_s)} ms**" if index == 0 else formats.markdown(place.ratio.text)


def released(framework: FrameworkResults) -> str:
    """Return the label with the mode, and the year of the last release of a framework that is no longer developed."""
    year = display.last_release(framework.framework)
    modes = ", ".join(sorted({run.tags[MODE] for run in framework.finished}))
    return f"{framework.label} ({year}), {modes}" if year else f"{framework.label}, {modes}"


if __name__ == "__main__":
    main()
