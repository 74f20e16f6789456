"""Whether a statement of DuckDB's SQL only reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import duckdb

READING_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
"""Query nodes of DuckDB's syntax tree that only read. Others are refused."""

SQL_RUNNING_FUNCTIONS = {"query", "json_execute_serialized_sql"}
"""They run SQL given as a value, which nobody could check before."""


def more_than_reading(connection: duckdb.DuckDBPyConnection, statement: str) -> list[str]:
    """Return what in one ``statement`` is no reading, in words; none if it only reads.

    The statement's type is not enough: DuckDB 2.0 takes ``WITH x AS (COPY ... TO ...) FROM x`` for
    a SELECT. So its syntax tree is searched for anything else.
    """
    found = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [statement]).fetchall()
    tree = json.loads(found[0][0])
    if tree["error"]:
        return [str(tree.get("error_message", "it has no syntax tree"))]
    others = []
    for node in _dicts(tree):
        name = str(node.get("type", ""))
        if name.endswith("_NODE") and name not in READING_NODES:
            others.append(f"a {name.removesuffix('_NODE').removesuffix('_QUERY')} inside a query")
        function = str(node.get("function_name", "")).lower()
        if function in SQL_RUNNING_FUNCTIONS:
            others.append(f"the function {function!r}, which runs SQL held in a text")
    return others


def _dicts(value: Any) -> Iterator[dict[str, Any]]:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            yield item
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
