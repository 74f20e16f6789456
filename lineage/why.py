"""Why a row is there: everything that led to a pair, candidate, prompt or export, per run."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from lineage.query import REBUILD, connect
from lineage.story import Story, render
from stages.errors import DataError, MissingFileError, UnknownIdError

if TYPE_CHECKING:
    from lineage.workspace import Workspace

__all__ = ["Story", "render", "why"]

Row = dict[str, Any]
ACCOUNT_KEYS = ("prompts_key", "candidates_key", "judge_keys", "score_key")
"""Runs that share these outputs have the same candidates with the same verdicts."""
USE_KEYS = ("stage", "pair_key", "noise_key", "filter_key", "export_key")
"""Runs that share these too made the same of them."""


@dataclass(frozen=True)
class _Reader:
    """Rows of the published lineage as dictionaries, times as ISO-8601 text."""

    connection: duckdb.DuckDBPyConnection

    def rows(self, sql: str, *values: object) -> list[Row]:
        result = self.connection.execute(sql, list(values))
        names = [column[0] for column in result.description or ()]
        found = result.fetchall()
        return [dict(zip(names, map(_plain, row), strict=True)) for row in found]


def _plain(value: Any) -> Any:
    return value.isoformat() if hasattr(value, "isoformat") else value


def why(workspace: Workspace, row_id: str) -> Story:
    """Return the story of a pair, candidate, prompt or export.

    ``row_id`` is an id, its beginning where only one id begins so (with or without ``pair_`` and
    the like), or ``FILE:LINE`` of an export file, from 1.

    Raises:
        UnknownIdError: no id, or more than one, fits; names the nearest and how many there are.
        MissingFileError: the file before ``:LINE`` or `lineage.duckdb` is not there.
        DataError: the line is not there or holds no pair, or a part-file is broken.
    """
    place = re.fullmatch(r"(.+):(\d+)", row_id)
    connection = connect(workspace)
    try:
        reader = _Reader(connection)
        if place:
            row_id = _pair_at(workspace, reader, place[1], int(place[2]))
        kind, full_id = _resolve(reader, row_id)
        facts = (
            _export_facts(reader, full_id)
            if kind == "export"
            else _row_facts(reader, kind, full_id)
        )
    except duckdb.Error as error:
        raise DataError(str(error), remedy=f"{REBUILD}, which sets broken files aside") from None
    finally:
        connection.close()
    return Story(kind, full_id, facts)


def _resolve(reader: _Reader, text: str) -> tuple[str, str]:
    exact = reader.rows("SELECT DISTINCT kind, id FROM ids WHERE id = ?", text)
    found = exact or reader.rows(
        "SELECT DISTINCT kind, id FROM ids "
        "WHERE ? <> '' AND (starts_with(id, ?) OR starts_with(id, kind || '_' || ?)) "
        "ORDER BY id LIMIT 6",
        text,
        text,
        text,
    )
    if len(found) == 1:
        return found[0]["kind"], found[0]["id"]
    counts = reader.rows(
        "SELECT kind, count(DISTINCT id) AS n FROM ids GROUP BY kind ORDER BY kind"
    )
    known = ", ".join(f"{row['n']} {row['kind']}s" for row in counts) or "no rows at all"
    if found:
        ids = ", ".join(row["id"] for row in found[:5])
        message = f"{text!r} fits more than one id: {ids}" + (" ..." if len(found) > 5 else "")  # noqa: PLR2004
    else:
        near = reader.rows(
            "SELECT id FROM ids GROUP BY id ORDER BY jaro_winkler_similarity(id, ?) DESC, id "
            "LIMIT 3",
            text,
        )
        names = ", ".join(row["id"] for row in near)
        message = f"unknown id {text!r}" + (f"; nearest known: {names}" if near else "")
    raise UnknownIdError(
        message,
        expected=f"a pair, candidate, prompt or export id (known: {known}), or FILE:LINE",
        remedy=f"if it was made just now, {REBUILD}",
    )


def _pair_at(workspace: Workspace, reader: _Reader, file: str, line: int) -> str:
    """The pair id in a line of an export file, whether named from here or from the workspace."""
    path = next((p for p in (Path(file), workspace.root / file) if p.is_file()), None)
    if path is None:
        raise MissingFileError(
            f"no file {file!r}", expected="an id or FILE:LINE", where=f"here or {workspace.root}"
        )
    if path.suffix in {".parquet", ".json"} or path.name.endswith(".openai.jsonl"):
        return _pair_by_export(workspace, reader, path, line)
    with path.open("rb") as lines:
        text = next(islice(lines, line - 1, line), None) if line else None
    where = f"{path}:{line}"
    if text is None:
        with path.open("rb") as lines:
            raise DataError(
                f"no line {line}", expected=f"1 to {sum(1 for _ in lines)}", where=where
            )
    try:
        values = json.loads(text)
    except ValueError as error:
        raise DataError(f"not a line of JSON: {error}", where=where) from None
    if not isinstance(values, dict) or not isinstance(values.get("pair_id"), str):
        raise DataError("the line has no pair_id", expected="a line of an export", where=where)
    return str(values["pair_id"])


def _pair_by_export(workspace: Workspace, reader: _Reader, path: Path, line: int) -> str:
    """The pair in a line of a recorded export whose format leaves no room for its id."""
    try:
        relative = workspace.relative(path)
    except ValueError:
        relative = str(path)
    found = reader.rows(
        "SELECT DISTINCT r.pair_id FROM exports AS e "
        "JOIN export_rows AS r ON r.stage_key = e.stage_key AND r.export_id = e.export_id "
        "WHERE e.path = ? AND r.line = ?",
        relative,
        line,
    )
    if len(found) != 1:
        raise DataError(f"no export {relative!r} with a row {line}", where=str(path))
    return str(found[0]["pair_id"])


def _row_facts(reader: _Reader, kind: str, full_id: str) -> Row:
    uses = reader.rows(_USES[kind], full_id)
    prompt_id = reader.rows(_PROMPT_OF[kind], full_id)[0]["prompt_id"]
    prompts = reader.rows("SELECT * FROM prompts WHERE prompt_id = ?", prompt_id)
    rows = _RowsByStage(reader, prompt_id, uses)
    accounts: dict[tuple[Any, ...], Row] = {}
    for use in uses:
        shared = tuple(str(use[key]) for key in ACCOUNT_KEYS)
        if shared not in accounts:
            accounts[shared] = {
                "prompt": _placing(prompts, use["prompts_key"]),
                "candidates": rows.candidates(use),
                "uses": {},
            }
        own = tuple(use[key] for key in USE_KEYS)
        entry = accounts[shared]["uses"].setdefault(
            own, {"runs": [], "pairs": rows.pairs(use, kind, full_id)}
        )
        run = {name: use[name] for name in ("run_id", "stage", "name", "flow", "started_at")}
        entry["runs"].append(run)
    for account in accounts.values():
        account["uses"] = list(account["uses"].values())
    messages = prompts[0]["messages"] if prompts else []
    return {
        "prompt": {"prompt_id": prompt_id, "messages": messages},
        "accounts": list(accounts.values()),
    }


def _placing(prompts: list[Row], stage_key: str | None) -> Row:
    """Where one sampling of prompts put the prompt; another's word where that one is lost."""
    found = next((row for row in prompts if row["stage_key"] == stage_key), None)
    row = found or next(iter(prompts), {})
    names = ("source", "stratum", "split", "verifier", "ground_truth")
    return {name: row.get(name) for name in names}


