"""What is measured on texts, by hand, and on any text at all."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.errors import ConfigError
from stages.text_filters import REFUSAL_OPENINGS, other_language, refuses, repetition

ANY_TEXT = ["", " \n\t", "?!… — ***", "🐕" * 50, "\u0000", "a" * 1_000_000, "a b " * 250_000]


@pytest.mark.parametrize("opening", REFUSAL_OPENINGS)
def test_every_opening_refuses_however_it_is_written(opening):
    curly = opening.replace("'", "\u2019")
    texts = [
        f"{opening} help with that.",
        f"{curly.upper()} HELP",
        f'\n **"{curly.lower()}"**',
        f"I'm sorry, but {opening} help",
        f"Sorry.  {opening} help",
        f"Sure! {opening} help",
    ]
    assert refuses(pl.Series(texts)).to_list() == [True] * 5 + [False]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I\u2019m sorry, but I can\u2019t share that.", True),
        ("I apologise, but I don't know who that is.", True),
        ("I'm sorry to hear that your parcel is late. Here is a new one.", False),
        ("Sorry for the delay! Your order is on its way.", False),
        ("Sorry", False),
        ("I can't wait to show you.", False),
        ("I cannotate the text", False),
        ("_I cannot_ help with that.", True),
        ("__I'm sorry__, but _I can't_ help.", True),
        ("As an aide, she", False),
        ("A judge may say: I cannot assist with that.", False),
        ("I could not agree more.", False),
        # What an opening cannot tell: documented limits
        ("I cannot stress enough how useful this is.", True),
        ("That is not something that I will help with.", False),
        ("Das kann ich nicht tun.", False),
    ],
)
def test_only_an_opening_that_refuses_counts(text, expected):
    assert refuses(pl.Series([text])).to_list() == [expected]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("a b c", None),
        ("a b c d", 0.0),
        # abcd bcda cdab dabc abcd: one of five repeats
        ("a b c d a b c d", 1 / 5),
        ("A, b; c: D! a\nb\tc d.", 1 / 5),
        # aaaa four times
        ("no no no no no no no", 3 / 4),
        ("the dog, the cat, the cow", 0.0),
        ("ä ß 犬 д ä ß 犬 д", 1 / 5),
        ("!!!! ???? .... ----", None),
        ("犬" * 100, None),
    ],
)
def test_repetition_is_the_share_of_4_grams_seen_before(text, share):
    assert repetition(pl.Series([text])).to_list() == [share]


def test_4_grams_stay_within_their_text():
    assert repetition(pl.Series(["a b", "c d a b", "c d", "a b c d"])).to_list() == [
        None,
        0.0,
        None,
        0.0,
    ]


def test_any_text_is_measured():
    assert refuses(pl.Series(ANY_TEXT)).to_list() == [False] * len(ANY_TEXT)
    # "a b a b …" has 499,997 4-grams, two of them distinct.
    repeated = (499_997 - 2) / 499_997
    assert repetition(pl.Series(ANY_TEXT)).to_list() == [None] * 6 + [repeated]
    nothing = pl.Series([], dtype=pl.String)
    assert repetition(nothing).to_list() == refuses(nothing).to_list() == []


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=9), max_size=6))
def test_repetition_counts_as_a_set_does(texts):
    def by_hand(words):
        ngrams = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
        return (len(ngrams) - len(set(ngrams))) / len(ngrams) if ngrams else None

    joined = pl.Series([" ".join(words) for words in texts], dtype=pl.String)
    assert repetition(joined).to_list() == [by_hand(words) for words in texts]


def test_a_language_not_asked_for_is_told_with_its_probability():
    pytest.importorskip("py3langid")
    texts = [
        "The quick brown fox jumps over the lazy dog.",
        "Der Hund läuft schnell durch den Wald und bellt.",
        "今日は天気がいいので、公園に行きましょう。",
        "42",
        "def f(x):\n    return x + 1",
        *ANY_TEXT,
    ]
    series = pl.Series(texts)
    other = (other_language(series, ("en",)) > 0.5).to_list()
    assert other[:5] == [False, True, True, False, False]
    assert not any(other[5:10])
    assert other_language(series, ("en", "de", "ja"))[:3].to_list() == [0.0, 0.0, 0.0]


def test_an_unknown_language_is_named():
    pytest.importorskip("py3langid")
    with pytest.raises(ConfigError, match=r"cannot be identified: xx.*filters\.language"):
        other_language(pl.Series(["text"]), ("en", "xx"))
