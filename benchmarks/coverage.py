"""Coverage of the intervals of paired measurements, and errors of their verdicts, on simulated data.

    python benchmarks/coverage.py [--datasets 1000] [--rounds 5]

Each data set has restart effects (normal, heavy-tailed or skewed), drift within a restart, heavy-tailed noise of the
turns, and one turn in twenty that another process disturbs. Prints how often the nominal interval of 95 % contains the
true ratio, its median half-width, and the same for a percentile bootstrap over restarts and rounds. Exits with 1 if a
coverage of the project's interval is below 93 % over all data sets of one kind of restart effect.

Then simulates measurements that end when their ratio is resolved, or after 20 restarts. Prints how often they report a
difference between equal frameworks, and how often the interval contains the true ratio. The rule "any verdict" ends a
measurement as soon as the 95 % interval gives a verdict and its half-width is at most the margin of equality.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable

import numpy as np

from gtdl_mlflow.paired import MeasurementPlan
from gtdl_mlflow.reporting.intervals import EQUAL_WITHIN, LEVEL, Ratio, Verdict, paired_ratio

TRUE_RATIO = 1.03
RESTARTS = (4, 5, 8, 12)
RESAMPLES = 500
LEAST = 0.93
SPREADS = (0.01, 0.015, 0.028)
"""Standard deviations of the log ratio from restart to restart."""

MOST_RESTARTS = 20

Effects = Callable[[np.random.Generator, int], np.ndarray]
KINDS: dict[str, Effects] = {
    "normal": lambda generator, count: generator.normal(0, 0.01, count),
    "heavy tails": lambda generator, count: 0.008 * generator.standard_t(3, count),
    "skewed": lambda generator, count: 0.01 * (generator.exponential(1, count) - 1),
}


def log_ratios(generator: np.random.Generator, restarts: int, rounds: int, effects: Effects) -> np.ndarray:
    """Return the logarithm of the ratio of each round (restarts, rounds)."""
    shape = (restarts, rounds)
    # The drifts of two neighbouring turns differ only by the drift over one turn; their order is random.
    order = np.where(generator.random(shape) < 0.5, 1, -1)
    drift = generator.normal(0, 0.2) / rounds / 2 * order
    noise = 0.015 * generator.standard_t(2.5, shape)
    hit = np.where(generator.random(shape) < 0.05, generator.exponential(0.5, shape), 0)
    disturbed = hit * np.where(generator.random(shape) < 0.5, 1, -1)
    return math.log(TRUE_RATIO) + effects(generator, restarts)[:, None] + drift + noise + disturbed


def bootstrap(generator: np.random.Generator, values: np.ndarray) -> tuple[float, float]:
    """Return the percentile interval over restarts, then rounds."""
    restarts, rounds = values.shape
    rows = generator.integers(0, restarts, (RESAMPLES, restarts))
    columns = generator.integers(0, rounds, (RESAMPLES, restarts, rounds))
    means = np.median(values[rows[:, :, None], columns], axis=2).mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return math.exp(low), math.exp(high)


def is_any_verdict(ratio: Ratio) -> bool:
    """Return whether a rule that uses only the 95 % interval ends the measurement."""
    return ratio.verdict is not Verdict.unresolved and ratio.half_width <= EQUAL_WITHIN


RULES: dict[str, Callable[[Ratio], bool]] = {
    "ours": lambda ratio: ratio.is_resolved,
    "any verdict": is_any_verdict,
}


def until_decided(generator: np.random.Generator, true_ratio: float, spread: float, rule: str) -> Ratio:
    """Return the ratio at the end of a measurement that ends by ``rule``, or after ``MOST_RESTARTS``."""
    values = [*generator.normal(math.log(true_ratio), spread, MeasurementPlan.fewest)]
    while not RULES[rule](ratio := paired_ratio(values)) and len(values) < MOST_RESTARTS:
        values.append(generator.normal(math.log(true_ratio), spread))
    return ratio


def print_decisions(generator: np.random.Generator, trials: int) -> None:
    """Print how often measurements that end by a rule are right."""
    print("rule         spread  true ratio  faster  same  slower  not resolved  coverage  restarts")
    for rule in RULES:
        for spread in SPREADS:
            for true_ratio in (1.0, TRUE_RATIO):
                ratios = [until_decided(generator, true_ratio, spread, rule) for _ in range(trials)]
                order = (Verdict.smaller, Verdict.same, Verdict.larger, Verdict.unresolved)
                shares = [sum(each.verdict is verdict for each in ratios) / trials for verdict in order]
                covered = sum(each.low <= true_ratio <= each.high for each in ratios) / trials
                print(
                    f"{rule:11}  {spread:6.1%}  {true_ratio:10.2f}  {shares[0]:6.1%}  {shares[1]:4.0%}"
                    f"  {shares[2]:6.1%}  {shares[3]:12.1%}  {covered:8.1%}"
                    f"  {np.mean([each.n for each in ratios]):8.1f}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=int, default=1000, help="data sets per kind of restart effect")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    generator, missed = np.random.default_rng(0), False
    print("restart effects  restarts  coverage  half-width  bootstrap: coverage  half-width")
    for kind, effects in KINDS.items():
        total = 0
        per_count = math.ceil(options.datasets / len(RESTARTS))
        for restarts in RESTARTS:
            covered, widths = np.zeros(2), np.zeros((per_count, 2))
            for number in range(per_count):
                values = log_ratios(generator, restarts, options.rounds, effects)
                ours = paired_ratio(np.median(values, axis=1))
                low, high = bootstrap(generator, values)
                covered += [ours.low <= TRUE_RATIO <= ours.high, low <= TRUE_RATIO <= high]
                widths[number] = [ours.half_width, math.sqrt(high / low) - 1]
            total += covered[0]
            share, width = covered / per_count, 100 * np.median(widths, axis=0)
            print(f"{kind:15}  {restarts:8}  {share[0]:8.1%}  {width[0]:9.2f}%  {share[1]:19.1%}  {width[1]:9.2f}%")
        coverage = total / per_count / len(RESTARTS)
        print(f"{kind:15}       all  {coverage:8.1%}  (goal: at least {LEAST:.0%})", flush=True)
        missed |= coverage < LEAST
    print_decisions(generator, options.datasets)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
