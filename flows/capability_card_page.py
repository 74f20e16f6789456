"""A capability card as a table on the terminal and as one self-contained page with a plot."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from lineage.story import visible
from lineage.workspace import commit_bytes
from trainer.evaluation import EVERY_STRATUM

if TYPE_CHECKING:
    from collections.abc import Iterator

TEMPLATE = Path(__file__).with_name("capability_card_template.html.jinja")

COLOURS = ("#0b66b0", "#c9590c", "#8256b5", "#2e7d32", "#6d4c41", "#00838f")
INK, MUTED, GRID, RED = "#1d242b", "#5b6670", "#dfe4e8", "#c62828"
MAX_STRATA = 24
"""Of one measure in the plot; the table has all."""


def print_card(card: pl.DataFrame) -> None:
    """Print a row per measure and policy; of single strata those that regressed."""
    from flows.printing import print_rows

    shown = card.filter((pl.col("stratum") == EVERY_STRATUM) | pl.col("regressed"))
    columns = ["capability", "measure", "policy", "items", "value [95 %]", "difference [95 %]", ""]
    print_rows(columns, [_printed(row) for row in shown.iter_rows(named=True)])


def _printed(row: dict[str, Any]) -> list[object]:
    facts = [row["capability"], _measure(row), row["policy"], row["items"], _value(row)]
    return [*facts, _difference(row), "REGRESSED" if row["regressed"] else ""]


def _measure(row: dict[str, Any]) -> str:
    part = "" if row["stratum"] == EVERY_STRATUM else f", {row['stratum']}"
    return f"{row['metric']}{part}"


def _value(row: dict[str, Any]) -> str:
    return f"{row['value']:.3f} [{row['value_low']:.3f}, {row['value_high']:.3f}]"


def _difference(row: dict[str, Any]) -> str:
    if row["difference"] is None:
        return ""
    return f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def write_page(card: pl.DataFrame, path: Path) -> Path:
    """Write the page to ``path``, by rename, and return ``path``."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    policies = card["policy"].unique(maintain_order=True).to_list()
    page = environment.get_template(TEMPLATE.name).render(
        policies=policies,
        weights=dict(card.select("policy", "weights_hash").iter_rows()),
        rows=list(_rows(card, policies)),
        regressed=int(card["regressed"].sum()),
        plot=_plot(card, policies),
    )
    commit_bytes(path, page.encode())
    return path


def _rows(card: pl.DataFrame, policies: list[str]) -> Iterator[dict[str, Any]]:
    """Yield one row per measure: its names, and per policy its texts."""
    keys = ["capability", "metric", "stratum"]
    for _, group in card.group_by(keys, maintain_order=True):
        found = {row["policy"]: row for row in group.iter_rows(named=True)}
        one = next(iter(found.values()))
        cells = [
            {
                "value": _value(row),
                "difference": _difference(row),
                "count": row["items"],
                "regressed": row["regressed"],
            }
            if (row := found.get(policy))
            else None
            for policy in policies
        ]
        better = "" if one["higher_is_better"] else " (lower is better)"
        yield {
            "capability": one["capability"],
            "measure": _measure(one) + better,
            "is_whole": one["stratum"] == EVERY_STRATUM,
            "cells": cells,
        }


def _plot(card: pl.DataFrame, policies: list[str]) -> str:
    """Return the plot as an SVG address: a panel per capability, a dot per policy and measure."""
    import altair as alt
    import vl_convert

    panels = [
        _panel(rows, policies) for _, rows in card.group_by("capability", maintain_order=True)
    ]
    chart = alt.vconcat(*panels).resolve_scale(color="shared")
    spec = chart.to_dict()
    spec["padding"] = 24
    axis = {"labelColor": MUTED, "titleColor": MUTED, "gridColor": GRID, "tickColor": GRID}
    spec["config"] = {
        "background": None,
        "font": "Helvetica, Arial, sans-serif",
        "view": {"stroke": None},
        "axis": {**axis, "domainColor": MUTED, "labelLimit": 260},
        "title": {"anchor": "start", "color": INK, "fontSize": 13},
        "legend": {"orient": "top", "labelColor": INK, "labelLimit": 300},
    }
    drawn = vl_convert.vegalite_to_svg(spec, vl_version=vl_convert.get_vegalite_versions()[-1])
    # As an image it can run nothing and fetch nothing, whatever the names in it are.
    return "data:image/svg+xml;base64," + base64.b64encode(drawn.encode()).decode()


def _panel(rows: pl.DataFrame, policies: list[str]) -> Any:
    """Return one capability: values with their intervals, regressions under a red triangle."""
    import altair as alt

    values = [
        {
            "measure": visible(_measure(row)),
            "policy": visible(row["policy"]),
            **{name: row[name] for name in ("value", "value_low", "value_high", "regressed")},
        }
        for row in rows.iter_rows(named=True)
    ]
    measures = list(dict.fromkeys(row["measure"] for row in values))[:MAX_STRATA]
    data = alt.Data(values=[row for row in values if row["measure"] in measures])
    names = [visible(name) for name in policies]
    colours = [COLOURS[place % len(COLOURS)] for place in range(len(names))]
    y = alt.Y("measure:N", sort=measures, title=None, axis=alt.Axis(grid=True))
    offset = alt.YOffset("policy:N", sort=names)
    scale = alt.Scale(domain=names, range=colours)
    colour = alt.Color("policy:N", scale=scale, title=None, sort=names)
    x = alt.X("value:Q", title=None, scale=alt.Scale(zero=False))
    base = alt.Chart(data).encode(y=y, yOffset=offset)
    spans = base.mark_rule(strokeWidth=2).encode(x="value_low:Q", x2="value_high:Q", color=colour)
    dots = base.mark_point(filled=True, size=60, opacity=1).encode(x=x, color=colour)
    worse = base.transform_filter("datum.regressed").mark_point(
        shape="triangle-down", size=170, color=RED, strokeWidth=2
    )
    title = visible(str(rows["capability"][0]))
    layers = alt.layer(spans, dots, worse.encode(x=x))
    return layers.properties(width=420, height=alt.Step(9 + 3 * len(names)), title=title)
