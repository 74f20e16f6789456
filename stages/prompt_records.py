"""Prompts on their way into the `prompts` table: records, their conversations and ids."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
import polars as pl

from stages.content_ids import canonical_json, content_ids
from stages.errors import DataError
from stages.tables import PROMPTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stages.row_files import Row

ROLES = ("system", "user", "assistant", "tool")

ID_START = len("prompt_")
SPLIT_DIGITS = 13
"""Hex digits of the id that decide the split: 52 bits, what a float holds exactly."""

USABLE = "text, or a list of {role, content} whose last turn is the user's"


class PromptRecord(NamedTuple):
    """A row of `prompts` before its id is known. ``split`` None: not decided yet."""

    conversation: str
    """Canonical JSON of the messages."""
    source: str
    stratum: str
    split: str | None = None
    verifier: str | None = None
    ground_truth: str | None = None
    gold: str | None = None
    reference: str | None = None


def prompt_frame(records: Iterable[PromptRecord]) -> pl.DataFrame:
    """Return ``records`` as rows of the `prompts` table; their splits may be null."""
    columns = list(zip(*records, strict=True)) or [()] * len(PromptRecord._fields)
    frame = pl.DataFrame(
        [
            pl.Series(name, values, dtype=pl.String)
            for name, values in zip(PromptRecord._fields, columns, strict=True)
        ]
    )
    messages = pl.col("conversation").str.json_decode(PROMPTS.empty().schema["messages"])
    ids = content_ids(frame, "prompt", ["conversation"])
    return frame.with_columns(ids, messages=messages).select(PROMPTS.column_names)


def conversation_json(messages: list[dict[str, str]]) -> str:
    """Return ``messages`` as ``canonical_json`` does, several times as fast."""
    return orjson.dumps(messages, option=orjson.OPT_SORT_KEYS).decode()


def one_user_turn(text: str) -> str:
    """Return the conversation of which ``text`` is the only turn."""
    return conversation_json([{"role": "user", "content": text}])


def conversation_of(value: Any, system: str | None) -> str | None:
    """Return the canonical JSON of a conversation, text as one user turn; None: not usable.

    One with tool calls is not: a turn holds a role and a text, and the calls would be lost.
    """
    if isinstance(value, str):
        messages = [{"role": "user", "content": value}] if value.strip() else []
    elif isinstance(value, list) and all(map(_is_text_turn, value)):
        messages = [{"role": turn.get("role"), "content": turn.get("content")} for turn in value]
    else:
        messages = []
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    roles = [message["role"] for message in messages]
    usable = (
        roles
        and roles[-1] == "user"
        and all(role in ROLES for role in roles)
        and all(isinstance(message["content"], str) for message in messages)
        and messages[-1]["content"].strip()
        and not (system is not None and "system" in roles[1:])
    )
    return conversation_json(messages) if usable else None


def _is_text_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and not turn.get("tool_calls")


def truth_text(row: Row, column: str | None) -> str | None:
    """Return a ground truth as the tables hold it: text as it is, anything else as JSON.

    Raises:
        DataError: it has no JSON.
    """
    value = row.values.get(column) if column else None
    if value is None or isinstance(value, str):
        return value
    try:
        json.dumps(value, allow_nan=False)  # NaN and Infinity are no JSON
        text = canonical_json(value)
        # An exponent: it may be an integer of more than 64 bits.
        return canonical_json(row.exact(str(column))) if "e+" in text else text
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(
            f"a ground truth that has no JSON: {error}", expected="text, or what JSON can hold"
        ) from None


def prompt_texts(prompts: pl.DataFrame) -> pl.Series:
    """Return each conversation's text without system turns: many prompts may share those."""
    turn = pl.element().struct
    said = turn.field("content").filter(turn.field("role") != "system")
    return prompts.select(text=pl.col("messages").list.eval(said).list.join("\n")).to_series()
