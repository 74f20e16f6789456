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

from stages.content_ids import file_sha256
from stages.errors import WorkspaceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MARK = "complete.json"
IDENTITY = "identity.json"
LOCK = ".lock"
CORRUPTION = "corruption.json"


@contextlib.contextmanager
def run_folder(checkpoints: Path, name: str, identity: dict[str, Any]) -> Iterator[Path]:
    """Give this training's own checkpoint folder, locked and rid of broken checkpoints.

    Another training (other settings, weights, template or pairs) has another folder, so its
    checkpoints can't be resumed here. ``identity`` is kept in it for people to read. The kernel
    releases the lock when the process ends, however it ends. The folder is removed when the block
    ends without an error.

    Raises:
        WorkspaceError: another process is training this.
    """
    folder = folder_of(checkpoints, name)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkspaceError(
                "another process is training this", where=str(folder), remedy="wait for it"
            ) from None
        write_json(folder / IDENTITY, identity)
        _remove_broken(folder)
        yield folder
        shutil.rmtree(folder)


def forget_run(checkpoints: Path, fingerprint: str) -> None:
    """Remove what a kill between the publication and the clean-up of a training left."""
    for folder in checkpoints.glob(f"run-{fingerprint}*"):
        shutil.rmtree(folder, ignore_errors=True)


def folder_of(checkpoints: Path, name: str) -> Path:
    """Return where the checkpoints of the training called ``name`` lie.

    A name is a fingerprint, and in several processes what they were.
    """
    return checkpoints / f"run-{name}"


def _remove_broken(folder: Path) -> None:
    """Remove checkpoints that a kill cut off, and those whose bytes are not what was written.

    Of the latter it is kept what was found, for `corruption_of`.
    """
    corrupt = []
    for checkpoint in sorted(folder.glob("checkpoint-*")):
        if not (checkpoint / MARK).exists():
            shutil.rmtree(checkpoint)
        elif wrong := _wrong_file(checkpoint):
            corrupt.append(f"{checkpoint.name} was corrupt ({wrong})")
            shutil.rmtree(checkpoint)
    if corrupt:
        left = last_complete(folder)
        went_on = f"went on from {left.name}" if left else "began anew"
        sentences = [*corruption_of(folder), f"{', '.join(corrupt)}: training {went_on}"]
        write_json(folder / CORRUPTION, {"sentences": sentences})


def corruption_of(folder: Path) -> list[str]:
    """Return a sentence for each time that checkpoints of the training turned out to be corrupt."""
    try:
        sentences: list[str] = json.loads((folder / CORRUPTION).read_text())["sentences"]
    except FileNotFoundError:
        return []
    return sentences


def _wrong_file(checkpoint: Path) -> str | None:
    """Return a file of a marked checkpoint that is not as it was written, or None."""
    try:
        hashes = json.loads((checkpoint / MARK).read_text())["sha256"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError):
        return MARK
    for name, written in hashes.items():
        if not (checkpoint / name).exists() or file_sha256(checkpoint / name) != written:
            return str(name)
    return None


def mark_complete(checkpoint: Path) -> None:
    """Flush every file of ``checkpoint`` to disk, then mark it as whole, with sizes and hashes."""
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != MARK]
    for path in files:
        flush(path)
    names = {path.relative_to(checkpoint).as_posix(): path for path in files}
    sizes = {name: path.stat().st_size for name, path in names.items()}
    hashes = {name: file_sha256(path) for name, path in names.items()}
    write_json(checkpoint / MARK, {"bytes": sizes, "sha256": hashes})


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
