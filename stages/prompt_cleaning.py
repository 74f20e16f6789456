"""Prompts set aside before sampling: overlapping with evaluation sets, or nearly alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import polars as pl
import pydantic

from stages.decontamination import EvaluationNgrams, contamination
from stages.errors import DataError
from stages.near_duplicates import NearDuplicateConfig, representatives, signatures
from stages.prompt_records import ID_START, SPLIT_DIGITS, prompt_texts
from stages.prompt_sources import (
    DatasetSource,
    FileSource,
    ListSource,
    QuerySource,
    read_source,
)
from stages.tables import DROPPED_PROMPTS

if TYPE_CHECKING:
    from collections.abc import Sequence

EvaluationSet = Annotated[
    FileSource | DatasetSource | QuerySource | ListSource, pydantic.Field(discriminator="kind")
]
"""Where an evaluation set's texts are. Of a source's keys those on sampling mean nothing here."""


class NearDuplicatePromptsConfig(NearDuplicateConfig):
    """Which prompts are nearly the same, and what becomes of them."""

    split_only: bool = False
    """Keep near-duplicates, but all of a cluster in one split; without it one of them is kept."""


def without_contaminated(
    prompts: pl.DataFrame, sets: Sequence[EvaluationSet]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the prompts that overlap with none of ``sets``, and rows of `dropped_prompts`.

    Raises:
        MissingFileError: an evaluation set's file is not there.
        DataError: an evaluation set cannot be read, or every prompt overlaps with one.
    """
    if not sets:
        return prompts, DROPPED_PROMPTS.empty()
    known = [
        EvaluationNgrams.of(source.name, prompt_texts(read_source(source, seed=0)[0]))
        for source in sets
    ]
    ruled = prompts.hstack(contamination(prompt_texts(prompts), known))
    clean = pl.col("evaluation_set").is_null()
    dropped = _dropped(ruled.filter(~clean), "contaminated")
    if dropped.height == prompts.height:
        raise DataError(
            f"all {prompts.height} prompts overlap with an evaluation set",
            expected="at least one prompt that does not",
            where=f"`prompts.decontaminate`: {', '.join(source.name for source in sets)}",
            remedy="take prompts from elsewhere, or leave out a set that is no evaluation of yours",
        )
    return ruled.filter(clean).select(prompts.columns), dropped


def without_near_duplicates(
    prompts: pl.DataFrame, seen: pl.DataFrame | None, config: NearDuplicatePromptsConfig | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the prompts kept, with `cluster`, and rows of `dropped_prompts`.

    `cluster` is the id of the prompt that stands for all that are nearly like it: one that an
    earlier run has had (``seen``), else one of the first source; of those the id has a say, but
    not by the digits that decide what is held out: else that would be most of the clusters.
    """
    if config is None:
        return prompts.with_columns(cluster="prompt_id"), DROPPED_PROMPTS.empty()
    ids = pl.Series([], dtype=pl.String) if seen is None else seen["prompt_id"]
    new = ~pl.col("prompt_id").is_in(ids.implode())
    rest = pl.col("prompt_id").str.slice(ID_START + SPLIT_DIGITS)
    order = prompts.select(pl.arg_sort_by(new, "position", rest, "prompt_id")).to_series()
    first = representatives(signatures(prompt_texts(prompts), config), order, config)
    clustered = prompts.with_columns(cluster=prompts["prompt_id"].gather(first))
    kept = pl.lit(value=True) if config.split_only else pl.col("cluster") == pl.col("prompt_id")
    dropped = clustered.filter(~kept).with_columns(kept_prompt_id="cluster")
    return clustered.filter(kept), _dropped(dropped, "near_duplicate")


def _dropped(prompts: pl.DataFrame, reason: str) -> pl.DataFrame:
    empty = DROPPED_PROMPTS.empty()
    rows = prompts.select(pl.col(c) for c in empty.columns if c in prompts.columns)
    return pl.concat([empty, rows.with_columns(reason=pl.lit(reason))], how="diagonal")


def in_one_split(clustered: pl.DataFrame, seen: pl.DataFrame | None) -> pl.DataFrame:
    """Return the prompts, each in the split of the prompt that stands for its cluster.

    One that an earlier run has had (``seen``) is in the split that it had there: its cluster was
    another prompt's then, perhaps.
    """
    of_cluster = clustered.select(cluster="prompt_id", split="split")
    if seen is not None:
        had = seen.select(cluster="prompt_id", split="split")
        of_cluster = of_cluster.update(had, on="cluster", maintain_order="left")
    return clustered.drop("split").join(of_cluster, "cluster", "left", maintain_order="left")
