"""Every chart, as a Vega-Lite specification: SVG files of a run or a sweep, and the charts of the report's page.

Specifications are plain dictionaries: importing a library that builds them takes longer than drawing all charts of a
run. A chart of the report is as wide as its container, and ``vegaEmbed`` draws it in the page's own text colour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert
from mlflow.entities import Metric

from . import files
from .config import display
from .hardware.peak import Peak
from .metrics import METRICS

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
"""Colours of Okabe and Ito that the colour-blind can tell apart (Color Universal Design, 2008)."""

PARTS = ("#4c78a8", "#f58518", "#72b7b2", "#e45756", "#eeca3b", "#b279a2", "#9d755d", "#54a24b", "#79706e", "#d67195",
         "#9ecae9", "#ffbf79", "#83bcb6", "#ff9d98", "#f2cf5b", "#d6a5c9", "#d8b5a5", "#88d27a", "#bab0ac",
         "#fcbfd2")  # fmt: skip
"""Colours of the parts of a whole: Vega's ``tableau20``, whose pairs of similar colours are far apart here."""

PAGE_TEXT = "currentColor"
"""SVG's name for the text colour of the page, which may be light or dark."""

FILE_TEXT = "#24292f"
"""Text colour of an SVG file, whose background is white."""

WIDTH = 480
"""Width of an SVG file in pixels."""

ROW = 28
"""Height of one framework's row in pixels."""

LOG_RATIO = 10.0
"""An axis of positive values is logarithmic if the largest value is at least this many times the smallest."""

LEGIBLE = 20
"""Largest number of classes for which the fields of a confusion matrix have room for their numbers."""

NUMBER = ",.4~r"
"""Format of numbers in d3's notation: four digits, without an exponent or a prefix such as ``m``."""

INFERENCE = tuple(f"inference/{name}" for name in ("p50_ms", "p90_ms", "p99_ms", "images_per_s", "samples"))
"""Metrics whose step is a batch size."""

TRAINING_TIME, ACCURACY = METRICS["training_time_s"].title, METRICS["accuracy_percent"].title

Rows = Sequence[Mapping[str, Any]]
Colors = Mapping[str, str]
"""Colour by the value of a row's ``framework``."""
Specification = dict[str, Any]


# Charts of the report.


def repeats(rows: Rows, value: str, title: str, colors: Colors) -> Specification:
    """Return a chart with a point for each run and a bar at each framework's median.

    Rows have ``framework``, ``seed`` and ``value``. The axis is logarithmic if the values differ by ``LOG_RATIO``.
    """
    scale, title = _axis_from_zero([row[value] for row in rows], title)
    points = {
        "mark": {"type": "circle", "size": 70, "opacity": 0.7},
        "encoding": {
            "x": {**_quantity(value, title), "scale": scale},
            "color": {**_frameworks(rows, colors), "legend": None},
            "tooltip": [_nominal("framework"), _nominal("seed"), _tip(value, title)],
        },
    }
    medians = {
        "mark": {"type": "tick", "color": PAGE_TEXT, "thickness": 2, "size": ROW * 0.7},
        "encoding": {"x": {**_quantity(value, title), "aggregate": "median", "scale": scale}},
    }
    return _on_page({**_rows_of_frameworks(rows), "layer": [points, medians]})


def relative_times(rows: Rows, colors: Colors) -> Specification:
    """Return a chart with a point for each ``ratio`` to the best, and a bar from ``low`` to ``high``, its interval."""
    title = "relative time (log)"  # short: nothing is cut on a phone
    x = {"scale": {"type": "log", "nice": False, "padding": 10}, "axis": {"labelSeparation": 6}}
    intervals = {
        "mark": {"type": "rule", "color": PAGE_TEXT, "strokeWidth": 2},
        "encoding": {"x": {**_quantity("low", title), **x}, "x2": {"field": "high"}},
    }
    points = {
        "mark": {"type": "circle", "size": 90, "opacity": 1},
        "encoding": {
            "x": {**_quantity("ratio", title), **x},
            "color": {**_frameworks(rows, colors), "legend": None},
            "tooltip": [_nominal("framework"), *(_tip(name) for name in ("ratio", "low", "high"))],
        },
    }
    return _on_page({**_rows_of_frameworks(rows), "layer": [intervals, points]})


