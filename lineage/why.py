"""Why a row is there: everything that led to a pair, candidate or prompt, per run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lineage.asked_ids import resolve, unknown_in_run
from lineage.choices import choices
from lineage.made_of import MADE_OF, rounds_of_exports
from lineage.records import require_run
from lineage.row_reader import Row, RowReader, reading
from lineage.story import Story, render
from stages.tables import CANDIDATES

if TYPE_CHECKING:
    from lineage.workspace import Workspace

__all__ = ["Story", "render", "why"]

ACCOUNT_KEYS = ("prompts_key", "candidates_key", "edit_key", "judge_keys", "score_key")
"""Runs that share these outputs have the same candidates with the same verdicts."""
USE_KEYS = ("stage", "pair_key", "noise_key", "filter_key", "export_key")
"""Runs that share these too made the same of them."""
PLACING = ("source", "stratum", "split", "verifier", "ground_truth")


def why(workspace: Workspace, asked: str, run_id: str | None = None) -> Story:
    """Return the story of a pair, candidate, prompt, export, run, round, training or model.

    ``asked`` is an id, its beginning where only one id begins so (with or without ``pair_`` and
    the like), ``latest`` (run), or ``FILE:LINE`` of an export, from 1. ``run_id`` (or its
    beginning, or ``latest``) leaves out what other runs made of a pair, candidate or prompt.

    Raises:
        UnknownIdError: no id, or more than one, fits; names the nearest. Or the run lacks the row.
        MissingFileError: the file before ``:LINE`` or `lineage.duckdb` is not there.
        DataError: the line is not there or holds no pair, or a part-file is broken.
    """
    only = require_run(workspace, run_id).run_id if run_id else None
    with reading(workspace) as reader:
        kind, full_id = resolve(workspace, reader, asked)
        if facts_of := MADE_OF.get(kind):
            facts = facts_of(reader, full_id)
        else:
            facts = _row_facts(reader, kind, full_id, only)
    return Story(kind, full_id, facts)


def _row_facts(reader: RowReader, kind: str, full_id: str, only: str | None) -> Row:
    places = reader.rows(_PLACES[kind], full_id)
    every = reader.rows(_USES, [place["stage_key"] for place in places])
    uses = [use for use in every if only in (None, use["run_id"])]
    if only and not uses:
        raise unknown_in_run(kind, full_id, only, every)
    prompt_id = places[0]["prompt_id"]
    prompts = reader.rows("SELECT * FROM prompts WHERE prompt_id = ?", prompt_id)
    rows = _RowsByStage(reader, prompt_id, uses)
    accounts: dict[tuple[str, ...], Row] = {}
    for use in uses:
        shared = tuple(str(use[key]) for key in ACCOUNT_KEYS)
        if shared not in accounts:
            placing = _placing(prompts, use["prompts_key"])
            accounts[shared] = {"prompt": placing, "candidates": rows.candidates(use), "uses": {}}
        account = accounts[shared]
        entry = account["uses"].setdefault(
            tuple(use[key] for key in USE_KEYS),
            {
                "runs": [],
                "choices": rows.choices(use, account["candidates"]),
                "pairs": rows.pairs(use, kind, full_id),
            },
        )
        names = ("run_id", "stage", "name", "flow", "started_at")
        entry["runs"].append({name: use[name] for name in names})
    for account in accounts.values():
        account["uses"] = list(account["uses"].values())
    messages: list[Row] = next((row["messages"] for row in prompts if row["messages"]), [])
    return {
        "prompt": {"prompt_id": prompt_id, "messages": messages, "removed": not messages},
        "accounts": list(accounts.values()),
    }


def _placing(prompts: list[Row], stage_key: str | None) -> Row:
    """Where one sampling of prompts put the prompt; another's word where that one is lost."""
    found = next((row for row in prompts if row["stage_key"] == stage_key), None)
    row = found or next(iter(prompts), {})
    return {name: row.get(name) for name in PLACING}


