"""`prefmill lineage forget`: one prompt and all that was made of it, erased everywhere.

Of candidates and judgments the rows stay without their words, for shards are cut by their number;
of the other tables the rows go. What a killed erasure has begun, the same command ends: its plan,
which holds ids and no words, is on disk before the first table is touched.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import getpass
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import polars as pl

from lineage.database import publish
from lineage.export_lines import correct_card, lines_of_candidates, renumbered, without_lines
from lineage.liveness import is_at_work
from lineage.removal import part_files, rewrite_part, wordless
from lineage.words import ERASED, Words, copies, erase_in_file, files_with_text, still_holds
from lineage.workspace import (
    Part,
    commit_json,
    load_stage_record,
    outputs_locked,
    stage_record_path,
    write_stage_record,
)
from stages.content_ids import file_sha256
from stages.errors import UnknownIdError, WorkspaceError
from stages.part_files import read_parts, scan_parts
from stages.tables import (
    CANDIDATES,
    DROPPED_PROMPTS,
    EDITS,
    EXPORT_ROWS,
    EXPORTS,
    JUDGMENTS,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lineage.workspace import Workspace

COMPANIONS = {"llama_factory_info", "argilla_settings", "hf_dataset_card"}
"""Exported files that describe others and hold no pairs."""

UNPAIRED = "trl_unpaired_jsonl"
"""The format whose lines are answers."""


@dataclass(frozen=True)
class Ids:
    """A prompt and what was made of it."""

    prompt: str
    candidates: tuple[str, ...] = ()
    pairs: tuple[str, ...] = ()

    @cached_property
    def of_tables(self) -> dict[str, pl.Expr]:
        """Table name to the rows that are about the prompt."""
        prompt = pl.col("prompt_id") == self.prompt
        pair = pl.col("pair_id").is_in(self.pairs)
        judged = pl.col("candidate_id").is_in(self.candidates)
        other = pl.col("other_candidate_id").is_in(self.candidates).fill_null(value=False)
        alike = (pl.col("kept_prompt_id") == self.prompt).fill_null(value=False)
        of_pairs = ("label_noise", "decisions", "pair_signatures", "export_rows")
        return {
            "prompts": prompt,
            DROPPED_PROMPTS.name: prompt | alike,
            CANDIDATES.name: prompt,
            EDITS.name: prompt,
            JUDGMENTS.name: judged | other,
            "scores": prompt,
            "pairs": prompt,
            **dict.fromkeys(of_pairs, pair),
        }


@dataclass(frozen=True)
class Erasure:
    """What was erased, as the columns of ``ERASURES``."""

    erasure_id: str
    erased_at: str
    erased_by: str
    reason: str
    rows: int
    files: list[str]
    trained_in: list[str]
    left_in: list[str]


@dataclass(frozen=True)
class Found:
    """Where a prompt is."""

    ids: Ids
    words: Words
    parts: dict[Path, int]
    """Part-files to their rows about it."""
    trained_in: list[str]
    runs: list[str]
    """Runs whose prompts it is among."""
    alike: list[str]
    """Prompts that sampling dropped as nearly the same: erased with it."""

    @property
    def rows(self) -> int:
        """Over all part-files."""
        return sum(self.parts.values())


def erasure_id(prompt_id: str) -> str:
    """Return the name of a prompt's erasure: SHA-256 of its id."""
    return hashlib.sha256(prompt_id.encode()).hexdigest()


def erasure_path(workspace: Workspace, prompt_id: str) -> Path:
    """Where the record of a prompt's erasure lies."""
    return workspace.store / "erasures" / f"{erasure_id(prompt_id)}.json"


