"""Where everything of a workspace lies, and the part-files committed by rename.

```
WORKSPACE/
  lineage.duckdb                                     what analysts open
  runs/RUN_ID/run.json, stages/STAGE.json, errors/N.json, report.html
  store/TABLE/stage_key=KEY/part-00000.parquet       rows
  store/stages/KEY.json                              a finished stage output: parts, inputs, run
  store/removed/KEY.json                             what `gc` removed of it
  store/erasures/HASH.json                           a prompt that `forget` erased
  exports/STAGE_KEY/train.jsonl ...
  models/ROUND_ID/
  checkpoints/                                       of trainings under way
  prefect/                                           Prefect's own state
```
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import polars as pl
import pyarrow.parquet as pq

from lineage.disk_full import disk_full, is_disk_full
from stages.content_ids import file_sha256
from stages.errors import DataError, WorkspaceError
from stages.part_files import read_parts, scan_parts
from stages.tables import Table, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import pyarrow as pa

COMPRESSION = "zstd"

ROWS_READ_TOGETHER = 16_384
"""Of a Parquet row group: looking up some rows by a sorted id reads the groups that hold them."""


@dataclass(frozen=True)
class Workspace:
    """The folders of one workspace. Nothing is read or made on construction."""

    root: Path

    @property
    def lineage_database(self) -> Path:
        """The DuckDB file that is published by rename."""
        return self.root / "lineage.duckdb"

    @property
    def runs(self) -> Path:
        """One folder a run."""
        return self.root / "runs"

    @property
    def store(self) -> Path:
        """The part-files."""
        return self.root / "store"

    @property
    def models(self) -> Path:
        """Trained models, named by round."""
        return self.root / "models"

    @property
    def checkpoints(self) -> Path:
        """What trainings under way can resume from."""
        return self.root / "checkpoints"

    @property
    def exports(self) -> Path:
        """Files written for trainers."""
        return self.root / "exports"

    def stored_config(self, run_id: str) -> Path:
        """Where a run's resolved configuration lies, as YAML that can be run again."""
        return self.runs / run_id / "config.yaml"

    @property
    def prefect_home(self) -> Path:
        """Prefect's database, results and profiles."""
        return self.root / "prefect"

    def parts_folder(self, table_name: str, stage_key: str) -> Path:
        """Where the part-files of one table of one stage output lie."""
        return self.store / table_name / f"stage_key={stage_key}"

    def relative(self, path: Path) -> str:
        """``path`` relative to the workspace, with forward slashes."""
        return path.resolve().relative_to(self.root.resolve()).as_posix()

    def require_writable(self) -> None:
        """Make the workspace's folders.

        Raises:
            WorkspaceError: it cannot be made or written.
        """
        try:
            for folder in (self.store, self.runs, self.models, self.exports, self.prefect_home):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".probe-{os.getpid()}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise WorkspaceError(
                f"cannot write to the workspace ({error.strerror})",
                expected="a folder that this user may write to",
                where=str(self.root),
                remedy="choose another one with --workspace, or change its permissions",
            ) from None


@dataclass(frozen=True)
class Part:
    """One part-file: path relative to the workspace, rows and SHA-256."""

    path: str
    rows: int
    sha256: str


PARQUET_END = b"PAR1"

LARGE_GROUP = 16
"""Rows together that are cut up, over the rows asked for."""


@dataclass(frozen=True)
class Group:
    """Some rows of a dataset, to be read when collected, and how many they are."""

    frame: pl.LazyFrame
    rows: int