class _RowsByStage:
    """The rows about one prompt in the stage outputs of ``uses``: one query a table."""

    def __init__(self, reader: RowReader, prompt_id: str, uses: list[Row]) -> None:
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
        self._edits = reader.rows(_OF_PROMPT.format("edits", "candidate_id"), prompt_id, keys)
        self._scores = reader.rows(_OF_PROMPT.format("scores", "scorer"), prompt_id, keys)
        self._pairs = reader.rows(_OF_PROMPT.format("pairs", "pair_id"), prompt_id, keys)
        scored = [*self._candidates, *self._scores]
        candidate_ids = sorted({row["candidate_id"] for row in scored})
        pair_ids = sorted({row["pair_id"] for row in self._pairs})
        self._judgments = reader.rows(_JUDGMENTS, keys, candidate_ids)
        self._decisions = reader.rows(_OF_PAIRS.format("decisions", "position"), keys, pair_ids)
        self._noise = reader.rows(_OF_PAIRS.format("label_noise", "pair_id"), keys, pair_ids)
        self._exports = reader.rows(_EXPORTS_OF_PAIRS, keys, pair_ids)
        # A later round that mixed a pair in trained on an export of its own.
        self._mixed = reader.rows(_MIXES_OF_PAIRS, pair_ids)
        self._exports += self._mixed
        self._rounds = rounds_of_exports(reader, {row["export_id"] for row in self._exports})
        self._pairing = {
            row["run_id"]: json.loads(row["pairing"] or "{}")
            for row in reader.rows(_PAIRING, sorted({use["run_id"] for use in uses}))
        }

    def candidates(self, use: Row) -> list[Row]:
        """The candidates of one use, each with its scores, raw verdicts and, if it is one, edit.

        `removed`: its text was taken from the workspace. Where its row was too, its scores tell of
        it, and the columns of `candidates` are null.
        """
        scores = _of(self._scores, [use["score_key"]])
        known = _of(self._candidates, [use["candidates_key"], use["edit_key"]])
        edits = {row["candidate_id"]: row for row in _of(self._edits, [use["edit_key"]])}
        ids = {row["candidate_id"] for row in known}
        gone = dict.fromkeys(s["candidate_id"] for s in scores if s["candidate_id"] not in ids)
        lost = [dict.fromkeys(CANDIDATES.column_names) | {"candidate_id": one} for one in gone]
        verdicts = _of(self._judgments, use["judge_keys"])
        return [
            {
                **row,
                "removed": row["completion"] is None and row["error"] is None,
                "edit": edits.get(row["candidate_id"]),
                "scores": [s for s in scores if s["candidate_id"] == row["candidate_id"]],
                "judgments": [
                    v
                    for v in verdicts
                    if row["candidate_id"] in (v["candidate_id"], v["other_candidate_id"])
                ],
            }
            for row in [*known, *lost]
        ]

    def choices(self, use: Row, candidates: list[Row]) -> list[Row]:
        """Why the strategy of one use put each candidate into a pair, or did not."""
        made = _of(self._pairs, [use["pair_key"]])
        pairing = self._pairing.get(use["run_id"], {})
        return choices(candidates, made, pairing) if use["pair_key"] else []

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
        def own(rows: list[Row], key: str) -> list[Row]:
            return [r for r in _of(rows, [use[key]]) if r["pair_id"] == row["pair_id"]]

        decisions = own(self._decisions, "filter_key")
        exports = own(self._exports, "export_key")
        exports += [mix for mix in self._mixed if mix["pair_id"] == row["pair_id"]]
        export_ids = {export["export_id"] for export in exports}
        return {
            **row,
            "label_noise": next(iter(own(self._noise, "noise_key")), None),
            "kept": all(d["kept"] for d in decisions) if use["filter_key"] else None,
            "decisions": decisions,
            "exports": exports,
            "rounds": [r for r in self._rounds if r["export_id"] in export_ids],
        }


def _of(rows: list[Row], stage_keys: list[str | None]) -> list[Row]:
    return [row for row in rows if row["stage_key"] in stage_keys]


# Scores stay where the texts of candidates were removed.
_PLACES = {
    "candidate": """
        SELECT prompt_id, stage_key FROM candidates WHERE candidate_id = $1
        UNION SELECT prompt_id, stage_key FROM scores WHERE candidate_id = $1""",
    "prompt": """
        SELECT prompt_id, stage_key FROM candidates WHERE prompt_id = $1
        UNION SELECT prompt_id, stage_key FROM scores WHERE prompt_id = $1
        UNION SELECT prompt_id, stage_key FROM prompts WHERE prompt_id = $1""",
    "pair": "SELECT prompt_id, stage_key FROM pairs WHERE pair_id = $1",
}
"""By kind: the prompt of a row, and the stage outputs that hold it."""

_USES = """
    SELECT * FROM candidate_outputs
    WHERE list_contains($1::VARCHAR[], candidates_key)
        OR list_contains($1::VARCHAR[], edit_key)
        OR list_contains($1::VARCHAR[], score_key)
        OR list_contains($1::VARCHAR[], pair_key)
        -- An evaluation answers the held-out prompts alone.
        OR stage = 'generate' AND list_contains($1::VARCHAR[], prompts_key)
    ORDER BY started_at, run_id, stage"""

_CANDIDATES = """
    SELECT * FROM candidates
    WHERE prompt_id = ? AND list_contains(?::VARCHAR[], stage_key)
    ORDER BY generator, sample_index, candidate_id"""

_OF_PROMPT = """
    SELECT * FROM {} WHERE prompt_id = ? AND list_contains(?::VARCHAR[], stage_key) ORDER BY {}"""

_OF_PAIRS = """
    SELECT * FROM {} WHERE list_contains(?::VARCHAR[], stage_key)
        AND list_contains(?::VARCHAR[], pair_id) ORDER BY {}"""

_JUDGMENTS = """
    SELECT * FROM judgments
    WHERE list_contains($1::VARCHAR[], stage_key) AND (
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

_MIXES_OF_PAIRS = """
    SELECT DISTINCT r.stage_key, r.pair_id, r.line, e.export_id, e.format, e.split, e.path
    FROM stage_runs AS s
    JOIN export_rows AS r ON r.stage_key = s.stage_key
    JOIN exports AS e ON e.stage_key = r.stage_key AND e.export_id = r.export_id
    WHERE s.stage = 'mix' AND list_contains(?::VARCHAR[], r.pair_id)
    ORDER BY e.path"""

_PAIRING = """
    SELECT run_id, config -> '$.pairing' AS pairing FROM runs
    WHERE list_contains(?::VARCHAR[], run_id)"""
