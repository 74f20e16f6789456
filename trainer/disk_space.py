"""A disk without room, said with what wanted it."""

from __future__ import annotations

import contextlib
import errno
import shutil
from typing import TYPE_CHECKING

from stages.errors import WorkspaceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)

OF_LIBRARIES = (*(f"(os error {number})" for number in FULL), "inline_container.cc")
"""In what safetensors and torch raise where they can't write; torch doesn't say why."""

COPIES = 4
"""Of the weights in fp32: a checkpoint with AdamW's two moments, and the result."""


@contextlib.contextmanager
def disk_space_explained(checkpoints: Path, output: Path, weights_bytes: int) -> Iterator[None]:
    """Run the block, which writes checkpoints of a model, and the model.

    Raises:
        WorkspaceError: a disk was full; with what is free, what is needed and what to do.
    """
    try:
        yield
    except (OSError, RuntimeError, _safetensors_error()) as error:
        full = isinstance(error, OSError) and error.errno in FULL
        if not full and not any(text in str(error) for text in OF_LIBRARIES):
            raise
        free = {
            str(folder): shutil.disk_usage(_there(folder)).free for folder in (checkpoints, output)
        }
        raise WorkspaceError(
            f"a checkpoint or the model could not be written: {str(error).splitlines()[0]}",
            expected=f"room for {COPIES * weights_bytes / 2**30:.2g} GiB or more: a checkpoint "
            "with the optimizer's state, and the model",
            where=", ".join(f"{name} ({size / 2**30:.2g} GiB free)" for name, size in free.items()),
            remedy="make room and run the same again: it goes on from its last whole checkpoint",
        ) from error


def _there(folder: Path) -> Path:
    """Return the folder, or the nearest above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _safetensors_error() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError
