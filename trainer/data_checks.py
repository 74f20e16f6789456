"""What is wrong with preference rows, found before any training step is paid for.

TRL accepts most of these without a word: over-long prompts are dropped, over-long completions lose
their EOS, an equal pair trains on a loss of log 2, an empty answer trains the EOS token alone.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import polars as pl

from stages.errors import DataError
from trainer.chat_tokens import chat_tokens
from trainer.steps import step_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable

ROW_COLUMNS = ("pair_id", "prompt", "chosen", "rejected")

PROBLEMS_SCHEMA = {
    "check": pl.String,
    "severity": pl.String,
    "count": pl.Int64,
    "examples": pl.String,
    "advice": pl.String,
}

EXAMPLES = 5
"""Pair ids shown per problem."""

TOKENISED_ROWS = 1_000
"""Rows rendered and tokenised at a time: bounds memory at about 3 x 1,000 token lists."""

SENTINEL = "prefmill-sentinel"
"""A completion that no template trims, to see what the template puts after an answer."""

CHECKS: dict[str, tuple[str, str]] = {
    "duplicate_pair_id": ("must", "give each pair an id of its own"),
    "prompt_not_ending_with_user": (
        "must",
        "end every prompt with a user turn: the chosen and rejected answers are what follows it",
    ),
    "missing_content": ("must", "give every message of the prompts a role and a text"),
    "prompt_in_heldout": ("must", "drop these pairs: evaluation would measure memory"),
    "empty_completion": ("must", "drop these pairs: they would train the end of turn alone"),
    "chosen_equals_rejected": (
        "must",
        "drop these pairs: they hold no preference (a loss of log 2 and no gradient)",
    ),
    "template_without_eos": (
        "must",
        "end every assistant turn of the chat template with EOS: without it models unlearn to stop",
    ),
    "double_bos": ("must", "remove one of the two BOS tokens from the template or the prompt"),
    "prompt_too_long": (
        "must",
        "raise max_length_tokens (up to the model's context) or drop these pairs, as TRL does",
    ),
    "sequence_too_long": (
        "must",
        "raise max_length_tokens (up to the model's context) or drop these pairs: TRL cuts off EOS",
    ),
    "empty_step": ("must", "drop these pairs: the template leaves nothing of one side's step"),
    "prompt_not_prefix": (
        "should",
        "use a template that renders a prompt alone as before an answer: sampling sees another one",
    ),
    "repeated_pair": ("should", "keep one of each: repetition is an unasked-for weight"),
    "contradicting_pairs": (
        "should",
        "drop both or decide: the same two answers are preferred in either order",
    ),
}
"""Check name to severity and advice, in the order they are reported."""


def check_preference_data(
    rows: pl.DataFrame,
    tokenizer: Any,
    max_length_tokens: int,
    heldout_prompts: frozenset[str] | None = None,
) -> pl.DataFrame:
    """Return one row per check that found something; an empty frame when all is well.

    Columns: check, severity (`must` stops the training, `should` warns), count (pairs), examples
    (JSON list of up to 5 pair ids), advice.

    Args:
        rows: pair_id, prompt (list of role and content), chosen, rejected; of steps also what
            `trainer.steps` names.
        tokenizer: the policy's, with its chat template.
        max_length_tokens: the limit on prompt and completion together.
        heldout_prompts: the evaluation prompts, as `prompt_keys` names them.

    Raises:
        DataError: a column is missing or holds nulls, there are no rows, or the template refuses a
            conversation.
    """
    require_columns(rows)
    keyed = rows.with_columns(prompt_keys(rows["prompt"]))
    told = rows.filter(~missing_content())
    found = {
        **_text_findings(keyed, heldout_prompts or frozenset()),
        **_token_findings(told, tokenizer, max_length_tokens),
    }
    if not template_ends_with_eos(tokenizer):
        found["template_without_eos"] = rows["pair_id"].to_list()
    return problem_rows(found, CHECKS)


def problem_rows(found: dict[str, list[str]], checks: dict[str, tuple[str, str]]) -> pl.DataFrame:
    """Return a row for each of ``checks`` that ``found`` ids of rows."""
    problems = [
        {
            "check": check,
            "severity": severity,
            "count": len(found[check]),
            "examples": json.dumps(list(dict.fromkeys(found[check]))[:EXAMPLES]),
            "advice": advice,
        }
        for check, (severity, advice) in checks.items()
        if found.get(check)
    ]
    return pl.DataFrame(problems, schema=PROBLEMS_SCHEMA)


def require_trainable(
    problems: pl.DataFrame, data: str = "preference data", rows: str = "pairs"
) -> None:
    """Pass when no problem has severity `must`; ``data`` and ``rows`` are words for the error.

    Raises:
        DataError: naming every such problem with its count and pair ids.
    """
    fatal = problems.filter(pl.col("severity") == "must")
    if fatal.is_empty():
        return
    raise DataError(
        f"the {data} cannot be trained on: "
        + "; ".join(
            f"{check}: {count} {rows}, such as {', '.join(json.loads(examples))}"
            for check, count, examples in fatal.select("check", "count", "examples").iter_rows()
        ),
        expected="no problem of severity must",
        remedy="; ".join(f"{row['check']}: {row['advice']}" for row in fatal.iter_rows(named=True)),
    )


def require_columns(
    rows: pl.DataFrame,
    columns: tuple[str, ...] = ROW_COLUMNS,
    plural: str = "preference rows",
    singular: str = "pair",
) -> None:
    """Pass when ``rows`` has the columns, without nulls, and at least one row.

    An error calls the rows by ``plural``, and one of them by ``singular``.

    Raises:
        DataError: otherwise.
    """
    missing = [name for name in columns if name not in rows.columns]
    if missing:
        raise DataError(
            f"{plural} lack the columns {missing}",
            expected=f"the columns {list(columns)}",
            where=f"a frame with columns {rows.columns}",
        )
    if rows.is_empty():
        raise DataError(f"there are no {plural}", expected=f"at least one {singular}")
    nulls = {name: count for name in columns if (count := rows[name].null_count())}
    if nulls:
        raise DataError(f"{plural} hold nulls: {nulls}", expected="no nulls")


WEIGHED_BY = {
    "confidence": "estimate label noise in the run (docs/noise.md)",
    "length_weight": "set filters.length_bias to reweight in the run (docs/filters.md)",
}
"""How pairs come to the columns that `weight_by` names."""


def require_weights(rows: pl.DataFrame, column: str) -> None:
    """Pass when ``column`` gives every pair a weight above 0.

    Raises:
        DataError: otherwise.
    """
    if column not in rows.columns:
        raise DataError(
            f"weight_by names the column {column!r}",
            expected="a number above 0 for each pair",
            where=f"a frame with columns {rows.columns}",
        )
    weight = pl.col(column).cast(pl.Float64)
    bad = rows.filter((weight.is_finite() & (weight > 0)).fill_null(value=False).not_())
    if not bad.is_empty():
        raise DataError(
            f"{bad.height} of {rows.height} pairs have no {column} above 0, such as "
            f"{', '.join(bad['pair_id'].head(EXAMPLES))}",
            expected="a number above 0 for each pair",
            remedy=f"{WEIGHED_BY[column]}, or set weight_by to null",
        )


def missing_content() -> pl.Expr:
    """Return whether a message of `prompt` has no role or no content: templates render `None`."""
    parts = [pl.element().struct.field(name) for name in ("role", "content")]
    lacking = pl.any_horizontal(part.is_null() for part in parts)
    return pl.col("prompt").list.eval(lacking).list.any()


def prompt_keys(messages: pl.Series) -> pl.Series:
    """Return one text per conversation, equal when and only when roles and contents are.

    Each part is preceded by its byte length, so that no two conversations share a text. The series
    is called ``prompt_key``.
    """
    role, content = (pl.element().struct.field(name) for name in ("role", "content"))
    turn = pl.concat_str(
        [
            role.str.len_bytes().cast(pl.String),
            role,
            content.str.len_bytes().cast(pl.String),
            content,
        ],
        separator=":",
    )
    keys = pl.col("messages").list.eval(turn).list.join("|")
    return messages.alias("messages").to_frame().select(keys.alias("prompt_key")).to_series()


def template_ends_with_eos(tokenizer: Any) -> bool:
    """Return whether the template puts the EOS token after an assistant's answer."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": SENTINEL}]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False)
    after = rendered[rendered.rindex(SENTINEL) + len(SENTINEL) :]
    return bool(tokenizer.eos_token) and tokenizer.eos_token in after


