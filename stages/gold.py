"""Planted gold pairs: prompts whose better answer is known, to measure scorers on real runs."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from stages.configuration import Config
from stages.content_ids import canonical_json, content_hash
from stages.errors import DataError
from stages.prompt_records import PromptRecord, one_user_turn, prompt_frame, truth_text
from stages.row_files import BadRows, read_rows
from stages.tables import GOLD_SPLIT
from stages.task_families import FAMILIES, demonstrate, sample_prompts, score

if TYPE_CHECKING:
    from collections.abc import Iterable

    import polars as pl

    from stages.row_files import Row

ANSWERS = ("good", "damaged")


class GoldConfig(Config):
    """Planted pairs of a known good and a damaged answer; scored like any, never exported."""

    path: Path | None = None
    """JSONL, Parquet or CSV with prompt, good and damaged; null: the bundled task families' own."""
    share: Annotated[float, pydantic.Field(gt=0, le=1)] = 0.02
    """Of the train prompts, rounded up."""


def gold_prompts(config: GoldConfig, train_prompts: int, seed: int) -> pl.DataFrame:
    """Return rows of the `prompts` table with their two answers as JSON in `gold`.

    Raises:
        DataError: a row of the file lacks a text, or its two answers are equal.
        MissingFileError: the file is not there.
    """
    count = math.ceil(config.share * train_prompts)
    if config.path is None:
        return prompt_frame(_bundled(count, seed))
    place = BadRows.of_file(config.path).place
    rows = [_record(row, place(row.number)) for row in read_rows(config.path)]
    # Drawn by a hash of seed and content: it doesn't depend on the order of the file.
    return prompt_frame(sorted(rows, key=lambda row: content_hash([seed, *row]))[:count])


def _bundled(count: int, seed: int) -> Iterable[PromptRecord]:
    rng = random.Random(f"gold:{seed}")
    for position, family in enumerate(FAMILIES):
        of_family = count // len(FAMILIES) + (position < count % len(FAMILIES))
        for task in sample_prompts(family, "base", of_family, seed):
            good, damaged = _answers(family, task.ground_truth, rng)
            yield PromptRecord(
                conversation=one_user_turn(task.prompt),
                source=GOLD_SPLIT,
                stratum=family,
                split=GOLD_SPLIT,
                verifier=family,
                ground_truth=canonical_json(task.ground_truth),
                gold=canonical_json({"good": good, "damaged": damaged}),
            )


def _answers(family: str, truth: dict[str, Any], rng: random.Random) -> tuple[str, str]:
    """Return a right answer and one that its verifier holds for wrong."""
    good, damaged = (demonstrate(family, truth, rng, flawed) for flawed in (False, True))
    while score(family, truth, damaged) >= score(family, truth, good):
        damaged = demonstrate(family, truth, rng, flawed=True)
    return good, damaged


def _record(row: Row, where: str) -> PromptRecord:
    texts = [row.values.get(name) for name in ("prompt", *ANSWERS)]
    prompt, good, damaged = texts
    if not all(isinstance(text, str) and text for text in texts) or good == damaged:
        raise DataError(
            "a gold row without three texts, or with two equal answers",
            expected="prompt, good and damaged, all different text",
            where=f"{where}; columns there: {', '.join(row.values)}",
        )
    verifier = row.values.get("verifier")
    return PromptRecord(
        conversation=one_user_turn(str(prompt)),
        source=GOLD_SPLIT,
        stratum=GOLD_SPLIT,
        split=GOLD_SPLIT,
        verifier=None if verifier is None else str(verifier),
        ground_truth=truth_text(row, "ground_truth"),
        gold=canonical_json({"good": good, "damaged": damaged}),
    )
