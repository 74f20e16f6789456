"""Pairs to read: both texts side by side, the words that only one of them has marked."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from flows.report_numbers import count

if TYPE_CHECKING:
    import polars as pl

MAX_CHARACTERS = 2_000
MAX_EXAMPLES = 40
MAX_WORDS_COMPARED = 1_500
MOSTLY_DIFFERENT = 0.9


def examples(frame: pl.DataFrame) -> list[dict[str, Any]]:
    """Return the examples with both texts shortened and cut into shared and own words."""
    shown = []
    for row in frame.head(MAX_EXAMPLES).iter_rows(named=True):
        kind = str(row["kind"])
        chosen, rejected = _shortened(row["chosen"]), _shortened(row["rejected"])
        marked = differences(chosen[0], rejected[0])
        shown.append({
            **row, "kept": not kind.startswith("dropped"),
            "kind": kind.removeprefix("dropped: "), "prompt": _shortened(row["prompt"]),
            "chosen": (marked[0], chosen[1]), "rejected": (marked[1], rejected[1]),
        })  # fmt: skip
    return shown


def differences(first: str, second: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Return both texts as (stretch, is it only here) lists; the stretches join to the text.

    Words are compared, not characters. Texts with next to nothing in common are not marked.
    """
    from rapidfuzz.distance import LCSseq

    words: list[list[str]] = [re.findall(r"\S+\s*|\s+", text) for text in (first, second)]
    if max(map(len, words)) > MAX_WORDS_COMPARED:
        return [(first, False)], [(second, False)]
    keys = [[word.strip() for word in side] for side in words]
    marked: tuple[list[tuple[str, bool]], list[tuple[str, bool]]] = ([], [])
    for code in LCSseq.opcodes(keys[0], keys[1]):
        stretches = (
            words[0][code.src_start : code.src_end],
            words[1][code.dest_start : code.dest_end],
        )
        for side, stretch in zip(marked, stretches, strict=True):
            text = "".join(stretch)
            words_only = text.rstrip() if code.tag != "equal" else text
            pieces = [(words_only, code.tag != "equal"), (text[len(words_only) :], False)]
            side.extend((piece, own) for piece, own in pieces if piece)
    own = sum(len(t) for side in marked for t, only_here in side if only_here)
    if own > MOSTLY_DIFFERENT * (len(first) + len(second)):
        return [(first, False)], [(second, False)]
    return marked


def _shortened(text: str | None) -> tuple[str, str]:
    """Return the text's beginning, and a note when that is not all of it."""
    if text is None:
        return "", "the text is not stored any more"
    if len(text) <= MAX_CHARACTERS:
        return text, "" if text.strip() else "empty"
    note = f"shortened: {count(MAX_CHARACTERS)} of {count(len(text))} characters"
    return text[:MAX_CHARACTERS], note