def pareto(rows: Rows, front: Rows, colors: Colors) -> Specification:
    """Return accuracy against training time: a point for each run, a dashed line through the points in ``front``."""
    scale, title = _axis_from_zero([row["training_time_s"] for row in rows], TRAINING_TIME)
    x = {**_quantity("training_time_s", title), "scale": scale}
    y = _quantity("accuracy_percent", ACCURACY, zero=False, nice=True)
    diamond = {"shape": "diamond", "size": 90, "color": PAGE_TEXT, "filled": False}
    line = {
        "data": {"values": front},
        "mark": {"type": "line", "color": PAGE_TEXT, "strokeDash": [4, 3], "point": diamond},
        "encoding": {"x": x, "y": y, "order": _quantity("training_time_s")},
    }
    points = {
        "data": {"values": rows},
        "mark": {"type": "circle", "size": 80, "opacity": 0.7},
        "encoding": {
            "x": x,
            "y": y,
            "color": _frameworks(rows, colors),
            "tooltip": [
                _nominal("framework"),
                _nominal("seed"),
                _tip("training_time_s", TRAINING_TIME),
                _tip("accuracy_percent", ACCURACY),
            ],
        },
    }
    return _on_page({"height": 260, "layer": [line, points]})


def curves(rows: Rows, x: str, x_title: str, y: str, y_title: str, colors: Colors) -> Specification:
    """Return a chart with one line per framework. Rows have ``framework``, ``x`` and ``y``.

    The horizontal axis is logarithmic if the last values of the lines differ by ``LOG_RATIO``.
    """
    ends: dict[str, float] = {}
    for row in rows:
        ends[row["framework"]] = max(row[x], ends.get(row["framework"], 0.0))
    scale, x_title = _axis_from_zero([*ends.values()], x_title)
    if scale.get("type") == "log":
        rows = [row for row in rows if row[x] > 0]
    return _on_page(_lines(rows, x, x_title, y, y_title, colors, **scale))


def stacked_bars(rows: Rows, order: Sequence[str]) -> Specification:
    """Return a chart with one bar per framework, made of ``part``s of ``seconds`` each.

    ``order`` has all parts that any chart may have, so that a part has the same colour in all of them.
    """
    chart = _rows_of_frameworks([{**row, "number": order.index(row["part"])} for row in rows])
    present = [part for part in order if any(row["part"] == part for row in rows)]
    colors = [PARTS[order.index(part) % len(PARTS)] for part in present]
    chart["mark"] = {"type": "bar", "height": ROW * 0.6}
    chart["encoding"] |= {
        "x": _quantity("seconds", "wall time, s"),
        "color": _nominal("part", title=None, scale={"domain": present, "range": colors}),
        "order": _quantity("number"),
        "tooltip": [_nominal("framework"), _nominal("part"), _tip("seconds")],
    }
    return _on_page(chart)


def heat_map(rows: Rows, value: str, title: str, logarithmic: bool) -> Specification:
    """Return ``framework`` by ``setting`` with the value written into each field.

    Args:
        rows: dictionaries with ``framework``, ``setting`` and ``value``.
        logarithmic: whether to use a logarithmic colour scale; linear if a value is zero or negative.
    """
    low, high = min(row[value] for row in rows), max(row[value] for row in rows)
    logarithmic = logarithmic and low > 0
    middle = (low * high) ** 0.5 if logarithmic else (low + high) / 2
    scale = {"scheme": "viridis", **({"type": "log"} if logarithmic else {"zero": False})}
    fields = {
        "mark": "rect",
        "encoding": {
            "color": {**_quantity(value), "scale": scale, "legend": None},
            "tooltip": [_nominal("framework"), _nominal("setting"), _tip(value, title)],
        },
    }
    contrast = {"condition": {"test": f"datum.{value} > {middle}", "value": "#000"}, "value": "#fff"}
    numbers = {
        "mark": {"type": "text", "fontSize": 12},
        "encoding": {"text": {**_quantity(value), "format": NUMBER}, "color": contrast},
    }
    chart = {
        "height": 36 * len({row["framework"] for row in rows}) + 10,
        "data": {"values": rows},
        "encoding": {
            "x": _nominal("setting", title=None, axis={"labelAngle": -35}),
            "y": _nominal("framework", title=None),
        },
        "layer": [fields, numbers],
    }
    return _on_page(chart)


