"""How far a run's scorers can be trusted, measured on what they said and stopped at limits."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

import polars as pl
import pydantic

from stages.configuration import Config
from stages.errors import DataError, ValidationError
from stages.scorer_agreement import cohen_kappa, krippendorff_alpha, places_in_prompt
from stages.tables import GOLD_SPLIT, SCORER_HEALTH

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

VERSION = 1

NEIGHBOURS = 15
"""Others of its prompt that a candidate is compared with at most: up to 16 meet all the others."""

COLUMNS = {
    "prompts": ["prompt_id", "split"],
    "candidates": [
        "candidate_id",
        "prompt_id",
        "sample_index",
        "model",
        "finish_reason",
        "completion_tokens",
    ],
    "judgments": [
        "candidate_id",
        "other_candidate_id",
        "order",
        "scorer",
        "scorer_model",
        "score",
        "flag",
        "prompt_tokens",
        "completion_tokens",
        "cost",
    ],
    "scores": ["candidate_id", "prompt_id", "scorer", "score"],
}
"""What is read of each table."""

Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Signed = Annotated[float, pydantic.Field(ge=-1, le=1)]


class HealthConfig(Config):
    """What a scorer must keep to, or the run stops before pairing. Null: measured, no limit."""

    maximum_missing_rate: Share | None = None
    """Of its judgments on candidates that have a completion. 1: nor does a judge stop the run none
    of whose first answers can be read."""
    maximum_tie_rate: Share | None = None
    """Of its verdicts on two candidates; of a pointwise scorer, candidate pairs scored equal."""
    maximum_flip_rate: Share | None = None
    """Pairwise: of the pairs asked in both orders, those where the orders disagree."""
    maximum_longer_wins_rate: Share | None = None
    """Of its decided candidate pairs, those where the one with more tokens wins."""
    maximum_self_preference: Signed | None = None
    """Its own model's share of wins less the others', where the two meet."""
    minimum_gold_accuracy: Share | None = None
    """Of the planted gold pairs that it scored, those it gets right; needs `prompts.gold`."""
    minimum_agreement: Signed | None = None
    """Krippendorff's alpha between every two scorers, on the order of a prompt's candidates."""

    @property
    def all_may_miss(self) -> bool:
        """Whether it is allowed that every judgment of a scorer is missing."""
        return self.maximum_missing_rate == 1


class _Measure(NamedTuple):
    """What is measured: its limit in the configuration, and what helps when it is broken."""

    limit: str | None = None
    remedy: str = ""


MEASURES: dict[str, _Measure] = {
    "missing_rate": _Measure(
        "maximum_missing_rate",
        "see `error` and `raw` of its judgments: a longer answer limit or a simpler rubric",
    ),
    "tie_rate": _Measure("maximum_tie_rate", "a finer scale, or a scorer that tells more apart"),
    "flip_rate": _Measure(
        "maximum_flip_rate", "a stronger judge: this one goes by the place, not the answer"
    ),
    "longer_wins_rate": _Measure(
        "maximum_longer_wins_rate",
        "a rubric that does not pay for length, or a lower `filters.maximum_length_ratio`",
    ),
    "self_preference": _Measure(
        "maximum_self_preference", "a judge of another model family, or a jury"
    ),
    "gold_accuracy": _Measure(
        "minimum_gold_accuracy",
        "another judge or rubric; where nothing is measured, `prompts.gold`",
    ),
    "agreement_alpha": _Measure(
        "minimum_agreement", "find out on prompts where they differ which of the two is right"
    ),
    "agreement_kappa": _Measure(),
    "cost": _Measure(),
    "tokens": _Measure(),
}
"""Agreements are followed by `:OTHER`, the second of the two scorers by name."""

_MINIMA = [name for name, m in MEASURES.items() if (m.limit or "").startswith("minimum")]
_AGREEMENTS = ("agreement_alpha", "agreement_kappa")


_Measured: TypeAlias = tuple[str, str, float | None, int]
"""Scorer, measure, its value and on how many it was measured."""


class _Compared(NamedTuple):
    """Candidates of real prompts and pairs of them, with a column per scorer, by its number."""

    scorers: Sequence[str]
    candidates: pl.DataFrame
    """prompt_id and `score N`."""
    pairs: pl.DataFrame
    """`sign N` of the difference of scores, `longer` of lengths, `own N`: 1, 0 or -1."""


def scorer_health(
    judgments: pl.DataFrame,
    scores: pl.DataFrame,
    candidates: pl.DataFrame,
    prompts: pl.DataFrame,
    config: HealthConfig,
) -> pl.DataFrame:
    """Return the `scorer_health` table: a row per scorer and measure, then per two scorers.

    Planted gold answers count in what a scorer did (missing, flips, cost, tokens) and in its
    accuracy, and nowhere else: their damage is no preference of the scorer's. A gold pair that it
    did not score in full never becomes a label and is left out; ``missing_rate`` tells of it.

    Args:
        judgments: `COLUMNS` of that table are read, and so below.
        scores: those of juries too.
        candidates: all, gold ones too.
        prompts: theirs.
        config: the limits.
    """
    names = sorted({*scores["scorer"].unique(), *judgments["scorer"].unique()})
    gold = prompts.filter(split=GOLD_SPLIT)
    real = candidates.join(gold, on="prompt_id", how="anti")
    compared = _compared(names, judgments, scores, real)
    measured = pl.concat(
        [
            _missing(judgments, scores, candidates),
            _spent(judgments),
            _flips(judgments),
            _preferences(compared, _pairwise_ties(judgments, real)),
            _gold_accuracy(scores, candidates.join(gold, on="prompt_id", how="semi")),
            _agreement(compared),
        ]
    )
    everything = pl.DataFrame(
        [(name, measure) for name in names for measure in MEASURES if measure not in _AGREEMENTS],
        schema={"scorer": pl.String, "measure": pl.String},
        orient="row",
    )
    absent = everything.join(measured, on=["scorer", "measure"], how="anti")
    unmeasured = _rows([(scorer, measure, None, 0) for scorer, measure in absent.iter_rows()])
    rows = _limited(pl.concat([measured, unmeasured]), config)
    return rows.sort("scorer", "measure").select(SCORER_HEALTH.column_names)


def require_healthy(rows: pl.DataFrame) -> None:
    """Return if every measure with a limit keeps to it.

    Raises:
        ValidationError: names each one that doesn't, and a minimum that nothing was measured for.
    """
    broken = rows.filter(~pl.col("passed")).sort("scorer", "measure")
    kind = pl.col("measure").str.split(":").list.first()
    unmeasured = (
        rows.filter(kind.is_in(_MINIMA), pl.col("limit").is_not_null())
        .filter(pl.col("value").is_null().all().over(kind))
        .sort("scorer", "measure")
    )
    failures = list(pl.concat([broken, unmeasured]).iter_rows(named=True))
    if not failures:
        return
    kinds = dict.fromkeys(row["measure"].split(":")[0] for row in failures)
    remedies = [f"{kind}: {MEASURES[kind].remedy}" for kind in kinds]
    raise ValidationError(
        "; ".join(map(_sentence, failures)),
        expected="every scorer to keep to the limits of `scoring.health`",
        where="stage health; all measures: SELECT * FROM judge_health",
        remedy=f"{'; '.join(remedies)}. Or change the limit: what is judged is not judged again",
    )


def require_every_candidate(
    judgments: pl.DataFrame, candidates: pl.DataFrame, scorers: Iterable[str]
) -> None:
    """Return if each of ``scorers`` has a judgment, if only a missing one, on each candidate.

    Raises:
        DataError: one has none on some; N has changed between two stages.
    """
    about = ["scorer", "candidate_id"]
    others = judgments.drop_nulls("other_candidate_id").select(
        "scorer", candidate_id="other_candidate_id"
    )
    judged = pl.concat([judgments.select(about), others]).unique()
    for scorer in scorers:
        absent = candidates.join(judged.filter(scorer=scorer), on="candidate_id", how="anti")
        if absent.height:
            raise DataError(
                f"scorer {scorer!r} has no judgment on {absent.height} of {candidates.height} "
                "candidates",
                expected="one on each, if only to say that its score is missing",
                where=f"stage score, such as {min(absent['candidate_id'])}",
                remedy="delete the judgments of that scorer from the store and start again",
            )


def _sentence(row: dict[str, Any]) -> str:
    kind = row["measure"].split(":")[0]
    bound = "minimum" if kind in _MINIMA else "maximum"
    value = "nothing" if row["value"] is None else f"{row['value']:.4g}"
    return (
        f"scorer {row['scorer']!r}: {row['measure']} {value} on {row['count']:,} measured, "
        f"{bound} {row['limit']:g}"
    )


def _limited(measured: pl.DataFrame, config: HealthConfig) -> pl.DataFrame:
    """Return the rows with their limit, and whether they keep to it."""
    limits = {name: getattr(config, m.limit) for name, m in MEASURES.items() if m.limit}
    kind = pl.col("measure").str.split(":").list.first()
    limited = measured.with_columns(
        limit=kind.replace_strict(limits, default=None, return_dtype=pl.Float64)
    )
    value, limit = pl.col("value"), pl.col("limit")
    keeps = pl.when(kind.is_in(_MINIMA)).then(value >= limit).otherwise(value <= limit)
    return limited.with_columns(passed=keeps)


def _rows(measured: Iterable[_Measured]) -> pl.DataFrame:
    schema = {
        name: SCORER_HEALTH.empty().schema[name] for name in ("scorer", "measure", "value", "count")
    }
    return pl.DataFrame(list(measured), schema=schema, orient="row")


def _long(measured: pl.DataFrame, measure: str) -> pl.DataFrame:
    """Return rows from a frame with scorer, value and count."""
    return measured.select(
        "scorer",
        pl.lit(measure).alias("measure"),
        pl.col("value").cast(pl.Float64),
        pl.col("count").cast(pl.Int64),
    )


def _missing(
    judgments: pl.DataFrame, scores: pl.DataFrame, candidates: pl.DataFrame
) -> pl.DataFrame:
    """Return the share of null scores; a jury, which has no judgments, by its `scores`."""
    # Where there is no completion the generator is to blame.
    answered = candidates.filter(pl.col("finish_reason") != "error")
    juries = scores.join(judgments.select("scorer").unique(), on="scorer", how="anti")
    said = pl.concat(
        [frame.select("scorer", "candidate_id", "score") for frame in (judgments, juries)]
    )
    shares = (
        said.join(answered, on="candidate_id", how="semi")
        .group_by("scorer")
        .agg(value=pl.col("score").is_null().mean(), count=pl.len())
    )
    return _long(shares, "missing_rate")


def _spent(judgments: pl.DataFrame) -> pl.DataFrame:
    """Return cost and tokens, null where no judgment tells."""
    tokens = pl.sum_horizontal("prompt_tokens", "completion_tokens", ignore_nulls=True)
    told = pl.any_horizontal(pl.col("prompt_tokens", "completion_tokens").is_not_null())
    found = judgments.with_columns(tokens=pl.when(told).then(tokens))
    sums = [
        found.drop_nulls(name).group_by("scorer").agg(value=pl.col(name).sum(), count=pl.len())
        for name in ("cost", "tokens")
    ]
    return pl.concat([_long(sums[0], "cost"), _long(sums[1], "tokens")])


def _flips(judgments: pl.DataFrame) -> pl.DataFrame:
    """Return the share of doubly asked pairs whose orders disagree, of those with a verdict."""
    asked = judgments.drop_nulls(["other_candidate_id", "score"])
    pairs = asked.group_by("scorer", "candidate_id", "other_candidate_id").agg(
        orders=pl.col("order").n_unique(),
        rows=pl.len(),
        flipped=(pl.col("flag") == "order_disagreement").sum(),
    )
    # Several samples give a pair several doubles of rows.
    doubly = pairs.filter(pl.col("orders") > 1).group_by("scorer")
    rows = pl.col("rows").sum()
    return _long(doubly.agg(value=pl.col("flipped").sum() / rows, count=rows // 2), "flip_rate")


def _pairwise_ties(judgments: pl.DataFrame, real: pl.DataFrame) -> pl.DataFrame:
    """Return scorer, value and count of the ties among pairwise verdicts; flips are ties too."""
    verdicts = judgments.drop_nulls(["other_candidate_id", "score"])
    return (
        verdicts.join(real, on="candidate_id", how="semi")
        .group_by("scorer")
        .agg(value=(pl.col("score") == 0.5).mean(), count=pl.len())  # noqa: PLR2004 - a tie
    )


def _compared(
    names: Sequence[str], judgments: pl.DataFrame, scores: pl.DataFrame, real: pl.DataFrame
) -> _Compared:
    """Return the real candidates and pairs of them.

    Candidates stand in the order of their ids, which are hashes: with many to a prompt, each is
    compared with the next few, and which these are says nothing about them.
    """
    wide = real.select("prompt_id", "candidate_id", "model", "completion_tokens")
    wide = wide.sort("prompt_id", "candidate_id")
    for number, name in enumerate(names):
        of_scorer = scores.filter(scorer=name).select(
            "candidate_id", pl.col("score").alias(f"score {number}")
        )
        wide = wide.join(of_scorer, on="candidate_id", how="left", maintain_order="left")
    known = judgments.drop_nulls("scorer_model").group_by("scorer")
    models = dict(known.agg(pl.col("scorer_model").min()).iter_rows())
    columns = _pair_columns(names, models)
    most = wide.group_by("prompt_id").len().select(pl.col("len").max()).item() or 0
    pairs = [
        wide.with_columns(pl.all().shift(-step).name.suffix(" other"))
        .filter(pl.col("prompt_id") == pl.col("prompt_id other"))
        .select(columns)
        for step in range(1, max(2, min(most, NEIGHBOURS + 1)))
    ]
    return _Compared(names, wide, pl.concat(pairs))


def _pair_columns(names: Sequence[str], models: dict[str, str]) -> list[pl.Expr]:
    def sign(column: str) -> pl.Expr:
        difference = pl.col(column).cast(pl.Float64) - pl.col(f"{column} other")
        return difference.sign().cast(pl.Int8)

    columns = [sign("completion_tokens").alias("longer")]
    for number, name in enumerate(names):
        model = pl.lit(models.get(name), dtype=pl.String)
        own = (pl.col("model") == model).cast(pl.Int8)
        columns += [
            sign(f"score {number}").alias(f"sign {number}"),
            (own - (pl.col("model other") == model).cast(pl.Int8)).alias(f"own {number}"),
        ]
    return columns


def _preferences(compared: _Compared, pairwise_ties: pl.DataFrame) -> pl.DataFrame:
    """Return what each scorer prefers among the pairs of real candidates."""
    ties = {name: (value, count) for name, value, count in pairwise_ties.iter_rows()}
    found: list[_Measured] = []
    for number, name in enumerate(compared.scorers):
        sign = pl.col(f"sign {number}")
        longer = (sign * pl.col("longer")).replace(0, None)
        own = pl.when(pl.col(f"own {number}") != 0).then(sign * pl.col(f"own {number}"))
        tied, decided, met = sign == 0, longer > 0, own
        values = compared.pairs.select(
            tied=tied.mean(), decided=decided.mean(), met=met.mean(),
            tied_count=tied.count(), decided_count=decided.count(), met_count=met.count(),
        ).row(0, named=True)  # fmt: skip
        tie = ties.get(name, (values["tied"], values["tied_count"]))
        found += [
            (name, "tie_rate", *tie),
            (name, "longer_wins_rate", values["decided"], values["decided_count"]),
            (name, "self_preference", values["met"], values["met_count"]),
        ]
    return _rows(found)


def _gold_accuracy(scores: pl.DataFrame, planted: pl.DataFrame) -> pl.DataFrame:
    """Return the share of fully scored gold pairs whose good answer wins; a tie is half a win."""
    facts = planted.select("candidate_id", "sample_index")
    scored = scores.join(facts, on="candidate_id").group_by("scorer", "prompt_id")
    score, place = pl.col("score"), pl.col("sample_index")
    pairs = scored.agg(
        good=score.filter(place == 0).first(), damaged=score.filter(place == 1).first()
    ).drop_nulls()
    won = ((pl.col("good") - pl.col("damaged")).sign() + 1) / 2
    return _long(pairs.group_by("scorer").agg(value=won.mean(), count=pl.len()), "gold_accuracy")


def _agreement(compared: _Compared) -> pl.DataFrame:
    """Return alpha and kappa of every two scorers, on what both scored."""
    found: list[_Measured] = []
    for (first, name), (second, other) in combinations(enumerate(compared.scorers), 2):
        signs = compared.pairs.select(x=f"sign {first}", y=f"sign {second}").drop_nulls()
        both = compared.candidates.select(
            "prompt_id", x=f"score {first}", y=f"score {second}"
        ).drop_nulls()
        places = places_in_prompt(both)
        found += [
            (name, f"agreement_alpha:{other}", krippendorff_alpha(places), places.height),
            (name, f"agreement_kappa:{other}", cohen_kappa(signs), signs.height),
        ]
    return _rows(found)
