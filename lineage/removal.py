"""Taking words out of part-files while ids, numbers and counts stay, and the note of it.

`store/removed/KEY.json` says what of a stage output `gc` has removed. Such an output is no longer
finished: a run that needs it makes it again.
"""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from lineage.workspace import commit_json, commit_table, existing_part, stage_record_path
from stages.errors import DataError
from stages.part_files import read_parts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lineage.workspace import Part, Workspace
    from stages.tables import Table


@dataclass(frozen=True)
class Removal:
    """What was removed of one stage output."""

    stage_key: str
    removed_at: str
    files: dict[str, int]
    """Path relative to the workspace, to the bytes that this freed."""
    done: bool = True
    """False: under way, or killed; `gc` goes on with it."""

    @property
    def bytes_freed(self) -> int:
        """Over all files."""
        return sum(self.files.values())


def removal_path(workspace: Workspace, stage_key: str) -> Path:
    """Where the note about a stage output lies."""
    return workspace.store / "removed" / f"{stage_key}.json"


def read_removal(workspace: Workspace, stage_key: str) -> Removal | None:
    """Return what `gc` removed of a stage output, or None: it is whole.

    Raises:
        DataError: the note is there and broken.
    """
    path = removal_path(workspace, stage_key)
    return load_removal(path) if path.is_file() else None


def load_removal(path: Path) -> Removal:
    """Return the note in ``path``.

    Raises:
        DataError: it is broken.
    """
    try:
        values = json.loads(path.read_bytes())
        dt.datetime.fromisoformat(values["removed_at"])
        return Removal(path.stem, values["removed_at"], dict(values["files"]), values["done"])
    except (OSError, TypeError, ValueError, KeyError) as error:
        raise DataError(
            f"a note of what was removed cannot be read: {type(error).__name__}: {error}",
            where=str(path),
            remedy="delete it; `prefmill lineage gc` writes it anew",
        ) from None


def write_removal(workspace: Workspace, removal: Removal) -> None:
    """Commit the note: from now on the stage output is not finished any more."""
    commit_json(removal_path(workspace, removal.stage_key), asdict(removal))


def discard_output(workspace: Workspace, stage_key: str) -> None:
    """Delete the part-files of a stage output and the note of what was removed of it.

    Deleted last is its record: where that is gone, parts that are there are new ones.
    """
    for folder in workspace.store.glob(f"*/stage_key={stage_key}"):
        for path in folder.glob("part-*.parquet"):
            path.unlink()
    removal_path(workspace, stage_key).unlink(missing_ok=True)
    stage_record_path(workspace, stage_key).unlink(missing_ok=True)


def wordless(schema: Table) -> dict[str, pl.Expr]:
    """Return what stands in each column of words once they are removed: null, or empty."""
    kinds = {name: schema.empty().schema[name] for name in schema.column_names}
    return {
        c.name: pl.lit(
            None if c.nullable else ([] if pa.types.is_list(c.type) else ""), kinds[c.name]
        )
        for c in schema.columns
        if c.words
    }


def without_words(schema: Table) -> Callable[[pl.DataFrame], pl.DataFrame]:
    """Return what takes the words out of a table's rows."""
    return lambda rows: rows.with_columns(**wordless(schema))


def rewrite_part(
    workspace: Workspace, path: Path, schema: Table, change: Callable[[pl.DataFrame], pl.DataFrame]
) -> Part:
    """Commit what ``change`` makes of a part-file's rows in its place; its metadata stay."""
    metadata: dict[bytes, bytes] = pq.read_schema(path).metadata or {}
    ours = {k: v for k, v in metadata.items() if k.startswith(b"prefmill.")}
    frame = change(read_parts(path))
    commit_table(path, schema.to_arrow(frame).replace_schema_metadata(ours))
    index = int(path.stem.removeprefix("part-"))
    part = existing_part(workspace, schema, path.parent.name.removeprefix("stage_key="), index)
    assert part is not None
    return part


def part_files(workspace: Workspace, table_name: str) -> list[Path]:
    """Return every part-file of a table, of unfinished outputs too, in order."""
    return sorted((workspace.store / table_name).glob("stage_key=*/part-*.parquet"))
