"""Write the tables of measured results into README.md and docs/: ``python scripts/generate_results.py``.

The tables are generated from the result files in ``results/``, one per machine. Each replaces the text between the
comments ``<!-- results: NAME -->`` and ``<!-- end of results -->`` of a page.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

from gtdl_mlflow import config
from gtdl_mlflow.config import display
from gtdl_mlflow.reporting import formats, intervals, markdown_report, published_figures, reproduction
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
from gtdl_mlflow.reporting.ratios import CLOCKS, CPU, UNITS, WALL, Ranking
from gtdl_mlflow.reporting.result_file import PER_RESTART, ResultFiles
from gtdl_mlflow.reporting.runs import OWN, PAIRED, BenchmarkRun, read
from gtdl_mlflow.reporting.sections import on_one_thread, paired_by_conditions
from gtdl_mlflow.reporting.tables import Paired, abstraction_table, paired_rankings
from gtdl_mlflow.tags import CODE, INTERFERENCE, MACHINE, MODE, SWEEP

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("results", "all_results", "reproduction")))
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end of results -->)", re.DOTALL)

GTDLBENCH = ("torch", "tensorflow", "mxnet", "theano", "caffe")
"""Frameworks that GTDLBench compared."""

BUILD = ("python", "numpy", "blas", "compiler", "compiler_flags", "cpu_capability", "backend_version")
"""Params of a worker that describe the environment of a framework."""

VECTOR_EXTENSIONS = re.compile(r"-march=\S+")
"""Option of the compiler that selects the processor's instructions."""

BUILD_FLAGS = re.compile(r" [A-Z]+(_[A-Z]+)+(=\d+)?")
"""Words of OpenBLAS's description that are the same in each build, such as ``DYNAMIC_ARCH``."""

OTHER_LOAD = "interference/foreign_cpu_percent"

STARTUP = {
    "setup/start_s": "interpreter, s",
    "setup/import_s": "import, s",
    "setup/build_s": "network, s",
    "setup/compile_s": "compilation, s",
    "setup/verify_data_s": "reading images, s",
    "setup/data_s": "preprocessing, s",
}
"""Metrics of the phases of a worker before the training, and their titles."""

FRAMEWORKS, MODES, PRECISIONS = "frameworks", "modes", "precisions"
"""What a paired measurement compares."""

PARITY = tuple(f"parity/{name}_difference" for name in ("logits", "gradient", "loss"))


def main() -> None:
    results = Results(sorted((ROOT / "results").glob("*.csv")))
    for page in PAGES:
        page.write_text(fill(page.read_text(encoding="utf-8"), results), encoding="utf-8")


def fill(text: str, results: Results) -> str:
    """Return the text of a page with the tables of ``results``."""
    return BLOCK.sub(lambda block: f"{block[1]}\n{getattr(results, block[2])()}\n\n{block[3]}", text)


