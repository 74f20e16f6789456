"""A disk without room, or another limit on what may be written, said with what wanted it."""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING

from stages.errors import WorkspaceError

if TYPE_CHECKING:
    from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk, this user's share of it, or the largest file allowed."""
TOLD = (*(os.strerror(number) for number in FULL), "(os error 28)")
"""What stands in the errors of libraries that say it in their own."""


def is_disk_full(error: BaseException) -> bool:
    """Return whether ``error`` says that there was no room, in its number or in its text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL
    return isinstance(error, Exception) and any(text in str(error) for text in TOLD)


def disk_full(error: BaseException, path: Path, needed_bytes: int | None = None) -> WorkspaceError:
    """Return the sentence for an error of `is_disk_full` that writing to ``path`` met."""
    free = shutil.disk_usage(existing_folder(path)).free
    reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
    room = f"about {readable(needed_bytes)} for this file" if needed_bytes else "more room"
    return WorkspaceError(
        f"{path.name} could not be written: {reason}",
        expected=f"{room}; {readable(free)} are free on that disk",
        where=str(path.parent),
        remedy="make room (`prefmill lineage gc` removes old runs' texts) and start the same "
        "command again: what is finished is kept, and nothing was left half-written",
    )


def existing_folder(path: Path) -> Path:
    """Return the nearest folder above ``path`` that exists."""
    return next(folder for folder in path.absolute().parents if folder.is_dir())


def readable(size: int) -> str:
    """Return a number of bytes in MB."""
    return f"{size / 1e6:,.1f} MB"