def _text_findings(keyed: pl.DataFrame, heldout: frozenset[str]) -> dict[str, list[str]]:
    """Return the pair ids that each check on text found."""
    chosen, rejected = pl.col("chosen"), pl.col("rejected")
    of_steps = "prefix" in keyed.columns
    same_prompt = ["prompt_key", "prefix"] if of_steps else ["prompt_key"]
    # A step may be a blank line.
    empty = [
        text == "" if of_steps else text.str.strip_chars() == "" for text in (chosen, rejected)
    ]
    unordered = [
        *same_prompt,
        pl.min_horizontal(chosen, rejected),
        pl.max_horizontal(chosen, rejected),
    ]
    last_role = pl.col("prompt").list.last().struct.field("role")
    flags = {
        "duplicate_pair_id": pl.col("pair_id").is_duplicated(),
        "prompt_not_ending_with_user": (last_role == "user").fill_null(value=False).not_(),
        "missing_content": missing_content(),
        "prompt_in_heldout": pl.col("prompt_key").is_in(sorted(heldout)),
        "empty_completion": pl.any_horizontal(empty),
        "repeated_pair": pl.struct(*same_prompt, "chosen", "rejected").is_duplicated(),
        "contradicting_pairs": (chosen != rejected) & (chosen.n_unique().over(unordered) > 1),
    }
    flagged = keyed.select("pair_id", **flags)
    return {name: flagged.filter(pl.col(name))["pair_id"].to_list() for name in flags}


