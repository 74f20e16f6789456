"""Aggregates of the view `pair_quality` against hand-written SQL on the bare Parquet files.

Run from a clean checkout after `make test`: .venv/bin/python benchmarks/lineage_views.py
A synthetic run of 1M pairs, with --full of 10M (3 GB of disk): half as many prompts, three filters,
label noise, an export and a round; beside it another run of up to 1M, with its candidates, verdicts
and scores, that other views and `why` are asked about. The hand-written statements name the run's
files and make the view's joins. Both sides answer in turn, each over a connection of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lineage_data import outputs_of, write_run_of
from machine import last_line

sys.path.insert(0, str(Path(__file__).parent.parent))
if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from lineage.workspace import Dataset, Workspace

GOALS_AT_MOST = {"view_ratio_to_parquet": 1.2}
DEFAULT, FULL = 1_000_000, 10_000_000
RUN_ID, OTHER_RUN_ID = "benchmark-refresh-0123456789", "benchmark-refresh-9876543210"

Seconds = tuple[float, float]
"""Wall and CPU."""

QUESTIONS = {
    "mean margin by stratum": "SELECT stratum, avg(margin) FROM {pairs} GROUP BY ALL ORDER BY ALL",
    "kept share by reason": (
        "SELECT reasons[1] AS reason, count(*) / sum(count(*)) OVER () FROM {pairs} "
        "GROUP BY ALL ORDER BY ALL"
    ),
    "length gap by source": (
        "SELECT source, kept, avg(length_gap), median(length_gap) FROM {pairs} "
        "GROUP BY ALL ORDER BY ALL"
    ),
    "confidence of trained": (
        "SELECT source, count(*), avg(confidence) FROM {pairs} "
        "WHERE len(trained_in) > 0 GROUP BY ALL ORDER BY ALL"
    ),
}

BARE = """(
    WITH dropped AS (
        SELECT
            pair_id,
            list(coalesce(reason, filter) ORDER BY position) AS reasons
        FROM {decisions} WHERE NOT kept GROUP BY pair_id
    ),
    exported AS (
        SELECT
            pair_id,
            list_sort(list_distinct(list(export_id))) AS exported_to,
            list_sort(list_distinct(
                list(round_id) FILTER (WHERE round_id IS NOT NULL)
            )) AS trained_in
        FROM {export_rows} LEFT JOIN (SELECT DISTINCT export_id, round_id FROM {rounds})
            USING (export_id)
        GROUP BY pair_id
    )
    SELECT
        pairs.*,
        prompts.source,
        prompts.stratum,
        prompts.split,
        1 - noise.probability_wrong AS confidence,
        pairs.chosen_tokens - pairs.rejected_tokens AS length_gap,
        dropped.pair_id IS NULL AS kept,
        coalesce(dropped.reasons, []) AS reasons,
        coalesce(exported.exported_to, []) AS exported_to,
        coalesce(exported.trained_in, []) AS trained_in
    FROM {pairs} AS pairs
    LEFT JOIN {prompts} AS prompts USING (prompt_id)
    LEFT JOIN {label_noise} AS noise USING (pair_id)
    LEFT JOIN dropped USING (pair_id)
    LEFT JOIN exported USING (pair_id)
)"""


def main() -> None:
    """Measure, print a table and the line of JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--full", action="store_true", help=f"{FULL:,} pairs")
    arguments.add_argument("--pairs", type=int, default=DEFAULT)
    arguments.add_argument("--repeats", type=int, help="5, with --full 3")
    arguments.add_argument(
        "--workspace", type=Path, help="keep it here, or go on with what is there"
    )
    asked = arguments.parse_args()
    repeats = asked.repeats or (3 if asked.full else 5)
    figures = measure(FULL if asked.full else asked.pairs, repeats, asked.workspace)
    print(last_line("lineage_views", figures, at_most=GOALS_AT_MOST))


def measure(pairs: int = DEFAULT, repeats: int = 5, place: Path | None = None) -> dict[str, float]:
    """Return `view_ratio_to_parquet`, the largest of the questions' median ratios, and seconds.

    The workspace is ``place``, which stays, or one that goes afterwards.
    """
    from lineage.database import publish
    from lineage.workspace import Workspace

    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(place or Path(folder))
        started = time.monotonic()
        other = min(pairs, DEFAULT)
        outputs = outputs_of(workspace, RUN_ID) or write_run_of(workspace, pairs, RUN_ID)
        if not outputs_of(workspace, OTHER_RUN_ID):
            write_run_of(workspace, other, OTHER_RUN_ID, answers=True)
        print(f"{pairs:,} pairs written in {time.monotonic() - started:.0f} s", flush=True)
        figures = {}
        for again in ("", "_again"):
            before = clock()
            publish(workspace)
            figures[f"publish{again}_s"], figures[f"publish{again}_cpu_s"] = since(before)
        return (
            ratios(workspace, outputs, repeats) | figures | questions_of_a_run(workspace, repeats)
        )


