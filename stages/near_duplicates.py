"""Near-duplicate texts: MinHash signatures, and the clusters that locality-sensitive hashing finds.

A signature holds a byte of each permutation's minimum (b-bit minwise hashing, b = 8: Li and Koenig
2010, arXiv 0910.3349). Its bands are its bytes in groups of ``rows_per_band``: these 128 bytes are
all that must be kept of a text, to find candidates and to verify them.

Two texts of Jaccard similarity J share one of the default 16 bands of 8 rows with probability
1 - (1 - J^8)^16. Pairs that do are verified: the similarity that all rows estimate, with a standard
deviation of 0.035 at J = 0.8, must reach ``similarity``. With a limit of 0.8 that finds

    J            0.65     0.70     0.75    0.80    0.85    0.90    0.95
    of pairs    0.01 %    0.5 %     9 %    50 %    94 %  99.96 %  100 %

and 46 % of the pairs at a limit of 0.5 (32 bands of 4 rows), 1 % of those at 0.4.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Self

import numpy as np
import polars as pl
import pydantic

from stages.configuration import Config
from stages.word_ngrams import TextBytes, blocks, mixed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_CHANCE = 1 / 256
"""How often two bytes of unlike texts are equal."""

_VERIFIED_AT_ONCE = 65_536


class NearDuplicateConfig(Config):
    """What counts as nearly the same text."""

    similarity: Annotated[float, pydantic.Field(ge=0.5, le=1)] = 0.8
    """Least Jaccard similarity of the texts' sets of word n-grams, as MinHash estimates it."""
    ngram_words: pydantic.PositiveInt = 3
    """Words of an n-gram; a shorter text is like another only when equal."""
    permutations: Annotated[int, pydantic.Field(ge=32, le=1024, multiple_of=8)] = 128
    """Bytes kept of each text: more find and estimate better, at proportional cost."""
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**32)] = 0
    """Decides the permutations."""

    @property
    def rows_per_band(self) -> int:
        """Rows that must all be equal in some band: fewer find less similar texts."""
        return 8 if self.similarity >= 0.8 else 4  # noqa: PLR2004 - the S-curve above


def signatures(texts: pl.Series, config: NearDuplicateConfig) -> pl.Series:
    """Return each text's MinHash signature: Array(UInt8, permutations)."""
    with ThreadPoolExecutor(pl.thread_pool_size()) as pool:
        found = list(pool.map(partial(_signed, config=config), blocks(texts)))
    empty = np.empty((0, config.permutations), np.uint8)
    rows = np.concatenate([empty, *found])
    return pl.Series("signature", rows, pl.Array(pl.UInt8, config.permutations))


def _signed(texts: pl.Series, config: NearDuplicateConfig) -> NDArray[np.uint8]:
    """Return the signatures of one block: texts x permutations."""
    from stages.ngram_kernels import find_minima

    factors, terms = np.split(_random(2 * config.permutations, config.seed), 2)
    minima = np.empty((len(texts), config.permutations), np.uint32)
    of_texts, permutations = TextBytes.of(texts, marks=True), (factors | np.uint32(1), terms)
    find_minima(*of_texts.arguments, config.ngram_words, permutations, minima)
    # The low byte of a h + b knows only the low byte of h: one of the whole word is kept instead.
    kept = (minima * np.uint32(0x9E3779B1)) >> np.uint32(24)
    return kept.astype(np.uint8)


