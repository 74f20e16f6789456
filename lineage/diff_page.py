"""The difference of two runs, printed: what changed, section by section."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lineage.diff import SECTIONS
from lineage.story import known, number, shortened, visible

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from lineage.diff import Difference
    from lineage.row_reader import Row

CAUSES = {
    "dropped": "dropped by {filter}: {reason}",
    "not_filtered": "there, but not filtered",
    "label_flipped": "chosen and rejected the other way round",
    "prompt_not_there": "no answers to the prompt",
    "answers_not_there": "other answers to the prompt",
    "other_choice": "the same answers, others chosen",
    "no_pair": "the same answers, no pair made of the prompt",
    "not_paired": "the run made no pairs",
}


def describe(found: Difference) -> Group:
    """Return the difference for a terminal; what is the same in both runs is left out.

    Nothing in it is read as rich's markup.
    """
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    for word, run in (("before", found.before), ("after ", found.after)):
        rest = known(**{name: run[name] for name in ("name", "status", "started_at")})
        parts.append(Text(visible(f"{word}  {run['run_id']}  {rest}, {run['code_version']}")))
    parts += [_table("Configuration", found.config)] if found.config else []
    same = [] if found.config else ["configuration"]
    for name, rows in found.sections.items():
        if changed := [row for row in rows if row["before"] != row["after"]]:
            parts.append(_table(SECTIONS[name].title, changed))
        elif rows:
            same.append(name.replace("_", " "))
        if name == "quality":
            parts += _pairs(found.pairs)
    if same:
        parts.append(Text(f"The same in both: {', '.join(same)}."))
    return Group(*parts)


def _table(title: str, rows: list[Row]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        right = name in ("before", "after", "change", "pairs")
        table.add_column(name.replace("_", " "), justify="right" if right else "left")
    for row in rows:
        cells = [_signed(row[name]) if name == "change" else _cell(row[name]) for name in row]
        table.add_row(*[Text(cell) for cell in cells])
    return table


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | dict | list):
        return visible(shortened(json.dumps(value, ensure_ascii=False)))
    return visible(shortened(f"{value:,}" if isinstance(value, int) else number(value)))


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+,d}" if isinstance(value, int) else f"{value:+.4g}"


def _pairs(pairs: Row) -> list[Any]:
    """Return how many kept pairs went and came, and a table of causes with an example each."""
    from rich.text import Text

    gone, came = (sum(row["pairs"] for row in pairs[side]) for side in ("gone", "came"))
    parts: list[Any] = [
        Text(
            f"Kept pairs: {pairs['before']:,} before, {pairs['after']:,} after; "
            f"{pairs['in_both']:,} in both, {gone:,} gone, {came:,} came"
        )
    ]
    for side, title in (("gone", "Gone: in the later run"), ("came", "Came: in the earlier run")):
        rows = [
            {
                "why": CAUSES[row["cause"]].format(**row),
                "pairs": row["pairs"],
                "for example": row["examples"][0],
            }
            for row in pairs[side]
        ]
        parts += [_table(title, rows)] if rows else []
    return parts
