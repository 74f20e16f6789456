"""The Great Expectations suite of a table, and its verdicts on what was measured.

Each expectation is a Great Expectations class. The metrics that it asks for (rows, nulls, rows that
break it) are handed to it as counted by polars, in place of one of Great Expectations' own engines:
these copy all rows into pandas, which takes 4 s and 1.7 GB a million rows.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from validators.measuring import MAX_EXAMPLES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from validators.expectations import Expectation, Severity
    from validators.measuring import Measured

ROW_ID = "row id"
GX_SEVERITY: dict[Severity, str] = {"must": "critical", "should": "warning"}


SUMMARY = {
    "result_format": "SUMMARY",
    "partial_unexpected_count": MAX_EXAMPLES,
    "unexpected_index_column_names": [ROW_ID],
}
BASIC = {"result_format": "BASIC"}
"""All there is to say where nothing is broken."""
VERDICT = {"result_format": "BOOLEAN_ONLY"}
"""Half the time of the others."""


@dataclass(frozen=True)
class _Metrics:
    """What was measured, as Great Expectations looks it up: by a metric's id, its name first."""

    measured: Measured

    def __contains__(self, _: object) -> bool:
        """Return whether there is such a metric; one that nobody measured raises when asked for."""
        return True

    def __getitem__(self, metric: tuple[str, ...]) -> Any:
        """Return a metric's value."""
        return _metric(metric[0], self.measured)


def verdicts(measured: Sequence[Measured]) -> list[bool]:
    """Return whether each expectation holds.

    Great Expectations (2 ms a verdict) is asked once about those that only their columns and values
    tell apart: it sees neither, only the counts.
    """
    alike: dict[tuple[object, ...], bool] = {}
    found = []
    for m in measured:
        mostly = dict(m.expectation.arguments).get("mostly")
        key = (m.expectation.kind, mostly, m.rows, m.looked_at, m.unexpected)
        if key not in alike:
            alike[key] = bool(_judged(m, VERDICT).success)
        found.append(alike[key])
    return found


def called(expectation: Expectation) -> str:
    """Return the expectation's name: its own, else Great Expectations' for the class."""
    return expectation.name or str(_class_of(expectation).expectation_type)


def suite_result(name: str, measured: Sequence[Measured]) -> Any:
    """Return Great Expectations' ``ExpectationSuiteValidationResult``, with the rows' ids."""
    _great_expectations()
    from great_expectations.core.expectation_validation_result import (
        ExpectationSuiteValidationResult,
    )
    from great_expectations.validator.validator import calc_validation_statistics

    results = [_judged(m, SUMMARY if m.unexpected else BASIC) for m in measured]
    statistics = calc_validation_statistics(results)._asdict()
    return ExpectationSuiteValidationResult(
        suite_name=name,
        success=statistics.pop("success"),
        results=results,
        statistics=statistics,
        meta={"great_expectations_version": _great_expectations().__version__},
    )


def _judged(measured: Measured, options: Mapping[str, object]) -> Any:
    """Return Great Expectations' result for one expectation."""
    return _expectation(measured.expectation).metrics_validate(
        _Metrics(measured), runtime_configuration={"result_format": options}
    )


def _metric(name: str, measured: Measured) -> Any:
    """Return the value of the metric that Great Expectations calls ``name``.

    Raises:
        NotImplementedError: an expectation asks for what is not measured (our own bug).
    """
    if name.startswith("column_values.nonnull.") and not measured.counts_nulls:
        return measured.rows - measured.looked_at
    known = {
        "row_count": measured.rows,
        "filtered_row_count": measured.looked_at,
        "unexpected_count": measured.unexpected,
        "unexpected_values": list(measured.examples),
        "unexpected_index_list": [{ROW_ID: example} for example in measured.examples],
        "unexpected_index_query": None,
    }
    what = name.rpartition(".")[2]
    if what in known:
        return known[what]
    raise NotImplementedError(f"{measured.expectation.kind} needs the metric {name!r}")


@cache
def _expectation(expectation: Expectation) -> Any:
    """Return the object of Great Expectations."""
    arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in expectation.arguments}
    return _class_of(expectation)(**arguments, severity=GX_SEVERITY[expectation.severity])


def _class_of(expectation: Expectation) -> Any:
    return getattr(_great_expectations().expectations, expectation.kind)


@cache
def _great_expectations() -> Any:
    """Return the package; it is silent and tells nobody that it is used."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read on import
    import great_expectations as gx

    # GX sets this logger to INFO itself and reports temporary folders through it.
    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    return gx
