"""A run's facts, read back from the lineage, as the report shows them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import polars as pl

from flows.report import ReportData, write_report
from flows.run_outputs import read_output
from lineage.query import query
from lineage.records import read_stage_runs
from lineage.workspace import commit_bytes, read_stage_record

if TYPE_CHECKING:
    from pathlib import Path

    from lineage.workspace import Workspace

EXAMPLES_OF_A_KIND = 3


def report_run(workspace: Workspace, run_id: str) -> Path:
    """Write ``report.html`` and ``validations.html`` into the run's folder; return the first."""
    data = gather(workspace, run_id)
    write_validations(run_id, data.validations, workspace.runs / run_id / "validations.html")
    return write_report(data, workspace.runs / run_id / "report.html")


def write_validations(run_id: str, validations: pl.DataFrame, path: Path) -> None:
    """Write Great Expectations' results as a page, unless it is there: loading it takes seconds."""
    from validators.data_docs import fingerprint, validation_page

    if validations.is_empty():
        return
    if not path.is_file() or fingerprint(validations) not in path.read_text(encoding="utf-8"):
        commit_bytes(path, validation_page(run_id, validations).encode())


def gather(workspace: Workspace, run_id: str) -> ReportData:
    """Return everything that the report of ``run_id`` shows."""
    run = query(workspace, "FROM runs WHERE run_id = ?", [run_id]).row(0, named=True)
    pairs = query(workspace, "FROM pair_quality WHERE run_id = ?", [run_id])
    stages = query(workspace, "FROM stage_runs WHERE run_id = ? ORDER BY position", [run_id])
    return ReportData(
        run=run,
        funnel=query(workspace, "FROM funnel WHERE run_id = ? ORDER BY position", [run_id]),
        filters=query(workspace, "FROM filter_funnel WHERE run_id = ?", [run_id]),
        pairs=pairs,
        examples=examples(workspace, run_id, pairs),
        scorers=read_output(workspace, run_id, "health", "scorer_health"),
        training_metrics=read_output(workspace, run_id, "train", "training_metrics"),
        evaluations=read_output(workspace, run_id, "gate", "evaluations"),
        gates=read_output(workspace, run_id, "gate", "gates"),
        rounds=read_output(workspace, run_id, "gate", "rounds"),
        validations=_validations(workspace, run_id),
        stage_runs=stages,
        config=json.loads(run["config"]),
    )


def _validations(workspace: Workspace, run_id: str) -> pl.DataFrame:
    """Return the checks of every stage of a run, with the stage's name."""
    frames = []
    for stage_run in read_stage_runs(workspace, run_id):
        record = read_stage_record(workspace, stage_run.stage_key)
        if record is not None:
            rows = record.output("validations").read(workspace)
            frames.append(rows.with_columns(stage=pl.lit(stage_run.stage)))
    return pl.concat(frames) if frames else pl.DataFrame()


def examples(workspace: Workspace, run_id: str, pairs: pl.DataFrame) -> pl.DataFrame:
    """Return pairs worth reading, with their texts: the best kept, the narrowly kept, the dropped.

    Columns: kind, pair_id, prompt, chosen, rejected, margin, chosen_score, rejected_score.
    """
    kept = pairs.filter("kept").sort("margin", "pair_id", descending=[True, False])
    dropped = pairs.filter(~pl.col("kept")).sort("pair_id")
    kinds = [
        kept.head(EXAMPLES_OF_A_KIND).with_columns(kind=pl.lit("best kept")),
        kept.slice(max(EXAMPLES_OF_A_KIND, kept.height - EXAMPLES_OF_A_KIND)).with_columns(
            kind=pl.lit("narrowly kept")
        ),
        *[
            of_reason.head(EXAMPLES_OF_A_KIND)
            for of_reason in dropped.with_columns(
                kind="dropped: " + pl.col("reasons").list.first()
            ).partition_by("kind", maintain_order=True)
        ],
    ]
    picked = pl.concat(kinds, how="vertical_relaxed")
    return _with_texts(workspace, run_id, picked)


def _with_texts(workspace: Workspace, run_id: str, picked: pl.DataFrame) -> pl.DataFrame:
    """Return the picked pairs with prompt, chosen and rejected texts, joined by id."""
    ids = ["pair_id", "chosen_candidate_id", "rejected_candidate_id"]
    rows = picked.join(
        read_output(workspace, run_id, "pair", "pairs", ids), on="pair_id", maintain_order="left"
    )
    texts = read_output(workspace, run_id, "generate", "candidates", ["candidate_id", "completion"])
    for role in ("chosen", "rejected"):
        renamed = texts.rename({"candidate_id": f"{role}_candidate_id", "completion": role})
        rows = rows.join(renamed, on=f"{role}_candidate_id", how="left", maintain_order="left")
    turn = pl.element().struct.field("role") + ": " + pl.element().struct.field("content")
    prompts = read_output(workspace, run_id, "prompts", "prompts", ["prompt_id", "messages"])
    asked = prompts.select("prompt_id", prompt=pl.col("messages").list.eval(turn).list.join("\n"))
    rows = rows.join(asked, on="prompt_id", how="left", maintain_order="left")
    columns = ["kind", "pair_id", "prompt", "chosen", "rejected"]
    return rows.select(*columns, "margin", "chosen_score", "rejected_score")
