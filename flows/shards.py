"""How curation streams: candidates in shards of whole prompts, one in memory at a time."""

from __future__ import annotations

import functools
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flows.stage_runner import StageWriter
    from lineage.workspace import Dataset, Group, Workspace

CANDIDATES_JUDGED_TOGETHER = 4096
"""Rows of a group, one part of judgments: all questions about them are asked at once."""

CANDIDATES_PER_SHARD = 65_536

SHARDS_AT_ONCE = 2
"""Computed while another is written: what is in memory at a time is one more."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Shard:
    """Some prompts' candidates; part ``index`` of scores, pairs and decisions is about them."""

    index: int
    candidates: pl.LazyFrame
    first_group: int
    end_group: int

    def of_groups(self, dataset: Dataset) -> Dataset:
        """Return what is about the shard's candidates, such as one scorer's judgments."""
        return dataset.slice(self.first_group, self.end_group)

    def read(self, columns: list[str]) -> pl.DataFrame:
        """Return the shard's candidates."""
        return self.candidates.select(columns).collect()


@functools.lru_cache(maxsize=4)
def groups(workspace: Workspace, candidates: Dataset) -> list[Group]:
    """Return the candidates in groups of whole prompts: judged together.

    Every stage asks for those of the same candidates; looking them up reads all their prompt ids.
    """
    return candidates.grouped(workspace, CANDIDATES_JUDGED_TOGETHER, "prompt_id")


def shards(workspace: Workspace, candidates: Dataset) -> list[Shard]:
    """Return the candidates in shards of whole groups; one without rows if there are none."""
    judged = groups(workspace, candidates)
    if not judged:
        return [Shard(0, candidates.read(workspace).lazy(), 0, 0)]
    made: list[Shard] = []
    first, rows = 0, 0
    for end, group in enumerate(judged, start=1):
        rows += group.rows
        if rows >= CANDIDATES_PER_SHARD or end == len(judged):
            frames = [together.frame for together in judged[first:end]]
            made.append(Shard(len(made), pl.concat(frames), first, end))
            first, rows = end, 0
    return made


def prompts_of(
    workspace: Workspace, prompts: Dataset, ids: pl.Series, columns: list[str]
) -> pl.DataFrame:
    """Return the prompts with these ids; only the row groups that may hold one are read."""
    wanted = ids.unique()
    between = pl.col("prompt_id").is_between(pl.lit(wanted.min()), pl.lit(wanted.max()))
    near = prompts.scan(workspace).filter(between).select(columns).collect()
    return near.join(wanted.to_frame("prompt_id"), on="prompt_id", how="semi")


def computed_by_shard(
    writer: StageWriter, candidates: Dataset, compute: Callable[[Shard], Result]
) -> Iterator[tuple[Shard, Result]]:
    """Give each shard in order with what ``compute`` makes of it, the next ones under way."""
    of_candidates = shards(writer.workspace, candidates)
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:
        waiting: deque[tuple[Shard, Future[Result]]] = deque()
        for place in range(len(of_candidates) + SHARDS_AT_ONCE):
            if place < len(of_candidates):
                shard = of_candidates[place]
                waiting.append((shard, pool.submit(compute, shard)))
            if place >= SHARDS_AT_ONCE:
                shard, result = waiting.popleft()
                yield shard, result.result()
                writer.advance(shard.index + 1, len(of_candidates))
