"""The task that mixes pairs of a series' earlier rounds into what a round is trained on."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from flows.exporting import ExportFile
from flows.progress import say
from flows.stage_runner import RunContext, StageSpec, StageWriter, run_stage
from flows.stage_task import stage_task
from flows.training_round import training_export
from lineage.records import read_stage_runs
from lineage.workspace import read_stage_record
from stages.export_formats import TRL_SCHEMA
from stages.unpaired import unpaired_rows

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from flows.configuration import PipelineConfig
    from flows.curation import Curated
    from lineage.workspace import Dataset, StageRecord, Workspace

VERSION = 1
"""Raised when the same inputs would give other rows."""

TEXTS = ("prompt", "chosen", "rejected")


@stage_task(name="mix")
def mix_earlier_pairs(context: RunContext, config: PipelineConfig, curated: Curated) -> Curated:
    """Return ``curated`` with one export to train on: its own train pairs and earlier rounds'.

    Without `mix_earlier_rounds`, and in a first round, ``curated`` itself. The export's rows are in
    `exports` and `export_rows` as any other's. A round whose file was removed adds nothing.
    """
    asked = config.mix_earlier_rounds
    if asked is None or not config.earlier_rounds:
        return curated
    workspace = context.workspace
    rounds = [_exported(workspace, run) for run in config.earlier_rounds[-asked.rounds :]]
    earlier = [dataset for made in rounds for dataset in made]
    if not earlier:
        return curated
    inputs = (curated.prompts, curated.exports, curated.pairs, *earlier)
    settings = {"share": asked.share, "seed": config.seed}
    spec = StageSpec("mix", VERSION, settings, inputs, ("exports", "export_rows"))
    folder = workspace.exports / spec.key

    def make(writer: StageWriter) -> None:
        import polars as pl

        exports = (curated.exports, *(made for made in earlier if made.table == "exports"))
        own, *others = (_train_pairs(writer, made) for made in exports)
        heldout = writer.read(curated.prompts).filter(split="heldout")["messages"]
        rows = mixed(own, pl.concat(others), heldout, asked.share, config.seed)
        with ExportFile("train", "trl_jsonl", folder) as file:
            file.add(rows, unpaired_rows)
            row = file.commit(writer)
        writer.write("exports", row)
        lines = pl.concat(file.lines).with_columns(export_id=pl.lit(row["export_id"][0]))
        writer.write("export_rows", lines)

    files = [folder / "train.jsonl"]
    return dataclasses.replace(
        curated, exports=run_stage(context, "mix", spec, make, files).output("exports")
    )


def mixed(
    own: pl.DataFrame, earlier: pl.DataFrame, heldout: pl.Series, share: float, seed: int
) -> pl.DataFrame:
    """Return ``own`` pairs and a ``share`` of ``earlier`` ones, fewer where there are not as many.

    No pair is there twice, and none answers a prompt of ``heldout`` (lists of messages). Drawn by a
    hash of id and seed: another pair among the earlier ones moves few in or out.
    """
    import polars as pl

    from stages.content_ids import content_ids

    pool = earlier.join(heldout.to_frame("prompt"), on="prompt", how="anti")
    pool = pool.unique(TEXTS, keep="first", maintain_order=True).join(own, on=TEXTS, how="anti")
    seeded = pool.with_columns(seed=pl.lit(str(seed)))
    ranked = seeded.with_columns(content_ids(seeded, "draw", ["seed", "pair_id"])).sort("draw_id")
    drawn = ranked.head(round(own.height * share / (1 - share))).select(own.columns)
    return pl.concat([own, drawn]).sort("pair_id")


def _exported(workspace: Workspace, run_id: str) -> list[Dataset]:
    """Return the exports and pairs of a run's own, none if they are not there any more."""
    made: dict[str, StageRecord | None] = {
        stage.stage: read_stage_record(workspace, stage.stage_key)
        for stage in read_stage_runs(workspace, run_id)
    }
    exported, paired = made.get("export"), made.get("pair")
    if exported and paired:
        exports = exported.output("exports")
        if _file(workspace, exports.read(workspace)).is_file():
            return [exports, paired.output("pairs")]
    say(f"no pairs of {run_id} are mixed in: they are not in the workspace any more")
    return []


def _train_pairs(writer: StageWriter, exports: Dataset) -> pl.DataFrame:
    """Return the train pairs of an export, in TRL's format."""
    import polars as pl
    import polars.selectors as cs

    from stages.part_files import read_rows

    path = _file(writer.workspace, writer.read(exports))
    rows = read_rows(path)
    # A round before this version has a file without the newest columns.
    empty = pl.DataFrame(pl.from_arrow(TRL_SCHEMA.empty_table()))
    known = rows.select(cs.by_name(empty.columns, require_all=False))
    return pl.concat([empty, known], how="diagonal_relaxed")


def _file(workspace: Workspace, exports: pl.DataFrame) -> Path:
    return workspace.root / training_export(exports)["path"]
