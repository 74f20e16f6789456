"""Aggregates of the view `pair_quality` against hand-written SQL on the bare Parquet files.

Run from a clean checkout after `make test`: .venv/bin/python benchmarks/lineage_views.py
A synthetic run of 1M pairs, with --full of 10M (10 minutes, 3 GB of disk): half as many prompts,
three filters, label noise, an export and a round; beside it another run of up to 1M. The
hand-written statements name the run's files and make the view's joins. Both sides answer in turn,
each over a connection of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import last_line

sys.path.insert(0, str(Path(__file__).parent.parent))
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    import polars as pl

    from lineage.workspace import Dataset, Part, Workspace

GOALS_AT_MOST = {"view_ratio_to_parquet": 1.2}
DEFAULT, FULL = 1_000_000, 10_000_000
PAIRS_PER_PART, PAIRS_PER_PROMPT = 200_000, 2
SOURCES, STRATA = 4, 12
SHARE_HELDOUT, SHARE_DROPPED = 0.05, 0.15
FILTERS = ("margin", "length_ratio", "near_duplicate")
EXPORT_ID, ROUND_ID = "export_" + "e" * 20, "round_" + "a" * 20
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
            list(export_id ORDER BY export_id) AS exported_to,
            list_sort(list_distinct(flatten(list(coalesce(rounds, []))))) AS trained_in
        FROM {export_rows} LEFT JOIN (
            SELECT export_id, list(DISTINCT round_id) AS rounds FROM {rounds} GROUP BY export_id
        ) USING (export_id)
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
    arguments.add_argument("--repeats", type=int, default=5)
    asked = arguments.parse_args()
    figures = measure(FULL if asked.full else asked.pairs, asked.repeats)
    print(last_line("lineage_views", figures, at_most=GOALS_AT_MOST))


def measure(pairs: int = DEFAULT, repeats: int = 5) -> dict[str, float]:
    """Return `view_ratio_to_parquet`, the largest of the questions' median ratios, and seconds."""
    from polars.testing import assert_frame_equal

    from lineage.database import publish
    from lineage.workspace import Workspace

    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder))
        started = time.monotonic()
        outputs = write_run_of(workspace, pairs)
        write_run_of(workspace, min(pairs, DEFAULT), OTHER_RUN_ID)
        written = time.monotonic()
        publish(workspace)
        published = time.monotonic() - written
        print(
            f"{pairs:,} pairs written in {written - started:.0f} s, published in {published:.1f} s",
            flush=True,
        )
        bare = BARE.format_map({name: files(workspace, of) for name, of in outputs.items()})
        view = f"(FROM pair_quality WHERE run_id = '{RUN_ID}')"
        figures = {"publish_s": published}
        ratios, cpu_ratios = [], []
        for name, question in QUESTIONS.items():
            of_view, of_bare = [], []
            for _ in range(repeats):
                seconds, found = asked_of_view(workspace, question.format(pairs=view))
                of_view.append(seconds)
                seconds, expected = asked_of_files(question.format(pairs=bare))
                of_bare.append(seconds)
                assert_frame_equal(found, expected)
            each, cpu = (
                [a[i] / b[i] for a, b in zip(of_view, of_bare, strict=True)] for i in (0, 1)
            )
            ratios.append(statistics.median(each))
            cpu_ratios.append(statistics.median(cpu))
            view_s, bare_s = (
                statistics.median(wall for wall, _ in of) for of in (of_view, of_bare)
            )
            print(
                f"{name:<24} view {view_s:6.2f} s, bare files {bare_s:6.2f} s, ratio "
                f"{ratios[-1]:.2f} ({min(each):.2f} to {max(each):.2f}), "
                f"of CPU {cpu_ratios[-1]:.2f}",
                flush=True,
            )
            figures[f"{name.replace(' ', '_')}_s"] = view_s
    return {
        "view_ratio_to_parquet": max(ratios),
        "view_cpu_ratio_to_parquet": max(cpu_ratios),
        **figures,
    }


