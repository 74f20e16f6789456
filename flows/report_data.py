"""A run's facts, read back from the lineage, as the report shows them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import polars as pl

from flows.report import write_report
from flows.report_facts import ReportData
from flows.report_graph import Node
from flows.run_outputs import read_output
from lineage.query import query
from lineage.records import read_stage_runs
from lineage.workspace import commit_bytes, read_stage_record
from stages.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lineage.records import StageRunRecord
    from lineage.workspace import Dataset, StageRecord, Workspace

EXAMPLES_OF_A_KIND = 3
PAIRS_SAMPLED = 50_000
"""Pairs whose scores by every scorer are read: whole part-files, until there are as many."""
PAIRS_SQL = """
SELECT
    pair_id, prompt_id, split, scorer, margin, chosen_score, rejected_score, chosen_tokens,
    rejected_tokens, kept, confidence, reasons
FROM pair_quality
WHERE run_id = ?
"""
FAILED_SQL = """
SELECT stage FROM stage_errors WHERE run_id = ? AND error = ? ORDER BY failed_at DESC LIMIT 1
"""
CHECKS = "validations"


def report_run(workspace: Workspace, run_id: str) -> Path:
    """Write a run's pages and return where ``report.html`` is.

    Raises:
        DataError: a part-file of the run is broken or gone.
    """
    try:
        data = gather(workspace, run_id)
    except (pl.exceptions.PolarsError, FileNotFoundError) as error:
        raise DataError(
            f"a part-file of the run cannot be read: {error}",
            where=f"run {run_id}",
            remedy="`prefmill lineage rebuild` names it; delete it and start the run again",
        ) from None
    return write_pages(workspace, data)


def write_pages(workspace: Workspace, data: ReportData) -> Path:
    """Write a run's ``report.html`` and ``validations.html``, and its series'; return the first."""
    from flows.report_series import write_series

    run_id = str(data.run["run_id"])
    folder = workspace.runs / run_id
    write_validations(run_id, data.validations, folder / "validations.html")
    if data.series:
        write_series(workspace, run_id)
    return write_report(data, folder / "report.html")


def write_validations(run_id: str, validations: pl.DataFrame, path: Path) -> None:
    """Write Great Expectations' results as a page, unless it is there: loading it takes seconds."""
    from validators.data_docs import fingerprint, validation_page

    if validations.is_empty():
        return
    if not path.is_file() or fingerprint(validations) not in path.read_text(encoding="utf-8"):
        commit_bytes(path, validation_page(run_id, validations).encode())


def gather(workspace: Workspace, run_id: str) -> ReportData:
    """Return everything that the report of ``run_id`` shows."""
    from flows.report_series import series_page

    run = query(workspace, "FROM runs WHERE run_id = ?", [run_id]).row(0, named=True)
    stages = query(workspace, "FROM stage_runs WHERE run_id = ? ORDER BY position", [run_id])
    pairs = query(workspace, PAIRS_SQL, [run_id])
    records = stage_records(workspace, run_id)
    asked = pl.DataFrame([_asked(workspace, *of) for of in records], ASKED_SCHEMA, orient="row")
    made = {stage_run.stage: record for stage_run, record in records}
    scores, margins = _judged(workspace, made, pairs)
    return ReportData(
        run=run,
        funnel=query(workspace, "FROM funnel WHERE run_id = ? ORDER BY position", [run_id]),
        filters=query(workspace, "FROM filter_funnel WHERE run_id = ?", [run_id]),
        pairs=pairs,
        examples=examples(workspace, run_id, pairs),
        scorers=read_output(workspace, run_id, "health", "scorer_health"),
        scores=scores,
        judged_margins=margins,
        noise=query(workspace, "FROM run_noise WHERE run_id = ?", [run_id]),
        drift=read_output(workspace, run_id, "drift", "drift"),
        training_metrics=read_output(workspace, run_id, "train", "training_metrics"),
        evaluations=read_output(workspace, run_id, "gate", "evaluations"),
        capabilities=read_output(workspace, run_id, "card", "capabilities"),
        gates=read_output(workspace, run_id, "gate", "gates"),
        rounds=read_output(workspace, run_id, "gate", "rounds"),
        validations=_validations(workspace, records),
        stage_runs=stages.join(asked, on="stage", how="left", maintain_order="left"),
        lineage=_nodes(workspace, records),
        config=json.loads(run["config"]),
        failed_stage="".join(query(workspace, FAILED_SQL, [run_id, run["error"]])["stage"]),
        series=series_page(workspace, run_id),
    )


