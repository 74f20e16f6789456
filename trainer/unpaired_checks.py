"""What is wrong with answers labelled good or bad one by one, found before they are trained on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from stages.errors import DataError
from trainer.chat_tokens import chat_tokens
from trainer.data_checks import (
    CHECKS,
    TOKENISED_ROWS,
    missing_content,
    problem_rows,
    prompt_keys,
    template_ends_with_eos,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER_COLUMNS = ("answer_id", "prompt", "completion", "label")

ANSWER_CHECKS: dict[str, tuple[str, str]] = {
    "duplicate_answer_id": ("must", "give each answer an id of its own"),
    **{
        check: CHECKS[check]
        for check in (
            "prompt_not_ending_with_user",
            "missing_content",
            "prompt_in_heldout",
            "empty_completion",
            "template_without_eos",
            "double_bos",
            "prompt_too_long",
            "sequence_too_long",
            "prompt_not_prefix",
        )
    },
    "repeated_answer": ("should", "keep one of each: repetition is an unasked-for weight"),
    "contradicting_labels": ("should", "drop both or decide: an answer is both good and bad"),
}
"""Check name to severity and advice, in the order they are reported."""


def check_answers(
    rows: pl.DataFrame,
    tokenizer: Any,
    max_length_tokens: int,
    heldout_prompts: frozenset[str] = frozenset(),
) -> pl.DataFrame:
    """Return one row per check that found something, as `check_preference_data` does.

    Args:
        rows: answer_id, prompt (list of role and content), completion (text), label.
        tokenizer: the policy's, with its chat template.
        max_length_tokens: the limit on prompt and completion together.
        heldout_prompts: the evaluation prompts, as `prompt_keys` names them.

    Raises:
        DataError: the template refuses a conversation.
    """
    keyed = rows.with_columns(prompt_keys(rows["prompt"]))
    answer = pl.struct("prompt_key", "completion")
    last_role = pl.col("prompt").list.last().struct.field("role")
    flags = {
        # The same answer may have been good in one pair and bad in another.
        "duplicate_answer_id": pl.struct("answer_id", "label").is_duplicated(),
        "prompt_not_ending_with_user": (last_role == "user").fill_null(value=False).not_(),
        "missing_content": missing_content(),
        "prompt_in_heldout": pl.col("prompt_key").is_in(sorted(heldout_prompts)),
        "empty_completion": pl.col("completion").str.strip_chars() == "",
        "repeated_answer": pl.struct("prompt_key", "completion", "label").is_duplicated(),
        "contradicting_labels": pl.col("label").n_unique().over(answer) > 1,
    }
    flagged = keyed.select("answer_id", **flags)
    found = {name: flagged.filter(pl.col(name))["answer_id"].to_list() for name in flags}
    for check, answer_id in _token_findings(
        rows.filter(~missing_content()), tokenizer, max_length_tokens
    ):
        found.setdefault(check, []).append(answer_id)
    if not template_ends_with_eos(tokenizer):
        found["template_without_eos"] = rows["answer_id"].to_list()
    return problem_rows(found, ANSWER_CHECKS)


def require_boolean_labels(rows: pl.DataFrame, where: str = "") -> None:
    """Pass when `label` is true or false.

    Raises:
        DataError: it is of another type.
    """
    if rows["label"].dtype != pl.Boolean:
        raise DataError(
            f"`label` holds {rows['label'].dtype}",
            expected="true of good answers, false of bad",
            where=where,
        )


def require_labels(rows: pl.DataFrame) -> None:
    """Pass when `label` is true of some answers and false of others.

    Raises:
        DataError: otherwise.
    """
    require_boolean_labels(rows)
    good = int(rows["label"].sum())
    if good in {0, rows.height}:
        raise DataError(
            f"{good} of {rows.height} answers are labelled good",
            expected="both kinds: KTO sets them against each other",
        )


def _token_findings(rows: pl.DataFrame, tokenizer: Any, limit: int) -> Iterator[tuple[str, str]]:
    """Yield check and answer id of each finding on tokens; tokenised as TRL does."""
    bos = tokenizer.bos_token_id
    for part in rows.iter_slices(TOKENISED_ROWS):
        where = f"one of {part.height} answers from {part['answer_id'][0]} on"
        asked = part["prompt"].to_list()
        turns = [
            [*prompt, {"role": "assistant", "content": text}]
            for prompt, text in zip(asked, part["completion"], strict=True)
        ]
        prompts = chat_tokens(tokenizer, asked, where, add_generation_prompt=True)
        answered = chat_tokens(tokenizer, turns, where)
        for answer_id, prompt, tokens in zip(part["answer_id"], prompts, answered, strict=True):
            if bos is not None and tokens[:2] == [bos, bos]:
                yield "double_bos", answer_id
            if len(prompt) >= limit:
                yield "prompt_too_long", answer_id
            elif len(tokens) > limit:
                yield "sequence_too_long", answer_id
            if tokens[: len(prompt)] != prompt:
                yield "prompt_not_prefix", answer_id
