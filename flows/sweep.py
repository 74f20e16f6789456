"""Several datasets of pairs from one run's stored judgments, and how they compare."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.curation import choose_pairs
from flows.exporting import export_pairs, read_beside
from flows.progress import say
from flows.shards import Shard, computed_by_shard
from flows.stage_runner import (
    RunContext,
    StageSpec,
    StageWriter,
    run_stage,
    utc_now,
)
from flows.tracked_run import recorded, run_record
from lineage.database import publish
from lineage.extended import extended
from lineage.records import (
    StageRunRecord,
    read_stage_runs,
    write_stage_run,
)
from lineage.removal import read_removal
from lineage.workspace import read_stage_record
from stages import filtering, sweeping
from stages.content_ids import content_hash
from stages.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from flows.configuration import PipelineConfig
    from flows.sweep_variants import Variant
    from lineage.workspace import Dataset, StageRecord, Workspace

FLOW = "sweep"

NEEDED = {"prompts": "prompts", "generate": "candidates", "score": "scores"}
"""Stages that the run must have finished, and their tables."""

READ_TOO = ("judge", "score_before_edits", "health", "edit", "judge_edits")


@dataclass(frozen=True)
class Judged:
    """What a run has made up to its scores."""

    prompts: Dataset
    candidates: Dataset
    scores: Dataset
    judgments: dict[str, Dataset]
    """By scorer."""
    edits: Dataset | None
    """Which of the candidates are edited answers, if any are."""
    stage_runs: tuple[StageRunRecord, ...]

    @property
    def scored(self) -> tuple[Dataset, Dataset, Dataset]:
        """Prompts, candidates and scores."""
        return self.prompts, self.candidates, self.scores


class Compared(NamedTuple):
    """One dataset: how it was made, and what was measured on it."""

    run_id: str
    strategy: str
    scorer: str
    filters: str
    error: str | None
    measures: dict[str, float | None]


def judged_by(workspace: Workspace, run_id: str) -> Judged:
    """Return what a run has made up to its scores.

    Raises:
        DataError: it has not come so far.
    """
    outputs: dict[str, Dataset] = {}
    judgments: dict[str, Dataset] = {}
    of_edits: dict[str, Dataset] = {}
    edited: StageRecord | None = None
    used: list[StageRunRecord] = []
    for stage_run in read_stage_runs(workspace, run_id):
        kind, _, scorer = stage_run.stage.partition(":")
        record = read_stage_record(workspace, stage_run.stage_key)
        if record is None or kind not in {*NEEDED, *READ_TOO}:
            continue
        if read_removal(workspace, stage_run.stage_key) is not None:
            continue
        used.append(stage_run)
        if kind == "judge":
            judgments[scorer] = record.output("judgments")
        elif kind == "judge_edits":
            of_edits[scorer] = record.output("judgments")
        elif kind == "edit":
            edited = record
        elif kind in NEEDED:
            outputs[NEEDED[kind]] = record.output(NEEDED[kind])
    missing = [stage for stage, table in NEEDED.items() if table not in outputs]
    if missing:
        raise DataError(
            f"run {run_id} has no finished {', '.join(missing)}",
            expected="a run whose candidates are scored: a sweep generates and judges nothing",
            where=str(workspace.runs / run_id),
            remedy="start the run's own command again, then sweep",
        )
    if edited:
        outputs["candidates"] = extended(outputs["candidates"], edited.output("candidates"))
        judgments = {name: extended(judgments[name], more) for name, more in of_edits.items()}
    edits = edited.output("edits") if edited else None
    return Judged(**outputs, judgments=judgments, edits=edits, stage_runs=tuple(used))


def sweep(
    workspace: Workspace, run_id: str, variants: Sequence[Variant], *, export: bool = False
) -> list[Compared]:
    """Make every variant's pairs of what ``run_id`` has judged, and return how they compare.

    Each variant is a run of its own in the lineage; what an earlier one made is used again. One
    that gives no pairs is recorded as failed, and the others go on.

    Raises:
        DataError: the run has no scores.
    """
    judged, compared = judged_by(workspace, run_id), []
    for number, variant in enumerate(variants, start=1):
        say(f"{number} of {len(variants)}: {variant.strategy}, {variant.scorer}, {variant.filters}")
        compared.append(_made(workspace, judged, variant, export=export))
    publish(workspace)
    return compared


def _made(workspace: Workspace, judged: Judged, variant: Variant, *, export: bool) -> Compared:
    """Return one variant, made now or earlier."""
    run_id, error = _run_id(judged, variant.config), None
    measures: dict[str, float | None] = {}
    context = RunContext(workspace, run_id)
    try:
        record = run_record(workspace, run_id, FLOW, variant.config)
        with recorded(workspace, record, shown=False):
            _note_reused(context, judged)
            pairs, noise, decisions = choose_pairs(
                context, variant.config, judged.scored, judged.judgments, judged.edits
            )
            measures = _measured(context, variant.config, judged, (pairs, decisions))
            if export:
                inputs = (judged.prompts, judged.candidates, pairs, decisions)
                of_noise = noise.pairs if noise else None
                beside = read_beside(variant.config.export, judged.scores, None, of_noise)
                export_pairs(context, variant.config, *inputs, *beside)
    except DataError as found:
        error = str(found)
    return Compared(run_id, *variant[:3], error, measures)


def _run_id(judged: Judged, config: PipelineConfig) -> str:
    """Return the id of a variant's run: the same judgments and sections have the same."""
    sections = (config.pairing, config.noise, config.filters, config.export)
    keys = [dataset.stage_key for dataset in judged.scored]
    digits = content_hash([keys, [section.deciding() for section in sections]])[:10]
    return f"{config.name}-{FLOW}-{digits}"


