"""How charts and pictures look."""

from __future__ import annotations

from . import config

PALETTE = ("#E69F00", "#0072B2", "#999999", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#F0E442")
"""Okabe and Ito's colours, told apart by the colour-blind (Color Universal Design, 2008), for frameworks by name."""

TEXT_COLOR = "currentColor"
"""What a page's own colour is called in SVG: the charts are as light or dark as the page."""

CHART_CONFIG = {
    "background": "transparent",
    "font": "system-ui, sans-serif",  # the page's; Vega measures text with it
    "view": {"stroke": None},
    "axis": {"labelColor": TEXT_COLOR, "titleColor": TEXT_COLOR, "domainColor": TEXT_COLOR, "tickColor": TEXT_COLOR, "gridColor": TEXT_COLOR,
             "gridOpacity": 0.15, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal",
             "labelLimit": 220},
    "legend": {"labelColor": TEXT_COLOR, "titleColor": TEXT_COLOR, "orient": "bottom", "columns": 2, "labelFontSize": 12,
               "labelLimit": 220, "titleFontSize": 12},
    "title": {"color": TEXT_COLOR},
}  # fmt: skip


def color_of(framework: str) -> str:
    """The same for a framework in every chart and table, whatever its version."""
    names = config.choices("framework")
    name = framework.split(" ")[0]
    place = names.index(name) if name in names else len(names)
    return PALETTE[place % len(PALETTE)]
