"""The tasks of curation, each: name what decides the output, then read, call, write."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

from flows import scorers
from flows.answering import answer_prompts
from flows.drift import check_drift
from flows.earlier_pairs import kept_earlier
from flows.editing import edited
from flows.exporting import export_pairs, read_beside
from flows.generators import ReadyGenerator, ready_generators
from flows.noise import estimate_noise
from flows.preflight import require_usable
from flows.reference_answers import require_references, write_references
from flows.run_outputs import require_stored
from flows.sampling import sample_prompts
from flows.shards import computed_by_shard, groups, prompts_of
from flows.spending import budget_of
from flows.stage_runner import RunContext, StageSpec, StageWriter, run_stage
from flows.stage_task import stage_task
from stages import (
    filtering,
    generation,
    pairing,
    scorer_health,
    scoring,
)
from stages.errors import DataError
from stages.no_pairs import explain_no_pairs

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from flows.configuration import PipelineConfig
    from flows.models import Policy
    from flows.noise import EstimatedNoise
    from flows.scorers import JudgePart
    from flows.shards import Shard
    from lineage.workspace import Dataset
    from stages.filter_settings import FilteringConfig
    from stages.scoring import Scorer


@dataclass(frozen=True)
class Curated:
    """References to what one curation made."""

    prompts: Dataset
    candidates: Dataset
    scores: Dataset
    pairs: Dataset
    decisions: Dataset
    exports: Dataset
    noise: EstimatedNoise | None = None
    """Of the pairs' labels; None: nothing tells of it."""


def curate(
    context: RunContext, config: PipelineConfig, policy: Policy, *, stored_only: bool = False
) -> Curated:
    """Return what sampling, generation, scoring, pairing, filtering and export made.

    With ``stored_only`` nothing is generated, and nothing judged but what people edited.

    Raises:
        DataError: no pair can be made, none is left, or (``stored_only``) candidates are missing.
    """
    prompts = sample_prompts(context, config)
    generators = ready_generators(config, policy)
    if stored_only:
        require_stored(context, generation_spec(config, generators, prompts))
    candidates = sampled = generate_candidates(context, config, generators, prompts)
    judgments = {
        scorer.name: judge_candidates(context, config, scorer, policy, prompts, candidates)
        for scorer in config.scoring.judges
    }
    editing = config.pairing.needs_edits
    first = "score_before_edits" if editing else "score"
    scores = score_candidates(context, config, candidates, judgments, first)
    health = check_scorers(context, config, (prompts, candidates, scores), judgments)
    edits = None
    if editing:
        candidates, judgments, edits = edited(
            context, config, policy, (prompts, sampled), judgments, stored_only=stored_only
        )
        scores = score_candidates(context, config, candidates, judgments)
    scored = (prompts, candidates, scores)
    pairs, noise, decisions = choose_pairs(context, config, scored, judgments, edits)
    check_drift(context, config, (prompts, sampled, scores, pairs, decisions))
    beside = read_beside(config.export, scores, health, noise.pairs if noise else None)
    exports = export_pairs(context, config, prompts, candidates, pairs, decisions, *beside)
    return Curated(prompts, candidates, scores, pairs, decisions, exports, noise)


def choose_pairs(
    context: RunContext,
    config: PipelineConfig,
    scored: tuple[Dataset, Dataset, Dataset],
    judgments: dict[str, Dataset],
    edits: Dataset | None = None,
) -> tuple[Dataset, EstimatedNoise | None, Dataset]:
    """Return pairs of what is ``scored`` (prompts, candidates, scores), their noise and rulings.

    ``edits`` tell which of the candidates are edited answers, where there are any.

    Raises:
        DataError: no pair can be made, or none is left.
    """
    prompts, candidates, scores = scored
    pairs = pair_candidates(context, config, candidates, scores, judgments, edits)
    noise = estimate_noise(context, config, (candidates, scores), pairs, judgments)
    of_noise = noise.pairs if noise else None
    decisions = filter_pairs(context, config, pairs, candidates, (prompts, scores, of_noise))
    return pairs, noise, decisions


def generation_spec(
    config: PipelineConfig, generators: list[ReadyGenerator], prompts: Dataset
) -> StageSpec:
    """Return what decides the candidates."""
    settings = config.generation.deciding()
    settings = {**settings, "generators": [generator.deciding() for generator in generators]}
    if config.pairing.needs_references:
        settings["references"] = True
    return StageSpec("generate", generation.VERSION, settings, (prompts,), ("candidates",))


