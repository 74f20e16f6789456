"""`prefmill lineage gc`: old runs' texts, exports and models go; that they were there stays.

What a kept run shares stays whole. Of the others' part-files the words go and every id, number and
count stays, so that the views, drift and `only_new` go on as before.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from lineage.database import publish
from lineage.edges import ROUND
from lineage.records import OF_OTHERS, list_runs, read_stage_runs
from lineage.removal import (
    Removal,
    read_removal,
    rewrite_part,
    without_words,
    wordless,
    write_removal,
)
from lineage.workspace import outputs_locked, read_stage_record
from stages.tables import table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

    from lineage.records import RunRecord
    from lineage.workspace import Workspace

CACHES = ("checkpoints/*/", "reference-log-probs/*/", "models/average_*/")
"""Folders of a training's leftovers, and moving averages of policies; made again where needed."""


@dataclass(frozen=True)
class Retention:
    """Which runs are kept whole; with both limits a run goes only if both say so."""

    keep: int | None = None
    """Of each name, the newest completed runs, and all that were started after the oldest."""
    older_than_days: float | None = None
    """Runs started later than so long ago are kept."""

    def old(self, runs: Sequence[RunRecord], now: dt.datetime) -> list[RunRecord]:
        """Return the runs to remove, of ``runs``, the newest first. One under way is kept.

        A sweep's runs are kept while a kept run has their candidates: `with_sweeps` sees to that.
        """
        return [
            run
            for run in runs
            if run.status != "running"
            and (self.keep is None or _started(run) < _oldest_kept(runs, run.name, self.keep))
            and (
                self.older_than_days is None
                or _started(run) < now - dt.timedelta(days=self.older_than_days)
            )
        ]


def _started(run: RunRecord) -> dt.datetime:
    return dt.datetime.fromisoformat(run.started_at)


def _oldest_kept(runs: Sequence[RunRecord], name: str, keep: int) -> dt.datetime:
    """Return when the oldest of a name's newest ``keep`` completed runs was started."""
    completed = [
        _started(run)
        for run in runs
        if run.name == name and run.status == "completed" and run.flow not in OF_OTHERS
    ]
    earliest = dt.datetime.min.replace(tzinfo=dt.UTC)
    return completed[keep - 1] if len(completed) >= keep else earliest


@dataclass
class Plan:
    """What is to be removed: of each stage output its parts with words and its other files."""

    runs: list[str]
    parts: dict[str, list[tuple[str, Path]]] = field(default_factory=dict)
    """Stage key to (table, part-file)."""
    files: dict[str, list[Path]] = field(default_factory=dict)
    """Stage key, or a run's id, to files and folders that go as a whole."""
    caches: list[Path] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """About what this frees; words are counted as they are compressed."""
        parts = [path for of_one in self.parts.values() for path in of_one]
        whole = [path for paths in self.files.values() for path in paths]
        return sum(_bytes_of_words(*part) for part in parts) + sum(map(size, whole + self.caches))


def plan(workspace: Workspace, retention: Retention, now: dt.datetime | None = None) -> Plan:
    """Return what `collect` would remove."""
    runs = list_runs(workspace)
    keys = {run.run_id: _keys(workspace, run.run_id) for run in runs}
    old = retention.old(runs, now or dt.datetime.now(dt.UTC))
    old = _with_theirs(runs, old, keys)
    kept = [run for run in runs if run not in old]
    named = _models_named(workspace, kept)
    in_use = {name[len(ROUND) :] for name in named if name.startswith(ROUND)}
    shared = {key for run in kept for key in keys[run.run_id].values()}
    mine = {key for run in old for key in keys[run.run_id].values()}
    made = Plan([run.run_id for run in old])
    for key in sorted(mine - shared - in_use):
        removed = read_removal(workspace, key)
        if removed is None or not removed.done:
            made.parts[key] = _parts_with_words(workspace, key)
            made.files[key] = _files_of(workspace, key)
        elif _holds_no_file(exported := workspace.exports / key):
            made.files[key] = [exported]
    for run in old:
        page = workspace.runs / run.run_id / "report.html"
        made.files[run.run_id] = [page] if page.is_file() else []
    made.caches = _stale_caches(workspace, kept, named)
    made.parts = {key: parts for key, parts in made.parts.items() if parts}
    made.files = {key: files for key, files in made.files.items() if files}
    return made


def _keys(workspace: Workspace, run_id: str) -> dict[str, str]:
    stages = read_stage_runs(workspace, run_id)
    # A key names folders that are deleted: one that leads elsewhere is no key of ours.
    return {s.stage: s.stage_key for s in stages if re.fullmatch(r"\w+", s.stage_key)}