def stage_records(workspace: Workspace, run_id: str) -> list[tuple[StageRunRecord, StageRecord]]:
    """Return the finished stages of a run in order, each with the record of its output."""
    found = [
        (stage_run, read_stage_record(workspace, stage_run.stage_key))
        for stage_run in read_stage_runs(workspace, run_id)
    ]
    finished = [(stage_run, record) for stage_run, record in found if record is not None]
    return sorted(finished, key=lambda of: (of[0].position, of[0].stage))


def _validations(
    workspace: Workspace, records: Sequence[tuple[StageRunRecord, StageRecord]]
) -> pl.DataFrame:
    """Return the checks of every stage of a run, with the stage's name."""
    frames = [
        dataset.read(workspace).with_columns(stage=pl.lit(stage_run.stage))
        for stage_run, record in records
        for dataset in record.outputs
        if dataset.table == CHECKS
    ]
    return pl.concat(frames) if frames else pl.DataFrame()


ASKED_SCHEMA = {
    "stage": pl.String,
    "calls": pl.Int64,
    "tokens_read": pl.Int64,
    "tokens_written": pl.Int64,
    "cost": pl.Float64,
}


def _asked(workspace: Workspace, stage_run: StageRunRecord, record: StageRecord) -> tuple[Any, ...]:
    """Return the row of ``ASKED_SCHEMA`` of a stage: nulls where it asked no model."""
    # A prompt is read once for all its samples.
    once = pl.when(pl.col("sample_index") == 0).then("prompt_tokens")
    sums = [
        dataset.scan(workspace)
        .with_columns(once if dataset.table == "candidates" else "prompt_tokens")
        .select(
            pl.len().cast(pl.Int64).alias("calls"),
            *(
                pl.when(pl.col(column).count() > 0).then(pl.col(column).sum()).alias(column)
                for column in ("prompt_tokens", "completion_tokens", "cost")
            ),
        )
        .collect(engine="streaming")
        for dataset in record.outputs
        if dataset.table in {"candidates", "judgments"} and dataset.parts
    ]
    if not sums:
        return (stage_run.stage, None, None, None, None)
    return (stage_run.stage, *pl.concat(sums).sum().row(0))


def _nodes(
    workspace: Workspace, records: Sequence[tuple[StageRunRecord, StageRecord]]
) -> tuple[Node, ...]:
    """Return the stages of a run, below the runs whose outputs they read."""
    own = {record.stage_key for _, record in records}
    others: dict[str, str] = {}
    for _, record in records:
        for dataset in record.inputs:
            if dataset.stage_key not in own:
                made = read_stage_record(workspace, dataset.stage_key)
                others[dataset.stage_key] = made.made_by if made else "another run"
    elsewhere = [Node(f"run {name}", name, ()) for name in dict.fromkeys(others.values())]
    return (*elsewhere, *(_node(*of, others) for of in records))


def _node(stage_run: StageRunRecord, record: StageRecord, others: dict[str, str]) -> Node:
    made = record.outputs[0]
    keys = [others.get(dataset.stage_key, dataset.stage_key) for dataset in record.inputs]
    return Node(
        name=stage_run.stage,
        key=record.stage_key,
        inputs=tuple(dict.fromkeys(keys)),
        table="" if made.table == CHECKS else made.table,
        rows=made.rows,
        seconds=stage_run.seconds,
        reused=stage_run.status == "reused",
    )


