"""How curation streams: candidates in shards of whole prompts, one in memory at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Callable

    from flows.stage_runner import StageWriter
    from lineage.workspace import Dataset, Workspace

CANDIDATES_JUDGED_TOGETHER = 4096
"""Rows of a group, one part of judgments: all questions about them are asked at once."""

GROUPS_PER_SHARD = 16


@dataclass(frozen=True)
class Shard:
    """Some prompts' candidates; part ``index`` of scores, pairs and decisions is about them."""

    index: int
    candidates: pl.LazyFrame
    first_group: int
    end_group: int

    def judgments(self, judgments: Dataset) -> Dataset:
        """Return one scorer's judgments of the shard's candidates."""
        return judgments.slice(self.first_group, self.end_group)

    def read(self, columns: list[str]) -> pl.DataFrame:
        """Return the shard's candidates."""
        return self.candidates.select(columns).collect()


def groups(workspace: Workspace, candidates: Dataset) -> list[pl.LazyFrame]:
    """Return the candidates in groups of whole prompts: judged together."""
    return candidates.grouped(workspace, CANDIDATES_JUDGED_TOGETHER, "prompt_id")


def shards(workspace: Workspace, candidates: Dataset) -> list[Shard]:
    """Return the candidates in shards of whole prompts; one without rows if there are none."""
    judged = groups(workspace, candidates)
    if not judged:
        return [Shard(0, candidates.read(workspace).lazy(), 0, 0)]
    made: list[Shard] = []
    for first in range(0, len(judged), GROUPS_PER_SHARD):
        together = judged[first : first + GROUPS_PER_SHARD]
        made.append(Shard(len(made), pl.concat(together), first, first + len(together)))
    return made


def for_shards(
    writer: StageWriter, candidates: Dataset, make: Callable[[StageWriter, Shard], None]
) -> None:
    """Call ``make`` for each shard in order, and show how far it is."""
    of_candidates = shards(writer.workspace, candidates)
    for done, shard in enumerate(of_candidates, start=1):
        make(writer, shard)
        writer.advance(done, len(of_candidates))
