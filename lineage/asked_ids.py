"""What an id, its beginning, or a line of an exported file stands for."""

from __future__ import annotations

import json
import re
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lineage.erasure import erasure_id
from lineage.query import REBUILD
from lineage.records import LATEST, require_run
from stages.content_ids import file_sha256
from stages.errors import DataError, MissingFileError, UnknownIdError

if TYPE_CHECKING:
    from lineage.row_reader import Row, RowReader
    from lineage.workspace import Workspace

Asked = tuple[str, str]
"""A kind (pair, candidate, prompt, export, run, round, training or model) and the whole id."""

NAMED_TOGETHER = 5
"""Ids that fit, in an error: one fewer than are looked for."""

NEAREST = 3
"""Ids that are only alike."""


def resolve(workspace: Workspace, reader: RowReader, text: str) -> Asked:
    """Return the kind and whole id of what ``text`` names.

    Raises:
        UnknownIdError: no id, or more than one, fits.
        MissingFileError: the file before ``:LINE`` is not there.
        DataError: the line is not there or holds no pair and no answer.
    """
    if text == LATEST:
        return "run", require_run(workspace, LATEST).run_id
    if place := re.fullmatch(r"(.+):(\d+)", text):
        text = _id_at(workspace, reader, place[1], min(int(place[2][:19]), sys.maxsize))
    elif path := _file(workspace, text):
        text = _export_of(workspace, reader, path)
    text = text[:LONGEST_ID]
    found = reader.rows(_FITTING.format(_known(text), "id = $1"), text)
    if not found and text:
        begins = "starts_with(id, $1)"
        if "_" not in text:
            begins += " OR starts_with(id, kind || '_' || $1)"
        found = reader.rows(_FITTING.format(_known(text), begins), text)
    if len(found) == 1:
        return found[0]["kind"], found[0]["id"]
    if found:
        ids = ", ".join(row["id"] for row in found[:NAMED_TOGETHER])
        more = " ..." if len(found) > NAMED_TOGETHER else ""
        message = f"{text!r} fits more than one id: {ids}{more}"
    else:
        message = _erased(reader, text) or f"unknown id {text!r}{_nearest(reader, text)}"
    raise UnknownIdError(
        message,
        expected="the id of a pair, candidate, prompt, export, run, round, training or model, "
        "its beginning where only one begins so, an exported FILE or FILE:LINE",
        remedy=f"if it was made just now, {REBUILD}",
    )


def _erased(reader: RowReader, text: str) -> str:
    """Return that ``text`` is the whole id of an erased prompt, and when it was; else nothing."""
    found = reader.rows("SELECT erased_at FROM erasures WHERE erasure_id = ?", erasure_id(text))
    return f"the prompt {text!r} was erased at {found[0]['erased_at']}" if found else ""


def _known(text: str) -> str:
    """Return the SQL of every id, with its kind, that ``text`` can be the beginning of."""
    kind = text.partition("_")[0]
    kinds = [kind] if "_" in text and kind in _IDS else list(_IDS)
    return " UNION ALL ".join(f"SELECT '{name}' AS kind, id FROM ({_IDS[name]})" for name in kinds)  # noqa: S608


def _nearest(reader: RowReader, text: str) -> str:
    """Return the known ids most like ``text``, of its own kind where it names one."""
    compared = "id" if "_" in text else "substr(id, 1 + instr(id, '_'))"
    alike = f"jaro_winkler_similarity({compared}, $1)"
    # An id may be in many rows: to make all of them distinct first takes seconds.
    rows = reader.rows(
        f"SELECT id FROM ({_known(text)}) ORDER BY {alike} DESC, id LIMIT 100",  # noqa: S608
        text,
    )
    near = list(dict.fromkeys(row["id"] for row in rows))[:NEAREST]
    return f"; nearest known: {', '.join(near)}" if near else ""


def _id_at(workspace: Workspace, reader: RowReader, file: str, line: int) -> str:
    """Return the id in a line or row of an exported file, named from here or the workspace."""
    path = _file(workspace, file)
    if path is None:
        raise MissingFileError(
            f"no file {file!r}", expected="an id or FILE:LINE", where=f"here or {workspace.root}"
        )
    where = f"{path}:{line}"
    read = _parquet_row if path.suffix == ".parquet" else _json_line
    values = read(path, line)
    if not isinstance(values, dict):
        values = {}
    # An unpaired line is one answer, which several pairs may share; Argilla's `id` is the pair's.
    for name in ("candidate_id", "pair_id", "id"):
        if isinstance(values.get(name), str):
            return str(values[name])
    if "preferred_output" in values:  # OpenAI's format leaves no room for an id.
        return _id_by_export(workspace, reader, path, line)
    raise DataError(
        "the line has no pair_id and no candidate_id", expected="a line of an export", where=where
    )


