"""A sweep as one self-contained page: a table and a plot, no script and no network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from flows import report_charts, report_page

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from flows.sweep import Compared

TEMPLATE = "sweep_template.html.jinja"

COLUMNS = {
    "proposed": "pairs proposed",
    "kept": "kept",
    "prompts": "prompts covered",
    "mean_margin": "mean margin",
    "median_margin": "median margin",
    "mean_length_gap": "length gap, tokens",
    "longer_chosen_rate": "longer one chosen",
    "gold_accuracy": "gold right",
    "distinct_chosen_rate": "distinct chosen",
    "distinct_bigram_rate": "distinct bigrams",
}
"""Measures of a table, and their headings; agreements with scorers follow."""


PRINTED = {
    "kept": "kept",
    "prompts": "prompts",
    "mean_margin": "margin",
    "mean_length_gap": "gap",
    "longer_chosen_rate": "longer",
    "gold_accuracy": "gold",
    "distinct_bigram_rate": "bigrams",
}
"""Measures printed on a terminal, and their short headings."""


def headings(compared: Sequence[Compared]) -> dict[str, str]:
    """Return measure to heading of all that was measured, in order."""
    named = sorted({name for item in compared for name in item.measures} - set(COLUMNS))
    return COLUMNS | {name: name.replace(":", " with ") for name in named}


def name_of(item: Compared) -> str:
    """Return a dataset's name: how it was made."""
    return f"{item.strategy}, {item.scorer}, {item.filters}"


def print_table(compared: Sequence[Compared]) -> None:
    """Print a row a dataset, or its error; the page and `--json` have every measure."""
    from flows.printing import print_rows

    names = ("strategy", "scorer", "filters")
    varying = [n for n in names if len({getattr(item, n) for item in compared}) > 1] or names[:1]
    rows = [
        [*(getattr(item, name) for name in varying), *map(item.measures.get, PRINTED), item.run_id]
        for item in compared
        if item.error is None
    ]
    if rows:
        print_rows([*varying, *PRINTED.values(), "run"], rows)
    for item in compared:
        if item.error is not None:
            print_rows(["no dataset", "because"], [[name_of(item), item.error]])


def write_page(compared: Sequence[Compared], run_id: str, path: Path) -> Path:
    """Write the page to ``path``, by rename, and return ``path``."""
    shown = headings(compared)
    rows = [
        {"name": name_of(item), "measure": heading, "value": item.measures.get(measure)}
        for item in compared
        for measure, heading in shown.items()
    ]
    schema = {"name": pl.String, "measure": pl.String, "value": pl.Float64}
    context = {
        "run_id": run_id,
        "compared": compared,
        "shown": shown,
        "plot": report_charts.strategies(pl.DataFrame(rows, schema=schema)),
    }
    return report_page.write_page(TEMPLATE, path, context)
