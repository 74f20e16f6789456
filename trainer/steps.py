"""Step-level pairs: one step preferred to another after the same right steps (Step-DPO).

Lai et al. 2024, arXiv 2406.18629. `prefix` are the assistant's steps so far: part of what is asked,
scored for neither side. A step that does not end its answer is scored without the template's end of
turn: the model shall go on after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from stages.errors import DataError
from trainer.chat_tokens import chat_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

SIDES = ("chosen", "rejected")

ENDS = ("chosen_ends", "rejected_ends")

COLUMNS = ("prefix", *ENDS)
"""What rows of steps have beyond those of whole answers: a text, and whether each side's step is
its answer's last."""


def step_pairs(rows: pl.DataFrame, separator: str) -> pl.DataFrame:
    """Return ``rows`` of whole answers as pairs of steps, with the columns in `COLUMNS`.

    The leading steps that both answers have become the prefix; of each answer its next step stays.
    Where one answer has no more steps, its last and the other's same one stay: they differ in the
    end of turn. Each step ends with ``separator``, but for the last.

    Raises:
        DataError: the rows have a prefix already.
    """
    if "prefix" in rows.columns:
        raise DataError(
            "the rows have a `prefix`: they are steps already",
            expected="whole answers, to be split",
            where="training.steps",
            remedy="take `steps` out of the configuration",
        )
    steps = [
        pl.col(side)
        .str.split(separator, inclusive=True)
        .list.eval(pl.element().filter(pl.element() != ""))
        for side in SIDES
    ]
    split = rows.with_columns(steps).with_row_index("row")
    chosen, rejected = (pl.col(side) for side in SIDES)
    shorter = pl.min_horizontal(chosen.list.len(), rejected.list.len()).cast(pl.Int64)
    at = (
        split.select("row", chosen.list.head(shorter), rejected.list.head(shorter))
        .filter(chosen.list.len() > 0)
        .explode(SIDES)
        .with_columns(at=pl.int_range(pl.len()).over("row"))
        .filter(chosen != rejected)
        .group_by("row")
        .agg(pl.col("at").min())
    )
    split = split.join(at, on="row", how="left", maintain_order="left")
    first = pl.col("at").fill_null(shorter - 1).clip(0)
    split = split.with_columns(at=first)
    return split.with_columns(
        prefix=chosen.list.head("at").list.join(""),
        chosen_ends=pl.col("at") >= chosen.list.len().cast(pl.Int64) - 1,
        rejected_ends=pl.col("at") >= rejected.list.len().cast(pl.Int64) - 1,
        chosen=chosen.list.get(pl.col("at"), null_on_oob=True).fill_null(""),
        rejected=rejected.list.get(pl.col("at"), null_on_oob=True).fill_null(""),
    ).drop("row", "at")


def step_tokens(
    rows: pl.DataFrame, tokenizer: Any
) -> Iterator[tuple[str, list[int], list[int], list[int]]]:
    """Yield each pair's id and the token ids of prompt with prefix, of it with either step.

    A token that holds the prefix's end and a step's beginning belongs to the step, and then for
    both sides: what comes before is what they share with the prefix alone.

    Raises:
        DataError: the template refuses a conversation.
    """
    for row in rows.iter_rows(named=True):
        prefix = row["prefix"]
        sides = [
            _turn(row, prefix + row[side], tokenizer, ends=row[ends])
            for side, ends in zip(SIDES, ENDS, strict=True)
        ]
        given = _turn(row, prefix, tokenizer, ends=False)
        shared = min(_common(given, side) for side in sides)
        yield row["pair_id"], given[:shared], sides[0], sides[1]


def _common(one: list[int], other: list[int]) -> int:
    """Return how many leading tokens are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _turn(row: dict[str, Any], text: str, tokenizer: Any, *, ends: bool) -> list[int]:
    """Return the prompt's tokens with those of the assistant's ``text``, which may go on."""
    where = f"pair {row['pair_id']}"
    if not text:
        return chat_tokens(tokenizer, [row["prompt"]], where, add_generation_prompt=True)[0]
    conversation = [*row["prompt"], {"role": "assistant", "content": text}]
    return chat_tokens(tokenizer, [conversation], where, continue_final_message=not ends)[0]


def with_steps(dataset: Any, rows: pl.DataFrame, tokenizer: Any) -> Any:
    """Return TRL's tokenised ``dataset`` with each pair's tokens as `step_tokens` has them."""
    tokens = [
        {
            "prompt_ids": asked,
            "chosen_ids": chosen[len(asked) :],
            "rejected_ids": rejected[len(asked) :],
        }
        for _, asked, chosen, rejected in step_tokens(rows, tokenizer)
    ]
    return dataset.map(lambda _, index: tokens[index], with_indices=True)
