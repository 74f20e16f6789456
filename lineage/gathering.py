"""What the files of a workspace say: run records, stage records and finished part-files."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from lineage.records import record_row
from lineage.workspace import load_stage_record
from stages.content_ids import file_sha256
from stages.tables import ALL_TABLES, ARTIFACTS, ROW_TABLES, RUNS, STAGE_RUNS, Table

if TYPE_CHECKING:
    from pathlib import Path

    from lineage.workspace import Dataset, Part, StageRecord, Workspace


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

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    parts: dict[str, list[str]] = field(default_factory=lambda: {t.name: [] for t in ROW_TABLES})
    problems: list[Problem] = field(default_factory=list)

    def record_table(self, schema: Table) -> pa.Table:
        """The rows of a record table, sorted by its key."""
        rows = sorted(self.rows[schema.name], key=lambda row: [row[k] for k in schema.key])
        return pa.Table.from_pylist(rows, schema=schema.arrow_schema)


def gather(workspace: Workspace, *, verify_hashes: bool = False) -> Facts:
    """Return all that the files of ``workspace`` say.

    Files are read against the order they are written in (a stage's output, then its run's record
    of it), so that a stage that finishes meanwhile is seen with its rows or not at all.
    ``verify_hashes`` reads every part-file whole; otherwise only its footer is checked.
    """
    facts = Facts()
    root = workspace.root.resolve()
    facts.rows[STAGE_RUNS.name] = _records(root, "runs/*/stages/*.json", STAGE_RUNS, facts)
    facts.rows[RUNS.name] = _records(root, "runs/*/run.json", RUNS, facts)
    artifacts: dict[tuple[str, str, str], dict[str, Any]] = {}
    for path in sorted(root.glob("store/stages/*.json")):
        record = _stage_record(path, root, facts)
        if record is None:
            continue
        for row in _artifacts(record):
            artifacts[row["stage_key"], row["role"], row["path"]] = row
        for dataset in record.outputs:
            _add_parts(dataset, record.stage_key, root, facts, verify_hashes=verify_hashes)
    facts.rows[ARTIFACTS.name] = list(artifacts.values())
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


def _stage_record(path: Path, root: Path, facts: Facts) -> StageRecord | None:
    try:
        record = load_stage_record(path)
        if record.stage_key != path.stem:
            raise ValueError(f"stage_key {record.stage_key!r} in a file of that other name")  # noqa: TRY301
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"not a stage record: {type(error).__name__}: {error}"
        facts.problems.append(Problem(path.relative_to(root).as_posix(), reason))
        return None
    return record


def _artifacts(record: StageRecord) -> list[dict[str, Any]]:
    return [
        {
            "stage_key": record.stage_key,
            "stage": record.stage,
            "role": role,
            "table": dataset.table,
            "path": part.path,
            "rows": part.rows,
            "sha256": part.sha256,
        }
        for role, datasets in (("input", record.inputs), ("output", record.outputs))
        for dataset in datasets
        for part in dataset.parts
    ]


def _add_parts(
    dataset: Dataset, stage_key: str, root: Path, facts: Facts, *, verify_hashes: bool
) -> None:
    folder = f"store/{dataset.table}/stage_key={stage_key}/"
    for part in dataset.parts:
        try:
            if dataset.table not in facts.parts:
                raise ValueError(f"unknown table {dataset.table!r}")  # noqa: TRY301
            if not part.path.startswith(folder) or ".." in part.path:
                raise ValueError(f"expected a file in {folder}")  # noqa: TRY301
            _check_part(root / part.path, part, ALL_TABLES[dataset.table])
            if verify_hashes and file_sha256(root / part.path) != part.sha256:
                raise ValueError("its bytes are not those recorded (SHA-256 differs)")  # noqa: TRY301
        except (OSError, ValueError, pa.ArrowException) as error:
            facts.problems.append(Problem(part.path, str(error)))
        else:
            facts.parts[dataset.table].append(str(root / part.path))


def _check_part(path: Path, part: Part, schema: Table) -> None:
    metadata = pq.read_metadata(path)
    if metadata.num_rows != part.rows:
        raise ValueError(f"{metadata.num_rows} rows, expected {part.rows}")
    found, expected = metadata.schema.to_arrow_schema(), schema.arrow_schema
    if not found.equals(expected):
        missing = [f"{c.name} {c.type}" for c in expected if c not in list(found)]
        raise ValueError(f"not the columns of {schema.name!r}: missing or different {missing}")
