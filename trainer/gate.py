"""The promotion gate: whether a trained policy may become the next round's generator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import polars as pl
import pydantic

from stages.configuration import Config
from stages.errors import DataError
from stages.tables import CAPABILITIES, GATES
from trainer.evaluation import (
    EVEN,
    EVERY_STRATUM,
    FLIPS,
    KL,
    LENGTH_CONTROLLED,
    READ,
    TEXT_LOSS,
    UNJUDGED,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

LENGTH_METRIC = "completion_tokens"

FORCED = "not met, overruled by force"
"""The criterion that counts what `force` overruled; only there if that is anything."""


class GateConfig(Config):
    """What a round must reach to be promoted; a criterion that is null isn't asked about."""

    minimum_win_rate: Annotated[float, pydantic.Field(ge=0, le=1)] | None = 0.5
    """The lower end of the length-controlled win rate's 95 % interval must be above this."""
    metric: str | None = None
    """A metric that must rise as well, such as `success`."""
    decoding: Literal["sampled", "greedy"] = "sampled"
    """The decoding whose evaluations are judged; the KL divergence is the sampled one always."""
    minimum_lower_bound: float = 0.0
    """The lower end of the 95 % interval of `metric`'s difference must be above this."""
    maximum_length_growth: Annotated[float, pydantic.Field(gt=0)] | None = 1.5
    """Largest ratio of the new mean length in tokens to the former one; 1.2 allows +20 %."""
    maximum_kl_nats: Annotated[float, pydantic.Field(ge=0)] | None = 10.0
    """Largest KL divergence from the policy before, per answer."""
    maximum_judge_flip_rate: Annotated[float, pydantic.Field(ge=0, le=1)] | None = None
    """Largest `judge_flip_rate` of the pairwise judge that compares the policies."""
    maximum_judge_missing_rate: Annotated[float, pydantic.Field(ge=0, le=1)] | None = None
    """Largest share of the answers on which that judge may have said nothing that can be read."""
    maximum_stratum_drop: Annotated[float, pydantic.Field(ge=0)] | None = None
    """By how much `metric` (without one the win rate, from 0.5) may fall in any stratum."""
    maximum_text_loss_growth_nats: Annotated[float, pydantic.Field(ge=0)] | None = None
    """By how much the mean loss per token on `evaluation.texts` may grow; 0.1: perplexity +11 %."""
    capability_tolerances: dict[str, Annotated[float, pydantic.Field(ge=0)]] = pydantic.Field(
        default={}
    )
    """By how much each metric of a capability may be worse, by the name that it has on the card
    (`evaluation.card`); the card marks a regression beyond it."""
    force: bool = False
    """Promote whatever the criteria say; what was overruled is recorded."""


class Criterion(NamedTuple):
    """One question of the gate."""

    name: str
    value: float
    limit: float
    above: bool
    """Whether the value must be above the limit; else at most as high."""

    @property
    def passed(self) -> bool:
        """Whether it is met; by a value that is not a number it never is."""
        return self.value > self.limit if self.above else self.value <= self.limit


def judge_gate(
    evaluations: pl.DataFrame, config: GateConfig, card: pl.DataFrame | None = None
) -> tuple[pl.DataFrame, bool]:
    """Return the GATES rows (without round_id) and whether the policy is promoted.

    ``evaluations`` are the rows of `evaluation.evaluations`, ``card`` those of
    `capabilities.capabilities`. A policy is promoted when every criterion passed, or by force.

    Raises:
        DataError: an evaluation or a capability that a criterion needs is not there.
    """
    criteria = list(_criteria(evaluations, config))
    if config.capability_tolerances:
        criteria += _capabilities(CAPABILITIES.empty() if card is None else card, config)
    failed = sum(not criterion.passed for criterion in criteria)
    if failed and config.force:
        criteria.append(Criterion(FORCED, failed, 0, above=False))
    rows = [
        {"criterion": c.name, "value": c.value, "limit": c.limit, "passed": c.passed}
        for c in criteria
    ]
    schema = {name: dtype for name, dtype in GATES.empty().schema.items() if name != "round_id"}
    return pl.DataFrame(rows, schema=schema), not failed or config.force