def _token_findings(rows: pl.DataFrame, tokenizer: Any, limit: int) -> dict[str, list[str]]:
    """Return the pair ids that each check on tokens found; tokenised as TRL does."""
    found: dict[str, list[str]] = {
        "chosen_equals_rejected": [],
        "double_bos": [],
        "prompt_too_long": [],
        "sequence_too_long": [],
        "empty_step": [],
        "prompt_not_prefix": [],
    }
    bos = tokenizer.bos_token_id
    tokenised = step_tokens if "prefix" in rows.columns else _tokenised
    for part in rows.iter_slices(TOKENISED_ROWS):
        for pair_id, prompt, chosen, rejected in tokenised(part, tokenizer):
            longest = max(len(chosen), len(rejected))
            if min(len(chosen), len(rejected)) <= len(prompt):
                found["empty_step"].append(pair_id)
            if chosen == rejected:
                found["chosen_equals_rejected"].append(pair_id)
            if bos is not None and chosen[:2] == [bos, bos]:
                found["double_bos"].append(pair_id)
            if len(prompt) >= limit:
                found["prompt_too_long"].append(pair_id)
            elif longest > limit:
                found["sequence_too_long"].append(pair_id)
            if chosen[: len(prompt)] != prompt or rejected[: len(prompt)] != prompt:
                found["prompt_not_prefix"].append(pair_id)
    return found


def _tokenised(
    part: pl.DataFrame, tokenizer: Any
) -> Iterable[tuple[str, list[int], list[int], list[int]]]:
    """Return pair id and the token ids of prompt, prompt + chosen and prompt + rejected."""
    prompts = part["prompt"].to_list()
    where = f"one of {part.height} pairs from {part['pair_id'][0]} on"
    answered = [
        chat_tokens(
            tokenizer,
            [
                [*turns, {"role": "assistant", "content": text}]
                for turns, text in zip(prompts, part[role], strict=True)
            ],
            where,
        )
        for role in ("chosen", "rejected")
    ]
    asked = chat_tokens(tokenizer, prompts, where, add_generation_prompt=True)
    return zip(part["pair_id"], asked, *answered, strict=True)
