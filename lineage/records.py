"""The records of runs: `run.json`, `stages/STAGE.json` and `errors/N.json` in `runs/RUN_ID/`.

Their keys are the columns of ``RUNS``, ``STAGE_RUNS`` and ``STAGE_ERRORS``; times are ISO-8601
with an offset.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import pyarrow as pa

from lineage.liveness import standing
from lineage.workspace import commit_json
from stages.content_ids import canonical_json
from stages.errors import DataError, UnknownIdError, nearest
from stages.tables import RUNS, STAGE_ERRORS, STAGE_RUNS, Column, Table

if TYPE_CHECKING:
    from pathlib import Path

    from lineage.workspace import Workspace

LATEST = "latest"
"""In place of a run id: the run that was started last, those of ``BESIDE`` aside."""

FILE_TRAININGS = ("sft", "reward-model", "train-file")
"""Flows that train on a file, for runs to begin with or to be scored by; they have no pages."""

OF_OTHERS = ("sweep", "export")
"""Flows that pair another run's candidates, or write its pairs."""

BESIDE = (*OF_OTHERS, "card", *FILE_TRAININGS)
"""Flows that make no dataset of their own: most of them look at what others made."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunRecord:
    """One run, as the columns of ``RUNS``; ``config`` is the resolved configuration itself."""

    run_id: str
    flow: str
    name: str
    round_index: int
    config: dict[str, Any]
    code_version: str
    status: str
    started_at: str
    ended_at: str | None = None
    attempts: int = 1
    error: str | None = None

    @property
    def continued_by(self) -> str:
        """The command that goes on with it if it died."""
        again = self.flow if self.flow in BESIDE else f"resume {self.run_id}"
        return f"prefmill {again}"

    def ended_before(self, other: RunRecord) -> bool:
        """Return whether it had ended when ``other`` was first started."""
        return self.ended_at is not None and _time(self.ended_at) < _time(other.started_at)


@dataclass(frozen=True)
class StageRunRecord:
    """One stage of one run, as the columns of ``STAGE_RUNS``."""

    run_id: str
    stage: str
    position: int
    stage_key: str
    status: str
    made_by: str
    seconds: float
    ended_at: str


@dataclass(frozen=True)
class StageErrorRecord:
    """One time that a stage failed, as the columns of ``STAGE_ERRORS``."""

    run_id: str
    stage: str
    failed_at: str
    stage_key: str
    seconds: float
    error: str


Record = TypeVar("Record", RunRecord, StageRunRecord)


def run_path(workspace: Workspace, run_id: str) -> Path:
    """Where the record of a run lies."""
    return workspace.runs / run_id / "run.json"


def stage_run_path(workspace: Workspace, run_id: str, stage: str) -> Path:
    """Where the record of one stage of a run lies; `judge:NAME` has a name from a configuration."""
    return workspace.runs / run_id / "stages" / f"{quote(stage, safe=' :')}.json"


def write_run(workspace: Workspace, record: RunRecord) -> None:
    """Commit the record of a run, over the earlier one.

    Raises:
        DataError: a value does not fit its column.
    """
    path = run_path(workspace, record.run_id)
    _require_fit(RUNS, record, path)
    commit_json(path, asdict(record))


def write_stage_run(workspace: Workspace, record: StageRunRecord) -> None:
    """Commit the record of one stage of a run, over the earlier one.

    Raises:
        DataError: a value does not fit its column.
    """
    path = stage_run_path(workspace, record.run_id, record.stage)
    _require_fit(STAGE_RUNS, record, path)
    commit_json(path, asdict(record))


def write_stage_error(workspace: Workspace, record: StageErrorRecord) -> None:
    """Commit the record of a stage's failure, beside those of earlier attempts.

    Raises:
        DataError: a value does not fit its column.
    """
    folder = workspace.runs / record.run_id / "errors"
    path = folder / f"{len(list(folder.glob('*.json')))}.json"
    _require_fit(STAGE_ERRORS, record, path)
    commit_json(path, asdict(record))


def read_run(workspace: Workspace, run_id: str) -> RunRecord | None:
    """Return the record of exactly this run, or None. One whose process is gone is `dead`.

    Raises:
        DataError: the record is there and broken.
    """
    path = run_path(workspace, run_id)
    return _standing(workspace, path) if run_id and path.is_file() else None


def _standing(workspace: Workspace, path: Path) -> RunRecord:
    record = _load(path, RUNS, RunRecord)
    return replace(record, status=standing(workspace, path.parent.name, record.status))


def read_stage_runs(workspace: Workspace, run_id: str) -> list[StageRunRecord]:
    """Return the stages that a run has finished, in order.

    Raises:
        DataError: a record is broken.
    """
    folder = stage_run_path(workspace, run_id, "any").parent
    records = [_load(path, STAGE_RUNS, StageRunRecord) for path in folder.glob("*.json")]
    return sorted(records, key=lambda record: (record.position, record.stage))


def list_runs(workspace: Workspace) -> list[RunRecord]:
    """Return every run, the newest start first. A broken record is logged and left out."""
    records = []
    for path in workspace.runs.glob("*/run.json"):
        try:
            records.append(_standing(workspace, path))
        except DataError as error:
            log.warning("%s", error)
    return sorted(records, key=lambda r: (_time(r.started_at), r.run_id), reverse=True)


def completed_before(workspace: Workspace, run_id: str) -> list[RunRecord]:
    """Return the completed runs of this one's name that had ended when it was first started.

    The same however often it is started again. Those of ``BESIDE`` make no dataset of record.
    """
    this = read_run(workspace, run_id)
    return [
        run
        for run in list_runs(workspace)
        if this is not None
        and run.name == this.name
        and run.status == "completed"
        and run.flow not in BESIDE
        and run.ended_before(this)
    ]


def require_run(workspace: Workspace, run_id: str) -> RunRecord:
    """Return the run called ``run_id``, or the one whose id begins so, or the ``latest``.

    Raises:
        UnknownIdError: no run, or more than one, fits; names the nearest and how many there are.
    """
    runs = list_runs(workspace)
    known = [run.run_id for run in runs]
    chosen = [run for run in runs if run.flow not in BESIDE] or runs
    if run_id == LATEST and chosen:
        return chosen[0]
    fitting = [run for run in runs if run.run_id == run_id] or [
        run for run in runs if run_id and run.run_id.startswith(run_id)
    ]
    if len(fitting) == 1:
        return fitting[0]
    found = f"unknown run {run_id!r}{nearest(run_id, known)}"
    if fitting:
        found = f"{run_id!r} fits {len(fitting)} runs: {', '.join(r.run_id for r in fitting[:5])}"
    elif not runs:
        found = "there is no run yet" if run_id == LATEST else f"unknown run {run_id!r}"
    raise UnknownIdError(
        found,
        expected=f"one of the {len(runs)} runs of this workspace, or {LATEST!r}",
        where=str(workspace.runs),
        remedy="list them with `prefmill runs`",
    )


def record_row(schema: Table, values: Any) -> dict[str, Any]:
    """Return ``values`` as a row of ``schema``: times parsed, nested values as canonical JSON.

    Raises:
        TypeError: a value is of another type than its column.
        ValueError: a column is missing or null, or a value does not fit it.
    """
    if not isinstance(values, dict):
        raise TypeError(f"it holds a {type(values).__name__}, expected an object")
    missing = [name for name in schema.column_names if name not in values]
    if missing:
        raise ValueError(f"missing keys {missing}, found {sorted(values)}")
    return {column.name: _cell(column, values[column.name]) for column in schema.columns}


def _cell(column: Column, value: Any) -> Any:
    if value is None:
        if not column.nullable:
            raise ValueError(f"{column.name!r} is null")
        return None
    if pa.types.is_timestamp(column.type):
        return _time(value)
    if pa.types.is_string(column.type):
        return value if isinstance(value, str) else canonical_json(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{column.name!r} is {value!r}, expected a number")
    if pa.types.is_integer(column.type) and value != int(value):
        raise ValueError(f"{column.name!r} is {value!r}, expected a whole number")
    return value


def _time(text: Any) -> datetime:
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is not a time as ISO-8601 text")
    time = datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"the time {text!r} has no offset from UTC")
    return time


def _require_fit(
    schema: Table, record: RunRecord | StageRunRecord | StageErrorRecord, path: Path
) -> None:
    problem = ""
    try:
        row = record_row(schema, asdict(record))
    except (TypeError, ValueError) as error:
        problem = str(error)
    else:
        for column in schema.columns:
            if column.allowed and row[column.name] not in column.allowed:
                problem = f"{column.name!r} is {row[column.name]!r}, not one of {column.allowed}"
    if problem:
        raise DataError(
            f"a record of {schema.name!r} cannot be written: {problem}", where=str(path)
        )


def _load(path: Path, schema: Table, kind: type[Record]) -> Record:
    try:
        values = json.loads(path.read_bytes())
        record_row(schema, values)
    except (OSError, TypeError, ValueError) as error:
        raise DataError(
            f"a record of {schema.name!r} cannot be read: {error}",
            where=str(path),
            remedy="delete it; running the same configuration again writes it anew",
        ) from None
    return kind(**{field.name: values[field.name] for field in fields(kind)})