# SVG files of a run or a sweep.


def learning_curve(metrics: Sequence[Metric], framework: str, path: Path) -> None:
    """Draw test accuracy against training time: every evaluation, and the end of the run."""
    accuracies = {metric.step: metric.value for metric in metrics if metric.key == "eval/accuracy_percent"}
    times = {metric.step: metric.value for metric in metrics if metric.key == "train/elapsed_s"}
    last = {metric.key: metric.value for metric in metrics}
    points = [(times[step], accuracies[step]) for step in sorted(accuracies) if step in times]
    points.append((last["training_time_s"], last["accuracy_percent"]))
    label = display.label(framework)
    rows = [{"framework": label, "seconds": seconds, "accuracy": accuracy} for seconds, accuracy in points]
    _write(_lines(rows, "seconds", TRAINING_TIME, "accuracy", ACCURACY, {label: display.color(framework)}), path)


def confusion_matrix(counts: Sequence[Sequence[int]], table: Path, path: Path) -> None:
    """Write test images by true class (rows) and predicted class (columns), as CSV and as a chart."""
    header = ["true \\ predicted", *range(len(counts))]
    files.write_csv(table, header, ([true, *row] for true, row in enumerate(counts)))
    rows = [
        {"true": true, "predicted": predicted, "images": images, "share": images / (sum(row) or 1)}
        for true, row in enumerate(counts)
        for predicted, images in enumerate(row)
    ]
    share = _quantity("share", "share of the true class", scheme="blues", domain=[0, 1])
    layers: list[Specification] = [{"mark": "rect", "encoding": {"color": share}}]
    if len(counts) <= LEGIBLE:
        contrast = {"condition": {"test": "datum.share > 0.5", "value": "#fff"}, "value": "#000"}
        layers.append(
            {
                "transform": [{"filter": "datum.images > 0"}],
                "mark": {"type": "text", "fontSize": 10},
                "encoding": {"text": _quantity("images"), "color": contrast},
            }
        )
    x, y = (
        {"field": name, "type": "ordinal", "title": f"{name} class", "axis": {"labelOverlap": True, "labelAngle": 0}}
        for name in ("predicted", "true")
    )
    _write({"height": 360, "data": {"values": rows}, "encoding": {"x": x, "y": y}, "layer": layers}, path)


def roofline(results: Mapping[str, float], peak: Peak, path: Path) -> None:
    """Draw training and testing as points under the machine's peak."""
    points: list[dict[str, Any]] = [
        {
            "phase": phase,
            "intensity": results[f"{key}/flops_per_byte"],
            "gflops": results[f"{key}/gflops"],
            "text": f"{phase}: {_percent(results[f'{key}/peak_share_percent'])} % of the peak",
        }
        for key, phase in (("train", "training"), ("test", "testing"))
    ]
    gflops = peak.flops_per_s / 1e9
    ridge = gflops / peak.gb_per_s
    left = min(ridge, *(point["intensity"] for point in points)) / 4
    right = max(ridge, *(point["intensity"] for point in points)) * 4
    roof = [{"intensity": each, "gflops": min(gflops, peak.gb_per_s * each)} for each in (left, ridge, right)]
    low = min(roof[0]["gflops"], *(point["gflops"] for point in points)) / 2
    # Labels beside the points take the place of a legend.
    phases = {**_nominal("phase"), "legend": None, "sort": [point["phase"] for point in points]}
    _write(
        {
            "height": 260,
            "encoding": {
                "x": _quantity(
                    "intensity", "operations per byte, FLOP/B", type="log", domain=[left, right], nice=False
                ),
                "y": _quantity("gflops", "GFLOP/s", type="log", domain=[low, 2 * gflops]),
            },
            "layer": [
                {"data": {"values": roof}, "mark": {"type": "line", "color": FILE_TEXT}},
                {
                    "data": {"values": points},
                    "mark": {"type": "point", "filled": True, "size": 90},
                    "encoding": {"color": {**phases, "scale": {"range": [VERMILION, BLUE]}}, "shape": phases},
                },
                {
                    "data": {"values": points},
                    "mark": {"type": "text", "align": "left", "dx": 9, "dy": 9, "color": FILE_TEXT},
                    "encoding": {"text": _nominal("text")},
                },
            ],
        },
        path,
    )


