"""Words to be erased, looked for and taken out of files that are no tables.

What holds them goes as a whole: a line, a text in JSON, a page. Pages, lines of journals and logs
can be made again or are missed by nobody.
"""

from __future__ import annotations

import contextlib
import html
import json
import re
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from lineage.workspace import commit_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lineage.workspace import Workspace

ERASED = "[erased]"

SHORTEST = 16
"""Characters of a text that is looked for: a shorter one is many other things as well."""

PIECE = 32
"""Characters that are looked for in errors, logs and pages, which cut texts short."""

ESCAPED = r"[\x00-\x1f\"'\\<>&]+"
"""Characters that stand otherwise in a page or a log: pieces are from between them."""

NOT_READ = {".parquet", ".duckdb", ".db-wal", ".db-shm"}
"""Tables are rewritten row by row; SQLite's files beside a database are its own affair."""


@dataclass(frozen=True)
class Words:
    """Texts to be erased, and ids of what goes with them."""

    texts: frozenset[str]
    ids: frozenset[str] = frozenset()

    @cached_property
    def long(self) -> list[str]:
        """The texts that are looked for."""
        return sorted(word for word in self.texts if len(word) >= SHORTEST)

    def within(self, text: str) -> bool:
        """Return whether ``text`` holds a whole one of the texts."""
        return any(word in text for word in self.long)

    def cut_within(self, text: str) -> bool:
        """Return whether ``text`` holds one of the texts, or a piece of it."""
        return any(piece in text for piece in self._pieces)

    @cached_property
    def _pieces(self) -> list[str]:
        plain = (run for word in self.long for run in re.split(ESCAPED, word))
        return [
            run[start : start + PIECE]
            for run in plain
            if len(run) >= SHORTEST
            for start in range(0, max(1, len(run) - PIECE + 1), PIECE // 2)
        ]

    @cached_property
    def encoded(self) -> list[bytes]:
        """The texts as they may stand in a file: plain, or escaped once or twice as in JSON."""
        forms: list[str] = []
        for word in self.long:
            escaped = [
                json.dumps(word, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True)
            ]
            twice = [json.dumps(form, ensure_ascii=False)[1:-1] for form in escaped]
            forms += [word, *escaped, *twice]
        return [form.encode(errors="backslashreplace") for form in dict.fromkeys(forms)]


def files_with_text(workspace: Workspace) -> Iterator[Path]:
    """Yield the files that may hold words and are no tables, exports or models."""
    others = {workspace.exports, workspace.models, workspace.checkpoints}
    for path in sorted(workspace.root.rglob("*")):
        if path.is_file() and path.suffix not in NOT_READ and others.isdisjoint(path.parents):
            yield path


def copies(workspace: Workspace, exported: set[Path]) -> Iterator[Path]:
    """Yield what users put into the workspace: tables, and files beside those ``exported``."""
    own = {workspace.store, workspace.models, workspace.checkpoints, *exported}
    for path in sorted(workspace.root.rglob("*")):
        copied = path.suffix == ".parquet" or workspace.exports in path.parents
        if copied and path.is_file() and own.isdisjoint([path, *path.parents]):
            yield path


def erase_in_file(path: Path, words: Words) -> bool:
    """Take the words out of a file that is no table; return whether it held any."""
    erase = ERASERS.get(path.suffix, _erase_text)
    try:
        return erase(path, words)
    except ValueError:  # it is not what its name says
        return _erase_text(path, words)
    except sqlite3.Error:  # a server holds it: `still_holds` tells
        return False


def still_holds(path: Path, words: Words) -> bool:
    """Return whether one of the texts is anywhere in a file's bytes, or in its `-wal`'s.

    Of a Parquet file, whose bytes are compressed: in its rows.
    """
    if path.suffix == ".parquet":
        with contextlib.suppress(OSError, pa.ArrowException):
            batches = pq.ParquetFile(path).iter_batches()
            rows = (json.dumps(b.to_pylist(), default=str, ensure_ascii=False) for b in batches)
            return any(form in row.encode() for row in rows for form in words.encoded)
    files = [path, *path.parent.glob(f"{path.name}-wal")]
    return any(form in content for content in map(Path.read_bytes, files) for form in words.encoded)


def _erase_page(path: Path, words: Words) -> bool:
    """Delete a page that holds words: it can be drawn again."""
    page = path.read_text(encoding="utf-8")
    found = words.cut_within(html.unescape(page)) or still_holds(path, words)
    if found:
        path.unlink()
    return found


def _erase_lines(path: Path, words: Words) -> bool:
    """Take out the lines of a journal, or of rows that were set aside."""
    forms = [*words.encoded, *(name.encode() for name in words.ids)]
    with path.open("rb") as lines:
        kept = [line for line in lines if not any(form in line for form in forms)]
    content = b"".join(kept)
    return _replace(path, content, changed=len(content) != path.stat().st_size)


def _erase_values(path: Path, words: Words) -> bool:
    values = json.loads(path.read_bytes())
    erased = _erased(values, words)
    content = (json.dumps(erased, indent=1, ensure_ascii=False) + "\n").encode()
    return _replace(path, content, changed=erased != values)


def _erase_yaml(path: Path, words: Words) -> bool:
    try:
        values = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    erased = _erased(values, words)
    content = yaml.safe_dump(erased, sort_keys=False, allow_unicode=True).encode()
    return _replace(path, content, changed=erased != values)


def _erased(value: Any, words: Words, *, cut: bool = False) -> Any:
    """Return JSON without the words; below the key `error` pieces of them count too."""
    if isinstance(value, str):
        held = words.cut_within(value) if cut else words.within(value)
        return ERASED if held else value
    if isinstance(value, dict):
        return {k: _erased(inner, words, cut=k == "error") for k, inner in value.items()}
    return [_erased(inner, words) for inner in value] if isinstance(value, list) else value


def _erase_text(path: Path, words: Words) -> bool:
    """Take out the lines of a log that hold a piece of the words."""
    content = path.read_bytes()
    for form in words.encoded:  # one may have ends of lines in it
        content = content.replace(form, ERASED.encode())
    lines = content.splitlines(keepends=True)
    kept = b"".join(line for line in lines if not words.cut_within(line.decode(errors="replace")))
    return _replace(path, kept, changed=kept != path.read_bytes())


def _replace(path: Path, content: bytes, *, changed: bool) -> bool:
    if changed:
        commit_bytes(path, content)
    return changed


def _erase_in_database(path: Path, words: Words) -> bool:
    """Take the words out of every text of an SQLite database, and out of its free pages."""
    if not still_holds(path, words):
        return False
    with closing(sqlite3.connect(path, timeout=5)) as database:
        names = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in names:
            table = '"' + name.replace('"', '""') + '"'
            for column in database.execute(f"PRAGMA table_info({table})").fetchall():
                quoted = '"' + column[1].replace('"', '""') + '"'
                for form in words.encoded:
                    database.execute(
                        f"UPDATE {table} SET {quoted} = replace({quoted}, ?, ?) "  # noqa: S608 - quoted
                        f"WHERE typeof({quoted}) = 'text' AND instr({quoted}, ?) > 0",
                        (form.decode(), ERASED, form.decode()),
                    )
        database.commit()
        database.execute("VACUUM")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return True


ERASERS = {
    ".html": _erase_page,
    ".jsonl": _erase_lines,
    ".json": _erase_values,
    ".yaml": _erase_yaml,
    ".db": _erase_in_database,
}
