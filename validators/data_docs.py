"""Great Expectations' Data Docs of one run, as one page that needs no network and no script.

Great Expectations judges the recorded counts once more and its renderer writes what each suite
expected and observed. Only its own page around that is left out: it loads scripts and styles from
eight other servers, and puts the ids of rows into the page unescaped.
"""

from __future__ import annotations

import html
import json
from typing import TYPE_CHECKING, Any

from stages.content_ids import content_hash
from stages.tables import table
from validators.expectations import Expectation, reference, row_expectations, uniqueness
from validators.measuring import Measured
from validators.suites import called, suite_result

if TYPE_CHECKING:
    import polars as pl

    from stages.tables import Table

VERSION = 1
"""Raised when the same validations would make another page."""

TEMPLATE = "data_docs.html.jinja"


def validation_page(run_id: str, validations: pl.DataFrame) -> str:
    """Return the page of one run; ``validations`` is the table VALIDATIONS and ``stage``."""
    from great_expectations.render.view import DefaultJinjaSectionView
    from jinja2 import Environment, PackageLoader, StrictUndefined

    view = DefaultJinjaSectionView()
    suites = [
        _suite(str(stage), table(str(name)), rows, view)
        for (stage, name), rows in validations.group_by("stage", "table", maintain_order=True)
    ]
    loader = PackageLoader("validators", "")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    of = fingerprint(validations)
    return environment.get_template(TEMPLATE).render(run_id=run_id, suites=suites, fingerprint=of)


def fingerprint(validations: pl.DataFrame) -> str:
    """Return what stands in the page of these validations and of no others."""
    return content_hash([VERSION, validations.rows()])


def _suite(stage: str, schema: Table, rows: pl.DataFrame, view: Any) -> dict[str, Any]:
    """Return what the page shows of one suite: counts, and Great Expectations' own sections."""
    measured = recorded(schema, rows)
    broken = rows.filter(~rows["passed"])["severity"].to_list()
    return {
        "stage": stage,
        "table": schema.name,
        "rows": rows["rows"].max(),
        "expectations": rows.height,
        "must": broken.count("must"),
        "should": broken.count("should"),
        "older": rows.height - len(measured),
        "sections": _sections(f"{stage}: {schema.name}", measured, view),
    }


def recorded(schema: Table, rows: pl.DataFrame) -> list[Measured]:
    """Return what the suite of ``schema`` measured, out of its ``rows`` of VALIDATIONS.

    Rows of expectations that are none of this version's are left out. How many values were null is
    not recorded: all count as looked at, which changes no verdict on counts above nought.
    """
    known = {(called(e), e.column): e for e in _expectations(schema)}
    return [
        Measured(
            known[place],
            row["rows"],
            row["rows"],
            row["unexpected"],
            # Great Expectations writes them into the page as they are.
            tuple(html.escape(example) for example in json.loads(row["examples"])),
        )
        for row in rows.iter_rows(named=True)
        if (place := (row["expectation"], row["column"])) in known
    ]


def _expectations(schema: Table) -> list[Expectation]:
    references = [reference(column, target) for column, target in schema.references.items()]
    return [*row_expectations(schema), uniqueness(schema), *references]


def _sections(name: str, measured: list[Measured], view: Any) -> list[str]:
    """Return the HTML that Great Expectations renders for one suite."""
    from great_expectations.core.run_identifier import RunIdentifier
    from great_expectations.render.renderer import ValidationResultsPageRenderer

    result = suite_result(name, measured)
    result.meta["run_id"] = RunIdentifier(run_name=name)
    document = ValidationResultsPageRenderer().render(result).to_json_dict()
    # The first section repeats the counts, with links to pages that are not there.
    return [
        view.render({"section": section, "section_loop": {"index": place}})
        for place, section in enumerate(document["sections"][1:], start=1)
    ]