@dataclass(frozen=True)
class Measurement:
    """A paired measurement."""

    parent_id: str
    conditions: Conditions
    values: Paired
    every: list[FrameworkResults]
    """Frameworks that ran under the conditions."""

    @cached_property
    def rankings(self) -> list[Ranking]:
        """The rankings by CPU time, that of a training step first."""
        return [each for each in paired_rankings(self.values, [each.label for each in self.every]) if each.clock == CPU]

    @cached_property
    def labels(self) -> list[str]:
        """The frameworks in the order of their training steps."""
        return [each.framework for each in self.rankings[0].frameworks]

    @cached_property
    def frameworks(self) -> list[FrameworkResults]:
        """The runs of the measured frameworks, in the order of their training steps."""
        by_label = {each.label: each for each in self.every}
        return [by_label[label] for label in self.labels]

    @property
    def runs(self) -> list[BenchmarkRun]:
        """The finished runs of the measured frameworks."""
        return [run for each in self.frameworks for run in each.finished]

    @cached_property
    def varies(self) -> str:
        """What differs: ``FRAMEWORKS`` (three or more), ``MODES`` or ``PRECISIONS``; otherwise empty."""
        if len({run.key.precision for run in self.runs}) > 1:
            return PRECISIONS
        names = {each.framework for each in self.frameworks}
        if len(names) == len(self.frameworks):
            return FRAMEWORKS if len(names) > 2 else ""
        return MODES if len({run.key.version for run in self.runs}) == len(names) else ""

    @property
    def other_load_percent(self) -> float:
        """Median share of the machine's CPU time that other processes used during the whole runs."""
        return statistics.median([run.metrics[OTHER_LOAD] for run in self.runs if OTHER_LOAD in run.metrics] or [0.0])

    def restarts(self, files: ResultFiles, clock: str = CPU) -> int:
        """Return the number of restarts, each of which has a ratio by CPU time.

        By the wall clock, only undisturbed restarts have one (``ratios.undisturbed``). With several threads, not every
        restart is measured by it.
        """
        measured = f"{clock}/{self.rankings[0].activity}/{display.part_of_metric(self.labels[0])}"
        name = f"{PAIRED}{measured}{PER_RESTART}"
        return len(files.get_metric_history(self.parent_id, name))

    def caption(self, files: ResultFiles) -> str:
        conditions = f"{formats.markdown(self.conditions.text)}; {formats.markdown(self.conditions.machine)}"
        undisturbed = f", {self.restarts(files, WALL)} of them undisturbed" if on_one_thread(self.frameworks) else ""
        return f"*{conditions}; {self.restarts(files)} restarts{undisturbed}*"

    def training_steps(self) -> dict[str, str]:
        """Return the ratios of a training step by framework, with the vector extensions of a compiled framework."""
        cells = self._cells(self.rankings[0])
        return {each.label: f"{cells[each.label]}{_note(vector_extensions(each))}" for each in self.frameworks}

    def ratios(self) -> str:
        """Return the ratios of all activities."""
        columns = [self._cells(each) for each in self.rankings]
        rows = rows_of(self.labels, columns)
        return table(["framework", *(UNITS[each.activity] for each in self.rankings)], rows)

    def table(self) -> str:
        """Return the ratios, and the accuracy, the memory and the parity of the whole runs."""
        columns = [self._cells(each) for each in self.rankings]
        with_parity = all(PARITY[0] in run.metrics for run in self.runs)
        rows = []
        for each in self.frameworks:
            accuracy = each.sample("accuracy_percent").values
            memory = each.sample("worker/peak_memory_mb").values
            rows.append(
                [
                    released(each),
                    *(cells.get(each.label, "") for cells in columns),
                    f"{statistics.fmean(accuracy):.2f} ({min(accuracy):.2f} to {max(accuracy):.2f})",
                    f"{statistics.median(memory):,.0f}" if memory else "",
                ]
            )
            if with_parity:
                rows[-1].append(f"{max(run.metrics[name] for run in each.finished for name in PARITY):.1e}")
        units = (UNITS[each.activity] for each in self.rankings)
        header = ["framework, mode", *units, "accuracy %", "memory, MB", *(["difference"] if with_parity else [])]
        return table(header, rows)

    @staticmethod
    def _cells(ranking: Ranking) -> dict[str, str]:
        best, *others = ranking.frameworks
        first = f"**{format_number(1e3 * best.unit_s)} ms**"
        return {best.framework: first, **{each.framework: formats.markdown(each.ratio.text) for each in others}}


def rows_of(labels: Iterable[str], columns: Collection[Mapping[str, str]]) -> list[list[str]]:
    """Return a row for each label, with its cell in each column; empty if a column has none."""
    return [[label, *(cells.get(label, "") for cells in columns)] for label in labels]


def _note(text: str) -> str:
    return f" ({text})" if text else ""


def vector_extensions(framework: FrameworkResults) -> str:
    """Return the OpenBLAS kernels or the compiler's target of a framework that is compiled on the machine."""
    found = {
        value
        for run in framework.finished
        for value in (
            run.reported.get("blas_kernels", ""),
            *VECTOR_EXTENSIONS.findall(run.reported.get("compiler_flags", "")),
        )
        if value
    }
    return ", ".join(sorted(found))