def asked_of_view(workspace: Workspace, sql: str) -> tuple[Seconds, pl.DataFrame]:
    """Return the seconds and the answer of `prefmill sql`, opening the file included."""
    from lineage.query import query

    started = time.monotonic(), time.process_time()
    found = query(workspace, sql)
    return since(started), found


def asked_of_files(sql: str) -> tuple[Seconds, pl.DataFrame]:
    """Return the seconds and the answer of DuckDB alone."""
    import duckdb

    started = time.monotonic(), time.process_time()
    with duckdb.connect() as connection:
        found = connection.sql(sql).pl()
    return since(started), found


def since(started: Seconds) -> Seconds:
    """Return wall and CPU seconds."""
    return time.monotonic() - started[0], time.process_time() - started[1]


def files(workspace: Workspace, dataset: Dataset) -> str:
    """Return a dataset's files as DuckDB reads them."""
    from lineage.ddl import literal

    paths = ", ".join(literal(str(workspace.root / part.path)) for part in dataset.parts)
    return f"read_parquet([{paths}])"


def write_run_of(workspace: Workspace, pairs: int, run_id: str = RUN_ID) -> dict[str, Dataset]:
    """Write a finished run as its stages would, and return its outputs by table."""
    from lineage.records import RunRecord, StageRunRecord, write_run, write_stage_run
    from lineage.workspace import Dataset, StageRecord, write_part, write_stage_record
    from stages.content_ids import content_hash
    from stages.tables import table

    parts: dict[str, list[Part]] = {}
    for index, frames in enumerate(synthetic_parts(pairs)):
        for name, frame in frames.items():
            key = content_hash([name, run_id])
            part = write_part(workspace, table(name), key, index, frame, {})
            parts.setdefault(name, []).append(part)
    outputs = {
        name: Dataset(name, content_hash([name, run_id]), tuple(of)) for name, of in parts.items()
    }
    now = "2026-01-01T00:00:00+00:00"
    stages = {
        "prompts": "prompts", "pair": "pairs", "noise": "label_noise", "filter": "decisions",
        "export": "export_rows", "gate": "rounds",
    }  # fmt: skip
    write_run(
        workspace,
        RunRecord(run_id, "refresh", "benchmark", 0, {}, "0", "completed", now, now),
    )
    for position, (stage, name) in enumerate(stages.items()):
        key = outputs[name].stage_key
        record = StageRecord(stage, key, run_id, {}, (), (outputs[name],), now, now, 1.0)
        write_stage_record(workspace, record)
        made = StageRunRecord(run_id, stage, position, key, "made", RUN_ID, 1.0, now)
        write_stage_run(workspace, made)
    return outputs


def synthetic_parts(pairs: int) -> Iterator[dict[str, pl.DataFrame]]:
    """Yield one part of each table at a time; the round comes with the first."""
    import numpy as np

    random = np.random.default_rng(0)
    for first in range(0, pairs, PAIRS_PER_PART):
        count = min(PAIRS_PER_PART, pairs - first)
        frames = synthetic_part(random, first, count)
        yield frames | ({"rounds": synthetic_round()} if first == 0 else {})


