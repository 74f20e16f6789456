"""Results on standard output: tables for people, CSV and JSON for machines."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from lineage.story import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import polars as pl
    from rich.console import Console

PIPE_WIDTH = 160
MAX_ROWS = 200


def stdout() -> Console:
    """Return the console for results."""
    from rich.console import Console

    # Not on a terminal (a pipe, a log) rich assumes 80 columns and would fold every table.
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def print_rows(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    r"""Print rows as a table, or, where they are too wide, one value a line as `psql`'s \\x does.

    Cells are text, never markup. At most 200 rows are shown; the rest is counted.
    """
    from rich.table import Table
    from rich.text import Text

    cells = [[_cell(value) for value in row] for row in rows]
    console, shown = stdout(), cells[:MAX_ROWS]
    widths = [max(map(len, column)) for column in zip(columns, *shown, strict=True)]
    if sum(widths) + 3 * len(widths) + 1 <= console.width:
        drawn = Table(*columns)
        for row in shown:
            drawn.add_row(*[Text(cell) for cell in row])
        console.print(drawn)
    else:
        indent = max(map(len, columns))
        for number, row in enumerate(shown, start=1):
            console.print(Text(f"row {number}", style="bold"))
            for name, cell in zip(columns, row, strict=True):
                console.print(Text(f"  {name:<{indent}}  {cell}"), soft_wrap=True)
    if len(cells) > MAX_ROWS:
        console.print(f"... {len(cells) - MAX_ROWS:,} more rows; --format csv prints them all")


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else visible(str(value))


def print_frame(frame: pl.DataFrame, output_format: str) -> None:
    """Print a query's answer as ``table``, ``csv`` (lists as JSON) or ``json``."""
    if output_format == "table":
        print_rows(frame.columns, frame.iter_rows())
    else:
        click.echo(_text(frame, output_format), nl=False)


def write_frame(frame: pl.DataFrame, output_format: str, path: Path) -> None:
    """Write a query's answer to a file as ``csv``, ``json`` or ``parquet``.

    Raises:
        WorkspaceError: the file cannot be written.
    """
    from stages.errors import WorkspaceError

    try:
        if output_format == "parquet":
            frame.write_parquet(path)
        else:
            path.write_text(_text(frame, output_format), encoding="utf-8")
    except OSError as error:
        raise WorkspaceError(
            f"cannot write the answer ({error.strerror or error})",
            expected="a file in a folder that is there and may be written",
            where=str(path),
        ) from None


def _text(frame: pl.DataFrame, output_format: str) -> str:
    import polars as pl

    if output_format == "json":
        return json.dumps(frame.to_dicts(), indent=1, ensure_ascii=False, default=str) + "\n"
    flat = [
        pl.Series(name, [json.dumps(value, default=str) for value in frame[name].to_list()])
        for name in frame.select(pl.selectors.nested()).columns
    ]
    return frame.with_columns(flat).write_csv()