@dataclass(frozen=True)
class Results:
    """The tables of the pages. A method is a block of its name."""

    paths: list[Path]

    @cached_property
    def files(self) -> ResultFiles:
        return ResultFiles(self.paths)

    @cached_property
    def measurements(self) -> list[Measurement]:
        """All paired measurements by CPU time."""
        groups = group_by_conditions(self.files.loaded.runs)
        every = [
            Measurement(parent_id, conditions, values, groups[conditions])
            for conditions, some in paired_by_conditions(self.files.loaded).items()
            if conditions.setting != OWN  # these are in the table of their setting, too
            for parent_id, values in some.items()
        ]
        return [each for each in every if each.rankings]

    @cached_property
    def of_frameworks(self) -> list[Measurement]:
        """The paired measurements of frameworks, without those of modes or precisions, the newest first."""
        every = [each for each in self.measurements if each.varies == FRAMEWORKS]
        return sorted(every, key=lambda each: max(run.started_ms for run in each.runs), reverse=True)

    def ranking(self) -> str:
        """Return the ranking with a sentence about the accuracies."""
        (answer,) = [each for each in answers(self._ranking.frameworks) if each.question.largest]
        caption = self._ranking.caption(self.files)
        return "\n\n".join([caption, self._ranking.table(), formats.markdown(answer.sentence)])

    @property
    def _ranking(self) -> Measurement:
        """The newest paired measurement of the most frameworks whose runs have a parity check."""
        checked = [each for each in self.of_frameworks if all(PARITY[0] in run.metrics for run in each.runs)]
        return max(checked, key=lambda each: len(each.frameworks))

    def agreement(self) -> str:
        """Return the paired ratios of a training step on several machines, under the same conditions."""
        by_conditions: dict[str, list[Measurement]] = defaultdict(list)
        for each in self.of_frameworks:
            by_conditions[each.conditions.text].append(each)
        parts = []
        for text, several in by_conditions.items():
            if len(several) > 1:
                columns = [each.training_steps() for each in several]
                labels = dict.fromkeys(label for cells in columns for label in cells)
                rows = rows_of(labels, columns)
                rows.append(["restarts", *(f"{each.restarts(self.files)}" for each in several)])
                rows.append(["undisturbed restarts", *(f"{each.restarts(self.files, WALL)}" for each in several)])
                rows.append(["other load in whole runs, %", *(f"{each.other_load_percent:.0f}" for each in several)])
                header = ["framework", *(self._machine(each) for each in several)]
                parts += [f"*{formats.markdown(text)}*", table(header, rows)]
        return "\n\n".join(parts)

    def other_rankings(self) -> str:
        """Return the paired rankings of frameworks under conditions that only one machine has."""
        several = Counter(each.conditions.text for each in self.of_frameworks)
        single = [each for each in self.of_frameworks if several[each.conditions.text] == 1]
        return "\n\n".join(part for each in single for part in (each.caption(self.files), each.table()))

    def _machine(self, measurement: Measurement) -> str:
        """Return the processor; the whole machine if several have this processor."""
        machine, processor = measurement.conditions.machine, measurement.conditions.processor
        others = {each.conditions.machine for each in self.measurements if each.conditions.processor == processor}
        return formats.markdown(machine if len(others) > 1 else processor)

    def _conditions(self, measurement: Measurement) -> str:
        conditions = measurement.conditions
        return f"{formats.markdown(f'{conditions.dataset}, {conditions.setting}')}, {self._machine(measurement)}"

    def modes(self) -> str:
        """Return the paired measurements of execution modes."""
        return self._ratios(MODES)

    def precisions(self) -> str:
        """Return the paired measurements of precisions."""
        return self._ratios(PRECISIONS)

    def _ratios(self, varies: str) -> str:
        some = [each for each in self.measurements if each.varies == varies]
        return "\n\n".join(part for each in some for part in (each.caption(self.files), each.ratios()))

    def abstraction(self) -> str:
        """Return the times of Keras relative to its backends, in each ranking."""
        rows = []
        for each in self.of_frameworks:
            by_cpu = {name: value for name, value in each.values.items() if name.startswith(f"{CPU}/")}
            found = abstraction_table(each.frameworks, by_cpu)
            for row in found.rows if found else ():
                cells = dict(zip(found.header, map(formats.markdown, row), strict=True))
                times = (cells.get(f"{unit}, {CLOCKS[CPU]}", "") for unit in UNITS.values())
                rows.append([cells["framework"], cells["relative to"], self._conditions(each), *times])
        return table(["framework", "relative to", "data set, setting, machine", *UNITS.values()], sorted(rows))

    def baseline(self) -> str:
        """Return the accuracies of the frameworks' own defaults, beside those that GTDLBench published.

        A sentence counts the published ones within the prediction interval, which contains the accuracy of one more
        seed with a probability of 95 %. Those of a part of the iterations are not compared.
        """
        original = published_figures.load()
        rows: list[list[str]] = []
        sides: dict[tuple[str, str], str] = {}
        for cell in self.baseline_cells():
            published = original.figures(cell.key.dataset, cell.key.framework, "cpu")
            mean = cell.value(reproduction.ACCURACY)
            low, high = prediction_interval([run.metrics[reproduction.ACCURACY] for run in cell.runs])
            iterations, is_full = f"{cell.value('train/iterations'):,.0f}", cell.key.budget == 1
            if published and is_full and math.isfinite(low):
                below = "below" if published.accuracy_percent < low else ""
                sides[cell.key.dataset, cell.key.framework] = "above" if published.accuracy_percent > high else below
            rows.append(
                [
                    cell.key.dataset,
                    cell.key.label,
                    iterations if is_full else f"{iterations} ({100 * cell.key.budget:g} %)",
                    f"{len(cell.runs)}",
                    cell.accuracy,
                    f"{low:.2f} to {high:.2f}" if math.isfinite(low) else "",
                    f"{published.accuracy_percent:.2f}" if published else "none",
                    f"{mean - published.accuracy_percent:+.2f}" if published and is_full else "",
                ]
            )
        header = [
            "data set",
            "framework",
            "iterations",
            "seeds",
            "accuracy %",
            "one more seed, %",
            "published %",
            "difference",
        ]
        number = sum(not side for side in sides.values())
        compared = f"{number} of the {len(sides)} published accuracies with a difference"
        counted = f"{compared} lie within the interval for one more seed"
        outside = [
            f"{display.label(framework)}'s on {dataset} is {side} it"
            for (dataset, framework), side in sides.items()
            if side
        ]
        return f"{table(header, rows)}\n\n{'; '.join([counted, *outside])}."

    def baseline_cells(self) -> list[reproduction.ReproductionCell]:
        """Return the own defaults of GTDLBench's frameworks, on MNIST first, each with the most of its iterations."""
        cells = reproduction.group_by_cell(self.files.loaded.runs)
        own = [each for each in cells if each.key.is_default and each.key.framework in GTDLBENCH]
        longest: dict[tuple[str, str], reproduction.ReproductionCell] = {}
        for each in sorted(own, key=lambda each: each.key.budget, reverse=True):
            longest.setdefault((each.key.dataset, each.key.framework), each)
        return [each for dataset in ("mnist", "cifar10") for each in longest.values() if each.key.dataset == dataset]

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
        """Return all comparisons of frameworks under one setting, each with its sentences and tables."""
        loaded = self.files.loaded
        return "\n\n".join(markdown_report.sections(loaded, lambda conditions: conditions.setting != OWN))

    def memory(self) -> str:
        """Return the median peak memory of each framework in the whole runs of the rankings, in MB."""
        columns = [
            {
                some.label: f"{statistics.median(values):,.0f}"
                for some in each.frameworks
                if (values := some.sample("worker/peak_memory_mb").values)
            }
            for each in self.of_frameworks
        ]
        labels = sorted({label for cells in columns for label in cells})
        rows = rows_of(labels, columns)
        return table(["framework", *map(self._conditions, self.of_frameworks)], rows)

    def startup(self) -> str:
        """Return the median seconds of the phases before the training, in the runs of the ranking."""
        rows = []
        for each in self._ranking.frameworks:
            seconds = [[run.metrics.get(name, 0.0) for run in each.finished] for name in STARTUP]
            total = [sum(values) for values in zip(*seconds, strict=True)]
            rows.append([each.label, *(f"{statistics.median(values):.2f}" for values in (*seconds, total))])
        return table(["framework", *STARTUP.values(), "sum"], sorted(rows, key=lambda row: float(row[-1])))

    def machines(self) -> str:
        """Return the machine, the numbers of runs, the days and the version of the code of each result file."""
        rows = []
        for path in self.paths:
            runs = read(self.files.runs_of(path)).runs
            machines, codes = (
                sorted({formats.markdown(run.tags.get(tag, "")) for run in runs}) for tag in (MACHINE, CODE)
            )
            started = [run.started_ms for run in runs]
            days = dict.fromkeys((day(min(started)), day(max(started))))
            disturbed = sum(run.tags.get(INTERFERENCE, "ok") != "ok" for run in runs)
            row = [", ".join(machines), f"{len(runs)}", f"{disturbed}", " to ".join(days), ", ".join(codes)]
            rows.append([f"`results/{path.name}`", *row])
        return table(["file", "machine", "runs", "disturbed runs", "measured", "code"], rows)

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
                for name in (OTHER_LOAD, "train/cpu_utilization_percent")
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
        """Return GTDLBench's tables beside ours, for the data sets of which it published results."""
        published = published_figures.load().datasets
        cells = reproduction.group_by_cell(run for run in self.files.loaded.runs if run.key.dataset in published)
        names = ", ".join(path.name for path in self.paths)
        return reproduction.markdown(cells, names, self.files).partition("\n\n")[2].rstrip()


def prediction_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the interval that contains one more value of a normal distribution with a probability of 95 %."""
    mean, number = statistics.fmean(values), len(values)
    if number < 2:
        return -math.inf, math.inf
    half_width = intervals.t_quantile(number - 1) * statistics.stdev(values) * math.sqrt(1 + 1 / number)
    return mean - half_width, mean + half_width


def day(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, timezone.utc).date().isoformat()


def released(framework: FrameworkResults) -> str:
    """Return the label with the mode, and the year of the last release of a framework that is no longer developed."""
    year = display.last_release(framework.framework)
    modes = {run.tags[MODE] for run in framework.finished if MODE in run.tags}
    label = f"{framework.label} ({year})" if year else framework.label
    return ", ".join([label, *sorted(modes)])


if __name__ == "__main__":
    main()
