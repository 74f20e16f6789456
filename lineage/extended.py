"""A dataset together with the rows that a later stage added to it, as if they were one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from lineage.workspace import Dataset, Group

if TYPE_CHECKING:
    from lineage.workspace import Workspace


@dataclass(frozen=True)
class Extended(Dataset):
    """Rows of two stage outputs. No file is copied, and no record names it: see `sources`.

    Part i of ``added`` goes with group i of the rows, where they are grouped, else with part i.
    """

    added: Dataset

    @property
    def sources(self) -> tuple[Dataset, ...]:
        """The stage outputs that its rows are of."""
        return (Dataset(self.table, self.stage_key, self.parts), self.added)

    @property
    def rows(self) -> int:
        """Rows over all parts of both."""
        return super().rows + self.added.rows

    def slice(self, first: int, end: int) -> Extended:
        """Return a reference to the parts from ``first`` to before ``end``, of both."""
        parts, added = self.parts[first:end], self.added.slice(first, end)
        return Extended(self.table, self.stage_key, parts, added)

    def grouped(self, workspace: Workspace, rows: int, key: str) -> list[Group]:
        """Return the groups of the rows that were there first, each with what was added to it."""
        return [
            Group(pl.concat([group.frame, more.frame]), group.rows + more.rows)
            for group, more in zip(
                super().grouped(workspace, rows, key), each_part(workspace, self.added), strict=True
            )
        ]

    def scan(self, workspace: Workspace) -> pl.LazyFrame:
        """Return all rows, to be read when collected."""
        return pl.concat([super().scan(workspace), self.added.scan(workspace)])

    def read(self, workspace: Workspace, columns: list[str] | None = None) -> pl.DataFrame:
        """Return all rows, those that were there first before the others."""
        both = [super().read(workspace, columns), self.added.read(workspace, columns)]
        return pl.concat(both)


def each_part(workspace: Workspace, dataset: Dataset) -> list[Group]:
    """Return the rows in groups: each part is one."""
    return [
        Group(dataset.part(index).scan(workspace), part.rows)
        for index, part in enumerate(dataset.parts)
    ]


def extended(dataset: Dataset, added: Dataset) -> Extended:
    """Return ``dataset`` with the rows of ``added``."""
    return Extended(dataset.table, dataset.stage_key, dataset.parts, added)
