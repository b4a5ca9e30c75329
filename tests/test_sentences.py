"""Sentences of rankings of every shape: each clause is held against the numbers."""

from __future__ import annotations

import itertools
import math
import re

import pytest

from gtdl_mlflow.reporting.intervals import Difference, Ratio, Verdict
from gtdl_mlflow.reporting.sentences import OF_ACCURACY, Phrases, of_times, ranking_sentence

LABELS = ["A 1.0", "B 2.0", "C 3.0", "D 4.0", "E 5.0"]
TIMES = {
    "same": Ratio(1.005, 0.995, 1.015, 6),
    "behind": Ratio(1.5, 1.4, 1.6, 6),
    "unresolved": Ratio(1.03, 0.95, 1.12, 6),
    "too few": Ratio(1.03, 0.0, math.inf, 2),
}
ACCURACIES = {
    "same": Difference(0.05, -0.1, 0.2, 6),
    "behind": Difference(1.5, 1.0, 2.0, 6),
    "unresolved": Difference(0.3, -0.2, 0.8, 6),
    "too few": Difference(0.3, -math.inf, math.inf, 2),
}


@pytest.mark.parametrize("estimates", [TIMES, ACCURACIES], ids=["times", "accuracies"])
def test_every_clause_is_true(estimates: dict[str, Ratio | Difference]) -> None:
    for number in range(1, len(LABELS)):
        for shapes in itertools.product(estimates, repeat=number):
            check_clauses(shapes, estimates)


def check_clauses(shapes: tuple[str, ...], estimates: dict[str, Ratio | Difference]) -> None:
    phrases: Phrases = of_times("trained") if estimates is TIMES else OF_ACCURACY
    best, *names = LABELS[: len(shapes) + 1]
    others = [(name, estimates[shape]) for name, shape in zip(names, shapes, strict=True)]
    values = {label: 10.0 + number for number, label in enumerate(LABELS)}
    text = ranking_sentence(phrases, best, others, "run", values, "training time", "s")
    every = ", ".join(f"{name} {values[name]:.2f} s" for name in (best, *names))
    if set(shapes) == {"too few"}:
        assert text == f"Too few runs to compare: {every}."
        return
    if set(shapes) == {"unresolved"}:
        assert text == f"No difference in training time is resolved: {every}."
        return
    clauses = re.split(r"(?<=[a-z\]x%)])\. ?", text)
    parts = dict(zip(("lead", *shapes), [""] * 5, strict=False))
    for clause in clauses:
        kind = {
            phrases.same in clause: "same",
            clause.startswith("Not resolved: "): "unresolved",
            clause.startswith("Too few runs to compare: "): "too few",
        }.get(True, "behind")
        parts[kind if kind != "behind" or any(name in clause for name in names) else "lead"] = clause
    for name, shape in zip(names, shapes, strict=True):
        in_all = text.startswith("All ") and shape == "same"
        assert in_all or name in parts[shape], text
        if shape != "same":
            assert f"{name} {estimates[shape].text}" in parts[shape].replace("took ", "").replace("is ", ""), text
    kinds = set(shapes)
    assert (phrases.best in text and phrases.leads not in text) == (kinds == {"behind"}), text
    assert (phrases.same in text) == ("same" in kinds), text
    assert (phrases.leads in text) == ("same" not in kinds and bool(kinds & {"unresolved", "too few"})), text
    assert ("Not resolved" in text) == ("unresolved" in kinds), text
    assert ("Too few runs" in text) == ("too few" in kinds), text
    assert text.startswith("All ") == (kinds == {"same"} and len(shapes) > 1), text
    first = [values[best], *(values[name] for name, shape in zip(names, shapes, strict=True) if shape == "same")]
    expected = f"{first[0]:.2f} s" if len(first) == 1 else f"{first[0]:.2f} to {max(first):.2f} s"
    assert f": {expected}." in text, text


def test_sentences_of_the_issue() -> None:
    others = [
        ("PyTorch", Ratio(1.15, 1.13, 1.17, 8)),
        ("MXNet", Ratio(1.55, 1.52, 1.58, 8)),
        ("Theano", Ratio(1.28, 1.26, 1.30, 8)),
    ]
    assert ranking_sentence(of_times("trained"), "TensorFlow", others, "restart", {}, "", "") == (
        "TensorFlow trained fastest. PyTorch took 1.15x [1.13, 1.17] as long, MXNet 1.55x [1.52, 1.58], "
        "Theano 1.28x [1.26, 1.30]."
    )
    accuracies = {"TensorFlow": 96.0, "PyTorch": 95.9, "MXNet": 95.8}
    same = [("PyTorch", Difference(0.1, -0.1, 0.3, 5)), ("MXNet", Difference(0.2, 0.1, 0.3, 5))]
    assert all(each.verdict is Verdict.same for _, each in same)
    assert ranking_sentence(OF_ACCURACY, "TensorFlow", same, "seed", accuracies, "test accuracy", "%") == (
        "All three reach the same accuracy, within 0.5 points: 95.80 to 96.00 %."
    )


def test_one_framework_is_compared_with_nothing() -> None:
    text = ranking_sentence(of_times("trained"), "PyTorch", [], "run", {"PyTorch": 12.3}, "training time", "s")
    assert text == "PyTorch: 12.30 s. There is no other framework to compare it with."
