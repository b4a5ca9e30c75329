"""Rankings in words, for whole runs and for paired measurements: every clause follows from one interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .formats import count, format_number
from .intervals import EQUAL_POINTS, EQUAL_WITHIN, Difference, Ratio, Verdict


@dataclass(frozen=True)
class Phrases:
    """Words for one question."""

    best: str
    """Predicate of the only best: ``trained fastest``."""
    same: str
    """Predicate of several that are the same: ``trained in the same time``."""
    leads: str
    """Predicate of the best while others are unresolved: ``trained in the shortest time so far``."""
    behind: str
    """Predicate of one that is not the best, with a placeholder for its distance: ``took {} as long``."""


def of_times(verb: str) -> Phrases:
    """Return the words for a time, such as those for ``trained``."""
    return Phrases(
        f"{verb} fastest",
        f"{verb} in the same time, within {100 * EQUAL_WITHIN:g} %",
        f"{verb} in the shortest time so far",
        "took {} as long",
    )


OF_ACCURACY = Phrases(
    "was most accurate",
    f"reach the same accuracy, within {EQUAL_POINTS:g} points",
    "was most accurate so far",
    "is {} behind",
)

NUMBERS = {2: "three", 3: "four", 4: "five", 5: "six", 6: "seven", 7: "eight", 8: "nine"}
"""Words for all frameworks, by the number of those that are not the best."""

Distances = Sequence[tuple[str, Ratio | Difference]]
"""Labels with their distance from the best."""


def ranking_sentence(
    phrases: Phrases, best: str, others: Distances, noun: str, values: Mapping[str, float], quantity: str, unit: str
) -> str:
    """Return a ranking in words: the best, and the distance of every other one with its interval.

    Those that are the same as the best are named with it. Those whose order is unknown are named apart. If all have too
    few repeats, or no order is known, there is no best one: the sentence has the values.

    Args:
        phrases: the words for the question.
        best: label of the best.
        others: all others, each with its distance from the best.
        noun: what repeats are, such as ``run``.
        values: typical value of each label; empty if only distances are known.
        quantity: what the values are, such as ``training time``; empty without values.
        unit: unit of the values.
    """
    if not others:
        value = f": {format_number(values[best])} {unit}" if values else ""
        return f"{best}{value}. There is no other framework to compare it with."
    known = ", ".join(f"{label} {format_number(values[label])} {unit}" for label in (best, *dict(others)) if values)
    few = [(label, each) for label, each in others if not each.has_interval]
    if values and len(few) == len(others):
        return f"Too few {noun}s to compare: {known}."
    same = [label for label, each in others if each.verdict is Verdict.same]
    behind = [(label, each) for label, each in others if each.verdict in (Verdict.larger, Verdict.smaller)]
    unresolved = [(label, each) for label, each in others if each.has_interval and each.verdict is Verdict.unresolved]
    if values and len(unresolved) == len(others):
        return f"No difference in {quantity} is resolved: {known}."
    if len(same) == len(others) and len(same) in NUMBERS:
        parts = [f"All {NUMBERS[len(same)]} {phrases.same}"]
    elif same:
        parts = [f"{_joined([best, *same])} {phrases.same}"]
    elif few or unresolved:
        parts = [f"{best} {phrases.leads}"]
    else:
        parts = [f"{best} {phrases.best}"]
    first = sorted(values[label] for label in (best, *same)) if values else []
    numbers = list(dict.fromkeys(map(format_number, first[:1] + first[-1:])))
    parts[0] += f": {' to '.join(numbers)} {unit}." if numbers else "."
    if behind:
        (label, distance), *rest = behind
        clauses = [f"{label} {phrases.behind.format(distance.text)}", *(f"{name} {each.text}" for name, each in rest)]
        parts.append(f"{', '.join(clauses)}.")
    if unresolved:
        parts.append(f"Not resolved: {', '.join(f'{label} {each.text}' for label, each in unresolved)}.")
    if few:
        counts = ", ".join(f"{label} {each.text} ({count(each.n, noun)})" for label, each in few)
        parts.append(f"Too few {noun}s to compare: {counts}.")
    return " ".join(parts)


def _joined(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
