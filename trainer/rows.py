"""The rows of a training as it takes them: pairs, steps, or single answers with a label."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import polars as pl

from stages.errors import DataError
from trainer.data_checks import (
    ROW_COLUMNS,
    check_preference_data,
    require_columns,
    require_weights,
)
from trainer.steps import COLUMNS as STEP_COLUMNS
from trainer.steps import ENDS, SIDES, step_pairs
from trainer.unpaired_checks import ANSWER_COLUMNS, check_answers, require_labels

if TYPE_CHECKING:
    from trainer.dpo_settings import DPOTrainingConfig


def rows_to_train(rows: pl.DataFrame, config: DPOTrainingConfig) -> pl.DataFrame:
    """Return the columns that the training reads, in an order decided by their contents alone.

    Pairs: `data_checks.ROW_COLUMNS`, the column that weighs them, if one does, and of steps what
    `trainer.steps` names, where ``rows`` have a `prefix` or ``config`` asks for it. Of KTO:
    `unpaired_checks.ANSWER_COLUMNS`, shuffled by the seed, as they are batched in their order.

    Raises:
        DataError: a column is missing or has nulls, there are no rows, a weight or label is wrong.
    """
    if config.loss_type == "kto":
        require_columns(rows, ANSWER_COLUMNS)
        require_labels(rows)
        rows = rows.select(ANSWER_COLUMNS).sort("answer_id", "label", "completion")
        seeded = (
            f"{config.seed}:{name}:{label}"
            for name, label in rows.select("answer_id", "label").iter_rows()
        )
        digests = pl.Series([hashlib.sha256(text.encode()).digest() for text in seeded])
        return rows[digests.arg_sort()]
    require_columns(rows)
    columns = list(ROW_COLUMNS)
    if config.weight_by:
        require_weights(rows, config.weight_by)
        columns.append(config.weight_by)
    if config.steps:
        rows = step_pairs(rows, config.steps.separator)
    elif "prefix" in rows.columns:
        # What ends a turn is not known of a single step.
        goes_on = dict.fromkeys(ENDS, pl.lit(value=False))
        rows = rows.with_columns(pl.col("prefix").fill_null(""), **goes_on)
    if "prefix" in rows.columns:
        columns += STEP_COLUMNS
    return rows.select(columns).sort("pair_id", "chosen", "rejected")


def check_rows(
    rows: pl.DataFrame, tokenizer: Any, max_length_tokens: int, heldout_prompts: frozenset[str]
) -> pl.DataFrame:
    """Return what is wrong with what `rows_to_train` returned, as `check_preference_data` does."""
    check = check_answers if "label" in rows.columns else check_preference_data
    return check(rows, tokenizer, max_length_tokens, heldout_prompts)


def answers_of_pairs(rows: pl.DataFrame) -> pl.DataFrame:
    """Return each pair's two answers, the chosen one labelled good and the rejected one bad.

    Raises:
        DataError: the pairs are of steps.
    """
    if "prefix" in rows.columns:
        raise DataError(
            "the rows have a `prefix`: they are steps",
            expected="whole answers",
            where="training.loss_type kto",
            remedy="train on steps by another loss",
        )
    sides = [
        rows.select(
            pl.format("{}:{}", "pair_id", pl.lit(side)).alias("answer_id"),
            "prompt",
            pl.col(side).alias("completion"),
            pl.lit(side == "chosen").alias("label"),
        )
        for side in SIDES
    ]
    return pl.concat(sides)
