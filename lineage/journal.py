"""Finished requests of an unfinished stage: a line appended the moment they are there."""

from __future__ import annotations

import contextlib
import json
import os
import time
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

FLUSH_TO_DISK_EVERY_SECONDS = 1.0


class Journal:
    """What was paid for and is not in a part-file yet, by key; survives ``kill -9`` of its writer.

    A line is in the kernel's hands when `put` returns, so a killed process loses nothing; at most
    a second of lines is lost with the machine's power. A line cut short by that is dropped when
    the file is opened again, and what stands after it with it. One process at a time may hold a
    journal: its stage's lock sees to that.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file and read what it holds."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._held: dict[str, Any] = {}
        self._file = path.open("a+b")
        self._file.truncate(self._read())
        self._flushed = time.monotonic()

    def _read(self) -> int:
        """Take in the whole lines and return where they end."""
        end = 0
        self._file.seek(0)
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            try:
                self._held |= _entries(json.loads(line))
            except (ValueError, TypeError):
                break
            end += len(line)
        return end

    def get(self, key: str) -> Any:
        """Return the value stored under ``key``, or None."""
        return self._held.get(key)

    def put(self, entries: dict[str, Any]) -> None:
        """Append values, which must be JSON, by key: all of them or none; later ones replace them.

        A line holds a key and its value in turn.
        """
        if not entries:
            return
        self._held |= entries
        flat = list(chain.from_iterable(entries.items()))
        line = json.dumps(flat, separators=(",", ":"), ensure_ascii=False)
        # A lone surrogate, which a tokenizer's half character can leave, has no UTF-8.
        self._file.write(line.encode("utf-8", "backslashreplace") + b"\n")
        self._file.flush()
        if time.monotonic() - self._flushed > FLUSH_TO_DISK_EVERY_SECONDS:
            os.fsync(self._file.fileno())
            self._flushed = time.monotonic()

    def forget(self, keys: list[str]) -> None:
        """Free the memory of values that are in a part-file now; the file keeps them."""
        for key in keys:
            self._held.pop(key, None)

    def remove(self) -> None:
        """Delete the file: everything in it is in part-files now."""
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other journals of its stage are there
            self.path.parent.rmdir()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()


def _entries(flat: Any) -> dict[str, Any]:
    """Return what a line holds; raises ValueError or TypeError if it is not one of a journal."""
    if not isinstance(flat, list) or not flat:
        raise TypeError
    return dict(zip(flat[::2], flat[1::2], strict=True))