def inference(metrics: Sequence[Metric], table: Path, path: Path) -> None:
    """Write latency and throughput by batch size, as CSV and as a chart."""
    sizes: dict[int, dict[str, float]] = {}
    for metric in metrics:
        if metric.key in INFERENCE:
            sizes.setdefault(metric.step, {})[metric.key.removeprefix("inference/")] = metric.value
    names = [key.removeprefix("inference/") for key in INFERENCE]
    written = ([size, *(f"{sizes[size][name]:.6g}" for name in names)] for size in sorted(sizes))
    files.write_csv(table, ["batch_size", *names], written)
    throughput = [{"batch": size, **sizes[size]} for size in sorted(sizes)]
    latency = [
        {"batch": row["batch"], "percentile": rank, "ms": row[f"{rank}_ms"]}
        for row in throughput
        for rank in ("p50", "p90", "p99")
    ]
    x = _quantity("batch", "images in a batch", type="log", base=2)
    colors = _nominal("percentile", title=None, scale={"range": [BLUE, ORANGE, VERMILION]})
    size = {"width": WIDTH, "height": 160}
    _write(
        {
            "vconcat": [
                {
                    **size,
                    "data": {"values": latency},
                    "mark": {"type": "line", "point": True},
                    "encoding": {"x": x, "y": _quantity("ms", "latency, ms", type="log"), "color": colors},
                },
                {
                    **size,
                    "data": {"values": throughput},
                    "mark": {"type": "line", "point": {"color": GREEN}, "color": GREEN},
                    "encoding": {"x": x, "y": _quantity("images_per_s", "images/s", zero=True)},
                },
            ]
        },
        path,
    )


def scaling(rows: Rows, path: Path) -> None:
    """Draw training speed by batch size, one line per framework and number of threads, above the threads' efficiency.

    Rows have ``framework`` (its name), ``threads``, ``batch_size``, ``train_images_per_s`` and ``efficiency_percent``,
    which is None where one thread was not measured.
    """
    colors = {display.label(row["framework"]): display.color(row["framework"]) for row in rows}
    rows = [{**row, "framework": display.label(row["framework"])} for row in rows]
    several = [row for row in rows if row["threads"] > 1 and row["efficiency_percent"] is not None]
    x = _quantity("batch_size", "images in a batch", type="log", base=2)
    speed = _quantity("train_images_per_s", "training images/s, logarithmic", type="log")
    efficiency = _quantity("efficiency_percent", "speed-up over one thread / threads, %")
    threads = {
        "field": "threads",
        "type": "ordinal",
        "title": "threads",
        "legend": {"symbolType": "stroke", "symbolSize": 400},
    }
    # The points are a layer of their own: as part of the lines, they would remove the strokes from the legend.
    layers = [
        {"mark": "line", "encoding": {"strokeDash": threads}},
        {"mark": {"type": "point", "filled": True, "opacity": 1}},
    ]
    _write(
        {
            "vconcat": [
                {
                    "width": WIDTH,
                    "height": 200,
                    "data": {"values": data},
                    "encoding": {"x": x, "y": y, "color": _frameworks(rows, colors)},
                    "layer": layers,
                }
                for data, y in ((rows, speed), (several, efficiency))
                if data
            ]
        },
        path,
    )


