"""Near-duplicate texts: what is alike, who represents a cluster, and what short texts do."""

import itertools

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.near_duplicates import (
    NearDuplicateConfig,
    duplicate_pairs,
    representatives,
    signatures,
)
from stages.word_ngrams import TextBytes, blocks, mixed, ngrams_of, normalized

CONFIG = NearDuplicateConfig()


def text(words):
    return " ".join(f"w{number}" for number in words)


def unlike(count, words=60):
    """Return texts that have no n-gram in common."""
    drawn = np.random.default_rng(3).integers(0, 10**6, (count, words))
    return [text(row) for row in drawn]


def kept(texts, config=CONFIG, order=None):
    """Return each text's representative; the first in the list represents unless told otherwise."""
    order = pl.Series(range(len(texts)) if order is None else order)
    return representatives(signatures(pl.Series(texts, dtype=pl.String), config), order, config)


def test_words_are_lowered_composed_and_apart_from_marks():
    texts = pl.Series(["  Hello,\n World!", "3+4", "\uff21B e\u0301t\u00a0é", "你好 ok", None, ""])
    with_marks = ["hello , world !", "3 + 4", "ab ét é", "你 好 ok", "", ""]
    without = ["hello world", "3 4", "ab ét é", "你 好 ok", "", ""]
    assert normalized(texts, marks=True).to_list() == with_marks
    assert normalized(texts, marks=False).to_list() == without


HOSTILE = st.text(
    st.sampled_from("aB1_ \t\n\x00\x1c\x1f\x85.-\u00e9\u0301\u00a0\u2028你ﬁİ…"), max_size=12
)


@settings(max_examples=100, deadline=None)
@given(st.lists(HOSTILE, min_size=1, max_size=4), st.booleans())
def test_words_of_a_text_are_those_of_its_normalised_form(texts, marks):
    """ASCII is read byte by byte; the regular expressions that all else goes through are slow."""
    texts = pl.Series(texts, dtype=pl.String)
    found = ngrams_of(TextBytes.of(texts, marks=marks), 1)
    words = [found.spelled(number) for number in range(len(found.hashes))]
    of_texts = [words[f:e] for f, e in itertools.pairwise(found.offsets)]
    assert of_texts == [line.split(" ") for line in normalized(texts, marks=marks)]


def test_ngrams_of_each_text_are_its_own_and_a_short_text_is_one():
    ngrams = ngrams_of(TextBytes.of(pl.Series(["a b c d", "", "c d", "b c d é"]), marks=True), 3)
    spelled = [ngrams.spelled(i) for i in range(len(ngrams.hashes))]
    assert spelled == ["a b c", "b c d", "", "c d", "b c d", "c d é"]
    assert ngrams.offsets.tolist() == [0, 2, 3, 4, 6]
    assert ngrams.hashes[1] == ngrams.hashes[4]
    assert len(set(ngrams.hashes.tolist())) == 5


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_hash_is_the_polynomial_of_the_words_a_space_apart(size):
    """Written out: what Horner's rule over whole words must come to."""
    ngrams = ngrams_of(TextBytes.of(pl.Series(["To  be,\nor not", "é", ""]), marks=True), size)
    base, modulus = 0x9E3779B97F4A7C15, 2**64
    for place, found in enumerate(ngrams.hashes.tolist()):
        letters = ngrams.spelled(place).encode()
        total = sum((byte + 1) * pow(base, power, modulus) for power, byte in enumerate(letters))
        assert found == int(mixed(np.array([total % modulus], np.uint64))[0])


def test_signatures_never_change_and_blocks_do_not_show(monkeypatch):
    """A change here must raise VERSION of the stages that use them; stored ones are then old."""
    texts = pl.Series(["The quick brown fox jumps.", "a", *unlike(50)])
    whole = signatures(texts, CONFIG)
    assert whole[0][:4].to_list() == [22, 158, 248, 118]
    monkeypatch.setattr("stages.word_ngrams.BLOCK_BYTES", 1000)
    assert len(list(blocks(texts))) > 10
    assert signatures(texts, CONFIG).equals(whole)
    assert signatures(texts[:0], CONFIG).dtype == whole.dtype


ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=25, deadline=None)
@given(st.lists(ANY_TEXT, min_size=1, max_size=4))
def test_a_texts_signature_is_its_own_whatever_the_text(texts):
    alone = [signatures(pl.Series([each]), CONFIG)[0].to_list() for each in texts]
    assert signatures(pl.Series(texts), CONFIG).to_list() == alone


