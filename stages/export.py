"""Kept pairs as files that trainers load."""

from __future__ import annotations

import hashlib
import io
from typing import Annotated, Literal

import polars as pl

from stages.configuration import NOT_EMPTY, Config
from stages.content_ids import content_hash
from stages.tables import EXPORT_ROWS, EXPORTS

VERSION = 1

Format = Literal["trl_jsonl", "trl_parquet"]

FILE_NAMES: dict[str, str] = {"trl_jsonl": "{split}.jsonl", "trl_parquet": "{split}.parquet"}


class ExportConfig(Config):
    """Which files are written."""

    formats: Annotated[tuple[Format, ...], NOT_EMPTY] = ("trl_jsonl", "trl_parquet")
    """`trl_*`: TRL's preference format, conversational, with an explicit prompt."""


def preference_rows(
    kept: pl.DataFrame, prompts: pl.DataFrame, candidates: pl.DataFrame, split: str
) -> pl.DataFrame:
    """Return one split's pairs in TRL's conversational preference format, sorted by pair id.

    Columns: `prompt` (list of messages), `chosen` and `rejected` (lists of one assistant
    message), then `pair_id`, `chosen_score`, `rejected_score` and `margin`, which TRL ignores.
    """
    rows = kept.join(
        prompts.filter(pl.col("split") == split).select("prompt_id", prompt="messages"),
        on="prompt_id",
        how="inner",
        validate="m:1",
    )
    for role in ("chosen", "rejected"):
        texts = candidates.select(
            pl.col("candidate_id").alias(f"{role}_candidate_id"), content="completion"
        )
        rows = rows.join(texts, on=f"{role}_candidate_id", how="inner", validate="m:1")
        turn = pl.struct(role=pl.lit("assistant"), content=pl.col("content"))
        rows = rows.with_columns(pl.concat_list(turn).alias(role)).drop("content")
    columns = ["prompt", "chosen", "rejected", "pair_id"]
    return rows.sort("pair_id").select(*columns, "chosen_score", "rejected_score", "margin")


def encode(rows: pl.DataFrame, format_name: str) -> bytes:
    """Return the file's bytes: equal rows give equal bytes."""
    buffer = io.BytesIO()
    if format_name == "trl_jsonl":
        rows.write_ndjson(buffer)
    else:
        rows.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()


def describe(
    rows: pl.DataFrame, content: bytes, format_name: str, split: str, path: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the `exports` row of one file and its `export_rows`."""
    sha256 = hashlib.sha256(content).hexdigest()
    export_id = f"export_{content_hash([sha256, format_name, split])}"
    export = {
        "export_id": export_id,
        "format": format_name,
        "split": split,
        "path": path,
        "rows": rows.height,
        "sha256": sha256,
    }
    lines = rows.select(
        pl.lit(export_id).alias("export_id"),
        "pair_id",
        pl.int_range(1, pl.len() + 1, dtype=pl.Int64).alias("line"),
    )
    return pl.DataFrame([export], schema=EXPORTS.empty().schema), lines.select(
        EXPORT_ROWS.column_names
    )