def _judged(
    workspace: Workspace, records: dict[str, StageRecord], pairs: pl.DataFrame
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return (scorer, score) and (scorer, margin, kept) by every scorer of some pairs' shards.

    Part i of the scores is about part i of the pairs: some of both are read, spread over all.
    """
    if "score" not in records or "pair" not in records:
        return pl.DataFrame(), pl.DataFrame()
    proposed = records["pair"].output("pairs")
    scored = records["score"].output("scores")
    parts = _spread(proposed) if len(proposed.parts) == len(scored.parts) else None
    of_pairs, of_scores = (_of_parts(workspace, whole, parts) for whole in (proposed, scored))
    scores = of_scores.select("scorer", "score", "candidate_id").collect()
    margins = of_pairs.select("pair_id", "chosen_candidate_id", "rejected_candidate_id").collect()
    for role in ("chosen", "rejected"):
        of_role = scores.rename({"candidate_id": f"{role}_candidate_id", "score": role})
        on = [f"{role}_candidate_id", *(["scorer"] if role == "rejected" else [])]
        margins = margins.join(of_role, on=on)
    margins = margins.join(pairs.select("pair_id", "kept"), on="pair_id")
    margin = pl.col("chosen") - pl.col("rejected")
    return scores.select("scorer", "score"), margins.select("scorer", "kept", margin=margin)


def _spread(pairs: Dataset) -> list[int]:
    """Return evenly spread places of parts that hold about ``PAIRS_SAMPLED`` pairs."""
    parts = len(pairs.parts)
    wanted = -(-parts * PAIRS_SAMPLED // max(pairs.rows, 1))
    return (
        [place * parts // wanted for place in range(wanted)] if wanted < parts else [*range(parts)]
    )


def _of_parts(workspace: Workspace, whole: Dataset, places: list[int] | None) -> pl.LazyFrame:
    if not places:
        return whole.scan(workspace)
    return pl.concat([whole.part(place).scan(workspace) for place in places])


def examples(workspace: Workspace, run_id: str, pairs: pl.DataFrame) -> pl.DataFrame:
    """Return pairs worth reading, with their texts: the best kept, the narrowly kept, the dropped.

    Columns: kind, pair_id, prompt, chosen, rejected, margin, chosen_score, rejected_score.
    """
    kept = pairs.filter("kept").sort("margin", "pair_id", descending=[True, False])
    dropped = pairs.filter(~pl.col("kept"))
    reason = pl.col("reasons").list.first()
    places = pl.col("pair_id").rank("ordinal").over(reason)
    kinds = [
        kept.head(EXAMPLES_OF_A_KIND).with_columns(kind=pl.lit("best kept")),
        kept.slice(max(EXAMPLES_OF_A_KIND, kept.height - EXAMPLES_OF_A_KIND)).with_columns(
            kind=pl.lit("narrowly kept")
        ),
        dropped.filter(places <= EXAMPLES_OF_A_KIND)
        .with_columns(kind="dropped: " + reason)
        .sort("kind", "pair_id"),
    ]
    return _with_texts(workspace, run_id, pl.concat(kinds, how="vertical_relaxed"))


def _with_texts(workspace: Workspace, run_id: str, picked: pl.DataFrame) -> pl.DataFrame:
    """Return the picked pairs with prompt, chosen and rejected texts, joined by id."""
    keys = {record.stage: record.stage_key for record in read_stage_runs(workspace, run_id)}
    ids = _rows_of(workspace, keys.get("pair"), "pairs", PAIR_IDS, picked["pair_id"])
    rows = picked.join(ids, on="pair_id", how="left", maintain_order="left")
    wanted = pl.concat([rows["chosen_candidate_id"], rows["rejected_candidate_id"]])
    columns = ("candidate_id", "completion")
    texts = pl.concat(
        _rows_of(workspace, keys.get(stage), "candidates", columns, wanted)
        for stage in ("generate", "edit")
    )
    for role in ("chosen", "rejected"):
        renamed = texts.rename({"candidate_id": f"{role}_candidate_id", "completion": role})
        rows = rows.join(renamed, on=f"{role}_candidate_id", how="left", maintain_order="left")
    columns = ("prompt_id", "messages")
    asked = _rows_of(workspace, keys.get("prompts"), "prompts", columns, rows["prompt_id"])
    turn = pl.element().struct.field("role") + ": " + pl.element().struct.field("content")
    prompt = pl.col("messages").list.eval(turn).list.join("\n")
    asked = asked.select("prompt_id", prompt=prompt)
    rows = rows.join(asked, on="prompt_id", how="left", maintain_order="left")
    shown = ["kind", "pair_id", "prompt", "chosen", "rejected"]
    return rows.select(*shown, "margin", "chosen_score", "rejected_score")


PAIR_IDS = ("pair_id", "chosen_candidate_id", "rejected_candidate_id")


def _rows_of(
    workspace: Workspace,
    stage_key: str | None,
    name: str,
    columns: Sequence[str],
    ids: pl.Series,
) -> pl.DataFrame:
    """Return ``columns`` of the rows whose first column is one of ``ids``: few of very many."""
    key, *_ = columns
    sql = f"SELECT {', '.join(columns)} FROM {name} WHERE stage_key = ? AND {key} IN ?"  # noqa: S608
    return query(workspace, sql, [stage_key or "", ids.unique().to_list()])
