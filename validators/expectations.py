"""What is expected of every table: derived from its declaration, plus the facts that are not in it.

An expectation names a Great Expectations class, and says in polars which rows break it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import polars as pl
import pyarrow as pa

from stages.tables import EDITED_STRATEGY, GOLD_SPLIT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stages.tables import Column, Table

Severity = Literal["must", "should"]
Arguments = tuple[tuple[str, object], ...]
TINY = 1e-6
FLOAT_LIMIT = sys.float_info.max


@dataclass(frozen=True)
class Expectation:
    """One expectation: its Great Expectations class, and which rows break it."""

    kind: str
    """The class in ``great_expectations.expectations``."""
    column: str
    """What the result calls the place: a column, several, or what is computed from them."""
    severity: Severity = "must"
    arguments: Arguments = ()
    """Of the class."""
    broken: pl.Expr | None = field(default=None, compare=False)
    """True for a row that breaks it, null for one that it does not look at; None where only the
    whole table tells."""
    name: str = ""
    """What the result calls it; empty: Great Expectations' own name for the class."""


@dataclass(frozen=True)
class Share:
    """At most ``limit`` of a table's rows may be so."""

    what: str
    column: str
    condition: pl.Expr = field(compare=False)
    """True for the rows counted."""
    limit: float
    severity: Severity = "should"

    @property
    def expectation(self) -> Expectation:
        """The share as an expectation that most rows meet."""
        # Rounded: 1 - 0.05 must be the float that 19 / 20 is.
        at_least = ("mostly", round(1 - self.limit, 12))
        return Expectation(
            "ExpectColumnValuesToBeInSet",
            self.column,
            self.severity,
            (("column", self.what), ("value_set", (False,)), at_least),
            self.condition.fill_null(value=False),
            f"expect_share_of_{self.what}_to_be_at_most_{self.limit:g}",
        )


def row_expectations(table: Table) -> list[Expectation]:
    """Return what must (or should) hold for each row of ``table``, looked at alone."""
    derived = [e for column in table.columns for e in _column_expectations(table, column)]
    shares = [share.expectation for share in SHARES.get(table.name, ())]
    return [*derived, *ROW_FACTS.get(table.name, ()), *shares]


def uniqueness(table: Table) -> Expectation:
    """Return the expectation that no two rows have the same key."""
    if len(table.key) == 1:
        arguments: Arguments = (("column", table.key[0]),)
        return Expectation("ExpectColumnValuesToBeUnique", table.key[0], arguments=arguments)
    arguments = (("column_list", table.key),)
    return Expectation("ExpectCompoundColumnsToBeUnique", ", ".join(table.key), arguments=arguments)


def reference(column: str, target: str) -> Expectation:
    """Return the expectation that ``column``'s ids exist in ``target``, a ``table.column``."""
    arguments: Arguments = (("column", f"{column} is in {target}"), ("value_set", (True,)))
    name = f"expect_column_values_to_be_in_{target.split('.', maxsplit=1)[0]}"
    return Expectation("ExpectColumnValuesToBeInSet", column, arguments=arguments, name=name)


def _column_expectations(table: Table, column: Column) -> Iterator[Expectation]:
    values = pl.col(column.name)
    if pa.types.is_list(column.type):
        values = values.list.len()

    def expect(kind: str, broken: pl.Expr, *arguments: tuple[str, object]) -> Expectation:
        of_column = (("column", column.name), *arguments)
        return Expectation(kind, column.name, arguments=of_column, broken=broken)

    if not column.nullable:
        yield expect("ExpectColumnValuesToNotBeNull", values.is_null())
    if column.allowed:
        unknown = ~values.is_in(column.allowed)
        yield expect("ExpectColumnValuesToBeInSet", unknown, ("value_set", column.allowed))
    elif pa.types.is_string(column.type) and column.name in {*table.key, *table.references}:
        empty = values.str.len_bytes() == 0
        yield expect("ExpectColumnValueLengthsToBeBetween", empty, ("min_value", 1))
    low, high = _limits(column)
    if low is not None or high is not None:
        inside = pl.all_horizontal(
            values >= pl.lit(low) if low is not None else pl.lit(value=True),
            values <= pl.lit(high) if high is not None else pl.lit(value=True),
        )
        limits = (("min_value", low), ("max_value", high))
        yield expect("ExpectColumnValuesToBeBetween", ~inside, *limits)


def _limits(column: Column) -> tuple[float | None, float | None]:
    """Return the range of a column, or of its lists' lengths; every float must be finite."""
    if pa.types.is_list(column.type):
        return 1, None
    if pa.types.is_floating(column.type):
        low = -FLOAT_LIMIT if column.minimum is None else column.minimum
        return low, FLOAT_LIMIT if column.maximum is None else column.maximum
    return column.minimum, column.maximum