class _RowsByStage:
    """The rows about one prompt in the stage outputs of ``uses``: one query a table."""

    def __init__(self, reader: _Reader, prompt_id: str, uses: list[Row]) -> None:
        keys = sorted(
            {
                str(key)
                for use in uses
                for name, value in use.items()
                if name.endswith(("_key", "_keys"))
                for key in (value if isinstance(value, list) else [value])
                if key
            }
        )
        self._candidates = reader.rows(_CANDIDATES, prompt_id, keys)
        self._scores = reader.rows(
            "SELECT * FROM scores WHERE prompt_id = ? AND list_contains(?::VARCHAR[], stage_key) "
            "ORDER BY scorer",
            prompt_id,
            keys,
        )
        self._pairs = reader.rows(
            "SELECT * FROM pairs WHERE prompt_id = ? AND list_contains(?::VARCHAR[], stage_key) "
            "ORDER BY pair_id",
            prompt_id,
            keys,
        )
        candidate_ids = sorted({row["candidate_id"] for row in self._candidates})
        pair_ids = sorted({row["pair_id"] for row in self._pairs})
        self._judgments = reader.rows(_JUDGMENTS, keys, candidate_ids)
        self._decisions = reader.rows(
            "SELECT * FROM decisions WHERE list_contains(?::VARCHAR[], stage_key) "
            "AND list_contains(?::VARCHAR[], pair_id) ORDER BY position",
            keys,
            pair_ids,
        )
        self._noise = reader.rows(
            "SELECT * FROM label_noise WHERE list_contains(?::VARCHAR[], stage_key) "
            "AND list_contains(?::VARCHAR[], pair_id)",
            keys,
            pair_ids,
        )
        self._exports = reader.rows(_EXPORTS_OF_PAIRS, keys, pair_ids)
        self._rounds = reader.rows(
            _ROUNDS_OF_EXPORTS, sorted({row["export_id"] for row in self._exports})
        )

    def candidates(self, use: Row) -> list[Row]:
        """The candidates of one use, each with its scores and raw verdicts."""
        return [
            {
                **row,
                "scores": [
                    score
                    for score in _of(self._scores, [use["score_key"]])
                    if score["candidate_id"] == row["candidate_id"]
                ],
                "judgments": [
                    verdict
                    for verdict in _of(self._judgments, use["judge_keys"])
                    if row["candidate_id"]
                    in (verdict["candidate_id"], verdict["other_candidate_id"])
                ],
            }
            for row in _of(self._candidates, [use["candidates_key"]])
        ]

    def pairs(self, use: Row, kind: str, full_id: str) -> list[Row]:
        """The pairs of one use that the question is about, with rulings, exports and rounds."""
        names = {
            "pair": ("pair_id",),
            "prompt": ("prompt_id",),
            "candidate": ("chosen_candidate_id", "rejected_candidate_id"),
        }[kind]
        return [
            self._pair(row, use)
            for row in _of(self._pairs, [use["pair_key"]])
            if full_id in [row[name] for name in names]
        ]

    def _pair(self, row: Row, use: Row) -> Row:
        pair_id = row["pair_id"]
        decisions = [
            d for d in _of(self._decisions, [use["filter_key"]]) if d["pair_id"] == pair_id
        ]
        noise = [n for n in _of(self._noise, [use["noise_key"]]) if n["pair_id"] == pair_id]
        exports = [e for e in _of(self._exports, [use["export_key"]]) if e["pair_id"] == pair_id]
        export_ids = {export["export_id"] for export in exports}
        kept = all(d["kept"] for d in decisions) if use["filter_key"] else None
        rounds = [r for r in self._rounds if r["export_id"] in export_ids]
        return {
            **row,
            "label_noise": next(iter(noise), None),
            "kept": kept,
            "decisions": decisions,
            "exports": exports,
            "rounds": rounds,
        }


def _of(rows: list[Row], stage_keys: list[str | None]) -> list[Row]:
    return [row for row in rows if row["stage_key"] in stage_keys]


def _export_facts(reader: _Reader, export_id: str) -> Row:
    return {
        "export": reader.rows("SELECT * FROM exports WHERE export_id = ?", export_id)[0],
        "runs": reader.rows(_RUNS_OF_EXPORT, export_id),
        "rounds": reader.rows(_ROUNDS_OF_EXPORTS, [export_id]),
        "composition": reader.rows(_COMPOSITION, export_id),
    }


_USES = {
    "candidate": """
        SELECT * FROM candidate_outputs
        WHERE candidates_key IN (SELECT stage_key FROM candidates WHERE candidate_id = ?)
        ORDER BY started_at, run_id, stage""",
    "prompt": """
        SELECT * FROM candidate_outputs
        WHERE candidates_key IN (SELECT stage_key FROM candidates WHERE prompt_id = $1)
            OR stage = 'generate'
            AND prompts_key IN (SELECT stage_key FROM prompts WHERE prompt_id = $1)
        ORDER BY started_at, run_id, stage""",
    "pair": """
        SELECT * FROM candidate_outputs
        WHERE pair_key IN (SELECT stage_key FROM pairs WHERE pair_id = ?)
        ORDER BY started_at, run_id, stage""",
}

_PROMPT_OF = {
    "candidate": "SELECT prompt_id FROM candidates WHERE candidate_id = ? LIMIT 1",
    "prompt": "SELECT ? AS prompt_id",
    "pair": "SELECT prompt_id FROM pairs WHERE pair_id = ? LIMIT 1",
}

_CANDIDATES = """
    SELECT * FROM candidates
    WHERE prompt_id = ? AND list_contains(?::VARCHAR[], stage_key)
    ORDER BY sample_index, candidate_id"""

_JUDGMENTS = """
    SELECT * FROM judgments
    WHERE list_contains($1::VARCHAR[], stage_key)
        AND (
            list_contains($2::VARCHAR[], candidate_id)
            OR list_contains($2::VARCHAR[], other_candidate_id)
        )
    ORDER BY scorer, judgment_id"""

_EXPORTS_OF_PAIRS = """
    SELECT r.stage_key, r.pair_id, r.line, e.export_id, e.format, e.split, e.path
    FROM export_rows AS r
    JOIN exports AS e ON e.stage_key = r.stage_key AND e.export_id = r.export_id
    WHERE list_contains(?::VARCHAR[], r.stage_key) AND list_contains(?::VARCHAR[], r.pair_id)
    ORDER BY e.path"""

_ROUNDS_OF_EXPORTS = """
    SELECT DISTINCT round_id, round_index, export_id, run_id, name, promoted, result_path,
        sampled_difference, sampled_low, sampled_high
    FROM rounds WHERE list_contains(?::VARCHAR[], export_id) ORDER BY run_id, round_id"""

_RUNS_OF_EXPORT = """
    SELECT DISTINCT run_id, name, flow, started_at FROM candidate_outputs
    WHERE export_key IN (SELECT stage_key FROM exports WHERE export_id = ?)
    ORDER BY started_at, run_id"""

_COMPOSITION = """
    SELECT q.source, q.stratum, q.strategy, q.scorer, count(*) AS pairs,
        avg(q.margin) AS mean_margin, avg(q.length_gap) AS mean_length_gap
    FROM pair_quality AS q
    WHERE list_contains(q.exported_to, $1)
        AND q.run_id = (
            SELECT min(run_id) FROM candidate_outputs
            WHERE export_key IN (SELECT stage_key FROM exports WHERE export_id = $1)
        )
    GROUP BY ALL ORDER BY ALL"""
