"""Given texts that a policy before and after a round both read: what it loses there, it forgot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl
import pydantic

from flows.vllm_server import make_room
from stages.errors import DataError
from stages.prompt_sources import Message
from stages.row_files import read_rows

if TYPE_CHECKING:
    from pathlib import Path

    from flows.configuration import EvaluationConfig
    from flows.models import Policy
    from stages.chat_template import Conversation

_TURNS = pydantic.TypeAdapter(list[Message])


def read_texts(path: Path) -> list[Conversation]:
    """Return the conversations in the column `messages`, the last turn of each the assistant's.

    Raises:
        MissingFileError: the file is not there.
        DataError: the file is broken or empty, or a row holds no such conversation.
    """
    texts = []
    for row in read_rows(path):
        try:
            turns = _TURNS.validate_python(row.values.get("messages"))
        except pydantic.ValidationError:
            turns = []
        if not turns or turns[-1].role != "assistant":
            raise DataError(
                "a row without a conversation that the assistant ends",
                expected="`messages`: a list of {role, content}, the last role `assistant`",
                where=f"{path}, row {row.number}",
                remedy="correct the row; or name another file in `evaluation.texts`",
            )
        texts.append([turn.model_dump() for turn in turns])
    if not texts:
        raise DataError("no texts", expected="a row or more", where=str(path))
    return texts


def text_evaluations(settings: EvaluationConfig, former: Policy, trained: Policy) -> pl.DataFrame:
    """Return the EVALUATIONS rows without round_id of `evaluation.texts`, or none without any.

    The value is the loss per token of the last turn, in nats: its exponential is the perplexity. A
    text that is too long for a model is left out.

    Raises:
        DataError: no text fits into the models.
    """
    from stages.log_probability import LogProbability
    from trainer.evaluation import as_evaluations, compare, text_losses

    if settings.texts is None:
        return as_evaluations([])
    make_room()  # a server holds the memory that the models need
    texts = read_texts(settings.texts)
    before, after = (
        [outcome.score for outcome in LogProbability(policy.folder).score(texts)]
        for policy in (former, trained)
    )
    read = pl.DataFrame(
        {"before": before, "after": after}, schema={"before": pl.Float64, "after": pl.Float64}
    ).drop_nulls()
    if read.is_empty():
        raise DataError(
            "no text fits into the models",
            where=str(settings.texts),
            remedy="name shorter texts in `evaluation.texts`",
        )
    earlier, later = text_losses(-read["before"]), text_losses(-read["after"])
    return compare(earlier, later, settings.seed, settings.resamples).filter(stratum="all")
