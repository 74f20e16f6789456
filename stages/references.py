"""The prompts' reference answers as candidates: judged, filtered and exported like any other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from stages.content_ids import content_ids
from stages.tables import CANDIDATES, GOLD_SPLIT

if TYPE_CHECKING:
    from collections.abc import Callable

REFERENCE = "reference"
"""In the columns that name who answered, such as `weights_hash`."""

IDENTITY = ("prompt_id", "generator", "generator_hash", "seed", "sample_index", "completion")


def reference_candidates(
    prompts: pl.DataFrame, count_tokens: Callable[[list[str]], list[int]]
) -> pl.DataFrame:
    """Return one row of `candidates` per prompt that has a reference answer, in their order.

    Args:
        prompts: of the `prompts` table; planted ones (split gold) and empty references are left
            out.
        count_tokens: texts to their lengths in the policy's tokens: lengths are then comparable.
    """
    has_one = pl.col("reference").str.strip_chars() != ""
    answered = prompts.filter(pl.col("split") != GOLD_SPLIT, has_one)
    marked = dict.fromkeys(("generator", "generator_hash", "model", "weights_hash"), REFERENCE)
    zeros = ("sample_index", "seed", "temperature", "top_p", "max_completion_tokens")
    known = {**marked, **dict.fromkeys(zeros, 0), "finish_reason": "stop"}
    rows = answered.select(
        "prompt_id",
        *(
            pl.lit(known.get(name), dtype=kind).alias(name)
            for name, kind in CANDIDATES.empty().schema.items()
            if name not in {"prompt_id", "completion", "completion_tokens"}
        ),
        completion="reference",
    ).with_columns(
        pl.Series("completion_tokens", count_tokens(answered["reference"].to_list()), pl.Int64)
    )
    ids = content_ids(rows, "candidate", IDENTITY)
    return rows.with_columns(ids).select(CANDIDATES.column_names)
