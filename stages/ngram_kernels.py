"""Loops over the bytes of texts, compiled by Numba when first called: words, n-grams, minima.

A text is the bytes of one array from ``edges[i]`` to before ``edges[i + 1]``. ``kinds`` says what
each byte is, a `GAP`, a `LETTER` or a `MARK`, which is a word of its own; ``codes`` what it counts
as. Arrays are of the types that the callers in this room make: Numba looks at them, not at
annotations. The compiled code is kept beside this file: compiling takes a second, once a machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from stages.word_ngrams import BASE, GAP, LETTER, SPACE_CODE, mixed

if TYPE_CHECKING:
    from collections.abc import Callable


def _compiled(function: Callable[..., Any]) -> Any:
    """Return ``function``, to be compiled when it is first called."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # neither this folder nor the user's home can be written
        return numba.njit(nogil=True)(function)


_mixed = _compiled(mixed)


@_compiled
def words_of(text, begin, end, kinds, codes, words):
    """Return how many words a text has and put them into ``words``, the last one first.

    Of each: first byte, the one after its last, hash, and the base to the power of its length. The
    hash is the polynomial modulo 2^64 of its bytes, so Horner's rule reads them from the last. A
    text without a word has one of no bytes.
    """
    starts, ends, hashes, powers = words
    count, place = 0, end - 1
    while place >= begin:
        kind = kinds[text[place]]
        if kind == GAP:
            place -= 1
            continue
        ends[count] = place + 1
        number, power = np.uint64(codes[text[place]]), BASE
        place -= 1
        if kind == LETTER:
            while place >= begin and kinds[text[place]] == LETTER:
                number = number * BASE + np.uint64(codes[text[place]])
                power *= BASE
                place -= 1
        starts[count], hashes[count], powers[count] = place + 1, number, power
        count += 1
    if count == 0:
        starts[0], ends[0], hashes[0], powers[0] = begin, begin, 0, 1
        return 1
    return count


@_compiled
def ngram_hash(hashes, powers, last, size):
    """Return the hash of the n-gram of ``size`` words that ends with word ``last``, mixed."""
    number = hashes[last]
    for word in range(last + 1, last + size):
        number = hashes[word] + powers[word] * (SPACE_CODE + BASE * number)
    return _mixed(number)


@_compiled
def room_for_words(edges):
    """Return arrays for the words of any one text."""
    longest = max(1, np.diff(edges).max())
    return (
        np.empty(longest, np.int64),
        np.empty(longest, np.int64),
        np.empty(longest, np.uint64),
        np.empty(longest, np.uint64),
    )


@_compiled
def find_ngrams(text, edges, kinds, codes, size, found):
    """Put every text's n-grams into ``found``, in order, and return how many they are.

    ``found`` is hashes, starts, ends and offsets: text i has those from ``offsets[i]`` on.
    """
    hashes, starts, ends, offsets = found
    words = room_for_words(edges)
    word_starts, word_ends, word_hashes, powers = words
    count = 0
    for number in range(len(edges) - 1):
        offsets[number] = count
        of_text = words_of(text, edges[number], edges[number + 1], kinds, codes, words)
        inside = min(size, of_text)
        for last in range(of_text - inside, -1, -1):
            hashes[count] = ngram_hash(word_hashes, powers, last, inside)
            starts[count], ends[count] = word_starts[last + inside - 1], word_ends[last]
            count += 1
    offsets[len(edges) - 1] = count
    return count


@_compiled
def find_minima(text, edges, kinds, codes, size, permutations, minima):
    """Put the minimum of each permutation over each text's n-grams into ``minima``.

    Permutation k is h -> a_k h + b_k modulo 2^32 with odd a_k, a bijection; ``permutations`` is a
    and b. ``minima`` is texts x permutations, of uint32.
    """
    factors, terms = permutations
    words = room_for_words(edges)
    _, _, hashes, powers = words
    lowest = np.empty(len(factors), np.uint32)
    for number in range(len(edges) - 1):
        lowest[:] = 0xFFFFFFFF
        of_text = words_of(text, edges[number], edges[number + 1], kinds, codes, words)
        inside = min(size, of_text)
        for last in range(of_text - inside + 1):
            hashed = np.uint32(ngram_hash(hashes, powers, last, inside) >> np.uint64(32))
            for place in range(len(factors)):
                permuted = np.uint32(hashed * factors[place] + terms[place])
                lowest[place] = min(lowest[place], permuted)
        minima[number] = lowest