@dataclass(frozen=True)
class Dataset:
    """A reference to one table of one finished stage output. Tasks pass these, never frames."""

    table: str
    stage_key: str
    parts: tuple[Part, ...]

    @property
    def sources(self) -> tuple[Dataset, ...]:
        """The stage outputs that its rows are of."""
        return (self,)

    @property
    def rows(self) -> int:
        """Rows over all parts."""
        return sum(part.rows for part in self.parts)

    def part(self, index: int) -> Dataset:
        """Return a reference to one part alone."""
        return self.slice(index, index + 1)

    def slice(self, first: int, end: int) -> Dataset:
        """Return a reference to the parts from ``first`` to before ``end``."""
        return Dataset(self.table, self.stage_key, self.parts[first:end])

    def grouped(self, workspace: Workspace, rows: int, key: str) -> list[Group]:
        """Return the rows in groups of at least ``rows``, all of one ``key`` value in one group.

        A group is read when it is collected: one at a time is in memory. Part-files are not cut
        up, as every slice costs a look at the whole file, but those of more than 16 times ``rows``.
        """
        # Told its columns, a scan need not keep what the file says of them: 0.1 MB a part.
        schema = table(self.table).empty().schema
        scans = [_scan(workspace, part, schema) for part in self.parts]
        keys = [scan.select(pl.col(key).unique()).collect().to_series() for scan in scans]
        groups: list[Group] = []
        gathered: list[Group] = []
        for together in _connected(keys):
            frame = pl.concat([scans[index] for index in together])
            held = sum(self.parts[index].rows for index in together)
            if held > LARGE_GROUP * rows:
                of_frame = frame.select(key).collect().to_series()
                groups += [*_joined(gathered), *_cut(frame, of_frame, rows)]
                gathered = []
                continue
            gathered.append(Group(frame, held))
            if sum(group.rows for group in gathered) >= rows:
                groups += _joined(gathered)
                gathered = []
        return groups + _joined(gathered)

    def scan(self, workspace: Workspace) -> pl.LazyFrame:
        """Return all rows, to be read when collected."""
        if not self.parts:
            return table(self.table).empty().lazy()
        return pl.concat([_scan(workspace, part) for part in self.parts])

    def read(self, workspace: Workspace, columns: list[str] | None = None) -> pl.DataFrame:
        """Return all rows, parts in order."""
        if not self.parts:
            empty = table(self.table).empty()
            return empty.select(columns) if columns else empty
        paths = [workspace.root / part.path for part in self.parts]
        try:
            frame = read_parts(paths, columns)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(
                f"a part-file of {self.table!r} cannot be read: {error}",
                where=str(paths[0].parent),
                remedy="delete the broken file; the next run makes that part again",
            ) from None
        return frame


def _scan(workspace: Workspace, part: Part, schema: pl.Schema | None = None) -> pl.LazyFrame:
    return scan_parts(workspace.root / part.path, schema)


def _joined(groups: list[Group]) -> list[Group]:
    """Return the groups as one, none if there are none."""
    frames = [group.frame for group in groups]
    return [Group(pl.concat(frames), sum(group.rows for group in groups))] if groups else []


def _connected(keys: Sequence[pl.Series]) -> list[list[int]]:
    """Return the positions in ``keys``, those that share a value (also by way of others) together.

    Ordered by the first position of each. ``keys`` hold every value of theirs once.
    """
    values = [
        series.to_frame("value").with_columns(position=pl.lit(position))
        for position, series in enumerate(keys)
    ]
    if not values:
        return []
    # Mostly none is shared: lists of a million positions are not made for that.
    several = pl.concat(values).filter(pl.col("value").is_duplicated())
    holders = several.group_by("value").agg(pl.col("position").sort())
    shared = holders.select("position").unique()
    first = list(range(len(keys)))

    def root(position: int) -> int:
        while first[position] != position:
            position = first[position]
        return position

    for (positions,) in shared.iter_rows():
        roots = sorted({root(position) for position in positions})
        for other in roots:
            first[other] = roots[0]
    together: dict[int, list[int]] = {}
    for position in range(len(keys)):
        together.setdefault(root(position), []).append(position)
    return list(together.values())


def _cut(frame: pl.LazyFrame, keys: pl.Series, rows: int) -> list[Group]:
    """Return slices of ``frame``, of about ``rows`` rows, cut where ``keys`` changes.

    Where a key's rows don't stand together, a slice is read by picking them from all of ``frame``.
    """
    ordered = keys.sort()
    together = keys if keys.rle_id().n_unique() == keys.n_unique() else ordered
    starts = (together != together.shift()).fill_null(value=True).arg_true()
    wanted = pl.Series(range(0, int(starts[-1]) + 1, rows), dtype=starts.dtype)
    cuts = starts.gather(starts.search_sorted(wanted)).unique().sort().to_list()
    ends = [*cuts[1:], len(keys)]
    key = pl.col(keys.name)
    groups = []
    for start, end in zip(cuts, ends, strict=True):
        inside = key.is_between(pl.lit(ordered[start]), pl.lit(ordered[end - 1]))
        part = frame.slice(start, end - start) if together is keys else frame.filter(inside)
        groups.append(Group(part, end - start))
    return groups


