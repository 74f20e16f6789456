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

BLOCK_BYTES = 2**19
"""Text hashed at once: what is worked on then stays in a core's cache."""

_BASE = 0x9E3779B97F4A7C15

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts that put no space between words: each of their letters counts as a word."""

_ASCII = bytes(range(128))
_BEYOND_ASCII = bytes(range(128, 256))
_LOWER = _ASCII.lower() + _BEYOND_ASCII
_GAP, _LETTER, _MARK = range(3)
_KINDS = bytes(
    _GAP if chr(code).isspace() and code not in range(0x1C, 0x20)  # controls, says Unicode
    else _LETTER if chr(code).isalnum()
    else _MARK
    for code in _ASCII
) + bytes([_LETTER] * len(_BEYOND_ASCII))  # fmt: skip
_CODES = bytes((byte + 1) % 256 for byte in _LOWER)
"""What the hash counts a byte of text as; UTF-8 has no byte 255."""
_SPACE_CODE = np.uint64(ord(" ") + 1)


@dataclass(frozen=True)
class Words:
    """The words of some texts, in order; text i has those from ``first[i]`` on."""

    text: bytes
    """In lower case; what is no word in it is left over."""
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    """Each word's first byte in ``text``, and the one after its last."""
    first: NDArray[np.int64]
    """One more than there are texts."""

    def ngrams(self, size: int) -> WordNgrams:
        """Return the n-grams of ``size`` words of every text.

        A text with fewer words is one n-gram, all of it: short texts are alike only when equal. An
        n-gram's hash is the polynomial modulo 2^64 of its bytes, words one space apart (Karp and
        Rabin 1987), put together of its words' by Horner's rule and mixed: the same on every
        machine and with every version of every library.
        """
        first, counts = self.first[:-1], np.diff(self.first)
        joined, shift = self._hashes()
        before, shift = joined + _SPACE_CODE * shift, shift * np.uint64(_BASE)
        for read in range(1, size):
            whole = first[counts <= read]
            of_whole = joined[whole]
            joined[:-1] = before[:-1] + shift[:-1] * joined[1:]
            joined[whole] = of_whole
        ngrams = np.maximum(counts - size + 1, 1)
        offsets = np.concatenate([[0], np.cumsum(ngrams)])
        heads = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], ngrams)
        return WordNgrams(mixed(joined[heads]), offsets, heads, size, self)

    def _hashes(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Return the polynomial of each word's bytes, and the base to the power of their number."""
        powers = _powers(_BASE, len(self.text) + 1)
        codes = np.frombuffer(self.text.translate(_CODES), np.uint8)
        sums = np.zeros(len(powers), np.uint64)
        np.cumsum(codes * powers[:-1], out=sums[1:])
        # Divided by the base's power, the same word has the same hash wherever it stands.
        unshifted = _powers(pow(_BASE, -1, 2**64), len(powers))[self.starts]
        hashes = (sums[self.ends] - sums[self.starts]) * unshifted
        return hashes, powers[self.ends - self.starts]


@dataclass(frozen=True)
class WordNgrams:
    """The n-grams of some texts, in order; text i has those from ``offsets[i]`` on."""

    hashes: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    """One more than there are texts."""
    heads: NDArray[np.int64]
    """Each n-gram's first word in ``words``."""
    size: int
    words: Words

    def spelled(self, ngram: int) -> str:
        """Return the words of one n-gram, a space between them."""
        words, head = self.words, self.heads[ngram]
        end_of_text = words.first[np.searchsorted(words.first, head, side="right")]
        places = range(head, min(head + self.size, end_of_text))
        return b" ".join(words.text[words.starts[i] : words.ends[i]] for i in places).decode()


def words_of(texts: pl.Series, *, marks: bool) -> Words:
    """Return the words of ``texts`` as ``normalized`` parts them; one without any has one empty.

    ASCII, whose words are seen byte by byte, is not normalised: that would take longer than all
    the rest.
    """
    lines = texts.fill_null("")
    wide = lines.str.len_bytes() != lines.str.len_chars()
    if wide.any():
        lines = lines.scatter(wide.arg_true(), normalized(lines.filter(wide), marks=marks))
    text = ("\n".join(lines) + "\n").encode().translate(_LOWER)
    kinds = np.frombuffer(text.translate(_KINDS), np.uint8)
    letter = kinds == _LETTER
    inside = letter[1:] & letter[:-1]
    word = kinds != _GAP if marks else letter
    starts = np.flatnonzero(word & ~np.concatenate([[False], inside]))
    ends = np.flatnonzero(word & ~np.concatenate([inside, [False]])) + 1
    edges = np.concatenate([[0], (lines.str.len_bytes().cast(pl.Int64) + 1).cum_sum()])
    first = np.searchsorted(starts, edges)
    empty = np.flatnonzero(first[1:] == first[:-1])
    if len(empty):
        starts = np.insert(starts, first[empty], edges[empty])
        ends = np.insert(ends, first[empty], edges[empty])
        first = np.searchsorted(starts, edges)
    return Words(text, starts, ends, first)


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
