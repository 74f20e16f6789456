"""A file that is hashed as it is written and is there whole or not at all."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

from lineage.workspace import commit_rename

if TYPE_CHECKING:
    from pathlib import Path


class HashedFile:
    """A file under a temporary name until it is committed."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._file = self.temporary.open("wb")
        self._hash = hashlib.sha256()

    @property
    def closed(self) -> bool:
        """Whether it takes no more bytes."""
        return self._file.closed

    def write(self, content: Any, /) -> int:
        """Take the bytes in ``content``; return how many."""
        self._hash.update(content)
        return self._file.write(content)

    def sha256(self) -> str:
        """Return the SHA-256 of the bytes written so far, as 64 hex digits."""
        return self._hash.hexdigest()

    def commit(self) -> None:
        """Flush the bytes to disk and rename the file into place."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        commit_rename(self.temporary, self.path)

    def discard(self) -> None:
        """Delete what is not committed."""
        self._file.close()
        self.temporary.unlink(missing_ok=True)
