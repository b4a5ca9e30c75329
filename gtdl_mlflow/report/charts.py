"""The report's charts: Vega-Lite, made by Altair, with every colour but the marks' the page's own.

Each function takes rows (dictionaries) and returns a specification that ``vegaEmbed`` draws. Axes have units. Encodings
are objects, never strings: Altair finds a string's class by a search through all of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
from altair.utils import schemapi

from .. import config

# Else every object holds itself against Vega-Lite's whole schema as it is made, and a chart takes twice as long.
schemapi.disable_debug_mode()

PALETTE = ("#E69F00", "#0072B2", "#999999", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
"""Okabe and Ito's colours, told apart by the colour-blind (Color Universal Design, 2008), for frameworks by name."""

ROW = 28
"""Pixels of one framework's row."""

WIDE = 10.0
"""A logarithmic axis where the largest value is so many times the smallest."""

TEXT = "currentColor"
"""What a page's own colour is called in SVG: the charts are as light or dark as the page."""

LOOK = {
    "background": "transparent",
    "font": "system-ui, sans-serif",  # the page's; Vega measures text with it
    "view": {"stroke": None},
    "axis": {"labelColor": TEXT, "titleColor": TEXT, "domainColor": TEXT, "tickColor": TEXT, "gridColor": TEXT,
             "gridOpacity": 0.15, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal",
             "labelLimit": 220},
    "legend": {"labelColor": TEXT, "titleColor": TEXT, "orient": "bottom", "columns": 2, "labelFontSize": 12,
               "labelLimit": 220, "titleFontSize": 12},
    "title": {"color": TEXT},
}  # fmt: skip

Rows = Sequence[dict[str, Any]]
Specification = dict[str, Any]


def color_of(framework: str) -> str:
    """The same for a framework in every chart and table, whatever its version."""
    names = config.choices("framework")
    name = framework.split(" ")[0]
    place = names.index(name) if name in names else len(names)
    return PALETTE[place % len(PALETTE)]


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
    medians = base.mark_tick(color=TEXT, thickness=2, size=ROW * 0.7).encode(
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
        color=TEXT, strokeDash=[4, 3], point=alt.OverlayMarkDef(shape="diamond", size=90, color=TEXT, filled=False)
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


def confusion(rows: Rows, classes: int) -> Specification:
    """A run's test images by ``true`` and ``predicted`` class, the ``images`` in each field."""
    written = classes <= 20
    # By name: Altair copies what it is given at every step, and these are as many as there are pairs of classes.
    base = alt.Chart(alt.NamedData("counts")).encode(
        x=alt.X("predicted:O", title="predicted class", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
        y=alt.Y("true:O", title="true class", axis=alt.Axis(labelOverlap=True)),
    )
    layers = [base.mark_rect().encode(
        color=alt.Color("share:Q", title="share of the true class", scale=alt.Scale(scheme="blues", domain=[0, 1]))
    )]  # fmt: skip
    if written:
        layers.append(base.transform_filter("datum.images > 0").mark_text(fontSize=10).encode(
            text=alt.Text("images:Q"), color=alt.condition("datum.share > 0.5", alt.value("#fff"), alt.value("#000"))
        ))  # fmt: skip
    return {**_finished(alt.layer(*layers), height=360), "datasets": {"counts": list(rows)}}


def roofline(points: Rows, gflops: float, gb_per_s: float) -> Specification:
    """``phase``s at their ``intensity`` and ``gflops`` under the roof: ``gflops``, or ``gb_per_s`` times intensity."""
    x = [point["intensity"] for point in points]
    ridge = gflops / gb_per_s
    left, right = min(*x, ridge) / 4, max(*x, ridge) * 4
    roof = [{"intensity": each, "gflops": min(gflops, gb_per_s * each)} for each in (left, ridge, right)]
    low = min(roof[0]["gflops"], *(point["gflops"] for point in points)) / 2
    axes = {
        "x": alt.X(
            "intensity:Q",
            title="operations per byte, FLOP/B",
            scale=alt.Scale(type="log", domain=[left, right], nice=False),
        ),
        "y": alt.Y("gflops:Q", title="GFLOP/s", scale=alt.Scale(type="log", domain=[low, 2 * gflops])),
    }
    line = _chart(roof).mark_line(color=TEXT).encode(**axes)
    base = _chart([{**point, "text": f"{point['phase']}: {point['share']:.0f} % of the peak"} for point in points])
    marks = base.mark_point(size=90, filled=True).encode(
        **axes, color=alt.Color("phase:N", title=None, scale=alt.Scale(range=[PALETTE[5], PALETTE[1]])),
        shape=alt.Shape("phase:N", title=None),
    )  # fmt: skip
    text = base.mark_text(align="left", dx=9, dy=9, color=TEXT).encode(**axes, text="text:N")
    return _finished(alt.layer(line, marks, text), height=260)


def scaling(rows: Rows) -> Specification:
    """Training speed by batch size, a line for each framework and number of threads; below it, how efficient several
    threads are.
    """
    order = list(dict.fromkeys(row["framework"] for row in rows))
    x = alt.X("batch_size:Q", title="images in a batch", scale=alt.Scale(type="log", base=2))
    dash = alt.StrokeDash("threads:O", title="threads")
    size = {"width": 480, "height": 200}
    speed = _chart(rows).mark_line(point=True).encode(
        x=x, y=alt.Y("train_images_per_s:Q", title="training images/s, logarithmic", scale=alt.Scale(type="log")),
        color=_color(order), strokeDash=dash,
    )  # fmt: skip
    several = [row for row in rows if row["threads"] > 1 and row["efficiency_percent"] is not None]
    efficiency = _chart(several).mark_line(point=True).encode(
        x=x, y=alt.Y("efficiency_percent:Q", title="speed-up over one thread / threads, %"),
        color=_color(order), strokeDash=dash,
    )  # fmt: skip
    parts = [speed, efficiency] if several else [speed]
    return {**alt.vconcat(*(part.properties(**size) for part in parts)).to_dict(validate=False), "config": LOOK}


def inference(rows: Rows) -> Specification:
    """Latency's percentiles and throughput by ``batch`` size: one ``framework``'s."""
    x = alt.X("batch:Q", title="images in a batch", scale=alt.Scale(type="log", base=2))
    folded = [{"batch": row["batch"], "rank": rank, "ms": row[f"{rank}_ms"]}
              for row in rows for rank in ("p50", "p90", "p99")]  # fmt: skip
    latency = _chart(folded).mark_line(point=True).encode(
        x=x, y=alt.Y("ms:Q", title="latency, ms", scale=alt.Scale(type="log")),
        color=alt.Color("rank:N", title=None, scale=alt.Scale(range=[PALETTE[1], PALETTE[0], PALETTE[5]])),
    )  # fmt: skip
    throughput = (
        _chart(rows)
        .mark_line(point=True, color=PALETTE[3])
        .encode(x=x, y=alt.Y("images_per_s:Q", title="images/s", scale=alt.Scale(zero=True)))
    )
    stacked = alt.vconcat(latency.properties(width=480, height=160), throughput.properties(width=480, height=160))
    return {**stacked.to_dict(validate=False), "config": LOOK}


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
    return {**specification, "autosize": {"type": "fit-x", "contains": "padding"}, "config": LOOK}
