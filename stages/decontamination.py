"""Prompts that share a passage with an evaluation set: found, with the words they share.

The rule is GPT-3's (Brown et al. 2020, arXiv 2005.14165, appendix C): texts overlap when they share
N consecutive words, ignoring case and punctuation, where N is the 5th percentile of the evaluation
set's lengths in words, at least 8 and at most 13.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import polars as pl

from stages.word_ngrams import TextBytes, blocks, ngrams_of, normalized

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from stages.word_ngrams import WordNgrams

SHORTEST, LONGEST = 8, 13
_LENGTH_QUANTILE = 0.05

_CELLS_PER_NGRAM = 16
"""Bytes of the first sieve for each n-gram: 6 % of unknown n-grams pass it."""


@dataclass(frozen=True)
class EvaluationNgrams:
    """The n-grams of one evaluation set; memory is linear in its words (24 to 40 bytes each)."""

    name: str
    ngram_words: int
    hashes: NDArray[np.uint64]
    """Sorted and distinct."""
    sieve: NDArray[np.bool_]
    """Whether any n-gram's hash ends in these bits: most look-ups end here."""

    @classmethod
    def of(cls, name: str, texts: pl.Series) -> Self:
        """Return the n-grams of ``texts``."""
        words = normalized(texts, marks=False)
        words = words.filter(words != "")  # else texts without a word would all match
        size = _ngram_words(words)
        parts = (TextBytes.of(block, marks=False) for block in blocks(words))
        found = [ngrams_of(part, size).hashes for part in parts]
        hashes = np.unique(np.concatenate([np.empty(0, np.uint64), *found]))
        sieve = np.zeros(1 << (_CELLS_PER_NGRAM * len(hashes)).bit_length(), np.bool_)
        sieve[hashes & np.uint64(len(sieve) - 1)] = True
        return cls(name, size, hashes, sieve)

    def first_in(self, ngrams: WordNgrams) -> dict[int, str]:
        """Return the first n-gram found in each text that has one, by the text's number."""
        passed = self.sieve[ngrams.hashes & np.uint64(len(self.sieve) - 1)]
        places = np.flatnonzero(passed)
        if not len(self.hashes) or not len(places):
            return {}
        sought = ngrams.hashes[places]
        nearest = np.minimum(np.searchsorted(self.hashes, sought), len(self.hashes) - 1)
        shared = places[self.hashes[nearest] == sought]
        of_text = np.searchsorted(ngrams.offsets, shared, side="right") - 1
        texts, first = np.unique(of_text, return_index=True)
        return {
            int(text): ngrams.spelled(int(place))
            for text, place in zip(texts, shared[first], strict=True)
        }


def _ngram_words(words: pl.Series) -> int:
    """Return N for the normalised texts of one evaluation set."""
    lengths = words.str.count_matches(" ", literal=True) + 1
    quantile = lengths.quantile(_LENGTH_QUANTILE, "nearest")
    return min(max(int(quantile or 0), SHORTEST), LONGEST)


def contamination(texts: pl.Series, sets: Sequence[EvaluationNgrams]) -> pl.DataFrame:
    """Return for each text the first of ``sets`` that it overlaps with, and the words they share.

    The columns are ``evaluation_set`` and ``matched_text``, both null for a clean text. Streams: a
    text is needed once, in any order. A text with fewer than N words overlaps only when it equals a
    whole text of the set.
    """
    names: list[str | None] = [None] * len(texts)
    matched: list[str | None] = [None] * len(texts)
    first = 0
    for block in blocks(texts):
        words = TextBytes.of(block, marks=False)
        by_size = {size: ngrams_of(words, size) for size in {s.ngram_words for s in sets}}
        for evaluation in sets:
            for text, ngram in evaluation.first_in(by_size[evaluation.ngram_words]).items():
                if names[first + text] is None:
                    names[first + text], matched[first + text] = evaluation.name, ngram
        first += len(block)
    found = {"evaluation_set": names, "matched_text": matched}
    return pl.DataFrame(found, schema=dict.fromkeys(found, pl.String))
