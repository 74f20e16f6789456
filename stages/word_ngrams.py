"""Texts as hashed word n-grams: what near-duplicates and contamination are measured on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

BLOCK_BYTES = 2**19
"""Text worked on at once, by one thread."""

BASE = np.uint64(0x9E3779B97F4A7C15)
"""Of the polynomial that hashes bytes."""

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts that put no space between words: each of their letters counts as a word."""

GAP, LETTER, MARK = range(3)
_ASCII = bytes(range(128))
_BEYOND_ASCII = bytes(range(128, 256))
_LOWER = _ASCII.lower() + _BEYOND_ASCII
_KINDS = bytes(
    GAP if chr(code).isspace() and code not in range(0x1C, 0x20)  # controls, says Unicode
    else LETTER if chr(code).isalnum()
    else MARK
    for code in _ASCII
) + bytes([LETTER] * len(_BEYOND_ASCII))  # fmt: skip
_CODES = bytes((byte + 1) % 256 for byte in _LOWER)
"""What the hash counts a byte of text as; UTF-8 has no byte 255."""
SPACE_CODE = np.uint64(ord(" ") + 1)
_WORDS = {
    True: re.compile(rb"[a-z0-9\x80-\xff]+|[^\t-\r ]"),
    False: re.compile(rb"[a-z0-9\x80-\xff]+"),
}
"""A word, with and without marks."""


@dataclass(frozen=True)
class TextBytes:
    """Some texts as bytes whose words are seen byte by byte: ``arguments`` of the kernels."""

    text: NDArray[np.uint8]
    edges: NDArray[np.int64]
    """Text i is the bytes from ``edges[i]`` on; one more than there are texts."""
    marks: bool
    """Whether each punctuation mark is a word."""

    @classmethod
    def of(cls, texts: pl.Series, *, marks: bool) -> TextBytes:
        """Return ``texts``, null as empty.

        ASCII is not normalised: that would take longer than all the rest.
        """
        lines = texts.fill_null("")
        wide = lines.str.len_bytes() != lines.str.len_chars()
        if wide.any():
            lines = lines.scatter(wide.arg_true(), normalized(lines.filter(wide), marks=marks))
        arrow = lines.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
        _, offsets, data = arrow.buffers()
        edges = np.frombuffer(offsets, np.int64)[arrow.offset : arrow.offset + len(arrow) + 1]
        return cls(np.frombuffer(data or b"", np.uint8), edges, marks)

    @property
    def arguments(self) -> tuple[object, ...]:
        """What every kernel of `stages/ngram_kernels.py` takes first."""
        kinds = _KINDS if self.marks else _KINDS.replace(bytes([MARK]), bytes([GAP]))
        return (
            self.text,
            self.edges,
            np.frombuffer(kinds, np.uint8),
            np.frombuffer(_CODES, np.uint8),
        )


@dataclass(frozen=True)
class WordNgrams:
    """The n-grams of some texts, in order; text i has those from ``offsets[i]`` on."""

    hashes: NDArray[np.uint64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    """Each n-gram's first byte in ``texts``, and the one after its last."""
    offsets: NDArray[np.int64]
    """One more than there are texts."""
    texts: TextBytes

    def spelled(self, ngram: int) -> str:
        """Return the words of one n-gram, a space between them."""
        passage = self.texts.text[self.starts[ngram] : self.ends[ngram]].tobytes()
        return b" ".join(_WORDS[self.texts.marks].findall(passage.translate(_LOWER))).decode()


def ngrams_of(texts: TextBytes, size: int) -> WordNgrams:
    """Return the n-grams of ``size`` words of every text.

    A text with fewer words is one n-gram, all of it: short texts are alike only when equal; one
    without any has one that is empty. An n-gram's hash is the polynomial modulo 2^64 of its bytes,
    words one space apart (Karp and Rabin 1987), put together of its words' by Horner's rule and
    mixed: the same on every machine and with every version of every library.
    """
    from stages.ngram_kernels import find_ngrams

    room = len(texts.text) + len(texts.edges)
    hashes = np.empty(room, np.uint64)
    starts, ends = np.empty(room, np.int64), np.empty(room, np.int64)
    offsets = np.zeros(len(texts.edges), np.int64)
    count = find_ngrams(*texts.arguments, size, (hashes, starts, ends, offsets))
    return WordNgrams(hashes[:count], starts[:count], ends[:count], offsets, texts)


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


def mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return ``numbers`` scattered over 64 bits, each bit depending on all (SplitMix64's end).

    Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
    """
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(factor)
    return numbers ^ (numbers >> np.uint64(31))
