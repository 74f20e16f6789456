"""What the files of a workspace say: run records, stage records and finished part-files."""

from __future__ import annotations

import functools
import json
import os
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from lineage.edges import edges, files_made
from lineage.liveness import standing
from lineage.records import FILE_TRAININGS, record_row
from lineage.removal import Removal, load_removal
from lineage.workspace import load_stage_record
from stages.content_ids import content_hash, file_sha256
from stages.errors import DataError
from stages.tables import (
    ALL_TABLES,
    ARTIFACTS,
    EDGES,
    ERASURES,
    ROW_TABLES,
    RUNS,
    STAGE_ERRORS,
    STAGE_OUTPUTS,
    STAGE_RUNS,
    Table,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lineage.known import Known
    from lineage.workspace import Dataset, Part, StageRecord, Workspace

RECORD_FILES = {
    "runs/*/stages/*.json": STAGE_RUNS,
    "runs/*/errors/*.json": STAGE_ERRORS,
    "runs/*/run.json": RUNS,
    "store/erasures/*.json": ERASURES,
}
"""Where the rows of the tables lie that are a file each. Stages before runs: see `gather`."""

PAGES = ("report.html", "validations.html")
"""Drawn when a run has ended, and again by `prefmill report`."""


@dataclass(frozen=True)
class Problem:
    """A file that was set aside, relative to the workspace, and why."""

    path: str
    problem: str

    def __str__(self) -> str:
        """``path: problem``."""
        return f"{self.path}: {self.problem}"


@dataclass
class Facts:
    """Rows of the record tables, paths of the part-files, and what was set aside."""

    root: Path
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    parts: dict[str, list[str]] = field(default_factory=lambda: {t.name: [] for t in ROW_TABLES})
    checked: dict[str, str] = field(default_factory=dict)
    """A part-file of ``parts``, from the workspace, to its stamp."""
    problems: list[Problem] = field(default_factory=list)

    def set_aside(self, table_name: str, path: str, problem: str) -> None:
        """Leave out a part-file that was taken in."""
        del self.checked[path]
        self.parts[table_name].remove(str(self.root / path))
        self.problems.append(Problem(path, problem))

    def record_table(self, schema: Table) -> pa.Table:
        """The rows of a record table, sorted by its key, one a key."""
        by_key = {tuple(row[k] for k in schema.key): row for row in self.rows[schema.name]}
        rows = [by_key[key] for key in sorted(by_key)]
        return pa.Table.from_pylist(rows, schema=schema.arrow_schema)


def gather(workspace: Workspace, known: Known, *, verify_hashes: bool = False) -> Facts:
    """Return all that the files of ``workspace`` say.

    Of part-files that are ``known`` the footer is not checked again.

    Files are read against the order they are written in (a stage's output, then its run's record
    of it), so that a stage that finishes meanwhile is seen with its rows or not at all.
    ``verify_hashes`` reads every part-file whole; otherwise only its footer is checked.
    """
    root = workspace.root.resolve()
    facts = Facts(root)
    for pattern, schema in RECORD_FILES.items():
        facts.rows[schema.name] = _records(root, pattern, schema, facts)
    for run in facts.rows[RUNS.name]:
        run["status"] = standing(workspace, run["run_id"], run["status"])
    removals = _removals(root, facts)
    records = _stage_records(root, facts)
    for record in records:
        removed = removals.get(record.stage_key)
        for dataset in record.outputs:
            for part in dataset.parts:
                verify = verify_hashes and not (removed and part.path in removed.files)
                _add_part(dataset, part, facts, known, verify_hash=verify)
    made = files_made(facts.parts)
    facts.rows[STAGE_OUTPUTS.name] = [_stage_output(r, removals) for r in records]
    facts.rows[ARTIFACTS.name] = [
        *(row for record in records for row in _parts(record)),
        *(file.artifact(record) for record in records for file in made.get(record.stage_key, ())),
        *_pages(facts.rows[RUNS.name]),
    ]
    _mark_removed(facts.rows[ARTIFACTS.name], removals.values())
    facts.rows[EDGES.name] = edges(records, made)
    return facts


def _records(root: Path, pattern: str, schema: Table, facts: Facts) -> list[dict[str, Any]]:
    rows = []
    for path in root.glob(pattern):
        try:
            values = json.loads(path.read_bytes())
            rows.append(record_row(schema, values))
        except (OSError, ValueError, TypeError) as error:
            facts.problems.append(Problem(path.relative_to(root).as_posix(), str(error)))
    return rows


def _removals(root: Path, facts: Facts) -> dict[str, Removal]:
    found = {}
    for path in root.glob("store/removed/*.json"):
        try:
            found[path.stem] = load_removal(path)
        except DataError as error:
            facts.problems.append(Problem(path.relative_to(root).as_posix(), error.found))
    return found


def _stage_records(root: Path, facts: Facts) -> list[StageRecord]:
    records = []
    for path in sorted(root.glob("store/stages/*.json")):
        try:
            record = load_stage_record(path)
            if record.stage_key != path.stem:
                raise ValueError(f"stage_key {record.stage_key!r} in a file of that other name")  # noqa: TRY301
            _stage_output(record, {})
        except (OSError, ValueError, TypeError, KeyError) as error:
            reason = f"not a stage record: {type(error).__name__}: {error}"
            facts.problems.append(Problem(path.relative_to(root).as_posix(), reason))
        else:
            records.append(record)
    return records


def _stage_output(record: StageRecord, removals: dict[str, Removal]) -> dict[str, Any]:
    removed = removals.get(record.stage_key)
    values = {**vars(record), "removed_at": removed.removed_at if removed else None}
    return record_row(STAGE_OUTPUTS, values)


def _parts(record: StageRecord) -> list[dict[str, Any]]:
    return [
        {
            "stage_key": record.stage_key,
            "stage": record.stage,
            "made_by": record.made_by,
            "role": role,
            "kind": "part",
            "table": dataset.table,
            "path": part.path,
            "rows": part.rows,
            "sha256": part.sha256,
            "removed_at": None,
        }
        for role, datasets in (("input", record.inputs), ("output", record.outputs))
        for dataset in datasets
        for part in dataset.parts
    ]


def _pages(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "stage_key": run["run_id"],
            "stage": "report",
            "made_by": run["run_id"],
            "role": "output",
            "kind": "page",
            "path": f"runs/{run['run_id']}/{name}",
        }
        for run in runs
        if run["ended_at"] is not None and run["flow"] not in ("sweep", *FILE_TRAININGS)
        for name in PAGES
    ]