def _random(count: int, seed: int) -> NDArray[np.uint32]:
    """Return numbers drawn by SplitMix64: numpy promises no stream for its own draws."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed(steps + np.uint64(seed)) >> np.uint64(32)).astype(np.uint32)


def representatives(
    signatures: pl.Series, order: pl.Series, config: NearDuplicateConfig
) -> pl.Series:
    """Return for each text the row number of its cluster's first text in ``order`` (UInt32).

    Texts are in one cluster when a chain of near-duplicates joins them (connected components).
    ``order`` is the row numbers sorted by facts of the texts, ids at last: where a text stands then
    has no say. A row that it leaves out is like no other. Linear in texts and bands: of a band's
    equal texts each is compared with the one before it and with the first.
    """
    by_order = order.to_numpy()
    rows = _Rows.of(signatures, config)
    cluster = np.arange(len(by_order))
    for band in rows.bands(config.rows_per_band):
        near, other = _neighbours(band[by_order])
        apart = cluster[near] != cluster[other]
        near, other = near[apart], other[apart]
        alike = _estimated(rows, by_order[near], by_order[other]) >= config.similarity
        cluster = _joined(cluster, near[alike], other[alike])
    found = np.arange(len(signatures), dtype=np.uint32)
    found[by_order] = by_order[cluster]
    return pl.Series("representative", found)


@dataclass(frozen=True)
class _Rows:
    """Signatures where they lie: the largest thing in memory, of which nobody makes a copy."""

    chunks: list[NDArray[np.uint8]]
    starts: NDArray[np.intp]
    """Row number of each chunk's first."""

    @classmethod
    def of(cls, signatures: pl.Series, config: NearDuplicateConfig) -> Self:
        chunks = [
            chunk.to_numpy().reshape(-1, config.permutations) for chunk in signatures.get_chunks()
        ]
        return cls(chunks, np.cumsum([0, *map(len, chunks[:-1])]))

    def bands(self, rows_per_band: int) -> Iterator[NDArray[np.unsignedinteger]]:
        """Give each band of all rows as one number a row."""
        parts = [chunk.view(f"u{rows_per_band}").T for chunk in self.chunks]
        for of_chunks in zip(*parts, strict=True):
            yield np.concatenate(of_chunks)

    def take(self, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Return the signatures of ``rows``."""
        taken = np.empty((len(rows), self.chunks[0].shape[1]), np.uint8)
        of_chunk = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(of_chunk):
            here = of_chunk == number
            taken[here] = self.chunks[number][rows[here] - self.starts[number]]
        return taken


def _neighbours(band: NDArray[np.unsignedinteger]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return pairs of rows whose ``band`` is equal: with the row before, and with the first."""
    # Few rows are like another, and finding these few is far cheaper than an order of all.
    ordered = np.sort(band)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return np.empty(0, np.intp), np.empty(0, np.intp)
    place = np.minimum(np.searchsorted(repeated, band), len(repeated) - 1)
    rows = np.flatnonzero(repeated[place] == band)
    place = place[rows]
    by_bucket = np.argsort(place, kind="stable")
    bucket, rows = place[by_bucket], rows[by_bucket]
    follows = np.flatnonzero(bucket[1:] == bucket[:-1]) + 1
    first = np.searchsorted(bucket, bucket[follows])
    later = first < follows - 1
    return (
        np.concatenate([rows[follows], rows[follows[later]]]),
        np.concatenate([rows[follows - 1], rows[first[later]]]),
    )


def _estimated(
    signatures: _Rows, near: NDArray[np.intp], other: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Return the estimated Jaccard similarity of each pair of rows.

    Li and Koenig's estimator, whose C1 and C2 are 1 / 256 for sets far smaller than 2^32.
    """
    share = np.empty(len(near), np.float64)
    for first in range(0, len(near), _VERIFIED_AT_ONCE):
        part = slice(first, first + _VERIFIED_AT_ONCE)
        share[part] = (signatures.take(near[part]) == signatures.take(other[part])).mean(axis=1)
    return (share - _CHANCE) / (1 - _CHANCE)


def _joined(
    cluster: NDArray[np.intp], near: NDArray[np.intp], other: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Return ``cluster`` (each row's first row) with the clusters of each pair made one."""
    if not len(near):
        return cluster
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = np.arange(len(cluster))
    edges = (np.ones(len(near), bool), (cluster[near], cluster[other]))
    _, part = connected_components(coo_array(edges, shape=(len(rows),) * 2), directed=False)
    first = np.empty_like(rows)
    # Assigned from the last row to the first: a part keeps its lowest row.
    first[part[::-1]] = rows[::-1]
    joined: NDArray[np.intp] = first[part][cluster]
    return joined


def duplicate_pairs(
    pairs: pl.DataFrame, earlier: pl.DataFrame, config: NearDuplicateConfig
) -> pl.DataFrame:
    """Return the ``pairs`` to drop: ``pair_id`` and ``duplicate_of``, the pair kept in its place.

    Of each cluster the pair of an ``earlier`` run is kept, else the one with the widest margin, of
    equal ones the smallest id. ``pairs`` has pair_id, margin and signature (of prompt, chosen and
    rejected together), ``earlier`` pair_id and signature; a pair that is in both is no duplicate.
    Pairs that an earlier filter drops (``standing``, if there) are not looked at.
    """
    facts = ["pair_id", "margin", "signature", "standing"]
    if "standing" not in pairs.columns:
        pairs = pairs.with_columns(standing=pl.lit(value=True))
    infinite = {"margin": pl.lit(float("inf")), "standing": pl.lit(value=True)}
    before = earlier.with_columns(**infinite).select(facts)
    both = pl.concat([before, pairs.select(facts)])
    looked_at = both.select("pair_id", "margin", "standing").with_row_index().filter("standing")
    order = looked_at.sort("margin", "pair_id", descending=[True, False])["index"]
    kept = representatives(both["signature"], order, config)
    ruled = both.select("pair_id", duplicate_of=both["pair_id"].gather(kept))
    return ruled[before.height :].filter(pl.col("pair_id") != pl.col("duplicate_of"))
