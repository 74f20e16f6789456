"""Texts as hashed word n-grams: what near-duplicates and contamination are measured on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

BLOCK_BYTES = 2**20
"""Text hashed at once: about 60 bytes of working memory for each byte of it."""

_SPACE, _LINE_END = 0x20, 0x0A
_BASE = 0x9E3779B97F4A7C15

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts that put no space between words: each of their letters counts as a word."""


@dataclass(frozen=True)
class WordNgrams:
    """The n-grams of some texts, in order; text i has those from ``offsets[i]`` on."""

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    """One more than there are texts."""
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    """Each n-gram's first byte in ``text``, and the one after its last."""
    text: bytes

    def spelled(self, ngram: int) -> str:
        """Return the words of one n-gram."""
        return self.text[self.starts[ngram] : self.ends[ngram]].decode()


def normalized(texts: pl.Series, *, marks: bool) -> pl.Series:
    """Return ``texts`` in lower case and Unicode's NFKC, one space between words; null gives "".

    With ``marks`` every punctuation mark and symbol is a word of its own (3 + 4 is not 3 - 4);
    without, they are spaces.
    """
    text = pl.col("text")
    wide = pl.when(text.str.len_bytes() != text.str.len_chars()).then(text)
    # Normalising costs more than all the rest: ASCII is left as null, which is passed over.
    folded = pl.coalesce(wide.str.normalize("NFKC"), text).fill_null("").str.to_lowercase()
    if not marks:
        folded = folded.str.replace_all(r"[^\p{L}\p{M}\p{N}]", " ")
    apart = folded.str.replace_all(rf"[^\s[\p{{L}}\p{{M}}\p{{N}}--[{_UNSPACED}]]]", " $0 ")
    spaced = apart.str.replace_all(r"\s{2,}|[^\S ]", " ").str.strip_chars(" ")
    return texts.alias("text").to_frame().select(spaced).to_series()


def blocks(texts: pl.Series) -> Iterator[pl.Series]:
    """Yield ``texts`` in order, in slices of about BLOCK_BYTES; a longer text comes alone."""
    last_byte = texts.str.len_bytes().fill_null(0).cast(pl.Int64).cum_sum().to_numpy()
    cuts = np.flatnonzero(np.diff(last_byte // BLOCK_BYTES)) + 1
    edges = [0, *cuts.tolist(), len(texts)]
    for first, last in pairwise(edges):
        if first < last:
            yield texts[first:last]


def word_ngrams(words: pl.Series, size: int) -> WordNgrams:
    """Return the n-grams of ``size`` words of one or more normalised texts.

    A text with fewer words is one n-gram, all of it: short texts are alike only when equal. An
    n-gram's hash is the polynomial of its bytes modulo 2^64 (Karp and Rabin 1987), taken from
    prefix sums, then mixed: the same on every machine and with every version of every library.
    """
    text = ("\n".join(words.to_list()) + "\n").encode()
    letters = np.frombuffer(text, np.uint8)
    sums = np.zeros(len(letters) + 1, np.uint64)
    np.cumsum((letters + np.uint64(1)) * _powers(_BASE, len(letters)), out=sums[1:])

    word_ends = np.flatnonzero((letters == _SPACE) | (letters == _LINE_END))
    word_starts = np.concatenate([[0], word_ends[:-1] + 1])
    last = np.flatnonzero(letters[word_ends] == _LINE_END)
    first = np.concatenate([[0], last[:-1] + 1])
    counts = np.maximum(last - first + 2 - size, 1)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    head = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - first, counts)
    tail = np.minimum(head + size - 1, np.repeat(last, counts))
    starts, ends = word_starts[head], word_ends[tail]
    # Divided by the base's power, the same words have the same hash wherever they stand.
    unshifted = _powers(pow(_BASE, -1, 2**64), len(letters))[starts]
    return WordNgrams(mixed((sums[ends] - sums[starts]) * unshifted), offsets, starts, ends, text)


def _powers(base: int, count: int) -> NDArray[np.uint64]:
    return _powers_up_to(base, 2 ** max(count - 1, 0).bit_length())[:count]


@lru_cache(maxsize=4)
def _powers_up_to(base: int, count: int) -> NDArray[np.uint64]:
    """Return base^0 to base^(count - 1) modulo 2^64; every block of texts needs the same."""
    powers = np.full(count, base, np.uint64)
    powers[0] = 1
    powers = np.multiply.accumulate(powers)
    powers.flags.writeable = False
    return powers


def mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return ``numbers`` scattered over 64 bits, each bit depending on all (SplitMix64's end).

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(factor)
    return numbers ^ (numbers >> np.uint64(31))
