"""The report's charts: Vega-Lite, made by Altair, with every colour but the marks' the page's own.

Each function takes rows (dictionaries) and returns a specification that ``vegaEmbed`` draws. Axes have units. Encodings
are objects, never strings: Altair finds a string's class by a search through all of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
from altair.utils import schemapi

from ..chart_style import CHART_CONFIG, TEXT_COLOR, color_of

# Else every object holds itself against Vega-Lite's whole schema as it is made, and a chart takes twice as long.
schemapi.disable_debug_mode()

ROW = 28
"""Pixels of one framework's row."""

WIDE = 10.0
"""A logarithmic axis where the largest value is so many times the smallest."""

Rows = Sequence[dict[str, Any]]
Specification = dict[str, Any]


def spread(rows: Rows, value: str, title: str) -> Specification:
    """Every repeat as a point, its framework's median as a bar across: ``framework``, ``seed`` and ``value``."""
    order = list(dict.fromkeys(row["framework"] for row in rows))
    logarithmic = _wide([row[value] for row in rows])
    scale = alt.Scale(type="log") if logarithmic else alt.Scale(zero=True)
    base = _chart(rows).encode(y=alt.Y("framework:N", sort=order, title=None))
    title += ", logarithmic" if logarithmic else ""
    points = base.mark_circle(size=70, opacity=0.7).encode(
        x=alt.X(f"{value}:Q", title=title, scale=scale), color=_color(order, None),
        tooltip=[alt.Tooltip("framework:N"), alt.Tooltip("seed:N"),
                 alt.Tooltip(f"{value}:Q", title=title, format=".4~g")],
    )  # fmt: skip
    medians = base.mark_tick(color=TEXT_COLOR, thickness=2, size=ROW * 0.7).encode(
        x=alt.X(f"median({value}):Q", title=title, scale=scale)
    )
    return _finished(alt.layer(points, medians), height=ROW * len(order) + 10)


def pareto(rows: Rows, front: Rows) -> Specification:
    """Accuracy against training time: the runs as points, the medians that none beats in both joined by a line."""
    order = list(dict.fromkeys(row["framework"] for row in rows))
    logarithmic = _wide([row["training_time_s"] for row in rows])
    scale = alt.Scale(type="log") if logarithmic else alt.Scale(zero=True)
    title = "training time, s" + (", logarithmic" if logarithmic else "")
    x = alt.X("training_time_s:Q", title=title, scale=scale)
    y = alt.Y("accuracy_percent:Q", title="test accuracy, %", scale=alt.Scale(zero=False, nice=True))
    points = _chart(rows).mark_circle(size=80, opacity=0.7).encode(
        x=x, y=y, color=_color(order),
        tooltip=[alt.Tooltip("framework:N"), alt.Tooltip("seed:N"), alt.Tooltip("training_time_s:Q", format=".4~g"),
                 alt.Tooltip("accuracy_percent:Q", format=".2f")],
    )  # fmt: skip
    line = _chart(front).mark_line(
        color=TEXT_COLOR, strokeDash=[4, 3], point=alt.OverlayMarkDef(shape="diamond", size=90, color=TEXT_COLOR, filled=False)
    ).encode(x=x, y=y, order=alt.Order("training_time_s:Q"))  # fmt: skip
    return _finished(alt.layer(line, points), height=260)


def curves(rows: Rows, x: str, x_title: str, y: str, y_title: str) -> Specification:
    """One line a framework: ``framework``, ``x`` and ``y``."""
    order = list(dict.fromkeys(row["framework"] for row in rows))
    chart = _chart(rows).mark_line(point=alt.OverlayMarkDef(size=25)).encode(
        x=alt.X(f"{x}:Q", title=x_title), y=alt.Y(f"{y}:Q", title=y_title, scale=alt.Scale(zero=False)),
        color=_color(order), order=alt.Order(f"{x}:Q"),
        tooltip=[alt.Tooltip("framework:N"), alt.Tooltip(f"{x}:Q", title=x_title, format=".4~g"),
                 alt.Tooltip(f"{y}:Q", title=y_title, format=".4~g")],
    )  # fmt: skip
    return _finished(chart, height=240)


