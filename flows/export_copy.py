"""Copies of a run's exported files, checked against the recorded hashes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from flows.hashed_file import HashedFile
from flows.hub_upload import push_dataset
from flows.run_outputs import read_output
from stages.errors import DataError
from stages.export_formats import COMPANIONS

if TYPE_CHECKING:
    from lineage.workspace import Workspace


def copy_exports(workspace: Workspace, run_id: str, out: Path) -> list[tuple[Path, int | None]]:
    """Copy the files that a run exported into ``out``; return each path and its pairs.

    A file that tells of others has None.

    Raises:
        DataError: the run exported nothing, or a file is not what was recorded.
    """
    columns = ["format", "path", "rows", "sha256"]
    exports = read_output(workspace, run_id, "export", "exports", columns)
    if exports.is_empty():
        raise DataError(f"run {run_id!r} exported nothing", where=str(workspace.root))
    copied: list[tuple[Path, int | None]] = []
    telling = {companion.name for companion in COMPANIONS.values()}
    for name, path, rows, sha256 in exports.iter_rows():
        source = workspace.root / path
        # Under exports/STAGE_KEY/ a file may lie in a folder, which belongs to its format.
        target = out.joinpath(*Path(path).parts[2:])
        _copy(source, target, sha256)
        copied.append((target, None if name in telling else rows))
    return copied


def push_export(workspace: Workspace, run_id: str, repository: str, *, private: bool) -> str:
    """Push a run's `hf_dataset` export to the hub and return its URL.

    Raises:
        DataError: as `copy_exports`, or the run exported no such folder.
        ConfigError: as `push_dataset`, which also raises EndpointError.
    """
    with tempfile.TemporaryDirectory(prefix="prefmill-") as checked:
        copy_exports(workspace, run_id, Path(checked))
        folder = Path(checked) / "hf_dataset"
        if not folder.is_dir():
            raise DataError(
                f"run {run_id!r} exported no dataset folder",
                expected="a run with hf_dataset in export.formats",
                remedy="add --format hf_dataset",
            )
        return push_dataset(folder, repository, private=private)


def _copy(source: Path, target: Path, sha256: str) -> None:
    copy = HashedFile(target)
    try:
        if source.is_file():
            with source.open("rb") as file:
                shutil.copyfileobj(file, copy)
            if copy.sha256() == sha256:
                copy.commit()
                return
    finally:
        copy.discard()
    raise DataError(
        "the exported file was changed or deleted",
        expected=f"SHA-256 {sha256}",
        where=str(source),
        remedy="delete its folder and its stage record, then run the same command again",
    )
