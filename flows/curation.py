"""The tasks of curation, each: name what decides the output, then read, call, write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows import scorers
from flows.answering import answer_prompts
from flows.exporting import export_pairs
from flows.generators import ReadyGenerator, ready_generators
from flows.preflight import require_usable
from flows.shards import for_shards, groups
from flows.spending import budget_of
from flows.stage_runner import RunContext, StageSpec, StageWriter, finished_output, run_stage
from flows.stage_task import stage_task
from stages import (
    filtering,
    generation,
    pairing,
    prompt_sampling,
    scorer_health,
    scoring,
)
from stages.errors import DataError

if TYPE_CHECKING:
    import polars as pl

    from flows.configuration import PipelineConfig
    from flows.models import Policy
    from flows.scorers import JudgePart
    from flows.shards import Shard
    from lineage.workspace import Dataset
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


def curate(
    context: RunContext, config: PipelineConfig, policy: Policy, *, stored_only: bool = False
) -> Curated:
    """Return what sampling, generation, scoring, pairing, filtering and export made.

    With ``stored_only`` nothing is generated or judged.

    Raises:
        DataError: no pair can be made, none is left, or (``stored_only``) candidates are missing.
    """
    prompts = sample_prompts(context, config)
    generators = ready_generators(config, policy)
    if stored_only:
        _require_stored(context, generation_spec(config, generators, prompts))
    candidates = generate_candidates(context, config, generators, prompts)
    judgments = {
        scorer.name: judge_candidates(context, config, scorer, policy, prompts, candidates)
        for scorer in config.scoring.judges
    }
    scores = score_candidates(context, config, candidates, judgments)
    check_scorers(context, config, (prompts, candidates, scores), judgments)
    pairs = pair_candidates(context, config, candidates, scores)
    decisions = filter_pairs(context, config, pairs, candidates, (prompts, scores))
    exports = export_pairs(context, config, prompts, candidates, pairs, decisions)
    return Curated(prompts, candidates, scores, pairs, decisions, exports)


@stage_task(name="prompts")
def sample_prompts(context: RunContext, config: PipelineConfig) -> Dataset:
    """Sample the prompts."""
    sources = [prompt_sampling.source_fingerprint(s) for s in config.prompts.sources]
    gold = prompt_sampling.gold_fingerprint(config.prompts)
    settings = {**config.prompts.deciding(), "contents": [*sources, gold]}
    spec = StageSpec("prompts", prompt_sampling.VERSION, settings, (), ("prompts",))

    def make(writer: StageWriter) -> None:
        writer.write("prompts", prompt_sampling.sample(config.prompts))

    return run_stage(context, "prompts", spec, make).output("prompts")


def generation_spec(
    config: PipelineConfig, generators: list[ReadyGenerator], prompts: Dataset
) -> StageSpec:
    """Return what decides the candidates."""
    settings = config.generation.deciding()
    settings = {**settings, "generators": [generator.deciding() for generator in generators]}
    return StageSpec("generate", generation.VERSION, settings, (prompts,), ("candidates",))


def _require_stored(context: RunContext, spec: StageSpec) -> None:
    if finished_output(context.workspace, spec) is None:
        raise DataError(
            "no stored candidates for these prompts and generation settings",
            expected="a finished `generate` stage: curate never generates",
            where=f"workspace {context.workspace.root}, stage key {spec.key}",
            remedy="run `prefmill refresh` first, or change only pairing, filters and export",
        )


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
        require_usable(config, generators, of_prompts)
        per_generator = generation.count_parts(of_prompts, config.generation)
        for place, generator in enumerate(generators):
            first = place * per_generator
            answer_prompts(writer, of_prompts, generator, config, first)
        planted = generation.gold_candidates(of_prompts)
        if planted.height:
            writer.write("candidates", planted, len(generators) * per_generator)

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
    settings = scorers.deciding(scorer)
    inputs = (prompts, candidates)
    spec = StageSpec("judge", scoring.VERSION, settings, inputs, ("judgments",))

    def make(writer: StageWriter) -> None:
        budget = budget_of(context, config.budget)
        with scorers.opened(scorer, writer, policy, budget, candidates) as judge:
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
    for done, group in enumerate(judged, start=1):
        index = first + done - 1
        if writer.existing("judgments", index) is None:
            writer.write("judgments", judge(group.collect(), prompts), index)
        writer.advance(done, len(judged))
    return first + len(judged)


@stage_task(name="score")
def score_candidates(
    context: RunContext,
    config: PipelineConfig,
    candidates: Dataset,
    judgments: dict[str, Dataset],
) -> Dataset:
    """Aggregate every scorer's judgments, and the juries'."""
    settings = {"juries": [jury.deciding() for jury in config.scoring.juries]}
    inputs = (candidates, *judgments.values())
    spec = StageSpec("score", scoring.VERSION, settings, inputs, ("scores",))

    def make_shard(writer: StageWriter, shard: Shard) -> None:
        import polars as pl

        facts = shard.read(["candidate_id", "prompt_id"])
        verdicts = [writer.read(shard.judgments(of_scorer)) for of_scorer in judgments.values()]
        rows = scoring.scores(pl.concat(verdicts), facts, config.scoring)
        writer.write("scores", rows, shard.index)

    def make(writer: StageWriter) -> None:
        for_shards(writer, candidates, make_shard)

    return run_stage(context, "score", spec, make).output("scores")


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
        health = config.scoring.health
        rows = scorer_health.scorer_health(verdicts, scores, candidates, prompts, health)
        writer.write("scorer_health", rows)

    rows = run_stage(context, "health", spec, make).output("scorer_health")
    scorer_health.require_healthy(rows.read(context.workspace))
    return rows


@stage_task(name="pair")
def pair_candidates(
    context: RunContext, config: PipelineConfig, candidates: Dataset, scores: Dataset
) -> Dataset:
    """Pair the scored candidates of each prompt."""
    settings = config.pairing.deciding()
    spec = StageSpec("pair", pairing.VERSION, settings, (candidates, scores), ("pairs",))

    facts = ["candidate_id", "weights_hash", "completion_tokens"]

    def make_shard(writer: StageWriter, shard: Shard) -> None:
        judged = writer.read(scores.part(shard.index))
        proposed = pairing.pair(shard.read(facts), judged, config.pairing)
        writer.write("pairs", proposed, shard.index)

    def make(writer: StageWriter) -> None:
        for_shards(writer, candidates, make_shard)

    pairs = run_stage(context, "pair", spec, make).output("pairs")
    if not pairs.rows:
        of_candidates = candidates.read(context.workspace, facts)
        pairing.explain_no_pairs(of_candidates, scores.read(context.workspace), config.pairing)
    return pairs


@stage_task(name="filter")
def filter_pairs(
    context: RunContext,
    config: PipelineConfig,
    pairs: Dataset,
    candidates: Dataset,
    facts: tuple[Dataset, Dataset],
) -> Dataset:
    """Rule on every pair by every filter; ``facts`` are the prompts and the scores."""
    asked, (prompts, scores) = config.filters, facts
    spec = StageSpec(
        "filter", filtering.VERSION, asked.deciding(), (pairs, candidates, *facts), ("decisions",)
    )

    def make(writer: StageWriter) -> None:
        import polars as pl

        sources = ["prompt_id", "source", "split"]
        of_prompts = writer.read(prompts, sources) if asked.needs_prompts else None
        measured: list[pl.DataFrame] = []

        def measure_shard(writer: StageWriter, shard: Shard) -> None:
            of_pairs = writer.read(pairs.part(shard.index))
            texts = shard.read(["candidate_id", "completion", "finish_reason"])
            judged = writer.read(scores.part(shard.index)) if asked.needs_scores else None
            measured.append(filtering.measure(of_pairs, texts, asked, of_prompts, judged))

        for_shards(writer, candidates, measure_shard)
        heights = [frame.height for frame in measured]
        ruled = filtering.rule(pl.concat(measured), asked)
        start = 0
        for index, height in enumerate(heights):
            of_shard = ruled.slice(start, height)
            writer.write("decisions", filtering.decisions(of_shard, asked), index)
            start += height

    decisions = run_stage(context, "filter", spec, make).output("decisions")
    filtering.require_kept(pairs.rows, decisions.scan(context.workspace))
    return decisions
