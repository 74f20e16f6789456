"""Great Expectations, run quietly on one small pandas batch at a time.

The context, the suites and the batch definitions are made once a process: a check of a small
table costs tens of milliseconds, after an import of four seconds.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from validators.expectations import Expectation, Severity

MAX_EXAMPLES = 10
FIRST_ROWS_SEARCHED = 1_000
ROW_ID = "row id"
GX_SEVERITY: dict[Severity, str] = {"must": "critical", "should": "warning"}


@dataclass(frozen=True)
class Outcome:
    """What Great Expectations found for one expectation on one batch."""

    name: str
    """Great Expectations' own name for it."""
    passed: bool
    unexpected: int
    examples: list[str]


@dataclass
class _Engine:
    """The one context of this process, and what was made in it."""

    context: Any = None
    source: Any = None
    suites: dict[tuple[str, tuple[Expectation, ...]], tuple[Any, Any]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


_ENGINE = _Engine()


def check_batch(
    name: str, expectations: Sequence[Expectation], batch: pl.DataFrame
) -> list[Outcome]:
    """Return one outcome per expectation, in their order.

    ``batch`` holds the expectations' views and, as ``ROW_ID``, the id of each row.

    Raises:
        RuntimeError: Great Expectations could not compute an expectation (our own bug: the
            declaration and the expectation do not fit).
    """
    if not expectations:
        return []
    with _ENGINE.lock:  # its batch cache is shared by all suites of a context
        frame = batch.to_pandas()
        held = _validate(name, tuple(expectations), frame, {"result_format": "BOOLEAN_ONLY"})
        passed = [Outcome(str(r.expectation_config.type), True, 0, []) for r in held]
        # Counting and finding rows costs as much again, so only what failed is counted.
        return [
            passed[place] if held[place].success else _count(name, expectation, frame)
            for place, expectation in enumerate(expectations)
        ]


def _count(name: str, expectation: Expectation, frame: Any) -> Outcome:
    """Return how many rows break ``expectation``, and the ids of the first of them."""
    (result,) = _validate(name, (expectation,), frame, {"result_format": "BASIC"})
    kind, found = str(result.expectation_config.type), result.result or {}
    if "unexpected_count" not in found:
        raise RuntimeError(f"Great Expectations could not check {kind} on {name!r}: {result}")
    examples: list[str] = []
    start, size = 0, FIRST_ROWS_SEARCHED
    # It lists the ids of all broken rows (25 microseconds each) to return ten: so, piece by piece.
    while len(examples) < MAX_EXAMPLES and start < len(frame):
        examples += _examples(name, expectation, frame.iloc[start : start + size])
        start, size = start + size, size * 4
    return Outcome(kind, False, int(found["unexpected_count"]), examples[:MAX_EXAMPLES])


def _examples(name: str, expectation: Expectation, frame: Any) -> list[str]:
    """Return the ids of up to ten rows of ``frame`` that break ``expectation``."""
    options = {
        "result_format": "SUMMARY",
        "partial_unexpected_count": MAX_EXAMPLES,
        "unexpected_index_column_names": [ROW_ID],
    }
    (result,) = _validate(name, (expectation,), frame, options)
    index = result.result.get("partial_unexpected_index_list") or []
    return [str(entry[ROW_ID]) for entry in index]


def _validate(
    name: str, expectations: tuple[Expectation, ...], frame: Any, result_format: dict[str, Any]
) -> list[Any]:
    """Return Great Expectations' results, in the order of ``expectations``."""
    batch_definition, suite = _suite(name, expectations)
    batch = batch_definition.get_batch(batch_parameters={"dataframe": frame})
    results = batch.validate(suite, result_format=result_format).results
    by_place = {r.expectation_config.meta["place"]: r for r in results}
    return [by_place[place] for place in range(len(expectations))]


def _suite(name: str, expectations: tuple[Expectation, ...]) -> tuple[Any, Any]:
    """Return the batch definition and the suite, made on first use."""
    made = _ENGINE.suites.get((name, expectations))
    if made is not None:
        return made
    gx = _great_expectations()
    unique = f"{name} {len(_ENGINE.suites)}"
    suite = gx.ExpectationSuite(name=unique)
    for place, expectation in enumerate(expectations):
        arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in expectation.arguments}
        kind = getattr(gx.expectations, expectation.kind)
        severity = GX_SEVERITY[expectation.severity]
        suite.expectations.append(kind(**arguments, severity=severity, meta={"place": place}))
    suite = _ENGINE.context.suites.add(suite)
    asset = _ENGINE.source.add_dataframe_asset(unique)
    made = asset.add_batch_definition_whole_dataframe(unique), suite
    _ENGINE.suites[name, expectations] = made
    return made


def _great_expectations() -> Any:
    """Return the package, with analytics and progress bars off and the context made."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read on import
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    # GX sets this logger to INFO itself and reports temporary folders through it.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    if _ENGINE.context is None:
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        _ENGINE.context = context
        _ENGINE.source = context.data_sources.add_pandas("prefmill")
    return gx
