"""What each run's funnel counts, worked out when it is published: it takes seconds a million rows.

What the publication before has counted of the same part-files is taken from there.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from lineage.ddl import SQL_FOLDER, identifier, literal, select_rows, view_file
from lineage.gathering import Problem
from stages.content_ids import content_hash
from stages.tables import ARTIFACTS, STAGE_RUNS, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from lineage.gathering import Facts
    from lineage.known import Known, Row

TABLES = ("prompts", "candidates", "judgments", "scores", "pairs", "decisions")
STAGES = ("prompts", "generate", "edit", "judge:", "judge_edits:", "score", "pair", "filter")

SPILL = ".lineage.duckdb.spill"
"""Where DuckDB puts what does not fit into memory; a killed publisher's goes with its file."""

COUNTED_TOGETHER = 2_000_000
"""Rows of the part-files of one statement, where no single run has more."""

FUNNEL = pa.schema(
    [
        ("run_id", pa.string()),
        ("split", pa.string()),
        ("position", pa.int64()),
        ("step", pa.string()),
        ("rows", pa.int64()),
        ("counted_from", pa.string()),
    ]
)


@dataclass(frozen=True)
class Source:
    """The part-files that a run's funnel counts, and a name that changes with them."""

    run_id: str
    counted_from: str
    parts: tuple[tuple[str, str, int], ...]
    """Table, path from the workspace, rows."""


def funnel_counts(facts: Facts, known: Known) -> pa.Table:
    """Return the rows of every run's funnel; a part-file that cannot be counted is set aside."""
    counted = dict(known.funnels)
    with duckdb.connect(config={"temp_directory": str(facts.root / SPILL)}) as connection:
        connection.register("stage_runs", facts.record_table(STAGE_RUNS))
        connection.execute(view_file("run_stages").statement)
        while new := _by_content(facts, counted):
            for together in _batches(new.values()):
                counted |= _counted(connection, facts, together)
    rows = [
        (source.run_id, *row, source.counted_from)
        for source in funnel_sources(facts)
        for row in counted[source.counted_from]
    ]
    columns = [list(column) for column in zip(*rows, strict=True)] or [[]] * len(FUNNEL)
    return pa.table(columns, schema=FUNNEL)


def _by_content(facts: Facts, counted: Mapping[str, list[Row]]) -> dict[str, Source]:
    """Return what is not counted yet, one run of those that share it all."""
    every = {source.counted_from: source for source in funnel_sources(facts)}
    return {name: source for name, source in every.items() if name not in counted}


def funnel_sources(facts: Facts) -> list[Source]:
    """Return what each run's funnel counts. The same part-files have the same name."""
    made = defaultdict(list)
    for row in facts.rows[ARTIFACTS.name]:
        wanted = row["role"] == "output" and row.get("table") in TABLES
        if wanted and row["path"] in facts.checked:
            made[row["stage_key"]].append((row["table"], row["path"], row["rows"]))
    stages = defaultdict(list)
    for row in facts.rows[STAGE_RUNS.name]:
        if row["stage"].startswith(STAGES):
            stages[row["run_id"]].append((row["stage"], row["stage_key"]))
    sources = []
    for run_id, keys in sorted(stages.items()):
        parts = sorted({part for _, key in keys for part in made[key]})
        stamps = [(path, facts.checked[path]) for _, path, _ in parts]
        counted_from = content_hash([_STATEMENT, sorted(keys), stamps])
        sources.append(Source(run_id, counted_from, tuple(parts)))
    return sources


def _batches(sources: Iterable[Source]) -> Iterator[list[Source]]:
    """Yield sources to be counted by one statement, those that share part-files together."""
    together: list[Source] = []
    paths: set[str] = set()
    rows = 0
    for source in sorted(sources, key=lambda source: source.parts):
        rows += sum(count for _, path, count in source.parts if path not in paths)
        if together and rows > COUNTED_TOGETHER:
            yield together
            together, paths = [], set()
            rows = sum(count for *_, count in source.parts)
        together.append(source)
        paths |= {path for _, path, _ in source.parts}
    if together:
        yield together


def _counted(
    connection: duckdb.DuckDBPyConnection, facts: Facts, sources: list[Source]
) -> dict[str, list[Row]]:
    """Return the funnels' rows by ``counted_from``; none if it set part-files aside instead."""
    try:
        found = _count(connection, facts, sources)
    except duckdb.Error as error:
        paths = {path: name for source in sources for name, path, _ in source.parts}
        broken = {path: said for path in paths if (said := _unreadable(facts.root / path))}
        for path, said in broken.items():
            facts.set_aside(paths[path], path, said)
        if broken:
            return {}
        found = {}
        facts.problems += [Problem(f"runs/{s.run_id}", f"not counted: {error}") for s in sources]
    return {source.counted_from: found.get(source.run_id, []) for source in sources}


def _count(
    connection: duckdb.DuckDBPyConnection, facts: Facts, sources: list[Source]
) -> dict[str, list[Row]]:
    parts = {(name, path) for source in sources for name, path, _ in source.parts}
    for name in TABLES:
        paths = sorted(str(facts.root / path) for of, path in parts if of == name)
        rows = select_rows(table(name), paths)
        connection.execute(f"CREATE OR REPLACE TEMP VIEW {identifier(name)} AS {rows}")
    run_ids = ", ".join(literal(source.run_id) for source in sources)
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW asked AS FROM run_stages WHERE run_id IN ({run_ids})"
    )
    found: dict[str, list[Row]] = defaultdict(list)
    for run_id, *row in connection.execute(_STATEMENT).fetchall():
        found[run_id].append(tuple(row))
    return found


def _unreadable(path: Path) -> str:
    """Return what is wrong with a part-file; nothing if all of it can be read."""
    try:
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            file.read_row_group(group)
    except (OSError, pa.ArrowException) as error:
        return str(error)
    return ""


_STATEMENT = (SQL_FOLDER / "at_publication" / "funnel_counts.sql").read_text(encoding="utf-8")