def _file(workspace: Workspace, name: str) -> Path | None:
    """Return the file so named, from here or the workspace; None: there is none."""
    try:
        return next((p for p in (Path(name), workspace.root / name) if p.is_file()), None)
    except OSError:  # a name too long for one
        return None


def _export_of(workspace: Workspace, reader: RowReader, path: Path) -> str:
    """Return the id of an exported file, or of an unchanged copy of one."""
    sql = "SELECT DISTINCT e.export_id AS id FROM exports AS e"
    found = _of_export(workspace, reader, path, sql)
    if not found:
        raise DataError(
            "no exported file", expected=f"one that is unchanged, or {path}:LINE", where=str(path)
        )
    return str(found[0]["id"])


def _of_export(
    workspace: Workspace, reader: RowReader, path: Path, sql: str, *values: object
) -> list[Row]:
    """Return the rows of ``sql`` on the export ``e`` at a path, else on those with its bytes."""
    condition = " AND" if " WHERE " in sql else " WHERE"
    try:
        found = reader.rows(f"{sql}{condition} e.path = ?", *values, workspace.relative(path))
    except ValueError:  # outside the workspace
        found = []
    return found or reader.rows(f"{sql}{condition} e.sha256 = ?", *values, file_sha256(path))


def _parquet_row(path: Path, row: int) -> Any:
    """Return the id columns of a Parquet file's row, from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = [n for n in ("candidate_id", "pair_id") if n in file.schema_arrow.names]
        rows = file.read(names)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"not a Parquet file: {error}", where=str(path)) from None
    count = file.metadata.num_rows
    if not 1 <= row <= count:
        raise DataError(f"no row {row}", expected=f"1 to {count}", where=f"{path}:{row}")
    return rows.slice(row - 1, 1).to_pylist()[0] if names else {}


def _json_line(path: Path, line: int) -> Any:
    """Return the value in a line of JSON Lines, or of an array with an item a line."""
    with path.open("rb") as lines:
        text = next(islice(lines, line - 1, line), None) if line else None
    where = f"{path}:{line}"
    if text is None:
        with path.open("rb") as lines:
            count = sum(1 for _ in lines)
        raise DataError(f"no line {line}", expected=f"1 to {count}", where=where)
    item = text.strip()
    if path.suffix == ".json":
        item = item.removeprefix(b"[").rstrip(b",]")
    try:
        return json.loads(item)
    except ValueError as error:
        raise DataError(f"not a line of JSON: {error}", where=where) from None


def _id_by_export(workspace: Workspace, reader: RowReader, path: Path, line: int) -> str:
    """Return the pair in a line of a recorded export, or of a copy of one."""
    found = _of_export(workspace, reader, path, _PAIR_IN_LINE, line)
    if len(found) != 1:
        ids = f" but {len(found)}: {', '.join(row['id'] for row in found)}" if found else ""
        raise DataError(
            f"the lineage has no one pair in line {line}{ids}",
            expected="a file that `prefmill` exported, or an unchanged copy",
            where=str(path),
        )
    return str(found[0]["id"])


def unknown_in_run(kind: str, full_id: str, run_id: str, runs: list[Row]) -> UnknownIdError:
    """Return the error of a row that a run does not hold, with the runs that do."""
    held = ", ".join(dict.fromkeys(row["run_id"] for row in runs)) or "no run"
    return UnknownIdError(f"run {run_id} has no {kind} {full_id}", expected=f"a run of: {held}")


LONGEST_ID = 100
"""Characters of what was typed, or stands in a line, that are compared with ids."""

# Texts may have been removed: pairs and scores still name their prompts and candidates.
_IDS = {
    "pair": "SELECT pair_id AS id FROM pairs",
    "candidate": "SELECT candidate_id AS id FROM candidates "
    "UNION ALL SELECT candidate_id FROM scores",
    "prompt": "SELECT prompt_id AS id FROM prompts UNION ALL SELECT prompt_id FROM pairs",
    "export": "SELECT export_id AS id FROM exports",
    "round": "SELECT round_id AS id FROM store.rounds",
    "training": "SELECT training_id AS id FROM store.trainings",
    "run": "SELECT run_id AS id FROM runs",
    "model": "SELECT weights_hash AS id FROM candidates "
    "UNION ALL SELECT base_weights_hash FROM store.rounds "
    "UNION ALL SELECT result_weights_hash FROM store.rounds "
    "UNION ALL SELECT base_weights_hash FROM store.trainings "
    "UNION ALL SELECT result_weights_hash FROM store.trainings",
}
"""By kind: the ids on record. Those of the first six begin with it."""

_FITTING = "SELECT DISTINCT kind, id FROM ({}) WHERE {} ORDER BY id LIMIT 6"

_PAIR_IN_LINE = """
    SELECT DISTINCT r.pair_id AS id FROM exports AS e
    JOIN export_rows AS r ON r.stage_key = e.stage_key AND r.export_id = e.export_id
    WHERE r.line = ?"""