def without_erased(workspace: Workspace, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of prompts that were never erased, nor are nearly the same as such a one."""
    erased = {path.stem for path in (workspace.store / "erasures").glob("*.json")}
    if not erased:
        return rows
    ids = [name for name in ("prompt_id", "kept_prompt_id") if name in rows.columns]
    kept = [not erased & {erasure_id(i) for i in of_row if i} for of_row in rows[ids].iter_rows()]
    return rows.filter(kept)


def find(workspace: Workspace, prompt_id: str) -> Found:
    """Return where a prompt is, by its whole id.

    Raises:
        UnknownIdError: it is nowhere, or was erased already.
    """
    ids, words = _ids_and_words(workspace, prompt_id)
    parts = {path: rows for path, rows in _rows_about(workspace, ids) if rows}
    planned = _plan_path(workspace, prompt_id)
    trained_in: set[str] = set()
    alike = _alike(workspace, prompt_id)
    if planned.is_file():
        plan = json.loads(planned.read_bytes())
        parts |= {workspace.root / path: rows for path, rows in plan["parts"].items()}
        ids = Ids(prompt_id, tuple(plan["candidates"]), tuple(plan["pairs"]))
        trained_in = set(plan.get("trained_in", ()))  # the lines that told of them may be gone
        alike |= set(plan.get("alike", ()))
    elif not words and erasure_path(workspace, prompt_id).is_file():
        parts = {}  # what is left of it are rows without words
    if not parts:
        raise UnknownIdError(
            f"no prompt {prompt_id!r}",
            expected="the whole id of a prompt that is not erased yet",
            where=str(workspace.root),
            remedy='find it with `prefmill sql "FROM prompts WHERE ..."`',
        )
    texts = frozenset(words)
    keys = {_key(path) for path in parts}
    runs = sorted(
        {
            record.parent.parent.name
            for record in workspace.runs.glob("*/stages/*.json")
            if json.loads(record.read_bytes())["stage_key"] in keys
        }
    )
    found = Words(texts, frozenset({prompt_id, *ids.candidates, *ids.pairs}))
    trained = sorted(trained_in | _trained_in(workspace, ids))
    return Found(ids, found, parts, trained, runs, sorted(alike))


def forget(workspace: Workspace, found: Found, reason: str = "") -> Erasure:
    """Erase what was found, publish the lineage and return the record of it.

    Raises:
        WorkspaceError: a run is making one of the outputs now, or has the prompt and goes on: what
            it trains meanwhile would be named by nobody.
    """
    prompt_id = found.ids.prompt
    if at_work := [run_id for run_id in found.runs if is_at_work(workspace, run_id)]:
        raise WorkspaceError(
            f"under way with the prompt: {', '.join(at_work)}",
            where=str(workspace.root),
            remedy="do it again when the run has ended; nothing was changed",
        )
    with outputs_locked(workspace, map(_key, found.parts)):
        touched = [path for path in files_with_text(workspace) if erase_in_file(path, found.words)]
        touched += _delete_pages(workspace, found.runs)
        _write_plan(workspace, found)
        unfinished = {p for p in found.parts if not stage_record_path(workspace, _key(p)).is_file()}
        touched += _delete_unfinished(workspace, unfinished)
        made = _erase_exports(workspace, found)
        rows = {p for p in found.parts if p not in unfinished and p.is_file()}
        for path in sorted(p for p in rows if p.parent.parent.name != EXPORT_ROWS.name):
            made[path] = _erase_rows(workspace, path, found.ids)
        _correct_records(workspace, {p.path: p for p in made.values() if p is not None})
        touched += made
        others = chain(files_with_text(workspace), copies(workspace, _exported(workspace)))
        left = [p for p in others if still_holds(p, found.words)]
        erasure = Erasure(
            erasure_id=erasure_id(prompt_id),
            erased_at=dt.datetime.now(dt.UTC).isoformat(),
            erased_by=getpass.getuser(),
            reason=reason,
            rows=found.rows,
            files=sorted({workspace.relative(path) for path in touched}),
            trained_in=found.trained_in,
            left_in=sorted(workspace.relative(path) for path in left),
        )
        for each in found.alike:
            also = replace(erasure, erasure_id=erasure_id(each), rows=0, files=[], trained_in=[])
            if not erasure_path(workspace, each).is_file():
                commit_json(erasure_path(workspace, each), asdict(also))
        commit_json(erasure_path(workspace, prompt_id), asdict(erasure))
        _plan_path(workspace, prompt_id).unlink()
    publish(workspace)
    return erasure


def _key(path: Path) -> str:
    return path.parent.name.removeprefix("stage_key=")


def _plan_path(workspace: Workspace, prompt_id: str) -> Path:
    return erasure_path(workspace, prompt_id).with_suffix(".plan")


def _write_plan(workspace: Workspace, found: Found) -> None:
    parts = {workspace.relative(path): rows for path, rows in found.parts.items()}
    plan = {
        "candidates": found.ids.candidates,
        "pairs": found.ids.pairs,
        "parts": parts,
        "trained_in": found.trained_in,
        "alike": found.alike,
    }
    commit_json(_plan_path(workspace, found.ids.prompt), plan)


def _picked(workspace: Workspace, name: str, rows: pl.Expr) -> Iterator[pl.DataFrame]:
    for path in part_files(workspace, name):
        yield scan_parts(path).filter(rows).collect()


def _ids_and_words(workspace: Workspace, prompt_id: str) -> tuple[Ids, set[str]]:
    """Return the ids of what was made of a prompt, and every text of it."""
    words: set[str] = set()
    candidates: set[str] = set()
    pairs: set[str] = set()

    def note(name: str, frame: pl.DataFrame) -> None:
        for column in wordless(table(name)):
            for value in frame[column].drop_nulls().to_list():
                words.update(_texts(value))

    about = Ids(prompt_id).of_tables
    for name in ("prompts", DROPPED_PROMPTS.name, EDITS.name):
        for frame in _picked(workspace, name, about[name]):
            note(name, frame)
    for frame in _picked(workspace, CANDIDATES.name, about[CANDIDATES.name]):
        note(CANDIDATES.name, frame)
        candidates.update(frame["candidate_id"])
    judged = Ids(prompt_id, tuple(candidates)).of_tables[JUDGMENTS.name]
    for frame in _picked(workspace, JUDGMENTS.name, judged):
        note(JUDGMENTS.name, frame)
    for frame in _picked(workspace, "pairs", about["pairs"]):
        pairs.update(frame["pair_id"])
    return Ids(prompt_id, tuple(sorted(candidates)), tuple(sorted(pairs))), words - {"", ERASED}


def _exported(workspace: Workspace) -> set[Path]:
    paths = (scan_parts(path).select("path").collect() for path in part_files(workspace, "exports"))
    return {workspace.root / path for frame in paths for path in frame["path"]}


def _alike(workspace: Workspace, prompt_id: str) -> set[str]:
    rows = pl.col("kept_prompt_id") == prompt_id
    frames = _picked(workspace, DROPPED_PROMPTS.name, rows)
    return {one for frame in frames for one in frame["prompt_id"]}


def models_of(workspace: Workspace, trained_in: list[str]) -> list[str]:
    """Return the folders of the models of rounds and trainings, those in the workspace from it."""
    wanted = pl.col("training_id").is_in(trained_in)
    frames = _picked(workspace, "trainings", wanted)
    places = dict(r for f in frames for r in f.select("training_id", "result_path").iter_rows())
    return [places.get(one, f"models/{one}") for one in trained_in]


def _texts(value: Any) -> Iterator[str]:
    """Yield the texts of a cell: of a conversation those of its users and assistants.

    A system prompt is no one's own words: other prompts and the configuration have it too.
    """
    if isinstance(value, str):
        yield value
        if value.startswith("{"):  # gold and ground truth are JSON, and other texts may be anything
            with contextlib.suppress(ValueError, RecursionError):
                yield from (text for text in json.loads(value).values() if isinstance(text, str))
    else:
        yield from (turn["content"] for turn in value if turn["role"] != "system")


def _rows_about(workspace: Workspace, ids: Ids) -> Iterator[tuple[Path, int]]:
    for name, rows in ids.of_tables.items():
        for path in part_files(workspace, name):
            yield path, int(scan_parts(path).filter(rows).select(pl.len()).collect().item())


def _trained_in(workspace: Workspace, ids: Ids) -> set[str]:
    """Return the rounds, and trainings on files, that used an export with one of the pairs.

    Also a round that ended between its training and its gate: its model is there all the same.
    """
    exported: set[str] = set()
    for frame in _picked(workspace, EXPORT_ROWS.name, ids.of_tables[EXPORT_ROWS.name]):
        exported.update(frame["export_id"])
    contents: set[str] = set()
    paths: set[str] = set()
    trained_on: set[str] = set()
    for path in part_files(workspace, EXPORTS.name):
        rows = scan_parts(path).filter(pl.col("export_id").is_in(list(exported))).collect()
        contents.update(rows["sha256"])
        paths.update(rows["path"])
        # Nobody trains on the held-out file.
        trained_on.update([_key(path)] if "train" in rows["split"] else [])
    trained: set[str] = set()
    for frame in _picked(workspace, "rounds", pl.col("export_id").is_in(list(exported))):
        trained.update(frame["round_id"])
    for record in map(load_stage_record, (workspace.store / "stages").glob("*.json")):
        read = {d.stage_key for d in record.inputs if d.table == EXPORTS.name}
        if record.stage == "train" and read & trained_on:
            trained.add(f"round_{record.stage_key}")
    # By its place too: an earlier erasure may have rewritten the file.
    same = pl.col("data_sha256").is_in(list(contents)) | pl.col("data_path").is_in(list(paths))
    for frame in _picked(workspace, "trainings", same):
        trained.update(frame["training_id"])
    return trained


def _delete_pages(workspace: Workspace, runs: list[str]) -> list[Path]:
    """Delete the pages of runs that had the prompt: they may show its words cut or marked up."""
    pages = [page for run in runs for page in (workspace.runs / run).glob("*.html")]
    for page in pages:
        page.unlink()
    return pages


def _delete_unfinished(workspace: Workspace, parts: set[Path]) -> list[Path]:
    """Delete all parts of the unfinished outputs that hold the prompt; a run makes them again.

    What they were paid for is in their journals.
    """
    deleted = [
        path
        for key in {_key(part) for part in parts}
        for path in workspace.store.glob(f"*/stage_key={key}/part-*.parquet")
    ]
    for path in deleted:
        path.unlink()
    return deleted


def _erase_rows(workspace: Workspace, path: Path, ids: Ids) -> Part:
    schema = table(path.parent.parent.name)
    about = ids.of_tables[schema.name]
    blank: dict[str, dict[str, pl.Expr]] = {
        CANDIDATES.name: {"finish_reason": pl.lit("error"), "error": pl.lit("erased")},
        JUDGMENTS.name: {"score": pl.lit(None), "error": pl.lit("erased")},
        "scores": {"score": pl.lit(None), "spread": pl.lit(None), "missing_share": pl.lit(1.0)},
    }

    def change(rows: pl.DataFrame) -> pl.DataFrame:
        if schema.name not in blank:
            return rows.filter(~about)
        values = {**wordless(schema), **blank[schema.name]}
        return rows.with_columns(
            pl.when(about).then(value).otherwise(pl.col(name)).alias(name)
            for name, value in values.items()
        )

    return rewrite_part(workspace, path, schema, change)


def _erase_exports(workspace: Workspace, found: Found) -> dict[Path, Part | None]:
    """Take the prompt out of exported files; return them, and the parts that tell of them."""
    made: dict[Path, Part | None] = {}
    keys = {_key(path) for path in found.parts if path.parent.parent.name == EXPORT_ROWS.name}
    for key in sorted(keys):
        folders = [workspace.parts_folder(t.name, key) for t in (EXPORTS, EXPORT_ROWS)]
        (of_files,), of_lines = (sorted(folder.glob("part-*.parquet")) for folder in folders)
        exports = read_parts(of_files)
        lines = read_parts(of_lines)
        about = lines.filter(found.ids.of_tables[EXPORT_ROWS.name])
        dropped: dict[str, set[int]] = {}
        for export in exports.filter(~pl.col("format").is_in(COMPANIONS)).iter_rows(named=True):
            path = workspace.root / export["path"]
            of_export = set(about.filter(export_id=export["export_id"])["line"].to_list())
            if not path.is_file():
                continue
            if export["format"] == UNPAIRED:
                of_export |= lines_of_candidates(path, set(found.ids.candidates))
            dropped[export["export_id"]] = of_export
            # Else a killed erasure has been here, and its lines have other numbers now.
            if of_export and file_sha256(path) == export["sha256"]:
                without_lines(path, of_export)
                made[path] = None
        made |= _erase_export_rows(workspace, of_lines, found.ids, dropped)
        made |= _correct_exports(workspace, of_files, of_lines)
    return made


def _erase_export_rows(
    workspace: Workspace, of_lines: list[Path], ids: Ids, dropped: dict[str, set[int]]
) -> dict[Path, Part | None]:
    about = ids.of_tables[EXPORT_ROWS.name]
    return {
        path: rewrite_part(
            workspace, path, EXPORT_ROWS, lambda rows: renumbered(rows.filter(~about), dropped)
        )
        for path in of_lines
    }


def _correct_exports(
    workspace: Workspace, of_files: Path, of_lines: list[Path]
) -> dict[Path, Part | None]:
    """Write the rows and hashes of the files as they are now; a dataset card's counts first."""
    lines = read_parts(of_lines)
    counts: dict[str, int] = dict(lines.group_by("export_id").len().iter_rows())

    def change(exports: pl.DataFrame) -> pl.DataFrame:
        rows = exports.to_dicts()
        for row in rows:
            path = workspace.root / row["path"]
            if row["format"] not in COMPANIONS:
                row["rows"] = counts.get(row["export_id"], 0)
            if row["format"] == "hf_dataset_card" and path.is_file():
                of_splits = {r["split"]: r["rows"] for r in rows if r["format"] == "hf_dataset"}
                correct_card(path, of_splits)
            row["sha256"] = file_sha256(path) if path.is_file() else row["sha256"]
        return pl.DataFrame(rows, schema=exports.schema)

    return {of_files: rewrite_part(workspace, of_files, EXPORTS, change)}


def _correct_records(workspace: Workspace, made: dict[str, Part]) -> None:
    """Write the rows and hashes of rewritten part-files into every record that names them."""
    for path in (workspace.store / "stages").glob("*.json"):
        record = load_stage_record(path)
        inputs, outputs = (
            tuple(
                replace(dataset, parts=tuple(made.get(part.path, part) for part in dataset.parts))
                for dataset in datasets
            )
            for datasets in (record.inputs, record.outputs)
        )
        if (inputs, outputs) != (record.inputs, record.outputs):
            write_stage_record(workspace, replace(record, inputs=inputs, outputs=outputs))