def _mark_removed(artifacts: list[dict[str, Any]], removals: Iterable[Removal]) -> None:
    removed_at = {
        path: datetime.fromisoformat(removal.removed_at)
        for removal in removals
        for path in removal.files
    }
    for row in artifacts:
        row["removed_at"] = removed_at.get(row["path"])


def _add_part(
    dataset: Dataset, part: Part, facts: Facts, known: Known, *, verify_hash: bool
) -> None:
    folder = f"store/{dataset.table}/stage_key={dataset.stage_key}/"
    path = f"{facts.root}/{part.path}"
    try:
        if dataset.table not in facts.parts:
            raise ValueError(f"unknown table {dataset.table!r}")  # noqa: TRY301
        if not part.path.startswith(folder) or ".." in part.path:
            raise ValueError(f"expected a file in {folder}")  # noqa: TRY301
        stamp = _stamp(path, dataset.table, part)
        if stamp != known.parts.get(part.path):
            _check_part(path, part, ALL_TABLES[dataset.table])
        if verify_hash and file_sha256(Path(path)) != part.sha256:
            raise ValueError("its bytes are not those recorded (SHA-256 differs)")  # noqa: TRY301
    except (OSError, ValueError, pa.ArrowException) as error:
        facts.problems.append(Problem(part.path, str(error)))
    else:
        facts.parts[dataset.table].append(path)
        facts.checked[part.path] = stamp


def _stamp(path: str, table_name: str, part: Part) -> str:
    """Return what changes when the file, its record or its table's schema does."""
    now = os.stat(path)  # noqa: PTH116 - thousands of files
    file = f"{now.st_size} {now.st_mtime_ns} {now.st_ctime_ns} {now.st_ino}"
    return f"{file} {part.rows} {_schema_hash(table_name)}"


@functools.cache
def _schema_hash(table_name: str) -> str:
    return content_hash(str(ALL_TABLES[table_name].arrow_schema))


def _check_part(path: str, part: Part, schema: Table) -> None:
    metadata = pq.read_metadata(path)
    if metadata.num_rows != part.rows:
        raise ValueError(f"{metadata.num_rows} rows, expected {part.rows}")
    found, expected = metadata.schema.to_arrow_schema(), schema.arrow_schema
    if not found.equals(expected):
        missing = [f"{c.name} {c.type}" for c in expected if c not in list(found)]
        raise ValueError(
            f"not the columns of {schema.name!r}: missing or different {missing}; of another "
            "version of prefmill? Its configuration, run again, makes it anew"
        )
