"""The tasks of curation, each: name what decides the output, then read, call, write."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.progress import say
from flows.stage_runner import RunContext, StageSpec, StageWriter, finished_output, run_stage
from lineage.workspace import Dataset, commit_bytes
from stages import export, filtering, generation, pairing, prompt_sampling, scoring
from stages.errors import DataError
from stages.tables import SPLITS

if TYPE_CHECKING:
    import polars as pl

    from flows.configuration import PipelineConfig
    from flows.models import Policy

# The stage output is the cache (stage_runner): Prefect gives schedule, retries and visibility.
stage_task = task(cache_policy=NO_CACHE, persist_result=False)


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
    if stored_only:
        _require_stored(context, config, policy, prompts)
    candidates = generate_candidates(context, config, policy, prompts)
    scores = score_candidates(context, config, prompts, candidates)
    pairs = pair_candidates(context, config, candidates, scores)
    decisions = filter_pairs(context, config, pairs, candidates)
    exports = export_pairs(context, config, prompts, candidates, pairs, decisions)
    return Curated(prompts, candidates, scores, pairs, decisions, exports)


@stage_task(name="prompts")
def sample_prompts(context: RunContext, config: PipelineConfig) -> Dataset:
    """Sample the prompts."""
    sources = [prompt_sampling.source_fingerprint(s) for s in config.prompts.sources]
    settings = {**config.prompts.model_dump(mode="json"), "contents": sources}
    spec = StageSpec("prompts", prompt_sampling.VERSION, settings, (), ("prompts",))

    def make(writer: StageWriter) -> None:
        writer.write("prompts", prompt_sampling.sample(config.prompts))

    return run_stage(context, "prompts", spec, make).output("prompts")


def generation_spec(config: PipelineConfig, policy: Policy, prompts: Dataset) -> StageSpec:
    """Return what decides the candidates."""
    settings = config.generation.model_dump(mode="json")
    settings = {**settings, "model": policy.identity}
    return StageSpec("generate", generation.VERSION, settings, (prompts,), ("candidates",))


def _require_stored(
    context: RunContext, config: PipelineConfig, policy: Policy, prompts: Dataset
) -> None:
    spec = generation_spec(config, policy, prompts)
    if finished_output(context.workspace, spec) is None:
        raise DataError(
            "no stored candidates for these prompts and generation settings",
            expected="a finished `generate` stage: curate never generates",
            where=f"workspace {context.workspace.root}, stage key {spec.key}",
            remedy="run `prefmill refresh` first, or change only pairing, filters and export",
        )


@stage_task(name="generate")
def generate_candidates(
    context: RunContext, config: PipelineConfig, policy: Policy, prompts: Dataset
) -> Dataset:
    """Generate N completions per prompt; finished parts of a killed run are kept."""
    spec = generation_spec(config, policy, prompts)

    def make(writer: StageWriter) -> None:
        of_prompts = writer.read(prompts)
        require_ground_truths(config, of_prompts)
        engine = policy.engine()
        parts = generation.plan_parts(of_prompts, engine, config.generation)
        sizes = [p.height * generation.samples_for(p, config.generation) for p in parts]
        writer.advance(0, sum(sizes))
        for index, part in enumerate(parts):
            if writer.existing("candidates", index) is None:
                made = generation.generate(part, engine, config.generation)
                writer.write("candidates", made, index)
            writer.advance(sum(sizes[: index + 1]), sum(sizes))

    return run_stage(context, "generate", spec, make).output("candidates")


@stage_task(name="score")
def score_candidates(
    context: RunContext, config: PipelineConfig, prompts: Dataset, candidates: Dataset
) -> Dataset:
    """Judge every candidate and aggregate the judgments."""
    inputs, outputs = (prompts, candidates), ("judgments", "scores")
    spec = StageSpec("score", scoring.VERSION, scoring_settings(config), inputs, outputs)

    def make(writer: StageWriter) -> None:
        of_prompts = writer.read(prompts)
        require_ground_truths(config, of_prompts)
        require_known_votes(writer, config, candidates)
        for index, part in enumerate(candidates.parts):
            answers = writer.read(Dataset(candidates.table, candidates.stage_key, (part,)))
            score_part(writer, config, of_prompts, answers, index)
            writer.advance(index + 1, len(candidates.parts))

    return run_stage(context, "score", spec, make).output("scores")


def require_ground_truths(config: PipelineConfig, prompts: pl.DataFrame) -> None:
    """Stop before the first completion is paid for if a prompt's ground truth can't be used."""
    for scorer in config.scoring.scorers:
        if isinstance(scorer, scoring.RulesScorer):
            scoring.read_checks(prompts, scorer)


def require_known_votes(writer: StageWriter, config: PipelineConfig, candidates: Dataset) -> None:
    """Stop, or say so, if votes are on candidates that aren't there."""
    for scorer in config.scoring.scorers:
        if isinstance(scorer, scoring.VotesScorer):
            ids = writer.read(candidates, ["candidate_id"])["candidate_id"]
            votes = _votes(scorer, scoring.votes_fingerprint(scorer))
            if warning := scoring.unknown_votes(votes, ids, scorer):
                say(warning)


