"""Copies of a run's preference files, checked against the recorded hashes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.run_outputs import read_output
from lineage.workspace import commit_bytes
from stages.content_ids import file_sha256
from stages.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from lineage.workspace import Workspace


def copy_exports(workspace: Workspace, run_id: str, out: Path) -> list[tuple[Path, int]]:
    """Copy the files that a run exported into ``out``; return each path and its rows.

    Raises:
        DataError: the run exported nothing, or a file is not what was recorded.
    """
    exports = read_output(workspace, run_id, "export", "exports", ["path", "rows", "sha256"])
    if exports.is_empty():
        raise DataError(f"run {run_id!r} exported nothing", where=str(workspace.root))
    copied = []
    for path, rows, sha256 in exports.iter_rows():
        source = workspace.root / path
        if not source.is_file() or file_sha256(source) != sha256:
            raise DataError(
                "the exported file was changed or deleted",
                expected=f"SHA-256 {sha256}",
                where=str(source),
                remedy="delete its folder and its stage record, then run the same command again",
            )
        commit_bytes(out / source.name, source.read_bytes())
        copied.append((out / source.name, rows))
    return copied