def _with_theirs(
    runs: Sequence[RunRecord], old: Sequence[RunRecord], keys: dict[str, dict[str, str]]
) -> list[RunRecord]:
    """Return the runs to remove: a sweep and an export go with the run whose candidates they have.

    One under way is kept, and so are the candidates that it reads.
    """
    gone = {run.run_id for run in old if run.flow not in OF_OTHERS}
    others = (run.run_id for run in runs if run.flow not in OF_OTHERS)
    kept = {keys[run_id].get("generate") for run_id in others if run_id not in gone}
    ended = (run.run_id for run in runs if run.flow in OF_OTHERS and run.status != "running")
    gone |= {run_id for run_id in ended if keys[run_id].get("generate") not in kept}
    return [run for run in runs if run.run_id in gone]


def _models_named(workspace: Workspace, kept: Iterable[RunRecord]) -> set[str]:
    """Return the folders of models that are promoted, or named by a kept run or an open series."""
    texts = [json.dumps(run.config) for run in kept]
    texts += [path.read_text() for path in workspace.models.glob("*.promoted.json")]
    texts += [path.read_text() for path in workspace.store.glob("series/*.json")]
    folders = (path.name for path in workspace.models.glob("*/"))
    return {name for name in folders if any(name in text for text in texts)}


def _parts_with_words(workspace: Workspace, key: str) -> list[tuple[str, Path]]:
    record = read_stage_record(workspace, key)
    return [
        (dataset.table, workspace.root / part.path)
        for dataset in (record.outputs if record else ())
        if wordless(table(dataset.table))
        for part in dataset.parts
        if (workspace.root / part.path).is_file()
    ]


def _files_of(workspace: Workspace, key: str) -> list[Path]:
    """Return the exports, the model, the journals and the bad rows of a stage output."""
    exports = (path for path in (workspace.exports / key).rglob("*") if path.is_file())
    others = (
        workspace.models / f"{ROUND}{key}",
        workspace.store / "journals" / key,
        workspace.store / "bad_rows" / f"{key}.jsonl",
    )
    return [*sorted(exports), *(path for path in others if path.exists())]


def _holds_no_file(folder: Path) -> bool:
    return folder.is_dir() and not any(path.is_file() for path in folder.rglob("*"))


def _stale_caches(
    workspace: Workspace, kept: Sequence[RunRecord], named: Collection[str]
) -> list[Path]:
    """Return the caches last written before the oldest kept run was started, and not ``named``."""
    oldest = min((_started(run) for run in kept), default=None)
    return [
        folder
        for pattern in CACHES
        for folder in sorted(workspace.root.glob(pattern))
        if folder.name not in named
        and (oldest is None or folder.stat().st_mtime < oldest.timestamp())
    ]


def collect(workspace: Workspace, planned: Plan) -> list[Removal]:
    """Remove what was planned, publish the lineage and return what was removed.

    Of a killed one the rest is removed the next time.

    Raises:
        WorkspaceError: a run is making one of the outputs now.
    """
    keys = sorted({*planned.parts, *planned.files})
    with outputs_locked(workspace, keys):
        removals = [_remove(workspace, key, planned) for key in keys]
    freed = {}
    for cache in planned.caches:
        freed[workspace.relative(cache)] = size(cache)
        delete(cache)
    publish(workspace)
    return [*removals, *([Removal("caches", _now(), freed)] if freed else [])]


def _remove(workspace: Workspace, key: str, planned: Plan) -> Removal:
    """Remove what was planned of one stage output, noting it before it begins."""
    earlier = read_removal(workspace, key)
    at = earlier.removed_at if earlier else _now()
    files = dict(earlier.files) if earlier else {}
    write_removal(workspace, Removal(key, at, files, done=False))
    for name, path in planned.parts.get(key, ()):
        before, schema = size(path), table(name)
        rewrite_part(workspace, path, schema, without_words(schema))
        where = workspace.relative(path)
        files[where] = max(files.get(where, 0), before - size(path))
    for path in planned.files.get(key, ()):
        files[workspace.relative(path)] = size(path)
        delete(path)
    if _holds_no_file(exported := workspace.exports / key):
        delete(exported)
    removal = Removal(key, at, files)
    write_removal(workspace, removal)
    return removal


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat()


def size(path: Path) -> int:
    """Return the bytes of a file, or of the files below a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def delete(path: Path) -> None:
    """Delete a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _bytes_of_words(name: str, path: Path) -> int:
    words = {column.name for column in table(name).columns if column.words}
    metadata = pq.read_metadata(path)
    return sum(
        column["total_compressed_size"]
        for group in range(metadata.num_row_groups)
        for column in metadata.row_group(group).to_dict()["columns"]
        if column["path_in_schema"].partition(".")[0] in words
    )
