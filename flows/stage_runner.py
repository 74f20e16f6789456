"""One stage of one run: reuse its output if it is finished, else make it part by part."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import polars as pl

from flows.gpu_use import gpus_held, watch_gpus
from flows.progress import say, stage_progress
from lineage.journal import Journal
from lineage.records import (
    StageErrorRecord,
    StageRunRecord,
    write_stage_error,
    write_stage_run,
)
from lineage.removal import discard_output, read_removal
from lineage.workspace import (
    Dataset,
    Part,
    StageRecord,
    Workspace,
    exclusive_lock,
    existing_part,
    is_whole,
    read_stage_record,
    stage_record_path,
    write_part,
    write_stage_record,
)
from stages.content_ids import content_hash
from stages.errors import PrefmillError
from stages.part_files import read_parts
from stages.tables import VALIDATIONS, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from validators import Measured

MAX_ERROR = 2000
"""Characters of an error kept in a record."""

STORE_VERSION = 4
"""Raised when a table's schema changes: stored outputs are then made again."""

STAGES = (
    "prompts",
    "generate",
    "judge",
    "score_before_edits",
    "edit",
    "judge_edits",
    "score",
    "health",
    "pair",
    "noise",
    "filter",
    "drift",
    "compare",
    "export",
    "mix",
    "train",
    "evaluate_after_sampled",
    "evaluate_after_greedy",
    "evaluate_before_greedy",
    "kl",
    "card",
    "gate",
)
"""Every stage that a run can have, in order; `judge:NAME`, `judge_edits:NAME` and `card:NAME` stand
where the first word does."""


@dataclass(frozen=True)
class RunContext:
    """Which run a task belongs to. Small and picklable: tasks pass it on."""

    workspace: Workspace
    run_id: str


@dataclass(frozen=True)
class StageSpec:
    """What decides a stage's output, and so its key."""

    kind: str
    """The code that runs: equal kinds with equal settings and inputs share their output."""
    version: int
    settings: dict[str, Any]
    inputs: tuple[Dataset, ...]
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        """Take an input that is of several stage outputs as those."""
        inputs = tuple(source for dataset in self.inputs for source in dataset.sources)
        object.__setattr__(self, "inputs", inputs)

    @property
    def key(self) -> str:
        """20 hex digits over kind, version, settings and the inputs' keys."""
        inputs = [[dataset.table, dataset.stage_key] for dataset in self.inputs]
        versions = [STORE_VERSION, self.version]
        return content_hash([self.kind, versions, self.settings, inputs, list(self.outputs)])


@dataclass
class StageWriter:
    """Writes a stage's parts. Each is measured at once; all together are judged at the end."""

    context: RunContext
    spec: StageSpec
    advance: Callable[[int, int], None]
    parts: dict[str, dict[int, Part]] = field(default_factory=dict)
    measured: dict[str, list[Measured]] = field(default_factory=dict)
    """Of each table, how often its parts so far break each expectation."""

    @property
    def workspace(self) -> Workspace:
        """The run's workspace."""
        return self.context.workspace

    def read(self, dataset: Dataset, columns: list[str] | None = None) -> pl.DataFrame:
        """Return an input's rows."""
        return dataset.read(self.workspace, columns)

    def existing(self, table_name: str, index: int) -> pl.DataFrame | None:
        """Return part ``index`` if an earlier attempt committed it: it is not made again."""
        schema = table(table_name)
        part = existing_part(self.workspace, schema, self.spec.key, index)
        if part is None:
            return None
        frame = read_parts(self.workspace.root / part.path)
        self._note(table_name, index, part, frame)
        return frame

    def write(self, table_name: str, frame: pl.DataFrame, index: int = 0) -> pl.DataFrame:
        """Commit ``frame`` as part ``index``, unless a killed attempt did, and return it.

        Raises:
            ValidationError: it, or a part before it, breaks a `must` expectation.
        """
        metadata = {
            "run": self.context.run_id,
            "stage": self.spec.kind,
            "stage_key": self.spec.key,
            "config_hash": content_hash(self.spec.settings),
            "inputs": ",".join(f"{d.table}:{d.stage_key}" for d in self.spec.inputs),
        }
        schema, key = table(table_name), self.spec.key
        part = existing_part(self.workspace, schema, key, index) or write_part(
            self.workspace, schema, key, index, frame, metadata
        )
        self._note(table_name, index, part, frame)
        return frame

    def _note(self, table_name: str, index: int, part: Part, frame: pl.DataFrame) -> None:
        """Remember a part and what breaks the table's expectations in it.

        Raises:
            ValidationError: it breaks a `must`; the message names the rows, and the part is taken
                away: started again, the stage makes it anew.
        """
        from validators import added, judge, measure_rows, require_valid

        self.parts.setdefault(table_name, {})[index] = part
        if table_name == VALIDATIONS.name:
            return
        schema = table(table_name)
        found = measure_rows(schema, frame)
        if any(m.breaks_must for m in found):
            (self.workspace.root / part.path).unlink()
            require_valid([judge(schema, found)], f"{self.spec.kind}, table {table_name}")
        earlier = self.measured.get(table_name)
        self.measured[table_name] = added([earlier, found]) if earlier else found

    def journal(self, name: str) -> Journal:
        """Return the journal of requests that are paid for and in no part-file yet."""
        return Journal(self.workspace.store / "journals" / self.spec.key / f"{name}.jsonl")

    def dataset(self, table_name: str) -> Dataset:
        """Return what was written of a table, parts in order."""
        parts = self.parts.get(table_name, {})
        return Dataset(table_name, self.spec.key, tuple(parts[i] for i in sorted(parts)))


