"""Kept pairs as files that trainers load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import polars as pl
import pydantic

from stages.configuration import NOT_EMPTY, Config
from stages.content_ids import content_hash
from stages.export_formats import COMPANIONS, FORMATS, TRL_COLUMNS, Companion
from stages.pair_texts import of_pairs
from stages.tables import EXPORTS, SPLITS
from stages.unpaired import UnpairedConfig

if TYPE_CHECKING:
    from collections.abc import Iterable

VERSION = 3

KNOWN_OF_SOME = ("confidence", "length_weight")
"""What of a pair is null in runs that don't estimate or weigh it."""

Format = Literal[
    "trl_jsonl",
    "trl_parquet",
    "trl_unpaired_jsonl",
    "openai_jsonl",
    "llama_factory_json",
    "axolotl_jsonl",
    "argilla_json",
    "hf_dataset",
]


class ExportConfig(Config):
    """Which files are written."""

    formats: Annotated[tuple[Format, ...], NOT_EMPTY] = ("trl_jsonl", "trl_parquet")
    """`trl_jsonl`, `trl_parquet`: TRL's preference format, conversational, with an explicit prompt;
    `rounds` trains on one of these. The others, for KTO, for other trainers, for Argilla and for
    the Hugging Face hub: docs/exports.md.
    """
    unpaired: UnpairedConfig | None = None
    """Thresholds that label the answers of `trl_unpaired_jsonl` by score. Null: chosen answers are
    desirable, rejected ones undesirable."""
    license: Annotated[str, pydantic.Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,40}$")] | None = None
    """The hub's name of a licence (`apache-2.0`, `cc-by-4.0`, `other`), for the card of
    `hf_dataset`."""


def distinct(formats: Iterable[str]) -> list[str]:
    """Return each format once, in order."""
    return list(dict.fromkeys(formats))


def companions(formats: Iterable[str]) -> list[Companion]:
    """Return the files that describe those of the formats, both splits in one."""
    return [COMPANIONS[name] for name in distinct(formats) if name in COMPANIONS]


def file_names(formats: Iterable[str]) -> list[str]:
    """Return the name of every file to write, with forward slashes."""
    of_splits = [FORMATS[name].name_of(split) for split in SPLITS for name in distinct(formats)]
    return of_splits + [companion.file_name for companion in companions(formats)]


def preference_rows(
    kept: pl.DataFrame, prompts: pl.DataFrame, candidates: pl.DataFrame, split: str
) -> pl.DataFrame:
    """Return one split's pairs in TRL's conversational preference format, sorted by pair id.

    Columns: `prompt` (list of messages), `chosen` and `rejected` (lists of one assistant
    message), then `pair_id`, `chosen_score`, `rejected_score`, `margin`, `confidence` and
    `length_weight` (null where ``kept`` has none), which TRL ignores, and, for other formats than
    TRL's, `prompt_id`, `scorer`, `chosen_candidate_id` and `rejected_candidate_id`.
    """
    unknown = [name for name in KNOWN_OF_SOME if name not in kept.columns]
    kept = kept.with_columns(pl.lit(None, dtype=pl.Float64).alias(name) for name in unknown)
    rows = kept.join(
        prompts.filter(pl.col("split") == split).select("prompt_id", prompt="messages"),
        on="prompt_id",
        how="inner",
        validate="m:1",
    )
    texts = of_pairs(candidates.select("candidate_id", content="completion"), rows)
    for role in ("chosen", "rejected"):
        of_role = texts.rename({"candidate_id": f"{role}_candidate_id"})
        rows = rows.join(of_role, on=f"{role}_candidate_id", how="inner", validate="m:1")
        turn = pl.struct(role=pl.lit("assistant"), content=pl.col("content"))
        rows = rows.with_columns(pl.concat_list(turn).alias(role)).drop("content")
    ids = ("prompt_id", "scorer", "chosen_candidate_id", "rejected_candidate_id")
    return rows.sort("pair_id").select(*TRL_COLUMNS, *ids)


def export_row(format_name: str, split: str, path: str, pairs: int, sha256: str) -> pl.DataFrame:
    """Return the `exports` row of one file that holds so many pairs."""
    export = {
        "export_id": f"export_{content_hash([sha256, format_name, split])}",
        "format": format_name,
        "split": split,
        "path": path,
        "rows": pairs,
        "sha256": sha256,
    }
    return pl.DataFrame([export], schema=EXPORTS.empty().schema)
