"""Conversations as tokens with labels, and what is wrong with them, found before any step.

A row's `prompt` is context. `response` is what follows it: it begins and ends with a turn of the
assistant, and every assistant's turn in it is learned, with the tokens that end it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from stages.chat_template import render
from stages.errors import DataError, ModelError
from trainer.data_checks import (
    TOKENISED_ROWS,
    problem_rows,
    prompt_keys,
    template_ends_with_eos,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

ROW_COLUMNS = ("row_id", "prompt", "response")

IGNORED = -100
"""The label of a token that isn't learned, as torch and TRL have it."""

ASSISTANT = "assistant"

CHECKS: dict[str, tuple[str, str]] = {
    "prompt_not_ending_with_user": (
        "must",
        "end what comes before an answer with a turn of the user (or of a tool)",
    ),
    "response_not_ending_with_assistant": ("must", "end every conversation with an answer"),
    "missing_content": ("must", "give every message a text: tool calls are not learned"),
    "empty_completion": ("must", "drop these rows: they would train the end of turn alone"),
    "template_without_eos": (
        "must",
        "end every assistant turn of the chat template with EOS: without it models unlearn to stop",
    ),
    "double_bos": ("must", "remove one of the two BOS tokens from the template or the prompt"),
    "sequence_too_long": (
        "must",
        "raise max_length_tokens (up to the model's context) or drop these rows: TRL cuts off EOS",
    ),
    "turn_not_prefix": (
        "must",
        "set `turns: last`: the template renders an earlier turn otherwise than a last one",
    ),
    "prompt_not_prefix": (
        "should",
        "use a template that renders a prompt alone as before an answer: sampling sees another one",
    ),
    "repeated_row": ("should", "keep one of each: repetition is an unasked-for weight"),
}
"""Check name to severity and advice, in the order they are reported."""

SHAPELESS = (
    "prompt_not_ending_with_user",
    "response_not_ending_with_assistant",
    "missing_content",
)
"""What is no conversation that can be tokenised."""


class Tokenised(NamedTuple):
    """A conversation's tokens, and which of them are learned."""

    row_id: str
    input_ids: list[int]
    labels: list[int]
    """The token where it is learned, else `IGNORED`."""
    faults: tuple[str, ...] = ()
    """Of `CHECKS`."""


def check_conversations(rows: pl.DataFrame, tokenizer: Any, limit_tokens: int) -> pl.DataFrame:
    """Return one row per check that found something, as `data_checks.problem_rows`."""
    found = _text_findings(rows)
    if not template_ends_with_eos(tokenizer):
        found["template_without_eos"] = rows["row_id"].to_list()
    broken = {row_id for check in SHAPELESS for row_id in found[check]}
    for row in tokenised(rows.filter(~pl.col("row_id").is_in(sorted(broken))), tokenizer):
        faults = [
            *row.faults,
            *(["sequence_too_long"] if len(row.input_ids) > limit_tokens else []),
        ]
        for fault in faults:
            found.setdefault(fault, []).append(row.row_id)
    return problem_rows(found, CHECKS)


def _text_findings(rows: pl.DataFrame) -> dict[str, list[str]]:
    """Return the row ids that each check on text found."""
    role, content = (pl.element().struct.field(name) for name in ("role", "content"))
    answers = pl.col("response").list.eval(content.filter(role == ASSISTANT))
    last_role = pl.col("prompt").list.last().struct.field("role")
    ends = [pl.col("response").list.get(end, null_on_oob=True) for end in (0, -1)]
    lacking = pl.any_horizontal(
        pl.col(name).list.eval(role.is_null() | content.is_null()).list.any()
        for name in ("prompt", "response")
    )
    answered = [end.struct.field("role").eq_missing(ASSISTANT) for end in ends]
    flags = {
        "prompt_not_ending_with_user": last_role.is_in(["user", "tool"])
        .fill_null(value=False)
        .not_(),
        "response_not_ending_with_assistant": ~pl.all_horizontal(answered),
        "missing_content": lacking,
        "empty_completion": answers.list.eval(pl.element().str.strip_chars() == "").list.any(),
        "repeated_row": pl.struct("prompt_key", "response_key").is_duplicated(),
    }
    keys = {f"{name}_key": prompt_keys(rows[name]) for name in ("prompt", "response")}
    flagged = rows.with_columns(**keys).select("row_id", **flags)
    return {name: flagged.filter(pl.col(name))["row_id"].to_list() for name in flags}


def tokenised(rows: pl.DataFrame, tokenizer: Any) -> Iterator[Tokenised]:
    """Yield each row's tokens and labels.

    A turn's learned tokens are those that the conversation has up to its end and not when it only
    asks for that turn; of the last turn, all that follow, as TRL has it for a completion.

    Raises:
        DataError: the template refuses a conversation.
    """
    for part in rows.select(ROW_COLUMNS).iter_slices(TOKENISED_ROWS):
        conversations = [
            (row_id, [*prompt, *response], len(prompt))
            for row_id, prompt, response in part.iter_rows()
        ]
        try:
            yield from _tokenised(conversations, tokenizer)
        except ModelError as error:
            where = f"one of {part.height} rows from {part['row_id'][0]} on"
            raise DataError(error.found, where=where, remedy=error.remedy) from None


def _tokenised(
    conversations: list[tuple[str, list[dict[str, str]], int]], tokenizer: Any
) -> Iterator[Tokenised]:
    """Yield the tokens of (row id, turns, number of turns that are context)."""
    asked, told = [], []
    for _, turns, context in conversations:
        learned = [at for at in range(context, len(turns)) if turns[at]["role"] == ASSISTANT]
        asked += [turns[:at] for at in learned]
        told += [turns[: at + 1] for at in learned]
    before = iter(render(tokenizer, asked))
    after = iter(render(tokenizer, told, add_generation_prompt=False))
    bos = tokenizer.bos_token_id
    for row_id, turns, context in conversations:
        count = sum(turn["role"] == ASSISTANT for turn in turns[context:])
        spans = [(next(before), next(after)) for _ in range(count)]
        ids = spans[-1][1]
        labels, faults = _labels(spans)
        if bos is not None and ids[:2] == [bos, bos]:
            faults.add("double_bos")
        yield Tokenised(row_id, ids, labels, tuple(sorted(faults)))


def _labels(spans: list[tuple[list[int], list[int]]]) -> tuple[list[int], set[str]]:
    """Return the labels of a conversation, and what is wrong with its turns.

    ``spans`` are the tokens before and after each turn that is learned, the last one's the whole.
    """
    whole = spans[-1][1]
    labels, faults = [IGNORED] * len(whole), set()
    for before, after in spans:
        start, end = _common(before, whole), _common(after, whole)
        if start < len(before):
            faults.add("prompt_not_prefix" if after is whole else "turn_not_prefix")
        if end < len(after):
            faults.add("turn_not_prefix")
        labels[start:end] = whole[start:end]
    return labels, faults


def _common(one: list[int], other: list[int]) -> int:
    """Return how many tokens two sequences begin with in common."""
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)