@stage_task(name="generate")
def generate_candidates(
    context: RunContext,
    config: PipelineConfig,
    generators: list[ReadyGenerator],
    prompts: Dataset,
) -> Dataset:
    """Have every generator answer every prompt; what a killed run paid for is kept."""
    spec = generation_spec(config, generators, prompts)

    def make(writer: StageWriter) -> None:
        of_prompts = writer.read(prompts)
        if config.pairing.needs_references:
            require_references(of_prompts)
        require_usable(config, generators, of_prompts)
        per_generator = generation.count_parts(of_prompts, config.generation)
        for place, generator in enumerate(generators):
            first = place * per_generator
            answer_prompts(writer, of_prompts, generator, config, first)
        planted = generation.gold_candidates(of_prompts)
        if planted.height:
            writer.write("candidates", planted, len(generators) * per_generator)
        if config.pairing.needs_references:
            first = len(generators) * per_generator + 1
            policy, parts = generators[0].policy, range(per_generator)
            write_references(writer, of_prompts, policy, parts, first)

    return run_stage(context, "generate", spec, make).output("candidates")


@stage_task(name="judge")
def judge_candidates(
    context: RunContext,
    config: PipelineConfig,
    scorer: Scorer,
    policy: Policy,
    prompts: Dataset,
    candidates: Dataset,
) -> Dataset:
    """Have one scorer judge every candidate. Another scorer's verdicts are another output."""
    settings = scorers.deciding(scorer, policy)
    inputs = (prompts, candidates)
    spec = StageSpec("judge", scoring.VERSION, settings, inputs, ("judgments",))

    def make(writer: StageWriter) -> None:
        budget, patient = budget_of(context, config.budget), config.scoring.health.all_may_miss
        opened = scorers.opened(scorer, writer, policy, budget, candidates, patient=patient)
        with opened as judge:
            judge_in_parts(writer, judge, candidates, writer.read(prompts))

    return run_stage(context, f"judge:{scorer.name}", spec, make).output("judgments")


def judge_in_parts(
    writer: StageWriter,
    judge: JudgePart,
    candidates: Dataset,
    prompts: pl.DataFrame,
    first: int = 0,
) -> int:
    """Write one scorer's judgments from part ``first`` on; return the part after its last."""
    judged = groups(writer.workspace, candidates)
    writer.advance(0, len(judged))
    for done, group in enumerate(judged, start=1):
        index = first + done - 1
        if writer.existing("judgments", index) is None:
            writer.write("judgments", judge(group.frame.collect(), prompts), index)
        writer.advance(done, len(judged))
    return first + len(judged)


@stage_task(name="score")
def score_candidates(
    context: RunContext,
    config: PipelineConfig,
    candidates: Dataset,
    judgments: dict[str, Dataset],
    stage: str = "score",
) -> Dataset:
    """Aggregate every scorer's judgments, and the juries'."""
    settings = {"juries": [jury.deciding() for jury in config.scoring.juries]}
    inputs = (candidates, *judgments.values())
    spec = StageSpec("score", scoring.VERSION, settings, inputs, ("scores",))

    def make(writer: StageWriter) -> None:
        import polars as pl

        def score(shard: Shard) -> pl.DataFrame:
            facts = shard.read(["candidate_id", "prompt_id"])
            verdicts = [writer.read(shard.of_groups(of_scorer)) for of_scorer in judgments.values()]
            return scoring.scores(pl.concat(verdicts), facts, config.scoring)

        for shard, rows in computed_by_shard(writer, candidates, score):
            writer.write("scores", rows, shard.index)

    return run_stage(context, stage, spec, make).output("scores")


@stage_task(name="health")
def check_scorers(
    context: RunContext,
    config: PipelineConfig,
    judged: tuple[Dataset, Dataset, Dataset],
    judgments: dict[str, Dataset],
) -> Dataset:
    """Measure the scorers on ``judged`` (prompts, candidates, scores); stop if one is not fit."""
    inputs = (*judged, *judgments.values())
    settings = config.scoring.health.deciding()
    spec = StageSpec("health", scorer_health.VERSION, settings, inputs, ("scorer_health",))

    def make(writer: StageWriter) -> None:
        import polars as pl

        def read(dataset: Dataset) -> pl.DataFrame:
            return writer.read(dataset, scorer_health.COLUMNS[dataset.table])

        prompts, candidates, scores = map(read, judged)
        verdicts = pl.concat(map(read, judgments.values()))
        scorer_health.require_every_candidate(verdicts, candidates, config.scoring.asked)
        preferring = scores.filter(~pl.col("scorer").is_in(config.scoring.gauges))
        health = config.scoring.health
        rows = scorer_health.scorer_health(verdicts, preferring, candidates, prompts, health)
        writer.write("scorer_health", rows)

    rows = run_stage(context, "health", spec, make).output("scorer_health")
    scorer_health.require_healthy(rows.read(context.workspace))
    return rows


