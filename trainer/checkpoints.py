"""Checkpoints of one training: told apart by what is trained, marked when they are whole.

Layout: ``CHECKPOINTS/run-FINGERPRINT/checkpoint-STEP/``. Transformers writes a checkpoint file by
file into its final folder, so a kill leaves a folder that looks like one. The mark, written last
and by rename, tells a whole checkpoint from such a remainder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from stages.errors import WorkspaceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MARK = "complete.json"
IDENTITY = "identity.json"
LOCK = ".lock"


@contextlib.contextmanager
def run_folder(checkpoints: Path, fingerprint: str, identity: dict[str, Any]) -> Iterator[Path]:
    """Give this training's own checkpoint folder, locked and rid of broken checkpoints.

    Another training (other settings, weights, template or pairs) has another folder, so its
    checkpoints can't be resumed here. ``identity`` is kept in it for people to read. The kernel
    releases the lock when the process ends, however it ends. The folder is removed when the block
    ends without an error.

    Raises:
        WorkspaceError: another process is training this.
    """
    folder = _folder(checkpoints, fingerprint)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkspaceError(
                "another process is training this", where=str(folder), remedy="wait for it"
            ) from None
        write_json(folder / IDENTITY, identity)
        for checkpoint in folder.glob("checkpoint-*"):
            if not is_complete(checkpoint):
                shutil.rmtree(checkpoint)
        yield folder
        shutil.rmtree(folder)


def forget_run(checkpoints: Path, fingerprint: str) -> None:
    """Remove what a kill between the publication and the clean-up of a training left."""
    shutil.rmtree(_folder(checkpoints, fingerprint), ignore_errors=True)


def _folder(checkpoints: Path, fingerprint: str) -> Path:
    return checkpoints / f"run-{fingerprint}"


def mark_complete(checkpoint: Path) -> None:
    """Flush every file of ``checkpoint`` to disk, then mark it as whole."""
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARK]
    for path in files:
        flush(path)
    sizes = {path.relative_to(checkpoint).as_posix(): path.stat().st_size for path in files}
    write_json(checkpoint / MARK, {"bytes": sizes})


def is_complete(checkpoint: Path) -> bool:
    """Return whether ``checkpoint`` bears the mark and holds every file at its marked size."""
    try:
        sizes = json.loads((checkpoint / MARK).read_text())["bytes"]
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (FileNotFoundError, json.JSONDecodeError, KeyError):
        return False


def last_complete(folder: Path) -> Path | None:
    """Return the whole checkpoint with the highest step, or None."""
    whole = [path for path in folder.glob("checkpoint-*") if is_complete(path)]
    return max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write ``value`` with sorted keys, under a temporary name first: whole or not there."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    flush(partial)
    partial.replace(path)


def flush(path: Path) -> None:
    """Return once the file's or folder's bytes are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
