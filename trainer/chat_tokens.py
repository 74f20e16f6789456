"""Conversations as the tokens that a chat template makes of them."""

from __future__ import annotations

from typing import Any

from stages.errors import DataError


def chat_tokens(
    tokenizer: Any, conversations: list[list[dict[str, str]]], where: str, **how: bool
) -> list[list[int]]:
    """Return each conversation's token ids; ``how`` are arguments of `apply_chat_template`.

    Raises:
        DataError: the template refuses a conversation; ``where`` says which it may be.
    """
    from jinja2 import TemplateError

    try:
        encoded = tokenizer.apply_chat_template(
            conversations, tokenize=True, return_dict=True, **how
        )
    except TemplateError as error:
        raise DataError(
            f"the chat template refuses a conversation: {error}",
            where=where,
            remedy="use roles and an order of turns that the template knows",
        ) from None
    ids: list[list[int]] = encoded["input_ids"]
    return ids
