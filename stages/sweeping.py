"""How datasets of pairs compare that were made of the same judgments: `pair_measures`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from stages.pairing import PairingConfig, pair
from stages.tables import EDITS, GOLD_SPLIT, PAIR_MEASURES

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION = 1

TEXTS_COMPARED = 1000
"""Chosen texts whose bigrams are counted: of more texts a smaller share is distinct."""

COUNTS = ("proposed", "kept", "prompts")
"""Measures that are whole numbers."""

AGREEMENT = "agreement:"
"""Starts a measure's name; the scorer's follows."""


class PairFacts(NamedTuple):
    """What is compared of one shard's pairs."""

    proposed: int
    kept: pl.DataFrame
    """prompt_id, margin, gap (tokens) and text (the hash of the chosen one)."""
    agreement: pl.DataFrame
    """Per scorer: of kept pairs, how many it scores `higher` and how many `lower`."""
    texts: pl.DataFrame
    """pair_id and chosen, of the `TEXTS_COMPARED` kept pairs with the smallest ids."""
    gold: pl.DataFrame
    """right: whether the good one of two planted answers is chosen."""


def pair_facts(
    proposed: int,
    kept: pl.DataFrame,
    candidates: pl.DataFrame,
    scores: pl.DataFrame,
    gold: pl.DataFrame,
) -> PairFacts:
    """Return what is compared of the ``kept`` ones of so many ``proposed`` pairs."""
    completions = candidates.select(chosen_candidate_id="candidate_id", chosen="completion")
    with_texts = kept.join(completions, on="chosen_candidate_id")
    numbers = with_texts.select(
        "prompt_id",
        "margin",
        gap=pl.col("chosen_tokens") - pl.col("rejected_tokens"),
        text=pl.col("chosen").hash(),
    )
    sample = with_texts.select("pair_id", "chosen").bottom_k(TEXTS_COMPARED, by="pair_id")
    return PairFacts(proposed, numbers, _agreement(kept, scores), sample, gold)


def gold_facts(
    candidates: pl.DataFrame,
    scores: pl.DataFrame,
    config: PairingConfig,
    judgments: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Return `right` of each pair that the strategy makes of planted answers, if it may."""
    planted = candidates.filter(pl.col("weights_hash") == GOLD_SPLIT)
    # Under another name, or pairing leaves them out.
    sampled = planted.with_columns(weights_hash=pl.lit("sampled"))
    pairs = pair(sampled, scores, config, judgments, EDITS.empty())  # of these none is edited
    places = planted.select(chosen_candidate_id="candidate_id", place="sample_index")
    return pairs.join(places, on="chosen_candidate_id").select(right=pl.col("place") == 0)


def pair_measures(shards: Sequence[PairFacts], prompts: int) -> pl.DataFrame:
    """Return the `pair_measures` table of a dataset: a row per measure.

    Args:
        shards: its pairs'.
        prompts: how many prompts there are to make pairs of.
    """
    kept = pl.concat([shard.kept for shard in shards])
    gold = pl.concat([shard.gold for shard in shards])["right"]
    covered, gap = kept["prompt_id"].n_unique(), kept["gap"].cast(pl.Float64)
    unequal = kept.filter(pl.col("gap") != 0)["gap"] > 0
    bigrams = _bigrams(shards)
    proposed = sum(shard.proposed for shard in shards)
    rows: list[tuple[str, float | None, int]] = [
        ("proposed", proposed, proposed),
        ("kept", kept.height, proposed),
        ("prompts", covered, prompts),
        ("mean_margin", _mean(kept["margin"]), kept.height),
        ("median_margin", kept["margin"].median(), kept.height),  # type: ignore[list-item]
        ("mean_length_gap", _mean(gap), kept.height),
        ("longer_chosen_rate", _mean(unequal), len(unequal)),
        ("gold_accuracy", _mean(gold), len(gold)),
        ("distinct_chosen_rate", _share(kept["text"].n_unique(), kept.height), kept.height),
        ("distinct_bigram_rate", _share(bigrams.n_unique(), bigrams.height), bigrams.height),
        *_agreements(shards),
    ]
    schema = PAIR_MEASURES.empty().schema
    return pl.DataFrame(rows, schema=schema, orient="row").sort("measure")


def _agreement(kept: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    said = scores.filter(pl.col("score").is_finite()).select("candidate_id", "scorer", "score")
    of_chosen = said.rename({"candidate_id": "chosen_candidate_id", "score": "chosen"})
    of_rejected = said.rename({"candidate_id": "rejected_candidate_id", "score": "rejected"})
    both = (
        kept.select("chosen_candidate_id", "rejected_candidate_id")
        .join(of_chosen, on="chosen_candidate_id")
        .join(of_rejected, on=["rejected_candidate_id", "scorer"])
    )
    chosen, rejected = pl.col("chosen"), pl.col("rejected")
    return both.group_by("scorer").agg(
        higher=(chosen > rejected).sum(), lower=(chosen < rejected).sum()
    )


def _agreements(shards: Sequence[PairFacts]) -> list[tuple[str, float | None, int]]:
    """Return per scorer the share of kept pairs it tells apart in which the chosen wins."""
    together = pl.concat([shard.agreement for shard in shards])
    sums = together.group_by("scorer").agg(pl.col("higher", "lower").sum().cast(pl.Int64))
    return [
        (AGREEMENT + scorer, _share(higher, higher + lower), higher + lower)
        for scorer, higher, lower in sums.iter_rows()
    ]


def _bigrams(shards: Sequence[PairFacts]) -> pl.DataFrame:
    """Return all neighbouring words of the texts compared, a row each (arXiv 1510.03055).

    The pairs with the smallest ids are as good as drawn at random: an id is a hash.
    """
    sample = pl.concat([shard.texts for shard in shards]).bottom_k(TEXTS_COMPARED, by="pair_id")
    words = sample.select("pair_id", word=pl.col("chosen").str.extract_all(r"\S+")).explode("word")
    following = pl.col("word").shift(-1).over("pair_id")
    return words.select("word", following=following).drop_nulls()


def _mean(values: pl.Series) -> float | None:
    # Sorted: a sum of floats depends on their order.
    return values.sort().mean()  # type: ignore[return-value]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