# Parts of specifications.


def _quantity(name: str, title: str | None = None, **scale: Any) -> Specification:
    """Return the encoding of a number: an axis, a colour with a legend, or an order."""
    return {"field": name, "type": "quantitative", "title": title, **({"scale": scale} if scale else {})}


def _nominal(name: str, **options: Any) -> Specification:
    return {"field": name, "type": "nominal", **options}


def _tip(name: str, title: str | None = None, number_format: str = NUMBER) -> Specification:
    return {"field": name, "type": "quantitative", "title": title or name, "format": number_format}


def _frameworks(rows: Rows, colors: Colors) -> Specification:
    """Return the encoding of each framework by its colour."""
    labels = list(dict.fromkeys(row["framework"] for row in rows))
    return _nominal("framework", title=None, scale={"domain": labels, "range": [colors[label] for label in labels]})


def _rows_of_frameworks(rows: Rows) -> Specification:
    """Return data, height and vertical axis of a chart with one row per framework."""
    labels = list(dict.fromkeys(row["framework"] for row in rows))
    y = _nominal("framework", title=None, sort=labels)
    return {"height": ROW * len(labels) + 10, "data": {"values": rows}, "encoding": {"y": y}}


def _lines(rows: Rows, x: str, x_title: str, y: str, y_title: str, colors: Colors, **scale: Any) -> Specification:
    return {
        "height": 240,
        "data": {"values": rows},
        "mark": {"type": "line", "point": {"size": 25}},
        "encoding": {
            "x": _quantity(x, x_title, **scale),
            "y": _quantity(y, y_title, zero=False),
            "color": _frameworks(rows, colors),
            "order": _quantity(x),
            "tooltip": [_nominal("framework"), _tip(x, x_title), _tip(y, y_title)],
        },
    }


def _axis_from_zero(values: Sequence[float], title: str) -> tuple[Specification, str]:
    """Return scale and title of an axis that starts at zero, or is logarithmic where the values differ widely."""
    if min(values) > 0 and max(values) / min(values) >= LOG_RATIO:
        return {"type": "log"}, f"{title} (log)"  # short: nothing is cut on a phone
    return {"zero": True}, title


def _percent(share: float) -> str:
    """Return two digits of a percentage: a small network on a large GPU may reach less than 0.01 % of its peak."""
    return f"{share:.0f}" if share >= 10 else f"{share:.2g}"


def _on_page(specification: Specification) -> Specification:
    """Return the specification of a chart that is as wide as its container on the report's page."""
    fit = {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
    return {**fit, **specification, "config": _style(PAGE_TEXT, "transparent")}


def _write(specification: Specification, path: Path) -> None:
    """Write a chart as SVG, which takes half as long as PNG."""
    one = {"width": WIDTH, "autosize": {"type": "fit-x", "contains": "padding"}}
    size = {} if "vconcat" in specification else one
    complete = {**size, **specification, "config": _style(FILE_TEXT, "white")}
    path.write_text(vl_convert.vegalite_to_svg(complete), encoding="utf-8")


def _style(text: str, background: str) -> Specification:
    return {
        "background": background,
        "numberFormat": ",~r",
        "font": "system-ui, sans-serif",  # the page's font: Vega measures text with it
        "view": {"stroke": None},
        "axis": {
            **dict.fromkeys(("labelColor", "titleColor", "domainColor", "tickColor", "gridColor"), text),
            "gridOpacity": 0.15,
            "labelFontSize": 12,
            "labelLimit": 220,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
        },
        "legend": {
            **dict.fromkeys(("labelColor", "titleColor"), text),
            "orient": "bottom",
            "columns": 2,
            "labelFontSize": 12,
            "labelLimit": 220,
            "titleFontSize": 12,
        },
        "title": {"color": text},
    }