def _differ(first: str, second: str, severity: Severity = "must") -> Expectation:
    return Expectation(
        "ExpectSelectColumnValuesToBeUniqueWithinRecord",
        f"{first}, {second}",
        severity,
        (("column_list", (first, second)), ("ignore_row_if", "any_value_is_missing")),
        pl.col(first) == pl.col(second),
    )


def _at_least(larger: str, smaller: str, severity: Severity = "must") -> Expectation:
    either_missing = ("ignore_row_if", "either_value_is_missing")
    return Expectation(
        "ExpectColumnPairValuesAToBeGreaterThanB",
        f"{larger}, {smaller}",
        severity,
        (("column_A", larger), ("column_B", smaller), ("or_equal", True), either_missing),
        ~(pl.col(larger) >= pl.col(smaller)),
    )


def _true(name: str, condition: pl.Expr, severity: Severity = "must") -> Expectation:
    """Expect ``condition`` to be true in each row where it is not null."""
    arguments = (("column", name), ("value_set", (True,)))
    return Expectation("ExpectColumnValuesToBeInSet", name, severity, arguments, ~condition)


def _says_why(name: str) -> Expectation:
    """Expect a reason in `error` where a value is missing."""
    told = pl.col(name).is_not_null() | pl.col("error").is_not_null()
    return _true(f"error where no {name}", told)


def _margin_matches() -> pl.Expr:
    """Whether the margin is the difference of the scores, up to rounding."""
    chosen, rejected = pl.col("chosen_score"), pl.col("rejected_score")
    error = (chosen - rejected - pl.col("margin")).abs()
    return error <= TINY * (1 + chosen.abs() + rejected.abs())


def _chosen_scores_higher() -> pl.Expr:
    """Whether the chosen has the higher score, or a strategy chose that goes by more than it."""
    return (pl.col("margin") >= 0) | (pl.col("strategy") == EDITED_STRATEGY)


ROW_FACTS: dict[str, tuple[Expectation, ...]] = {
    "prompts": (
        _true("messages[-1].role", pl.col("messages").list.last().struct.field("role") == "user"),
        _true(
            "gold where planted", (pl.col("split") == GOLD_SPLIT) == pl.col("gold").is_not_null()
        ),
    ),
    "candidates": (
        _at_least("max_completion_tokens", "completion_tokens", "should"),
        _says_why("completion"),
    ),
    "judgments": (
        _differ("candidate_id", "other_candidate_id"),
        _true(
            "order where pairwise",
            # People's votes on two answers have none.
            pl.col("order").is_null() | pl.col("other_candidate_id").is_not_null(),
        ),
        _says_why("score"),
    ),
    "scorer_health": (
        _true(
            "passed where measured against a limit",
            pl.col("passed").is_null() == pl.any_horizontal(pl.col("value", "limit").is_null()),
        ),
        _true(
            "rates within 0 and 1",
            pl.when(pl.col("measure").str.contains("_rate$|_accuracy$")).then(
                pl.col("value").is_between(0, 1)
            ),
        ),
    ),
    "pairs": (
        _differ("chosen_candidate_id", "rejected_candidate_id"),
        _true("margin >= 0 where no editor chose", _chosen_scores_higher()),
        _true("margin = chosen_score - rejected_score", _margin_matches()),
    ),
    "decisions": (
        _true(
            "reason where dropped", pl.when(~pl.col("kept")).then(pl.col("reason").is_not_null())
        ),
    ),
    "drift": (
        _true(
            "passed where measured against limits",
            pl.col("passed").is_null() == pl.all_horizontal(pl.col("minimum", "maximum").is_null()),
        ),
        _at_least("maximum", "minimum"),
    ),
    "rounds": (_differ("base_weights_hash", "result_weights_hash", "should"),),
    "evaluations": (_at_least("high", "low"),),
}
"""What a row must satisfy beyond the declaration of its columns."""

SHARES: dict[str, tuple[Share, ...]] = {
    "candidates": (
        Share("cut_at_the_limit", "finish_reason", pl.col("finish_reason") == "length", 0.2),
        Share("errors", "finish_reason", pl.col("finish_reason") == "error", 0.01),
        Share("empty", "completion", pl.col("completion").str.strip_chars(" ") == "", 0.05),
    ),
    "judgments": (Share("missing", "score", pl.col("score").is_null(), 0.05),),
    "scores": (Share("missing", "score", pl.col("score").is_null(), 0.05),),
    "drift": (Share("beyond_their_limits", "passed", ~pl.col("passed"), 0.0),),
    "scorer_health": (Share("beyond_their_limit", "passed", ~pl.col("passed"), 0.0),),
}
"""What must not happen too often in a table."""
