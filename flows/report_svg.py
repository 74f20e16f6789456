"""Plots as inline SVG: drawn by Vega-Lite when the page is made, no script and no network.

Static, not interactive: Vega in the page would cost a megabyte of script in every report, need a
policy that runs scripts beside texts that nobody can trust, print as a picture of one theme, and
show nothing that the tables don't. The colours are those of the light palette; the style sheet
maps each to its partner in the dark.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from markupsafe import Markup

from lineage.story import visible

if TYPE_CHECKING:
    import polars as pl

INK, MUTED, GRID = "#1d242b", "#5b6670", "#dfe4e8"
BLUE, ORANGE, PURPLE = "#0b66b0", "#c9590c", "#8256b5"
SVG_TAGS = {"svg", "g", "path", "text", "tspan", "rect", "line", "defs", "clipPath", "style"}


def values_of(frame: pl.DataFrame) -> Any:
    """Return the rows as inline data; texts with their invisible characters made visible."""
    import altair as alt

    return alt.Data(
        values=[
            {k: visible(v) if isinstance(v, str) else v for k, v in row.items()}
            for row in frame.to_dicts()
        ]
    )


def as_svg(name: str, chart: Any) -> Markup:
    """Return the chart as SVG that scales with the page and holds only drawing elements."""
    import vl_convert

    axis = {
        "labelColor": MUTED, "titleColor": MUTED, "gridColor": GRID, "tickColor": GRID,
        "domainColor": MUTED, "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal",
        "labelLimit": 150, "titlePadding": 8, "labelOverlap": "greedy", "labelSeparation": 6,
    }  # fmt: skip
    legend = {
        "orient": "top", "labelColor": INK, "labelFontSize": 12, "symbolStrokeWidth": 2,
        "titleColor": INK, "labelLimit": 200, "offset": 8, "columnPadding": 16,
    }  # fmt: skip
    config = {
        "aria": False, "background": None, "font": "Helvetica, Arial, sans-serif",
        "view": {"stroke": None}, "axis": axis, "legend": legend,
    }  # fmt: skip
    spec = chart.to_dict()
    spec["config"] = config
    spec["padding"] = 4
    drawn = vl_convert.vegalite_to_svg(spec, vl_version=vl_convert.get_vegalite_versions()[-1])
    return Markup(inlined(name, drawn))  # noqa: S704 - only drawing elements come through


def inlined(name: str, drawn: str) -> str:
    """Return ``drawn`` with ids of its own, no fixed size, and nothing that could act.

    Raises:
        ValueError: it holds an element, an attribute or an address that no plot of ours needs.
    """
    root = ET.fromstring(drawn)  # noqa: S314 - made by vl-convert a moment ago
    for element in root.iter():
        tag = element.tag.split("}")[-1]
        bad = [a for a in element.attrib if a.lower().startswith("on") or a.endswith("href")]
        if tag not in SVG_TAGS or bad:
            raise ValueError(f"the plot {name!r} holds <{tag}> with {bad}")
    drawn = re.sub(r'\bid="', f'id="{name}-', drawn)
    drawn = re.sub(r"url\(#", f"url(#{name}-", drawn)
    opening, rest = drawn.split(">", 1)
    opening = re.sub(r' (?:width|height|class|version|xmlns:xlink)="[^"]*"', "", opening)
    return f'{opening} focusable="false" aria-hidden="true">{rest}'
