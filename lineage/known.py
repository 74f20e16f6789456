"""What the publication before has found, so that the next one need not look again: a cache.

It stands in `lineage.duckdb`. `prefmill lineage rebuild` looks at everything anew.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import duckdb

from lineage.ddl import literal

if TYPE_CHECKING:
    from lineage.workspace import Workspace

Row = tuple[str, int, str, int]
"""Of a funnel: split, position, step, rows."""


@dataclass(frozen=True)
class Known:
    """What was found in files, under names that they no longer have once they are changed."""

    parts: dict[str, str] = field(default_factory=dict)
    """A part-file that was as recorded, to its stamp then."""
    funnels: dict[str, list[Row]] = field(default_factory=dict)
    """What a funnel counts, to its rows."""


def read_known(workspace: Workspace) -> Known:
    """Return what the published file knows; nothing if there is none that can be read."""
    path = workspace.lineage_database
    try:
        with duckdb.connect() as connection:
            connection.execute(f"ATTACH {literal(str(path.resolve()))} AS before (READ_ONLY)")
            parts = connection.execute("FROM before.store.checked_parts").fetchall()
            counted = connection.execute(_FUNNELS).fetchall()
    except duckdb.Error:
        return Known()
    funnels: dict[str, list[Row]] = defaultdict(list)
    for name, *row in counted:
        funnels[name].append(tuple(row))
    return Known(dict(parts), dict(funnels))


_FUNNELS = """
    SELECT DISTINCT counted_from, split, position, step, rows FROM before.store.funnel_counts"""
