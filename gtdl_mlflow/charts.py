"""Pictures of a run or a sweep, for MLflow's pages: Vega-Lite, written out.

Not made by Altair, as the report's charts are: its import takes longer than all pictures of a run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert
from mlflow.entities import Metric

from . import chart_style, files
from .hardware.peak import Peak

WIDTH = 480
"""Pixels of a picture."""

INK = "#24292f"

LEGIBLE = 20
"""Classes of a confusion matrix whose fields have room for their numbers."""

Rows = Sequence[Mapping[str, Any]]
Specification = dict[str, Any]


def learning_curve(metrics: Sequence[Metric], framework: str, path: Path) -> None:
    """Test accuracy against training time: every look during training, and the end."""
    looks = {metric.step: metric.value for metric in metrics if metric.key == "eval/accuracy_percent"}
    times = {metric.step: metric.value for metric in metrics if metric.key == "train/elapsed_s"}
    last = {metric.key: metric.value for metric in metrics}
    points = [(times[step], looks[step]) for step in sorted(looks) if step in times]
    points.append((last["training_time_s"], last["accuracy_percent"]))
    rows = [{"framework": framework, "seconds": seconds, "accuracy": accuracy} for seconds, accuracy in points]
    _write({
        "height": 240, "data": {"values": rows}, "mark": {"type": "line", "point": {"size": 25}},
        "encoding": {
            "x": _number("seconds", "training time, s"),
            "y": _number("accuracy", "test accuracy, %", zero=False),
            "color": _frameworks(rows), "order": {"field": "seconds", "type": "quantitative"},
        },
    }, path)  # fmt: skip


def confusion_matrix(counts: Sequence[Sequence[int]], table: Path, path: Path) -> None:
    """Test images by their true class (rows) and the predicted one (columns), as CSV and as a picture."""
    header = ["true \\ predicted", *range(len(counts))]
    files.write_csv(table, header, ([true, *row] for true, row in enumerate(counts)))
    rows = [
        {"true": true, "predicted": predicted, "images": images, "share": images / (sum(row) or 1)}
        for true, row in enumerate(counts) for predicted, images in enumerate(row)
    ]  # fmt: skip
    layers: list[Specification] = [{
        "mark": "rect",
        "encoding": {"color": _number("share", "share of the true class", scheme="blues", domain=[0, 1])},
    }]  # fmt: skip
    if len(counts) <= LEGIBLE:
        dark = {"condition": {"test": "datum.share > 0.5", "value": "#fff"}, "value": "#000"}
        layers.append({
            "transform": [{"filter": "datum.images > 0"}], "mark": {"type": "text", "fontSize": 10},
            "encoding": {"text": {"field": "images", "type": "quantitative"}, "color": dark},
        })  # fmt: skip
    x, y = (
        {"field": name, "type": "ordinal", "title": f"{name} class", "axis": {"labelOverlap": True, "labelAngle": 0}}
        for name in ("predicted", "true")
    )
    _write({"height": 360, "data": {"values": rows}, "encoding": {"x": x, "y": y}, "layer": layers}, path)


def roofline(results: Mapping[str, float], peak: Peak, path: Path) -> None:
    """Where training and testing lie under what the machine can do."""
    points: list[dict[str, Any]] = [
        {"phase": phase, "intensity": results[f"{key}/flops_per_byte"], "gflops": results[f"{key}/gflops"],
         "share": results[f"{key}/peak_share_percent"]}
        for key, phase in (("train", "training"), ("test", "testing"))
    ]  # fmt: skip
    gflops = peak.flops_per_s / 1e9
    ridge = gflops / peak.gb_per_s
    left = min(ridge, *(point["intensity"] for point in points)) / 4
    right = max(ridge, *(point["intensity"] for point in points)) * 4
    roof = [{"intensity": each, "gflops": min(gflops, peak.gb_per_s * each)} for each in (left, ridge, right)]
    low = min(roof[0]["gflops"], *(point["gflops"] for point in points)) / 2
    texts = [{**point, "text": f"{point['phase']}: {_two_digits(point['share'])} % of the peak"} for point in points]
    # No legend: the points are named where they are.
    phases = {"field": "phase", "type": "nominal", "legend": None, "sort": [point["phase"] for point in points]}
    _write({
        "height": 260,
        "encoding": {
            "x": _number("intensity", "operations per byte, FLOP/B", type="log", domain=[left, right], nice=False),
            "y": _number("gflops", "GFLOP/s", type="log", domain=[low, 2 * gflops]),
        },
        "layer": [
            {"data": {"values": roof}, "mark": {"type": "line", "color": INK}},
            {"data": {"values": texts}, "mark": {"type": "point", "filled": True, "size": 90},
             "encoding": {"color": {**phases, "scale": {"range": [chart_style.PALETTE[5], chart_style.PALETTE[1]]}},
                          "shape": phases}},
            {"data": {"values": texts}, "mark": {"type": "text", "align": "left", "dx": 9, "dy": 9, "color": INK},
             "encoding": {"text": {"field": "text", "type": "nominal"}}},
        ],
    }, path)  # fmt: skip


def _two_digits(share: float) -> str:
    """In percent: 43, 4.3, 0.43, as a small network on a large GPU may have less than a hundredth of its peak."""
    return f"{share:.0f}" if share >= 10 else f"{share:.2g}"


def inference(metrics: Sequence[Metric], table: Path, path: Path) -> None:
    """Latency and throughput by the size of the batch that is classified, as CSV and as a picture."""
    sizes: dict[int, dict[str, float]] = {}
    for metric in metrics:
        if metric.key in INFERENCE:
            sizes.setdefault(metric.step, {})[metric.key.removeprefix("inference/")] = metric.value
    names = [key.removeprefix("inference/") for key in INFERENCE]
    written = ([size, *(f"{sizes[size][name]:.6g}" for name in names)] for size in sorted(sizes))
    files.write_csv(table, ["batch_size", *names], written)
    speeds = [{"batch": size, **sizes[size]} for size in sorted(sizes)]
    ranks = [{"batch": row["batch"], "rank": rank, "ms": row[f"{rank}_ms"]}
             for row in speeds for rank in ("p50", "p90", "p99")]  # fmt: skip
    x = _number("batch", "images in a batch", type="log", base=2)
    colors = {"field": "rank", "type": "nominal", "title": None,
              "scale": {"range": [chart_style.PALETTE[place] for place in (1, 0, 5)]}}  # fmt: skip
    _write({"vconcat": [
        {"width": WIDTH, "height": 160, "data": {"values": ranks}, "mark": {"type": "line", "point": True},
         "encoding": {"x": x, "y": _number("ms", "latency, ms", type="log"), "color": colors}},
        {"width": WIDTH, "height": 160, "data": {"values": speeds},
         "mark": {"type": "line", "point": {"color": chart_style.PALETTE[3]}, "color": chart_style.PALETTE[3]},
         "encoding": {"x": x, "y": _number("images_per_s", "images/s", zero=True)}},
    ]}, path)  # fmt: skip


def scaling(rows: Rows, path: Path) -> None:
    """Training speed by batch size, a line for each framework and number of threads; below it, how efficient several
    threads are.
    """
    same = {"x": _number("batch_size", "images in a batch", type="log", base=2), "color": _frameworks(rows)}
    threads = {"field": "threads", "type": "ordinal", "title": "threads",
               "legend": {"symbolType": "stroke", "symbolSize": 400}}  # fmt: skip
    speed = _number("train_images_per_s", "training images/s, logarithmic", type="log")
    several = [row for row in rows if row["threads"] > 1 and row["efficiency_percent"] is not None]
    efficiency = _number("efficiency_percent", "speed-up over one thread / threads, %")
    _write({"vconcat": [
        {"width": WIDTH, "height": 200, "data": {"values": data}, "encoding": {**same, "y": y},
         # The points in a layer of their own: with a line's, its legend has symbols without a stroke.
         "layer": [{"mark": "line", "encoding": {"strokeDash": threads}},
                   {"mark": {"type": "point", "filled": True, "opacity": 1}}]}
        for data, y in ((rows, speed), (several, efficiency)) if data
    ]}, path)  # fmt: skip


INFERENCE = tuple(f"inference/{name}" for name in ("p50_ms", "p90_ms", "p99_ms", "images_per_s", "samples"))
"""Metrics whose step is a batch size."""


def _number(name: str, title: str, **scale: Any) -> Specification:
    """An axis, or a colour's legend."""
    return {"field": name, "type": "quantitative", "title": title, "scale": scale}


def _frameworks(rows: Rows) -> Specification:
    """Each in its colour."""
    names = list(dict.fromkeys(row["framework"] for row in rows))
    scale = {"domain": names, "range": [chart_style.color_of(name) for name in names]}
    return {"field": "framework", "type": "nominal", "title": None, "scale": scale}


def _write(specification: Specification, path: Path) -> None:
    """As SVG, which takes half as long to make as pixels do; black on white."""
    config = json.loads(json.dumps(chart_style.CHART_CONFIG).replace(f'"{chart_style.TEXT_COLOR}"', f'"{INK}"'))
    config["background"] = "white"
    one = {"width": WIDTH, "autosize": {"type": "fit-x", "contains": "padding"}}
    size = {} if "vconcat" in specification else one
    path.write_text(vl_convert.vegalite_to_svg({**size, **specification, "config": config}), encoding="utf-8")
