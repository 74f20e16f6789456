"""Preference pairs from scores, as the `pairs` table. docs/pairing.md compares the strategies."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import polars as pl
import pydantic

from stages.bradley_terry import strengths
from stages.configuration import Config
from stages.content_ids import content_ids
from stages.filter_rulings import ROUNDING
from stages.references import REFERENCE
from stages.scorer_mix import mix_name, mixed_scores
from stages.tables import EDITED, EDITED_STRATEGY, GOLD_SPLIT, PAIRS

VERSION = 2

STRATEGIES_WITH = {
    "quantile": ("best_vs_quantile",),
    "sigmas": ("best_vs_mean_minus_2_sigma",),
    "minimum_margin": ("all_pairs_above_margin",),
    "maximum_pairs_per_prompt": ("max_margin_k", "all_pairs_above_margin", "pairwise_winners"),
}
"""The strategies that read a parameter; the others refuse it."""


class PairingConfig(Config):
    """Which candidates of a prompt become chosen and rejected: docs/pairing.md."""

    strategy: Literal[
        "best_vs_worst",
        "best_vs_random",
        "best_vs_quantile",
        "best_vs_mean_minus_2_sigma",
        "max_margin_k",
        "all_pairs_above_margin",
        "pairwise_winners",
        "reference_over_sampled",
        "edited_over_chosen_over_rejected",
    ] = "best_vs_worst"
    """`…_vs_…` and `reference_…` make one pair a prompt, `edited_…` up to three; the others, the
    widest."""
    scorer: str = "rules"
    """Whose scores decide; with `weights`, those that evaluation compares before and after."""
    weights: dict[str, pydantic.PositiveFloat] = pydantic.Field(default={})
    """Scorer to weight: their weighted mean in standard deviations within the prompt decides."""
    agreeing_scorers: tuple[str, ...] = ()
    """Each of these must score the chosen higher too; a tie or a missing score makes no pair."""
    seed: int = 0
    """Decides among candidates that the strategy holds equal."""
    quantile: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.25
    """Of the prompt's scores: the rejected is the candidate nearest to it (0 is the worst)."""
    sigmas: Annotated[float, pydantic.Field(ge=0)] = 2.0
    """The rejected is nearest to the mean less so many standard deviations of the prompt's."""
    minimum_margin: Annotated[float, pydantic.Field(ge=0)] = 0.0
    """Of every pair, in the scorer's unit."""
    maximum_pairs_per_prompt: pydantic.PositiveInt = 4
    """The pairs with the widest margins are made."""

    @pydantic.model_validator(mode="after")
    def _no_idle_parameters(self) -> Self:
        for name, strategies in STRATEGIES_WITH.items():
            changed = getattr(self, name) != type(self).model_fields[name].default
            if changed and self.strategy not in strategies:
                raise ValueError(
                    f"`{name}` decides nothing with the strategy {self.strategy!r}, "
                    f"only with {' and '.join(strategies)}"
                )
        return self

    @pydantic.model_validator(mode="after")
    def _others_agree(self) -> Self:
        deciding = self.deciding_scorers
        distinct = {*deciding, *self.agreeing_scorers}
        if len(distinct) < len(deciding) + len(self.agreeing_scorers):
            raise ValueError(
                "`agreeing_scorers` are different scorers other than "
                f"{'`weights`' if self.weights else '`scorer`'} {', '.join(deciding)!r}"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _a_mix_of_scores(self) -> Self:
        if len(self.weights) == 1:
            raise ValueError("`weights` mix two scorers or more; one alone is `scorer`")
        if self.weights and self.needs_judgments:
            raise ValueError("`pairwise_winners` reads one scorer's verdicts: it has no `weights`")
        return self

    @property
    def deciding_scorers(self) -> tuple[str, ...]:
        """The scorers whose scores or verdicts decide."""
        return tuple(sorted(self.weights)) or (self.scorer,)

    @property
    def scorer_name(self) -> str:
        """What the `scorer` column of the pairs says."""
        return mix_name(self.weights) if self.weights else self.scorer

    def by_scores_of(self, name: str) -> Self:
        """Return the same for one scorer's scores; strategies that need more become the default."""
        needs_more = self.needs_judgments or self.needs_references or self.needs_edits
        strategy = "best_vs_worst" if needs_more else self.strategy
        return self.model_copy(update={"scorer": name, "weights": {}, "strategy": strategy})

    @property
    def needs_judgments(self) -> bool:
        """Whether the verdicts themselves are asked for, beside the scores."""
        return self.strategy == "pairwise_winners"

    @property
    def makes_widest(self) -> bool:
        """Whether the pairs with the widest margins are made, several a prompt."""
        return self.strategy in STRATEGIES_WITH["maximum_pairs_per_prompt"]

    @property
    def needs_references(self) -> bool:
        """Whether the prompts' reference answers must be candidates."""
        return self.strategy == "reference_over_sampled"

    @property
    def needs_edits(self) -> bool:
        """Whether answers must have been edited."""
        return self.strategy == EDITED_STRATEGY

    @property
    def before_edits(self) -> Self:
        """What chooses the answer to edit, and the one that both it and the edit are above."""
        return self.model_copy(update={"strategy": "best_vs_worst"})


def pair(
    candidates: pl.DataFrame,
    scores: pl.DataFrame,
    config: PairingConfig,
    judgments: pl.DataFrame | None = None,
    edits: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Return the pairs that the strategy makes of each prompt's candidates.

    Candidates without a score take no part. Equal scores never make a pair. Among equals a hash
    of seed and candidate id decides, so neither row order nor length has a say. The strategy sees
    the deciding scorers alone; pairs that the agreeing ones do not bear out are then left out.
    ``judgments`` are asked for by ``config.needs_judgments``, ``edits`` by ``needs_edits``.
    """
    scored = taking_part(candidates, scores, config, judgments).filter(pl.col("score").is_finite())
    scored = _with_draws(scored, config)
    if config.needs_references:
        pairs = _reference_over_one(scored)
    elif config.needs_edits:
        pairs = _edited_over_both(scored, edits, config)
    elif config.makes_widest:
        pairs = _widest(scored, config)
    else:
        pairs = _best_over_one(scored, config)
    return _as_pairs(_agreed(pairs, scores, config), config)


def taking_part(
    candidates: pl.DataFrame,
    scores: pl.DataFrame,
    config: PairingConfig,
    judgments: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Return the candidates that may be in a pair, also those whose score is missing.

    Columns: candidate_id, prompt_id, score, completion_tokens, reference and edited (it is no
    sampled one). Planted answers measure the scorer; they are no training data. References and
    edits are left out unless the strategy is about them: the others compare what the policy may
    say.
    """
    facts = candidates.filter(pl.col("weights_hash") != GOLD_SPLIT).select(
        "candidate_id",
        "completion_tokens",
        reference=pl.col("weights_hash") == REFERENCE,
        edited=pl.col("weights_hash") == EDITED,
    )
    if not config.needs_references:
        facts = facts.filter(~pl.col("reference"))
    if not config.needs_edits:
        facts = facts.filter(~pl.col("edited"))
    judged = scores.filter(pl.col("scorer").is_in(config.deciding_scorers)).join(
        facts.select("candidate_id"), on="candidate_id", how="semi"
    )
    if config.weights:
        everyone = judged.select("candidate_id", "prompt_id").unique()
        mixed = mixed_scores(judged, config.weights).drop("prompt_id")
        judged = everyone.join(mixed, on="candidate_id", how="left")
    elif config.needs_judgments:
        verdicts = _pairwise_verdicts(judgments, judged, config.scorer)
        judged = judged.drop("score").join(
            strengths(verdicts).rename({"strength": "score"}), on="candidate_id", how="left"
        )
    return judged.select("candidate_id", "prompt_id", "score").join(facts, on="candidate_id")


def _pairwise_verdicts(
    judgments: pl.DataFrame | None, judged: pl.DataFrame, scorer: str
) -> pl.DataFrame:
    """Return the scorer's verdicts on two of the candidates in ``judged``, with their prompt."""
    if judgments is None:
        raise TypeError("the strategy pairwise_winners is given no judgments")
    ids = judged.select("candidate_id", "prompt_id")
    said = judgments.filter(pl.col("scorer") == scorer, pl.col("score").is_finite())
    return said.join(ids, on="candidate_id").join(
        ids.select("candidate_id"),
        left_on="other_candidate_id",
        right_on="candidate_id",
        how="semi",
    )


def _with_draws(scored: pl.DataFrame, config: PairingConfig) -> pl.DataFrame:
    """Return ``scored`` with `draw_id`, by which equals are told apart: null where none is equal.

    A hash for each of a million rows takes longer than all the rest.
    """
    by_score = config.strategy == "best_vs_worst" or config.needs_edits or config.makes_widest
    equal = pl.struct("prompt_id", "score").is_duplicated() if by_score else pl.lit(value=True)
    drawn = scored.filter(equal).select("candidate_id", seed=pl.lit(str(config.seed)))
    draws = drawn.select("candidate_id").with_columns(
        content_ids(drawn, "draw", ["seed", "candidate_id"])
    )
    return scored.join(draws, on="candidate_id", how="left")


def _reference_over_one(scored: pl.DataFrame) -> pl.DataFrame:
    """Return one pair per prompt: its reference and any one sampled answer scored below it."""
    references = scored.filter("reference")
    sampled = scored.filter(~pl.col("reference")).join(
        references.select("prompt_id", reference_score="score"), on="prompt_id"
    )
    below = sampled.filter(pl.col("score") < pl.col("reference_score"))
    return _joined(references, _first_per_prompt(below.sort("draw_id")))


def _edited_over_both(
    scored: pl.DataFrame, edits: pl.DataFrame | None, config: PairingConfig
) -> pl.DataFrame:
    """Return edited > chosen, edited > rejected and chosen > rejected of each edit.

    The editor's word is the label of the first two, whatever the scores; of an edit that cannot be
    used there is the third alone. Prompts of which nothing was edited have their best over worst.
    """
    if edits is None:
        raise TypeError("the strategy edited_over_chosen_over_rejected is given no edits")
    sampled = scored.filter(~pl.col("edited"))
    untouched = _best_over_one(sampled.join(edits, on="prompt_id", how="anti"), config)
    edit, chosen, rejected = "candidate_id", "edited_candidate_id", "rejected_candidate_id"
    usable = edits.filter(pl.col("reason").is_null())
    pairs = pl.concat(
        of.select(
            "prompt_id",
            chosen_candidate_id=above,
            rejected_candidate_id=below,
            by_editor=pl.lit(above == edit),
        )
        for of, above, below in (
            (edits, chosen, rejected),
            (usable, edit, chosen),
            (usable, edit, rejected),
        )
    )
    for role in ("chosen", "rejected"):
        pairs = pairs.join(_as_role(scored, role), on=["prompt_id", f"{role}_candidate_id"])
    pairs = pairs.with_columns(margin=pl.col("chosen_score") - pl.col("rejected_score"))
    labelled = pairs.filter(pl.col("by_editor") | (pl.col("margin") > 0))
    return pl.concat([untouched, labelled.select(untouched.columns)])


def _best_over_one(scored: pl.DataFrame, config: PairingConfig) -> pl.DataFrame:
    """Return one pair per prompt: the best and, of those scored below it, the one wanted most."""
    best = _first_per_prompt(scored.sort("score", "draw_id", descending=[True, False]))
    others = scored.with_columns(distance=_distance(config)).join(
        best.select("prompt_id", best_score="score"), on="prompt_id"
    )
    below = others.filter(pl.col("score") < pl.col("best_score"))
    return _joined(best, _first_per_prompt(below.sort("distance", "draw_id")))


def _first_per_prompt(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.unique("prompt_id", keep="first", maintain_order=True)


def _distance(config: PairingConfig) -> pl.Expr:
    """Return how far a candidate is from the rejected that the strategy looks for."""
    # Sorted: a sum of floats depends on their order.
    score, of_prompt = pl.col("score"), pl.col("score").sort()
    if config.strategy == "best_vs_random":
        return pl.lit(0)
    if config.strategy == "best_vs_quantile":
        target = of_prompt.quantile(config.quantile, "linear")
    elif config.strategy == "best_vs_mean_minus_2_sigma":
        target = of_prompt.mean() - config.sigmas * of_prompt.std(ddof=0)
    else:
        return score
    return (score - target.over("prompt_id")).abs()


def _widest(scored: pl.DataFrame, config: PairingConfig) -> pl.DataFrame:
    """Return the k pairs with the widest margins of each prompt, k the maximum per prompt.

    With places from 1, of the chosen from the top and of the rejected from the bottom, a * b pairs
    are as wide as that of places a and b or wider, itself counted: each chosen at or above a over
    each rejected at or below b. So only pairs with a * b <= k can be among the k widest, and
    nobody looks at the other n^2. Of equal margins the lower sum of places goes first, then the
    better chosen; both agree with that bound.
    """
    most = config.maximum_pairs_per_prompt

    def placed(name: str, *, from_top: bool) -> pl.DataFrame:
        ordered = scored.sort("score", "draw_id", descending=[from_top, False])
        place = pl.int_range(1, pl.len() + 1).over("prompt_id")
        return ordered.with_columns(place.alias(name)).filter(pl.col(name) <= most)

    pairs = _joined(placed("top", from_top=True), placed("bottom", from_top=False))
    possible = pairs.filter(
        pl.col("top") * pl.col("bottom") <= most,
        pl.col("margin") > 0,
        pl.col("margin") >= config.minimum_margin - ROUNDING,
    )
    places = pl.col("top") + pl.col("bottom")
    ordered = possible.sort("margin", places, "top", descending=[True, False, False])
    return ordered.filter(pl.int_range(pl.len()).over("prompt_id") < most)


def _joined(chosen: pl.DataFrame, rejected: pl.DataFrame) -> pl.DataFrame:
    """Return every chosen row beside every rejected one of its prompt, with the margin."""
    pairs = _as_role(chosen, "chosen").join(_as_role(rejected, "rejected"), on="prompt_id")
    return pairs.with_columns(margin=pl.col("chosen_score") - pl.col("rejected_score"))


def _as_role(rows: pl.DataFrame, role: str) -> pl.DataFrame:
    """Return the prompt and, named for the role, id, score and tokens; and what place it has."""
    columns = {"candidate_id": "candidate_id", "score": "score", "completion_tokens": "tokens"}
    places = [name for name in ("top", "bottom") if name in rows.columns]
    renamed = [pl.col(old).alias(f"{role}_{new}") for old, new in columns.items()]
    return rows.select("prompt_id", *renamed, *places)


def _agreed(pairs: pl.DataFrame, scores: pl.DataFrame, config: PairingConfig) -> pl.DataFrame:
    """Return the pairs whose chosen every agreeing scorer scores strictly higher."""
    for name in config.agreeing_scorers:
        said = scores.filter(pl.col("scorer") == name, pl.col("score").is_finite())
        for role in ("chosen", "rejected"):
            of_role = said.select(
                pl.col("candidate_id").alias(f"{role}_candidate_id"),
                pl.col("score").alias(f"{role}_said"),
            )
            pairs = pairs.join(of_role, on=f"{role}_candidate_id")
        pairs = pairs.filter(pl.col("chosen_said") > pl.col("rejected_said"))
        pairs = pairs.drop("chosen_said", "rejected_said")
    return pairs


def _as_pairs(pairs: pl.DataFrame, config: PairingConfig) -> pl.DataFrame:
    """Return rows of the `pairs` table, sorted by id."""
    pairs = pairs.with_columns(
        strategy=pl.lit(config.strategy),
        scorer=pl.lit(config.scorer_name),
    )
    identity = ["chosen_candidate_id", "rejected_candidate_id", "strategy", "scorer"]
    pairs = pairs.with_columns(content_ids(pairs, "pair", identity))
    return pairs.sort("pair_id").select(PAIRS.column_names)