def _note_reused(context: RunContext, judged: Judged) -> None:
    """Record that the stages up to the scores are those of ``judged``."""
    for stage_run in judged.stage_runs:
        reused = replace(
            stage_run, run_id=context.run_id, status="reused", seconds=0, ended_at=utc_now()
        )
        write_stage_run(context.workspace, reused)


def _measured(
    context: RunContext,
    config: PipelineConfig,
    judged: Judged,
    made: tuple[Dataset, Dataset],
) -> dict[str, float | None]:
    """Return the measures of ``made`` (pairs and decisions) by name."""
    pairs, decisions = made
    asked = config.pairing
    verdicts = judged.judgments[asked.scorer] if asked.needs_judgments else None
    inputs = (*judged.scored, *made)
    spec = StageSpec("compare", sweeping.VERSION, asked.deciding(), inputs, ("pair_measures",))

    def make(writer: StageWriter) -> None:
        prompts = writer.read(judged.prompts, ["prompt_id", "split"]).filter(split="train")

        def measure_shard(shard: Shard) -> sweeping.PairFacts:
            texts = shard.read(
                [
                    "candidate_id",
                    "completion",
                    "completion_tokens",
                    "sample_index",
                    "weights_hash",
                ]
            )
            scores = writer.read(judged.scores.part(shard.index))
            said = writer.read(shard.of_groups(verdicts)) if verdicts else None
            gold = sweeping.gold_facts(texts, scores, asked, said)
            proposed = writer.read(pairs.part(shard.index)).join(
                prompts, on="prompt_id", how="semi"
            )
            ruled = writer.read(decisions.part(shard.index), ["pair_id", "kept"])
            kept = filtering.kept_pairs(proposed, ruled)
            return sweeping.pair_facts(proposed.height, kept, texts, scores, gold)

        measured = computed_by_shard(writer, judged.candidates, measure_shard)
        facts = [of_shard for _, of_shard in measured]
        writer.write("pair_measures", sweeping.pair_measures(facts, prompts.height))

    rows = run_stage(context, "compare", spec, make).output("pair_measures")
    found = rows.read(context.workspace, ["measure", "value"]).iter_rows()
    return {name: int(value) if name in sweeping.COUNTS else value for name, value in found}


def as_rows(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """Return one flat mapping a dataset, as JSON: its names, then its measures."""
    return [{**item._asdict(), **item.measures} for item in compared]


def page_of(workspace: Workspace, run_id: str, compared: Sequence[Compared]) -> Path:
    """Return where a sweep's page lies: the same datasets of the same run have the same."""
    name = content_hash([item.run_id for item in compared])[:10]
    return workspace.runs / run_id / f"sweep-{name}.html"