def bars(rows: Rows, value: str, title: str) -> Specification:
    """One bar a framework."""
    order = list(dict.fromkeys(row["framework"] for row in rows))
    chart = _chart(rows).mark_bar(height=ROW * 0.6).encode(
        y=alt.Y("framework:N", sort=order, title=None), x=alt.X(f"{value}:Q", title=title), color=_color(order, None),
        tooltip=[alt.Tooltip("framework:N"), alt.Tooltip(f"{value}:Q", title=title, format=".4~g")],
    )  # fmt: skip
    return _finished(chart, height=ROW * len(order) + 10)


def parts(rows: Rows, order: Sequence[str]) -> Specification:
    """One bar a framework, of ``part``s end to end, ``seconds`` each, in the ``order`` in which they happen."""
    numbered = [{**row, "number": order.index(row["part"])} for row in rows]
    frameworks = list(dict.fromkeys(row["framework"] for row in rows))
    chart = _chart(numbered).mark_bar(height=ROW * 0.6).encode(
        y=alt.Y("framework:N", sort=frameworks, title=None), x=alt.X("seconds:Q", title="wall time, s"),
        color=alt.Color("part:N", title=None, sort=list(order), scale=alt.Scale(domain=list(order), scheme="viridis")),
        order=alt.Order("number:Q"),
        tooltip=[alt.Tooltip("framework:N"), alt.Tooltip("part:N"), alt.Tooltip("seconds:Q", format=".4~g")],
    )  # fmt: skip
    return _finished(chart, height=ROW * len(frameworks) + 10)


def heat_map(rows: Rows, value: str, title: str, number_format: str, logarithmic: bool) -> Specification:
    """``framework`` by ``setting``, the number written into each field."""
    base = _chart(rows).encode(
        x=alt.X("setting:N", title=None, axis=alt.Axis(labelAngle=-35)), y=alt.Y("framework:N", title=None)
    )
    low, high = min(row[value] for row in rows), max(row[value] for row in rows)
    middle = (low * high) ** 0.5 if logarithmic and low > 0 else (low + high) / 2
    scale = (
        alt.Scale(type="log", scheme="viridis") if logarithmic and low > 0 else alt.Scale(scheme="viridis", zero=False)
    )
    fields = base.mark_rect().encode(
        color=alt.Color(f"{value}:Q", title=title, scale=scale),
        tooltip=[
            alt.Tooltip("framework:N"),
            alt.Tooltip("setting:N"),
            alt.Tooltip(f"{value}:Q", title=title, format=number_format),
        ],
    )
    numbers = base.mark_text(fontSize=12).encode(
        text=alt.Text(f"{value}:Q", format=number_format),
        color=alt.condition(f"datum.{value} > {middle}", alt.value("#000"), alt.value("#fff")),
    )
    frameworks = {row["framework"] for row in rows}
    return _finished(alt.layer(fields, numbers), height=36 * len(frameworks) + 10)


def _chart(rows: Rows) -> alt.Chart:
    return alt.Chart(alt.Data(values=list(rows)))  # type: ignore[no-untyped-call]


def _wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= WIDE


def _color(frameworks: Sequence[str], legend: Any = alt.Undefined) -> alt.Color:
    scale = alt.Scale(domain=list(frameworks), range=[color_of(name) for name in frameworks])
    if legend is None:
        return alt.Color("framework:N", scale=scale, legend=None)
    return alt.Color("framework:N", scale=scale, title=None)


def _finished(chart: Any, height: int) -> Specification:
    """As wide as its place on the page; not validated, which takes ten times as long as the rest of a report."""
    specification: Specification = chart.properties(width="container", height=height).to_dict(validate=False)
    return {**specification, "autosize": {"type": "fit-x", "contains": "padding"}, "config": CHART_CONFIG}