def synthetic_part(random: np.random.Generator, first: int, count: int) -> dict[str, pl.DataFrame]:
    """Return a shard's prompts, pairs, label noise, decisions and export rows."""
    import polars as pl

    prompts = range(first // PAIRS_PER_PROMPT, (first + count - 1) // PAIRS_PER_PROMPT + 1)
    prompt_ids = hashed("prompt", prompts)
    source = random.integers(0, SOURCES, len(prompts))
    stratum = random.integers(0, STRATA, len(prompts))
    heldout = random.random(len(prompts)) < SHARE_HELDOUT
    asked = {
        "prompt_id": prompt_ids,
        "messages": pl.Series(
            [[{"role": "user", "content": f"What is {n} plus {n}?"}] for n in prompts]
        ),
        "source": pl.format("source {}", pl.lit(pl.Series(source))),
        "stratum": pl.format("stratum {}", pl.lit(pl.Series(stratum))),
        "split": pl.when(pl.lit(pl.Series(heldout)))
        .then(pl.lit("heldout"))
        .otherwise(pl.lit("train")),
    }
    of_prompt = pl.Series([n // PAIRS_PER_PROMPT - prompts[0] for n in range(first, first + count)])
    scores = random.normal(0.0, 1.0, (2, count))
    paired = pl.DataFrame(
        {
            "pair_id": hashed("pair", range(first, first + count)),
            "prompt_id": prompt_ids.gather(of_prompt),
            "chosen_candidate_id": hashed("chosen", range(first, first + count)),
            "rejected_candidate_id": hashed("rejected", range(first, first + count)),
            "strategy": pl.repeat("best_vs_worst", count, eager=True),
            "scorer": pl.repeat("rules", count, eager=True),
            "chosen_score": scores.max(0),
            "rejected_score": scores.min(0),
            "margin": scores.max(0) - scores.min(0),
            "chosen_tokens": random.integers(10, 300, count),
            "rejected_tokens": random.integers(10, 300, count),
        }
    )
    drops = pl.DataFrame(random.random((count, len(FILTERS))) < SHARE_DROPPED, schema=FILTERS)
    kept = paired.filter(~drops.select(pl.any_horizontal(pl.all())).to_series())
    ruled = [
        {
            "pair_id": paired["pair_id"],
            "filter": pl.lit(name),
            "position": pl.lit(position),
            "kept": ~drops[name],
            "reason": pl.when(drops[name]).then(pl.lit(f"{name}_out_of_limits")),
            "value": paired["margin"],
            "limit": pl.lit(0.1),
        }
        for position, name in enumerate(FILTERS)
    ]
    return {
        "prompts": rows_of("prompts", asked),
        "pairs": rows_of("pairs", paired.sort("pair_id").to_dict()),
        "label_noise": rows_of(
            "label_noise",
            {
                "pair_id": paired["pair_id"],
                "probability_wrong": pl.Series(random.random(count)),
                "scorers_for": pl.lit(1),
                "scorers_against": pl.lit(0),
            },
        ),
        "decisions": pl.concat(rows_of("decisions", columns) for columns in ruled),
        "export_rows": rows_of(
            "export_rows",
            {
                "export_id": pl.lit(EXPORT_ID),
                "pair_id": kept["pair_id"],
                "line": pl.int_range(first + 1, first + kept.height + 1),
            },
        ),
    }


def synthetic_round() -> pl.DataFrame:
    """Return the round that trained on the export."""
    import polars as pl

    weights = ("base_weights_hash", "reference_weights_hash", "result_weights_hash")
    facts = {
        "round_id": pl.Series([ROUND_ID]), "round_index": pl.lit(1), "export_id": pl.lit(EXPORT_ID),
        **{name: pl.lit("w") for name in weights}, "reference": pl.lit("policy"),
        "result_path": pl.lit("models/m"),
        "pairs": pl.lit(1), "steps": pl.lit(1), "promoted": pl.lit(value=True),
    }  # fmt: skip
    return rows_of("rounds", facts)


def rows_of(name: str, columns: Mapping[str, Any]) -> pl.DataFrame:
    """Return rows of a table; columns that are not given are null."""
    import polars as pl

    from stages.tables import table

    schema = table(name).empty().schema
    missing = {column: pl.lit(None) for column in schema if column not in columns}
    given = pl.DataFrame({n: v for n, v in columns.items() if isinstance(v, pl.Series)})
    return given.with_columns(**{**columns, **missing}).select(list(schema)).cast(dict(schema))


def hashed(kind: str, numbers: range) -> pl.Series:
    """Return content ids."""
    import polars as pl

    from stages.content_ids import content_ids

    frame = pl.DataFrame({"kind": kind, "number": pl.Series(numbers)})
    return content_ids(frame, kind, ["kind", "number"])


if __name__ == "__main__":
    main()