def ratios(workspace: Workspace, outputs: dict[str, Dataset], repeats: int) -> dict[str, float]:
    """Return what the questions take of the view, against the bare files."""
    from polars.testing import assert_frame_equal

    bare = BARE.format_map({name: files(workspace, of) for name, of in outputs.items()})
    view = f"(FROM pair_quality WHERE run_id = '{RUN_ID}')"
    figures, walls, cpus = {}, [], []
    for name, question in QUESTIONS.items():
        of_view, of_bare = [], []
        for _ in range(repeats):
            seconds, found = asked_of_view(workspace, question.format(pairs=view))
            of_view.append(seconds)
            seconds, expected = asked_of_files(question.format(pairs=bare))
            of_bare.append(seconds)
            assert_frame_equal(found, expected)
        each, cpu = ([a[i] / b[i] for a, b in zip(of_view, of_bare, strict=True)] for i in (0, 1))
        walls.append(statistics.median(each))
        cpus.append(statistics.median(cpu))
        view_s, bare_s = (statistics.median(wall for wall, _ in of) for of in (of_view, of_bare))
        print(
            f"{name:<24} view {view_s:6.2f} s, bare files {bare_s:6.2f} s, ratio {walls[-1]:.2f} "
            f"({min(each):.2f} to {max(each):.2f}), of CPU {cpus[-1]:.2f}",
            flush=True,
        )
        figures[f"{name.replace(' ', '_')}_s"] = view_s
    return {"view_ratio_to_parquet": max(walls), "view_cpu_ratio_to_parquet": max(cpus)} | figures


def questions_of_a_run(workspace: Workspace, repeats: int) -> dict[str, float]:
    """Return the seconds of views of the smaller run, which also has its candidates, and `why`."""
    from lineage.query import query
    from lineage.why import why

    def asked(view: str) -> Callable[[], object]:
        return lambda: query(workspace, f"FROM {view} WHERE run_id = ?", [OTHER_RUN_ID])

    one = "SELECT any_value(pair_id) AS id FROM pair_quality WHERE run_id = ?"
    pair_id = query(workspace, one, [OTHER_RUN_ID]).item()
    jobs = {name: asked(name) for name in ("funnel", "run_noise", "filter_overlap")}
    jobs["why"] = lambda: why(workspace, pair_id)
    figures = {}
    for name, job in jobs.items():
        taken = []
        for _ in range(repeats):
            started = clock()
            job()
            taken.append(since(started))
        for i, kind in enumerate(("s", "cpu_s")):
            figures[f"{name}_{kind}"] = statistics.median(seconds[i] for seconds in taken)
        print(f"{name:<24} {figures[f'{name}_s']:.2f} s, CPU {figures[f'{name}_cpu_s']:.2f} s")
    return figures


def asked_of_view(workspace: Workspace, sql: str) -> tuple[Seconds, pl.DataFrame]:
    """Return the seconds and the answer of `prefmill sql`, opening the file included."""
    from lineage.query import query

    started = clock()
    found = query(workspace, sql)
    return since(started), found


def asked_of_files(sql: str) -> tuple[Seconds, pl.DataFrame]:
    """Return the seconds and the answer of DuckDB alone."""
    import duckdb

    started = clock()
    with duckdb.connect() as connection:
        found = connection.sql(sql).pl()
    return since(started), found


def clock() -> Seconds:
    """Return wall and CPU time now."""
    return time.monotonic(), time.process_time()


def since(started: Seconds) -> Seconds:
    """Return wall and CPU seconds."""
    wall, cpu = clock()
    return wall - started[0], cpu - started[1]


def files(workspace: Workspace, dataset: Dataset) -> str:
    """Return a dataset's files as DuckDB reads them."""
    from lineage.ddl import literal

    paths = ", ".join(literal(str(workspace.root / part.path)) for part in dataset.parts)
    return f"read_parquet([{paths}])"


if __name__ == "__main__":
    main()