def commit_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` so that after a crash it is there whole or not at all.

    Raises:
        WorkspaceError: the disk is full; nothing is left of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _committed(path, len(content)) as file:
        file.write(content)


@contextlib.contextmanager
def _committed(path: Path, about_bytes: int) -> Iterator[BinaryIO]:
    """Yield a temporary file that takes its place at ``path`` if all goes well, else is gone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:  # Ctrl-C too
        temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            raise disk_full(error, path, about_bytes) from error
        raise
    commit_rename(temporary, path)


def commit_rename(temporary: Path, path: Path) -> None:
    """Rename a finished, flushed file or folder into place and flush the folder's entry."""
    temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def commit_json(path: Path, value: object) -> None:
    """Write ``value`` as indented JSON by rename."""
    commit_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def part_path(workspace: Workspace, table_name: str, stage_key: str, index: int) -> Path:
    """Return the path of part ``index`` of a table of a stage output."""
    return workspace.parts_folder(table_name, stage_key) / f"part-{index:05d}.parquet"


def write_part(
    workspace: Workspace,
    schema: Table,
    stage_key: str,
    index: int,
    frame: pl.DataFrame,
    metadata: Mapping[str, str],
) -> Part:
    """Commit ``frame`` as part ``index`` and return what was written.

    ``metadata`` (run, stage, config hash, input hashes) goes into the Parquet key-value metadata
    under ``prefmill.*``.
    """
    arrow = schema.to_arrow(frame)
    tags = {f"prefmill.{key}": value for key, value in metadata.items()}
    arrow = arrow.replace_schema_metadata({**tags, "prefmill.table": schema.name})
    path = part_path(workspace, schema.name, stage_key, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    commit_table(path, arrow)
    return Part(workspace.relative(path), arrow.num_rows, file_sha256(path))


def commit_table(path: Path, arrow: pa.Table) -> None:
    """Write ``arrow`` to ``path`` as Parquet, there whole or not at all after a crash.

    Raises:
        WorkspaceError: the disk is full; nothing is left of it.
    """
    with _committed(path, arrow.nbytes) as file:
        pq.write_table(arrow, file, compression=COMPRESSION, row_group_size=ROWS_READ_TOGETHER)


def is_whole(path: Path) -> bool:
    """Return whether a part-file is there and ends as Parquet does: nobody cut it short."""
    try:
        with path.open("rb") as file:
            file.seek(-len(PARQUET_END), os.SEEK_END)
            return file.read() == PARQUET_END
    except OSError:
        return False


def existing_part(workspace: Workspace, schema: Table, stage_key: str, index: int) -> Part | None:
    """Return part ``index`` if it is there whole: such a part is done."""
    path = part_path(workspace, schema.name, stage_key, index)
    if not is_whole(path):
        return None
    return Part(workspace.relative(path), pq.read_metadata(path).num_rows, file_sha256(path))


@dataclass(frozen=True)
class StageRecord:
    """A finished stage output. Its file's existence is the proof that it is finished."""

    stage: str
    stage_key: str
    made_by: str
    config: dict[str, Any]
    inputs: tuple[Dataset, ...]
    outputs: tuple[Dataset, ...]
    started_at: str
    ended_at: str
    seconds: float
    gpus: int | None = None
    """GPUs of this machine that were held while it was made; None: made before this was noted."""

    def output(self, table_name: str) -> Dataset:
        """Return the output dataset of ``table_name``; raises ``KeyError``."""
        for dataset in self.outputs:
            if dataset.table == table_name:
                return dataset
        raise KeyError(table_name)


def stage_record_path(workspace: Workspace, stage_key: str) -> Path:
    """Return where the record of a stage output lies."""
    return workspace.store / "stages" / f"{stage_key}.json"


def write_stage_record(workspace: Workspace, record: StageRecord) -> None:
    """Commit the record: from now on the stage output is finished."""
    commit_json(stage_record_path(workspace, record.stage_key), asdict(record))


def read_stage_record(workspace: Workspace, stage_key: str) -> StageRecord | None:
    """Return the record of a finished stage output, or None."""
    path = stage_record_path(workspace, stage_key)
    return load_stage_record(path) if path.is_file() else None


def load_stage_record(path: Path) -> StageRecord:
    """Return the record in ``path``."""
    values = cast("dict[str, Any]", json.loads(path.read_bytes()))
    for role in ("inputs", "outputs"):
        values[role] = tuple(
            Dataset(d["table"], d["stage_key"], tuple(Part(**part) for part in d["parts"]))
            for d in values[role]
        )
    return StageRecord(**values)


@contextlib.contextmanager
def exclusive_lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold ``path`` locked; the kernel releases it when the process dies, however it dies.

    Raises:
        BlockingIOError: not to ``wait``, and another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


@contextlib.contextmanager
def outputs_locked(workspace: Workspace, stage_keys: Iterable[str]) -> Iterator[None]:
    """Hold these stage outputs, so that no run makes one of them meanwhile.

    Raises:
        WorkspaceError: a run is making one now.
    """
    with contextlib.ExitStack() as stack:
        for key in sorted(set(stage_keys)):
            lock = exclusive_lock(workspace.store / "locks" / key, wait=False)
            try:
                stack.enter_context(lock)
            except BlockingIOError:
                raise WorkspaceError(
                    f"a run is making stage output {key} now",
                    where=str(workspace.root),
                    remedy="do it again when the run has ended; nothing was changed",
                ) from None
        yield
