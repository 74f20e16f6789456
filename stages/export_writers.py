"""Writers that take a file's rows a shard at a time: the rows of one shard are in memory."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl
    import pyarrow as pa


class Sink(Protocol):
    """What a writer writes into: an open binary file."""

    @property
    def closed(self) -> bool:
        """Whether it takes no more bytes."""

    def write(self, content: Any, /) -> int:
        """Take the bytes in ``content``; return how many."""


class RowWriter(Protocol):
    """Turns rows into a file's bytes. Equal calls write equal bytes."""

    def write(self, rows: pl.DataFrame) -> None:
        """Write the rows after those written before."""

    def close(self) -> None:
        """Write what stands at the end of the file; the sink stays open."""


class LinesWriter:
    """JSON Lines of what ``shape`` makes of the rows."""

    def __init__(self, sink: Sink, shape: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
        self.sink, self.shape = sink, shape

    def write(self, rows: pl.DataFrame) -> None:
        """Write one line a row."""
        self.sink.write(self.lines(rows))

    def lines(self, rows: pl.DataFrame) -> bytes:
        """Return one line a row; JSON escapes the line ends within texts."""
        buffer = io.BytesIO()
        self.shape(rows).write_ndjson(buffer)
        return buffer.getvalue()

    def close(self) -> None:
        """Write nothing: the last line has its end."""


class ArrayWriter(LinesWriter):
    """One JSON array whose n-th line is its n-th item."""

    started = False

    def write(self, rows: pl.DataFrame) -> None:
        """Write one item a row."""
        if rows.height:
            self.sink.write(b",\n" if self.started else b"[")
            self.started = True
            self.sink.write(self.lines(rows).removesuffix(b"\n").replace(b"\n", b",\n"))

    def close(self) -> None:
        """Write the closing bracket."""
        self.sink.write(b"]\n" if self.started else b"[]\n")


class ParquetWriter:
    """Parquet with a row group a shard."""

    def __init__(self, sink: Sink, schema: pa.Schema) -> None:
        import pyarrow.parquet as pq

        self.schema = schema
        # Texts hardly repeat: dictionaries cost time and save nothing.
        self.writer = pq.ParquetWriter(sink, schema, compression="zstd", use_dictionary=False)

    def write(self, rows: pl.DataFrame) -> None:
        """Write one row group."""
        if rows.height:
            self.writer.write_table(rows.select(self.schema.names).to_arrow().cast(self.schema))

    def close(self) -> None:
        """Write the footer."""
        self.writer.close()