@pytest.mark.parametrize(("changed", "found"), [(1, 1.0), (2, 0.5), (6, 0.0)])
def test_similarity_is_found_as_the_curve_says(changed, found):
    """60 words with 1, 2 or 6 of them other, far apart: J = 55/61, 52/64, 40/76 of 3-grams."""
    texts = unlike(100)
    others = []
    for position, words in enumerate(map(str.split, texts)):
        words[5 : 5 + 9 * changed : 9] = [f"other{position}"] * changed
        others.append(" ".join(words))
    rows = kept(texts + others)[100:]
    share = (rows == pl.Series(range(100), dtype=pl.UInt32)).mean()
    assert share == pytest.approx(found, abs=0.3 if found == 0.5 else 0.03)
    assert (rows >= 100).mean() == pytest.approx(1 - share)


def test_short_texts_are_alike_only_when_equal():
    texts = ["yes", "no", "Yes", "yes!", "?", "!", "", "a b", "b a", "a  b"]
    assert kept(texts).to_list() == [0, 1, 0, 3, 4, 5, 6, 7, 8, 7]
    many = [str(number) for number in range(3000)]
    assert kept(many).to_list() == list(range(3000))


def test_operators_and_numbers_keep_texts_apart():
    assert kept(["What is 3 + 4?", "What is 3 - 4?", "what is 3+4?"]).to_list() == [0, 1, 0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 25), min_size=1, max_size=30), st.randoms())
def test_order_of_rows_has_no_say(numbers, random):
    """Overlapping windows are chains of near-duplicates, some broken."""
    ids = [f"{position:02d}" for position in range(len(numbers))]
    texts = [text(range(number, number + 40)) for number in numbers]
    rows = list(zip(ids, texts, strict=True))
    first = kept([t for _, t in rows]).to_list()
    clusters = {i: ids[representative] for i, representative in zip(ids, first, strict=True)}
    random.shuffle(rows)
    order = pl.Series([i for i, _ in rows]).arg_sort()
    again = kept([t for _, t in rows], order=order).to_list()
    assert {i: rows[r][0] for (i, _), r in zip(rows, again, strict=True)} == clusters


def test_a_chain_is_one_cluster_and_a_lower_limit_finds_more():
    """Windows of 40 words: by 2 apart they have J = 36/40 = 0.9 of 3-grams, by 6 32/44 = 0.73."""
    texts = [text(range(start, start + 40)) for start in (0, 2, 4, 6)]
    assert kept(texts).to_list() == [0, 0, 0, 0]
    apart = [text(range(start, start + 40)) for start in (0, 10)]  # 28/48 = 0.58
    assert kept(apart).to_list() == [0, 1]
    assert kept(apart, NearDuplicateConfig(similarity=0.5)).to_list() == [0, 0]


def test_pairs_lose_to_earlier_runs_then_to_wider_margins_then_to_smaller_ids():
    texts = unlike(3)
    pairs = pl.DataFrame(
        {
            "pair_id": ["p4", "p3", "p2", "p1", "p5"],
            "margin": [1.0, 2.0, 2.0, 9.0, 0.1],
            "signature": signatures(pl.Series([texts[0]] * 3 + [texts[1], texts[2]]), CONFIG),
        }
    )
    earlier = pl.DataFrame(
        {"pair_id": ["z"], "signature": signatures(pl.Series([texts[1]]), CONFIG)}
    )
    dropped = duplicate_pairs(pairs, earlier, CONFIG)
    assert sorted(dropped.rows()) == [("p1", "z"), ("p3", "p2"), ("p4", "p2")]
    assert duplicate_pairs(pairs, earlier[:0], CONFIG).sort("pair_id").rows() == [
        ("p3", "p2"),
        ("p4", "p2"),
    ]
    assert duplicate_pairs(pairs[:0], earlier, CONFIG).height == 0
    # p2 is dropped already: it neither stands for others nor is one of them.
    standing = pairs.with_columns(standing=pl.col("pair_id") != "p2")
    assert sorted(duplicate_pairs(standing, earlier, CONFIG).rows()) == [("p1", "z"), ("p4", "p3")]
    same = earlier.with_columns(pair_id=pl.lit("p1"))
    assert sorted(duplicate_pairs(pairs, same, CONFIG)["pair_id"]) == ["p3", "p4"]
