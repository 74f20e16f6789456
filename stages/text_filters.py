"""What the filters measure on texts: one value per pair, null where there is nothing to measure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from stages.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

REFUSAL_OPENINGS = (
    # From the list by which Zou et al. (2023, arXiv:2307.15043) count refusals
    "As an AI",
    "As an assistant",
    "As a language model",
    "I cannot",
    "I'm not able to",
    "I can't assist",
    "I can't provide",
    # The same in other words
    "I am not able to",
    "I'm unable to",
    "I am unable to",
    "I can't help",
    "I can't do that",
    "I can't comply",
    "I won't",
    "I must decline",
    "I have to decline",
    "I must refuse",
    "I'm not comfortable",
    "I don't feel comfortable",
)
"""English openings of a refusal, with or without one of `APOLOGIES` and a "but" before."""

APOLOGIES = (
    # From the same list, where each alone counts: "I'm sorry to hear that" would be a refusal
    "Sorry",
    "I'm sorry",
    "I am sorry",
    "I'm really sorry",
    "I am really sorry",
    "I apologize",
    "My apologies",
    # The same in other words
    "I apologise",
    "I'm afraid",
    "I am afraid",
)
"""English openings that make a refusal only of what follows."""

REFUSALS_AFTER_AN_APOLOGY = ("I can't", "I could not", "I couldn't", "I do not", "I don't")

NGRAM_WORDS = 4

TEXTS_AT_ONCE = 50_000
"""Bounds the memory for n-grams: about 0.1 GB for texts of 300 characters."""

LANGUAGE_SHARE = 0.5
"""Another language drops a text only when it is likelier than all the rest together."""

LANGUAGE_CHARACTERS = 2_000
"""Read of each text: enough to tell its language."""


def identical(chosen: pl.Series, rejected: pl.Series) -> pl.Series:
    """Return whether both are the same text, up to white space around it."""
    return chosen.str.strip_chars() == rejected.str.strip_chars()


def empty(texts: pl.Series) -> pl.Series:
    """Return whether a text is empty or only white space."""
    return texts.str.strip_chars().str.len_bytes() == 0


def similarity(chosen: pl.Series, rejected: pl.Series) -> pl.Series:
    """Return 1 - normalised indel distance per pair, in [0, 1]."""
    import numpy as np
    from rapidfuzz.distance import Indel
    from rapidfuzz.process import cpdist

    if not len(chosen):
        return pl.Series([], dtype=pl.Float64)
    # In float64: as a float32, its default, 0.98 lies above the limit 0.98.
    scorer, pairs = Indel.normalized_similarity, (chosen.to_list(), rejected.to_list())
    return pl.Series(cpdist(*pairs, scorer=scorer, dtype=np.float64, workers=-1))


def refuses(texts: pl.Series) -> pl.Series:
    """Return whether a text begins with one of `REFUSAL_OPENINGS`.

    Case, the kind of apostrophe and whatever is no letter or digit before the first word (quotes,
    markup, white space) make no difference.
    """
    plain, apologies = _any_of(REFUSAL_OPENINGS), _any_of(APOLOGIES)
    later = _any_of((*REFUSAL_OPENINGS, *REFUSALS_AFTER_AN_APOLOGY))
    opening = rf"(?:{plain}|{apologies}[\W_]+(?:but[\W_]+)?{later})"
    return texts.str.contains(rf"(?i)^[\W_]*{opening}(?:_|\b)")


def _any_of(phrases: Sequence[str]) -> str:
    """Return a pattern for one of ``phrases``, which are words, spaces and apostrophes."""
    pattern = f"(?:{'|'.join(phrases)})"
    return pattern.replace("'", "['\u2019]").replace(" ", r"\s+")


def repetition(texts: pl.Series) -> pl.Series:
    r"""Return the share of word 4-grams that repeat an earlier one, in [0, 1).

    Welleck et al. 2020 (arXiv:1908.04319), seq-rep-4: 1 - distinct 4-grams / 4-grams. Gopher's
    rules (Rae et al. 2021, arXiv:2112.11446, table A1) measure the same defect in characters.
    Words are runs of letters, digits and underscores, in lower case; a text of fewer than four
    words is null.
    """
    batches = [_repetition(batch.to_frame("text")) for batch in _batches(texts, TEXTS_AT_ONCE)]
    return pl.concat([pl.Series([], dtype=pl.Float64), *batches])


def _batches(texts: pl.Series, rows: int) -> list[pl.Series]:
    return [texts.slice(start, rows) for start in range(0, len(texts), rows)]


def _repetition(texts: pl.DataFrame) -> pl.Series:
    numbered = texts.lazy().with_row_index("row")
    word = pl.col("text").str.to_lowercase().str.extract_all(r"\w+").alias("word")
    words = numbered.select("row", word).explode("word")
    # A 4-gram is a number: as text, the n-grams would be four times the completions.
    hashes = words.select("row", word=pl.col("word").hash())
    ngram = pl.lit(0, dtype=pl.UInt64)
    for place in range(NGRAM_WORDS):
        ngram = ngram * pl.lit(6364136223846793005, dtype=pl.UInt64) + pl.col("word").shift(-place)
    of_one_text = pl.col("row") == pl.col("row").shift(1 - NGRAM_WORDS)
    ngrams = hashes.select("row", ngram.alias("ngram"), inside=of_one_text).filter("inside")
    repeated = (pl.len() - pl.col("ngram").n_unique()) / pl.len()
    shares = ngrams.group_by("row").agg(share=repeated)
    joined = numbered.select("row").join(shares, on="row", how="left", maintain_order="left")
    return joined.collect()["share"]


def other_language(texts: pl.Series, languages: Sequence[str]) -> pl.Series:
    """Return the probability of the language identified, 0 where it is one of ``languages``.

    Identified by py3langid (multinomial naive Bayes over byte n-grams; Lui and Baldwin 2012,
    "langid.py") from each text's first 2,000 characters. Short texts are never sure: "42" is
    Serbian with 0.01.

    Raises:
        ConfigError: a code in ``languages`` is none that it identifies.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if unknown := sorted(set(languages) - set(identifier.labels)):
        raise ConfigError(
            f"languages that cannot be identified: {', '.join(unknown)}",
            expected=f"of these: {' '.join(sorted(identifier.labels))}",
            where="filters.language",
        )
    identified = map(identifier.classify, texts.str.slice(0, LANGUAGE_CHARACTERS))
    shares = [0.0 if code in languages else share for code, share in identified]
    return pl.Series(shares, dtype=pl.Float64)