def run_stage(
    context: RunContext,
    name: str,
    spec: StageSpec,
    make: Callable[[StageWriter], None],
    files: Sequence[Path] = (),
) -> StageRecord:
    """Return the finished output of a stage, made now or earlier, and record it in the run.

    ``files`` are what the stage makes besides tables; when one is gone the stage runs again.

    Two processes that want the same output wait for each other: it is made once.
    """
    started, workspace = time.monotonic(), context.workspace
    with exclusive_lock(workspace.store / "locks" / spec.key):
        record = finished_output(workspace, spec, files)
        if record is None:
            with _failures_recorded(context, name, spec), stage_progress(name) as advance:
                record = _make(StageWriter(context, spec, advance), make)
        else:
            say(f"{name:<24}   done before")
    reused = record.made_by != context.run_id
    stage_run = StageRunRecord(
        run_id=context.run_id,
        stage=name,
        position=STAGES.index(name.partition(":")[0]),
        stage_key=spec.key,
        status="reused" if reused else "made",
        made_by=record.made_by,
        seconds=round(time.monotonic() - started, 3) if reused else record.seconds,
        ended_at=utc_now() if reused else record.ended_at,
    )
    write_stage_run(workspace, stage_run)
    return record


def finished_output(
    workspace: Workspace, spec: StageSpec, files: Sequence[Path] = ()
) -> StageRecord | None:
    """Return the record of a finished output whose files and inputs are still what they were."""
    record = read_stage_record(workspace, spec.key)
    if record is None or _unusable(workspace, record, spec):
        return None
    parts = [workspace.root / part.path for dataset in record.outputs for part in dataset.parts]
    there = all(map(is_whole, parts)) and all(path.is_file() for path in files)
    return record if there else None


def _unusable(workspace: Workspace, record: StageRecord, spec: StageSpec) -> bool:
    """Return whether an output was made of other rows, or its texts were removed since."""
    return record.inputs != spec.inputs or read_removal(workspace, spec.key) is not None


@contextlib.contextmanager
def _failures_recorded(context: RunContext, name: str, spec: StageSpec) -> Iterator[None]:
    """Record what stops the stage, for the lineage."""
    started = time.monotonic()
    try:
        yield
    except BaseException as error:
        failure = StageErrorRecord(
            run_id=context.run_id,
            stage=name,
            failed_at=utc_now(),
            stage_key=spec.key,
            seconds=round(time.monotonic() - started, 3),
            error=f"{type(error).__name__}: {error}"[:MAX_ERROR],
        )
        # The first error is the one to tell. ValueError: half a character has no UTF-8.
        with contextlib.suppress(PrefmillError, OSError, ValueError):
            write_stage_error(context.workspace, failure)
        raise


def _make(writer: StageWriter, make: Callable[[StageWriter], None]) -> StageRecord:
    """Make, validate table-wide and finish a stage output."""
    started, started_at = time.monotonic(), utc_now()
    spec = writer.spec
    earlier = read_stage_record(writer.workspace, spec.key)
    if earlier is not None and _unusable(writer.workspace, earlier, spec):
        discard_output(writer.workspace, spec.key)
    _remove_leftovers(writer)
    watch_gpus()
    make(writer)
    writer.write(VALIDATIONS.name, _validated(writer))
    record = StageRecord(
        stage=spec.kind,
        stage_key=spec.key,
        made_by=writer.context.run_id,
        config=spec.settings,
        inputs=spec.inputs,
        outputs=tuple(writer.dataset(name) for name in (*spec.outputs, VALIDATIONS.name)),
        started_at=started_at,
        ended_at=utc_now(),
        seconds=round(time.monotonic() - started, 3),
        gpus=gpus_held(),
    )
    write_stage_record(writer.workspace, record)
    return record


def _remove_leftovers(writer: StageWriter) -> None:
    """Delete what a killed process had half written of the output."""
    # We hold the output's lock: nobody else writes its parts or its record.
    workspace, key = writer.workspace, writer.spec.key
    tables = (*writer.spec.outputs, VALIDATIONS.name)
    found = [workspace.parts_folder(name, key).glob(".*.tmp") for name in tables]
    record = stage_record_path(workspace, key)
    for leftover in chain(*found, record.parent.glob(f".{record.name}.*.tmp")):
        leftover.unlink()


def _validated(writer: StageWriter) -> pl.DataFrame:
    """Return the verdicts on every output: on its rows, and on what only the whole table tells.

    Raises:
        ValidationError: a `must` expectation is broken; the output is not finished.
    """
    from validators import judge, measure_rows, measure_table, require_valid

    root, results = writer.workspace.root, [VALIDATIONS.empty()]
    known: dict[str, list[Path]] = {}
    for dataset in (*writer.spec.inputs, *map(writer.dataset, writer.spec.outputs)):
        known.setdefault(dataset.table, []).extend(root / part.path for part in dataset.parts)
    for name in writer.spec.outputs:
        schema = table(name)
        of_rows = writer.measured.get(name) or measure_rows(schema, schema.empty())
        made = [root / part.path for part in writer.dataset(name).parts]
        results.append(judge(schema, [*of_rows, *measure_table(schema, made, known)]))
    require_valid(results, writer.spec.kind)
    return pl.concat(results)


def utc_now() -> str:
    """Return the time as ISO 8601 in UTC."""
    return dt.datetime.now(dt.UTC).isoformat()
