"""Files as Polars reads them: at the paths as they are written, with their own columns.

By itself Polars takes `[` and `*` in a path for a pattern, and a folder `stage_key=KEY` for a
column of the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from pathlib import Path


def scan_parts(paths: Path | list[Path], schema: pl.Schema | None = None) -> pl.LazyFrame:
    """Return the files' rows, to be read when collected."""
    return pl.scan_parquet(paths, schema=schema, hive_partitioning=False, glob=False)


def read_parts(paths: Path | list[Path], columns: list[str] | None = None) -> pl.DataFrame:
    """Return the files' rows, files in order."""
    return pl.read_parquet(paths, columns=columns, hive_partitioning=False, glob=False)


def read_rows(path: Path) -> pl.DataFrame:
    """Return the rows of a JSON Lines file, or else of a Parquet file."""
    if path.suffix != ".jsonl":
        return read_parts(path)
    with path.open("rb") as file:  # given the path, Polars reads what fits the pattern
        return pl.read_ndjson(file)
