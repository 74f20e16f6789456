"""The task that estimates how many of the pairs' labels are wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from flows.progress import say
from flows.shards import computed_by_shard
from flows.stage_runner import RunContext, StageSpec, StageWriter, run_stage
from flows.stage_task import stage_task
from stages import label_noise, noise_evidence, pairing
from stages.errors import DataError
from stages.noise_voters import asks_in_both_orders, noise_voters, why_no_noise
from stages.tables import GOLD_SPLIT, JUDGMENTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from flows.configuration import PipelineConfig
    from flows.shards import Shard
    from lineage.workspace import Dataset, Workspace
    from trainer.dpo_settings import DPOTrainingConfig

CANDIDATE_COLUMNS = [
    "candidate_id",
    "prompt_id",
    "sample_index",
    "weights_hash",
    "completion_tokens",
]
JUDGMENT_COLUMNS = ["candidate_id", "other_candidate_id", "order", "scorer", "score", "flag"]


class EstimatedNoise(NamedTuple):
    """References to what is known of the labels' noise."""

    pairs: Dataset
    """`label_noise`: part i is about part i of the pairs."""
    rates: Dataset
    """`noise_rates`."""


class _Scored(NamedTuple):
    """What the evidence is read from; ``judgments`` those of the deciding scorer, if asked for."""

    candidates: Dataset
    scores: Dataset
    pairs: Dataset
    judgments: Dataset | None

    def inputs(self) -> tuple[Dataset, ...]:
        return tuple(dataset for dataset in self if dataset is not None)


def estimate_noise(
    context: RunContext,
    config: PipelineConfig,
    scored: tuple[Dataset, Dataset],
    pairs: Dataset,
    judgments: dict[str, Dataset],
) -> EstimatedNoise | None:
    """Return the noise of the labels; None where nothing can tell of it.

    ``scored`` are the candidates and their scores.
    """
    scoring, pairing_config = config.scoring, config.pairing
    if why_not := why_no_noise(scoring, pairing_config, gold=config.prompts.gold is not None):
        say(f"{'noise':<24}   not estimated: {why_not}")
        return None
    asked = pairing_config.needs_judgments or asks_in_both_orders(scoring, pairing_config)
    verdicts = judgments[pairing_config.scorer] if asked else None
    estimated: EstimatedNoise = _estimate(context, config, _Scored(*scored, pairs, verdicts))
    rates = estimated.rates.read(context.workspace).row(0, named=True)
    say(f"{'':<24} {_sentence(rates)}")
    return estimated


@stage_task(name="noise")
def _estimate(context: RunContext, config: PipelineConfig, scored: _Scored) -> EstimatedNoise:
    voters = noise_voters(config.scoring, config.pairing)
    settings = {**config.noise.deciding(), "voters": voters._asdict()}
    outputs = ("label_noise", "noise_rates")
    spec = StageSpec("noise", label_noise.VERSION, settings, scored.inputs(), outputs)

    def make(writer: StageWriter) -> None:
        import polars as pl

        jury = (*voters.members, *voters.others) if voters.several else ()

        def read_shard(shard: Shard) -> tuple[pl.DataFrame, ...]:
            scores = writer.read(scored.scores.part(shard.index))
            said = _judgments(writer, shard, scored.judgments)
            proposed = writer.read(scored.pairs.part(shard.index))
            of_shard = shard.read(CANDIDATE_COLUMNS)
            labels = _gold_labels(of_shard, scores, said, config)
            of_gold = noise_evidence.evidence(labels, scores, said, voters)
            real = of_shard.filter(pl.col("weights_hash") != GOLD_SPLIT)
            real_scores, real_said = (
                rows.join(real, on="candidate_id", how="semi") for rows in (scores, said)
            )
            return (
                noise_evidence.evidence(proposed, scores, said, voters),
                of_gold.with_columns(labels["wrong"]),
                noise_evidence.neighbours(real_scores, jury),
                noise_evidence.contradictions(real_said),
            )

        read = [
            of_shard for _, of_shard in computed_by_shard(writer, scored.candidates, read_shard)
        ]
        facts, planted, votes, contradictions = zip(*read, strict=True)
        gold = pl.concat(planted)
        unselected = label_noise.Unselected(pl.concat(votes), pl.concat(contradictions))
        noise = label_noise.estimate(pl.concat(facts), gold, unselected, voters, config.noise)
        for index, of_shard in enumerate(facts):
            writer.write("label_noise", label_noise.noise_rows(of_shard, noise), index)
        writer.write("noise_rates", label_noise.rate_row(noise, config.pairing.scorer_name))

    record = run_stage(context, "noise", spec, make)
    return EstimatedNoise(record.output("label_noise"), record.output("noise_rates"))


def _judgments(writer: StageWriter, shard: Shard, judgments: Dataset | None) -> pl.DataFrame:
    if judgments is None:
        return JUDGMENTS.empty().select(JUDGMENT_COLUMNS)
    return writer.read(shard.of_groups(judgments), JUDGMENT_COLUMNS)


def _gold_labels(
    candidates: pl.DataFrame, scores: pl.DataFrame, said: pl.DataFrame, config: PipelineConfig
) -> pl.DataFrame:
    """Return the labels of the shard's planted pairs, by the scores that pairing would use."""
    import polars as pl

    planted = candidates.filter(weights_hash=GOLD_SPLIT)
    # Pairing leaves planted answers out: here they stand for sampled ones.
    sampled = planted.with_columns(weights_hash=pl.lit("planted"))
    scored = pairing.taking_part(sampled, scores, config.pairing, said)
    return noise_evidence.gold_labels(planted, scored, config.pairing.scorer_name)


def _sentence(row: dict[str, float | str | None]) -> str:
    if row["rate"] is None:
        return f"label noise: {row['note']}"
    return (
        f"label noise {row['rate']:.1%} [{row['low']:.1%}, {row['high']:.1%}] "
        f"({row['method']}: {row['note']})"
    )


def known_smoothing(
    workspace: Workspace,
    training: DPOTrainingConfig,
    noise: EstimatedNoise | None,
    pair_ids: Sequence[str],
) -> DPOTrainingConfig:
    """Return ``training`` with a number where it asks for the estimated label smoothing.

    It is the mean P(label wrong) of the pairs trained on: those left after filtering, not all.

    Raises:
        DataError: there is no estimate.
        ConfigError: the loss can't take the number: it is a half or more.
    """
    if training.label_smoothing != "estimated":
        return training
    import polars as pl

    rate = None
    if noise is not None:
        of_pairs = noise.pairs.scan(workspace).filter(pl.col("pair_id").is_in(list(pair_ids)))
        rate = of_pairs.select(pl.col("probability_wrong").mean()).collect().item()
    if rate is None:
        raise DataError(
            "`label_smoothing: estimated` finds no estimate of the label noise",
            expected="gold pairs, votes, two other scorers or a judge asked in both orders",
            where="training.label_smoothing; SELECT note FROM run_noise says what is missing",
            remedy="see docs/noise.md, or give a number",
        )
    values = {**training.model_dump(), "label_smoothing": round(rate, 6)}
    return type(training).checked(values, "training, its estimated label smoothing")