def _criteria(evaluations: pl.DataFrame, config: GateConfig) -> Iterator[Criterion]:
    decoding = config.decoding
    if config.minimum_win_rate is not None:
        low = EVEN + _whole(evaluations, LENGTH_CONTROLLED, decoding)["low"]
        name = f"{LENGTH_CONTROLLED}/{decoding} lower bound"
        yield Criterion(name, low, config.minimum_win_rate, above=True)
    if config.metric is not None:
        low = _whole(evaluations, config.metric, decoding)["low"]
        name = f"{config.metric}/{decoding} lower bound"
        yield Criterion(name, low, config.minimum_lower_bound, above=True)
    if config.maximum_length_growth is not None:
        row = _whole(evaluations, LENGTH_METRIC, decoding)
        growth = row["after"] / row["before"] if row["before"] else float("inf")
        name = f"{LENGTH_METRIC}/{decoding} growth"
        yield Criterion(name, growth, config.maximum_length_growth, above=False)
    if config.maximum_kl_nats is not None:
        divergence = _whole(evaluations, KL, "sampled")["after"]
        yield Criterion(f"{KL}/sampled", divergence, config.maximum_kl_nats, above=False)
    if config.maximum_text_loss_growth_nats is not None:
        growth = _whole(evaluations, TEXT_LOSS, READ)["difference"]
        name = f"{TEXT_LOSS} growth"
        yield Criterion(name, growth, config.maximum_text_loss_growth_nats, above=False)
    if config.maximum_judge_flip_rate is not None:
        rate = _flip_rate(evaluations, decoding)
        yield Criterion(f"{FLIPS}/{decoding}", rate, config.maximum_judge_flip_rate, above=False)
    if config.maximum_judge_missing_rate is not None:
        rate = _whole(evaluations, UNJUDGED, decoding)["after"]
        limit = config.maximum_judge_missing_rate
        yield Criterion(f"{UNJUDGED}/{decoding}", rate, limit, above=False)
    if config.maximum_stratum_drop is not None:
        metric = config.metric or LENGTH_CONTROLLED
        strata = evaluations.filter(pl.col("stratum") != EVERY_STRATUM, metric=metric)
        strata = strata.filter(decoding=decoding).sort("stratum")
        for stratum, difference in strata.select("stratum", "difference").iter_rows():
            name = f"{metric}/{decoding} drop in {stratum}"
            # + 0.0 turns -0.0 into 0.0
            yield Criterion(name, -difference + 0.0, config.maximum_stratum_drop, above=False)


def _capabilities(card: pl.DataFrame, config: GateConfig) -> Iterator[Criterion]:
    """Yield how much worse each metric of the named capabilities got."""
    compared = card.filter(stratum=EVERY_STRATUM).drop_nulls("difference")
    for name, tolerance in config.capability_tolerances.items():
        own = compared.filter(capability=name)
        if own.is_empty():
            known = ", ".join(sorted(compared["capability"].unique()))
            raise DataError(
                f"the gate found no capability {name!r} of both policies on the card",
                expected=f"one of those compared: {known or 'none'}",
                where="gate.capability_tolerances",
                remedy="put it on the card (`evaluation.card`), or take its tolerance away",
            )
        columns = ("capability", "metric", "difference", "higher_is_better")
        for capability, metric, difference, better in own.select(columns).iter_rows():
            drop = -difference if better else difference
            yield Criterion(f"{capability}/{metric} drop", drop + 0.0, tolerance, above=False)


def _flip_rate(evaluations: pl.DataFrame, decoding: str) -> float:
    asked = not evaluations.filter(metric=FLIPS, decoding=decoding).is_empty()
    # Answers that are the same word for word have a verdict, and nobody was asked about them.
    if not asked and _whole(evaluations, UNJUDGED, decoding)["after"] == 0:
        return 0.0
    return _whole(evaluations, FLIPS, decoding)["after"]


def _whole(evaluations: pl.DataFrame, metric: str, decoding: str) -> dict[str, float]:
    """Return the evaluation of a metric over all strata."""
    rows = evaluations.filter(metric=metric, decoding=decoding, stratum=EVERY_STRATUM)
    if rows.height != 1:
        known = ", ".join(sorted(evaluations["metric"].unique()))
        raise DataError(
            f"the gate found {rows.height} evaluations of {metric}/{decoding} over all strata",
            expected=f"exactly one; the metrics are {known or 'none'}",
            remedy="evaluate the metric and decoding that the gate names, or name others; a limit "
            "that is null asks for nothing",
        )
    return rows.row(0, named=True)
