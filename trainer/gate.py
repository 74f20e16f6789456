"""The promotion gate: whether a trained policy may become the next round's generator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import polars as pl
import pydantic

from stages.configuration import Config
from stages.errors import DataError
from stages.tables import GATES

if TYPE_CHECKING:
    from collections.abc import Iterator

LENGTH_METRIC = "completion_tokens"


class GateConfig(Config):
    """What a round must reach to be promoted."""

    metric: str = "success"
    """The evaluation metric that must rise."""
    decoding: Literal["sampled", "greedy"] = "sampled"
    """The decoding whose evaluations are judged."""
    minimum_lower_bound: float = 0.0
    """The lower end of the 95 % interval of the metric's difference must be above this."""
    maximum_length_growth: Annotated[float, pydantic.Field(gt=0)] | None = None
    """Largest ratio of the new mean length in tokens to the former one; 1.2 allows +20 %."""
    maximum_stratum_drop: Annotated[float, pydantic.Field(ge=0)] | None = None
    """The metric's mean may fall by at most this much in any stratum."""


def judge_gate(evaluations: pl.DataFrame, config: GateConfig) -> tuple[pl.DataFrame, bool]:
    """Return the GATES rows (without round_id) and whether every criterion passed.

    ``evaluations`` are the rows of `evaluation.compare`. A measure that is not a number passes
    nothing.

    Raises:
        DataError: an evaluation that a criterion needs is not there.
    """
    criteria = [
        {
            "criterion": criterion,
            "value": value,
            "limit": limit,
            "passed": value > limit if strict else value <= limit,
        }
        for criterion, value, limit, strict in _criteria(evaluations, config)
    ]
    schema = {name: dtype for name, dtype in GATES.empty().schema.items() if name != "round_id"}
    gates = pl.DataFrame(criteria, schema=schema)
    return gates, bool(gates["passed"].all())


def _criteria(
    evaluations: pl.DataFrame, config: GateConfig
) -> Iterator[tuple[str, float, float, bool]]:
    """Yield criterion, value, limit and whether the value must be above it (else at most)."""
    gain = _select(evaluations, config, config.metric).filter(pl.col("stratum") == "all")
    name = f"{config.metric}/{config.decoding}"
    low = _only(gain, f"{name} over all strata")["low"]
    yield f"{name} lower bound", low, config.minimum_lower_bound, True
    if config.maximum_length_growth is not None:
        lengths = _select(evaluations, config, LENGTH_METRIC).filter(pl.col("stratum") == "all")
        row = _only(lengths, f"{LENGTH_METRIC}/{config.decoding} over all strata")
        growth = row["after"] / row["before"] if row["before"] else float("inf")
        yield (
            f"{LENGTH_METRIC}/{config.decoding} growth",
            growth,
            config.maximum_length_growth,
            False,
        )
    if config.maximum_stratum_drop is not None:
        strata = _select(evaluations, config, config.metric).filter(pl.col("stratum") != "all")
        for stratum, difference in (
            strata.sort("stratum").select("stratum", "difference").iter_rows()
        ):
            # + 0.0 turns -0.0 into 0.0
            yield f"{name} drop in {stratum}", -difference + 0.0, config.maximum_stratum_drop, False


def _select(evaluations: pl.DataFrame, config: GateConfig, metric: str) -> pl.DataFrame:
    return evaluations.filter(
        (pl.col("metric") == metric) & (pl.col("decoding") == config.decoding)
    )


def _only(rows: pl.DataFrame, wanted: str) -> dict[str, float]:
    if rows.height != 1:
        raise DataError(
            f"the gate found {rows.height} evaluations of {wanted}",
            expected="exactly one",
            remedy="evaluate the metric and decoding that the gate names, or name others",
        )
    return rows.row(0, named=True)
