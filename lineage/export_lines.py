"""Taking lines out of exported files, whatever their format."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from lineage.workspace import commit_bytes, commit_rename

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

HUB_NAMES = {"train": "train", "heldout": "test"}
"""The splits in a dataset card."""


def lines_of_candidates(path: Path, candidates: Collection[str]) -> set[int]:
    """Return the lines, from 1, of a file of single answers that hold one of the candidates."""
    with path.open("rb") as lines:
        return {
            number
            for number, line in enumerate(lines, start=1)
            if json.loads(line).get("candidate_id") in candidates
        }


def without_lines(path: Path, dropped: Collection[int]) -> None:
    """Commit the file without these lines or rows, from 1, in its place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        if path.suffix == ".parquet":
            _write_rows(path, dropped, file)
        elif path.suffix == ".json":
            _write_items(_kept(path, dropped), file)
        else:
            file.writelines(_kept(path, dropped))
        file.flush()
        os.fsync(file.fileno())
    commit_rename(temporary, path)


def _kept(path: Path, dropped: Collection[int]) -> Iterator[bytes]:
    with path.open("rb") as lines:
        yield from (line for number, line in enumerate(lines, start=1) if number not in dropped)


def _write_items(lines: Iterable[bytes], file: BinaryIO) -> None:
    """Write an array whose n-th line is its n-th item, as the writers of exports do."""
    started = False
    for line in lines:
        item = line.strip().removeprefix(b"[" if line.startswith(b"[{") else b"")
        item = item.removesuffix(b"]" if item.endswith(b"}]") else b",")
        if item:
            file.write((b",\n" if started else b"[") + item)
            started = True
    file.write(b"]\n" if started else b"[]\n")


def _write_rows(path: Path, dropped: Collection[int], file: BinaryIO) -> None:
    with pq.ParquetFile(path) as source:
        writer = pq.ParquetWriter(
            file, source.schema_arrow, compression="zstd", use_dictionary=False
        )
        first = 1
        with writer:
            for index in range(source.num_row_groups):
                rows = source.read_row_group(index)
                kept = [first + place not in dropped for place in range(rows.num_rows)]
                writer.write_table(rows.filter(pa.array(kept, pa.bool_())))
                first += rows.num_rows


def renumbered(rows: pl.DataFrame, dropped: dict[str, set[int]]) -> pl.DataFrame:
    """Return `export_rows` with the lines that stand there once the dropped ones are gone."""
    frames = []
    for (export_id,), frame in rows.partition_by(
        "export_id", as_dict=True, maintain_order=True
    ).items():
        gone = pl.Series(sorted(dropped.get(str(export_id), ())), dtype=pl.Int64)
        before = gone.search_sorted(frame["line"], side="left").cast(pl.Int64)
        frames.append(frame.with_columns(line=frame["line"] - before))
    return pl.concat(frames) if frames else rows


def correct_card(path: Path, pairs: dict[str, int]) -> None:
    """Write the number of pairs of each split into a dataset card's header."""
    text = path.read_text(encoding="utf-8")
    for split, count in pairs.items():
        named = rf"(- name: {HUB_NAMES[split]}\n\s*num_examples: )\d+"
        text = re.sub(named, rf"\g<1>{count}", text)
    commit_bytes(path, text.encode())
