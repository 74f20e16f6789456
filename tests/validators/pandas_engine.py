"""The same expectations measured by Great Expectations' own pandas engine: slow, and the oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from validators.expectations import row_expectations
from validators.measuring import MAX_EXAMPLES, row_id
from validators.suites import _expectation

if TYPE_CHECKING:
    from stages.tables import Table

FORMAT = {
    "result_format": "SUMMARY",
    "partial_unexpected_count": MAX_EXAMPLES,
    "unexpected_index_column_names": ["row id"],
}


def judged_by_pandas(schema: Table, frame: pl.DataFrame) -> list[tuple[bool, int, list[str]]]:
    """Return whether each row expectation holds, how many rows break it, and their ids."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    expectations = row_expectations(schema)
    computed = {
        arguments["column"]: e.broken if arguments["value_set"] == (False,) else ~e.broken
        for e in expectations
        if (arguments := dict(e.arguments)).get("column", "") not in {"", *schema.column_names}
    }
    batch = frame.select(
        row_id(schema).alias("row id"),
        # pandas takes NaN for null, and has no lists
        pl.col(pl.Float64).fill_nan(float("inf")),
        pl.col(pl.List(pl.Struct)).list.len(),
        pl.selectors.exclude(pl.Float64, pl.List(pl.Struct)),
        **computed,
    ).to_pandas()
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("oracle").add_dataframe_asset("rows")
    place = asset.add_batch_definition_whole_dataframe("rows")
    validated = place.get_batch(batch_parameters={"dataframe": batch})
    found = [validated.validate(_expectation(e), result_format=FORMAT) for e in expectations]
    return [
        (
            bool(r.success),
            int(r.result["unexpected_count"]),
            [i["row id"] for i in r.result.get("partial_unexpected_index_list") or ()],
        )
        for r in found
    ]