@stage_task(name="pair")
def pair_candidates(
    context: RunContext,
    config: PipelineConfig,
    candidates: Dataset,
    scores: Dataset,
    judgments: dict[str, Dataset],
    edits: Dataset | None = None,
) -> Dataset:
    """Pair the scored candidates of each prompt."""
    asked = config.pairing
    verdicts = judgments[asked.scorer] if asked.needs_judgments else None
    edits = _require_edited(edits) if asked.needs_edits else None
    inputs = (candidates, scores, *(beside for beside in (verdicts, edits) if beside))
    spec = StageSpec("pair", pairing.VERSION, asked.deciding(), inputs, ("pairs",))

    facts = ["candidate_id", "weights_hash", "completion_tokens"]

    def make(writer: StageWriter) -> None:
        def propose(shard: Shard) -> pl.DataFrame:
            judged = writer.read(scores.part(shard.index))
            said = writer.read(shard.of_groups(verdicts)) if verdicts else None
            links = writer.read(shard.of_groups(edits)) if edits else None
            return pairing.pair(shard.read(facts), judged, asked, said, links)

        for shard, proposed in computed_by_shard(writer, candidates, propose):
            writer.write("pairs", proposed, shard.index)

    pairs = run_stage(context, "pair", spec, make).output("pairs")
    if not pairs.rows:
        workspace = context.workspace
        said = verdicts.read(workspace) if verdicts else None
        explain_no_pairs(candidates.read(workspace, facts), scores.read(workspace), asked, said)
    return pairs


def _require_edited(edits: Dataset | None) -> Dataset:
    if edits is None:
        raise DataError(
            "no answer of this run was edited",
            expected="a run with `pairing.strategy: edited_over_chosen_over_rejected`",
            where="stage pair",
            remedy="refresh with that strategy and `edits`, or pair by another one",
        )
    return edits


@stage_task(name="filter")
def filter_pairs(
    context: RunContext,
    config: PipelineConfig,
    pairs: Dataset,
    candidates: Dataset,
    facts: tuple[Dataset, Dataset, Dataset | None],
) -> Dataset:
    """Rule on every pair by every filter; ``facts`` are prompts, scores and label noise."""
    asked, (prompts, scores, noise) = config.asked_filters, facts
    noise = noise if asked.needs_noise else None
    earlier = kept_earlier(context, asked)
    inputs = (pairs, candidates, prompts, scores, *([noise] if noise else []), *earlier)
    outputs = ("decisions", *(["pair_signatures"] if asked.near_duplicates else []))
    spec = StageSpec("filter", filtering.VERSION, asked.deciding(), inputs, outputs)

    def make(writer: StageWriter) -> None:
        import polars as pl

        def measure(shard: Shard) -> pl.DataFrame:
            of_pairs = writer.read(pairs.part(shard.index))
            ids, columns = of_pairs["prompt_id"], asked.prompt_columns
            of_prompts = prompts_of(writer.workspace, prompts, ids, columns) if columns else None
            if noise:
                known = writer.read(noise.part(shard.index), ["pair_id", "probability_wrong"])
                of_pairs = of_pairs.join(known, on="pair_id", how="left", maintain_order="left")
            texts = shard.read([*filtering.CANDIDATE_COLUMNS])
            judged = writer.read(scores.part(shard.index)) if asked.needs_scores else None
            return filtering.measure(of_pairs, texts, asked, of_prompts, judged)

        measured = [facts for _, facts in computed_by_shard(writer, candidates, measure)]
        heights = [frame.height for frame in measured]
        seen = [writer.read(dataset) for dataset in earlier]
        ruled = filtering.rule(pl.concat(measured), asked, pl.concat(seen) if seen else None)
        measured.clear()
        _write_rulings(writer, ruled, heights, asked)

    decisions = run_stage(context, "filter", spec, make).output("decisions")
    filtering.require_kept(pairs.rows, decisions.scan(context.workspace))
    return decisions


def _write_rulings(
    writer: StageWriter, ruled: pl.DataFrame, heights: list[int], asked: FilteringConfig
) -> None:
    """Write what was decided on all shards' pairs, of so many pairs each, a part for each shard."""
    rows: dict[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
        "decisions": partial(filtering.decisions, config=asked),
        "pair_signatures": filtering.kept_signatures,
    }
    starts = [0, *accumulate(heights)]

    def write(table_name: str) -> None:
        for index, (start, height) in enumerate(zip(starts, heights, strict=False)):
            writer.write(table_name, rows[table_name](ruled.slice(start, height)), index)

    with ThreadPoolExecutor() as pool:
        # Each table by one thread; `list` raises what one raised.
        list(pool.map(write, writer.spec.outputs))