def scoring_settings(config: PipelineConfig) -> dict[str, Any]:
    """Return what decides the judgments, besides the candidates."""
    settings = config.scoring.model_dump(mode="json")
    votes = [s for s in config.scoring.scorers if isinstance(s, scoring.VotesScorer)]
    if votes:
        hashes = {scorer.name: scoring.votes_fingerprint(scorer) for scorer in votes}
        settings |= {"votes": hashes, "votes_version": scoring.VOTES_VERSION}
    return {**settings, "rules": scoring.RULES_VERSION}


def score_part(
    writer: StageWriter,
    config: PipelineConfig,
    prompts: pl.DataFrame,
    candidates: pl.DataFrame,
    index: int,
) -> None:
    """Write the judgments and scores of one part of candidates, unless they are there."""
    import polars as pl

    judgments = writer.existing("judgments", index)
    if judgments is None:
        verdicts = [judge(candidates, prompts, s) for s in config.scoring.scorers]
        judgments = writer.write("judgments", pl.concat(verdicts), index)
    if writer.existing("scores", index) is None:
        writer.write("scores", scoring.aggregate(judgments, candidates), index)


def judge(
    candidates: pl.DataFrame,
    prompts: pl.DataFrame,
    scorer: scoring.RulesScorer | scoring.VotesScorer,
) -> pl.DataFrame:
    """Return one scorer's judgments."""
    if isinstance(scorer, scoring.RulesScorer):
        return scoring.judge_by_rules(candidates, prompts, scorer)
    votes = _votes(scorer, scoring.votes_fingerprint(scorer))
    return scoring.judge_by_votes(candidates, votes, scorer)


@functools.lru_cache(maxsize=4)
def _votes(scorer: scoring.VotesScorer, _fingerprint: str) -> pl.DataFrame:
    """Return the votes of a file with this content, read once for all parts."""
    return scoring.read_votes(scorer)


@stage_task(name="pair")
def pair_candidates(
    context: RunContext, config: PipelineConfig, candidates: Dataset, scores: Dataset
) -> Dataset:
    """Pair the scored candidates of each prompt."""
    settings = config.pairing.model_dump(mode="json")
    spec = StageSpec("pair", pairing.VERSION, settings, (candidates, scores), ("pairs",))

    def make(writer: StageWriter) -> None:
        facts = writer.read(candidates, ["candidate_id", "completion_tokens"])
        writer.write("pairs", pairing.pair(facts, writer.read(scores), config.pairing))

    pairs = run_stage(context, "pair", spec, make).output("pairs")
    if not pairs.rows:
        judged = scores.read(context.workspace).filter(scorer=config.pairing.scorer)
        pairing.explain_no_pairs(judged)
    return pairs


@stage_task(name="filter")
def filter_pairs(
    context: RunContext, config: PipelineConfig, pairs: Dataset, candidates: Dataset
) -> Dataset:
    """Rule on every pair by every filter."""
    settings = config.filters.model_dump(mode="json")
    spec = StageSpec("filter", filtering.VERSION, settings, (pairs, candidates), ("decisions",))

    def make(writer: StageWriter) -> None:
        texts = writer.read(candidates, ["candidate_id", "completion", "finish_reason"])
        filtered = filtering.filter_pairs(writer.read(pairs), texts, config.filters)
        writer.write("decisions", filtered.decisions)

    decisions = run_stage(context, "filter", spec, make).output("decisions")
    filtering.require_kept(pairs.read(context.workspace), decisions.read(context.workspace))
    return decisions


@stage_task(name="export")
def export_pairs(
    context: RunContext,
    config: PipelineConfig,
    prompts: Dataset,
    candidates: Dataset,
    pairs: Dataset,
    decisions: Dataset,
) -> Dataset:
    """Write the kept pairs as files for trainers, train and held-out apart."""
    inputs, outputs = (prompts, candidates, pairs, decisions), ("exports", "export_rows")
    settings = config.export.model_dump(mode="json")
    spec = StageSpec("export", export.VERSION, settings, inputs, outputs)

    folder = context.workspace.exports / spec.key
    files = [
        (split, name, folder / export.FILE_NAMES[name].format(split=split))
        for split in SPLITS
        for name in config.export.formats
    ]

    def make(writer: StageWriter) -> None:
        import polars as pl

        kept = filtering.kept_pairs(writer.read(pairs), writer.read(decisions))
        texts = writer.read(candidates, ["candidate_id", "completion"])
        of_prompts, described = writer.read(prompts), []
        for split, name, path in files:
            rows = export.preference_rows(kept, of_prompts, texts, split)
            content = export.encode(rows, name)
            commit_bytes(path, content)
            where = writer.workspace.relative(path)
            described.append(export.describe(rows, content, name, split, where))
        writer.write("exports", pl.concat([exports for exports, _ in described]))
        writer.write("export_rows", pl.concat([lines for _, lines in described]))

    paths = [path for _, _, path in files]
    return run_stage(context, "export", spec, make, paths).output("exports")
