"""How likely answers are under a language model, in this process or as they were sampled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import polars as pl
import pydantic

from stages.chat_template import check_template, template_fingerprint
from stages.configuration import OPERATIONAL, Config
from stages.errors import ModelError
from stages.generation_settings import POLICY
from stages.judgment_rows import as_judgments
from stages.model_loading import LoadedModel, context_limit, load_model
from stages.progress import Tell, say_nothing
from stages.reward_model import RewardOutcome, score_in_batches
from stages.text_batches import render_each, right_padded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from stages.chat_template import Conversation


class LogProbabilityScorer(Config):
    """Mean log-probability per token of the answer under a model; for filters, not for pairs."""

    kind: Literal["log_probability"] = "log_probability"
    name: str
    """The scorer's name in the tables."""
    model: str = POLICY
    """A folder, a hub id, or `policy`: the model that the run trains, and DPO's reference."""
    batch_tokens: Annotated[pydantic.PositiveInt, OPERATIONAL] = 4096
    """Tokens of one batch, padding included: they bound the logits in memory."""
    allow_other_template: Annotated[bool, OPERATIONAL] = False
    """Let its chat template or tokenizer differ from the policy's."""


class LogProbability:
    """log pi(y|x) / |y|: per token of the answer and its end of turn, in nats; never above 0.

    Under DPO's reference model it tells answers that the policy could have given from others: the
    loss (Rafailov et al. 2023, arXiv 2305.18290, eq. 7) has its gradient at both answers of a pair,
    also where the policy never goes.
    """

    def __init__(self, folder: Path, batch_tokens: int = 4096, name: str | None = None) -> None:
        """Load the model; ``batch_tokens`` counts padding, and bounds the logits in memory.

        Raises:
            ModelError: the folder holds no language model, or its template can't be used.
        """
        self.model_name, self.batch_tokens = name or folder.name, batch_tokens
        self.loaded = load_model(folder, "AutoModelForCausalLM")
        self.end_tokens = end_tokens(self.loaded)
        check_template(self.loaded.tokenizer, str(folder), self.end_tokens)
        self.template_fingerprint = template_fingerprint(self.loaded.tokenizer)
        self.weights_hash = self.loaded.weights_hash
        self.max_length_tokens = context_limit(self.loaded.model.config, self.loaded.tokenizer)

    def score(
        self, conversations: Sequence[Conversation], tell: Tell = say_nothing
    ) -> list[RewardOutcome]:
        """Return the mean log-probability of each conversation's last turn, the assistant's.

        It doesn't depend on the other conversations. One that is too long for the model has none.
        """
        sequences, starts = answer_tokens(self.loaded.tokenizer, conversations, self.end_tokens)

        def means(indices: list[int], rows: list[list[int]]) -> list[float]:
            places = [starts[index] for index in indices]
            sums = completion_logprobs(self.loaded, rows, places)
            return [
                total / max(1, len(ids) - start)
                for total, ids, start in zip(sums, rows, places, strict=True)
            ]

        return score_in_batches(sequences, self.max_length_tokens, self.batch_tokens, means, tell)


def judge_by_log_probability(
    candidates: pl.DataFrame,
    weights_hash: str,
    name: str,
    compute: Callable[[pl.DataFrame], pl.DataFrame],
) -> pl.DataFrame:
    """Return one judgment per candidate: the mean log-probability of its tokens under a model.

    What the model of ``weights_hash`` sampled itself, from the prompt alone and to the end, brings
    it along (`logprob_sum`, at temperature 1). ``compute`` judges the others.
    """
    itself = pl.col("weights_hash") == weights_hash
    whole = (pl.col("finish_reason") == "stop") & pl.col("system_prompt").is_null()
    own = (itself & whole & pl.col("logprob_sum").is_not_null()).fill_null(value=False)
    sampled = candidates.filter(own).select(
        "candidate_id",
        score=pl.col("logprob_sum") / pl.col("completion_tokens"),
        prompt_tokens=pl.lit(0, dtype=pl.Int64),
        scorer=pl.lit(name),
        scorer_version=pl.lit(weights_hash),
        scorer_model="model",
    )
    brought = as_judgments(sampled.with_columns(raw=pl.format("{}, as sampled", "score")))
    others = candidates.filter(~own)
    return pl.concat([brought, compute(others)]) if others.height else brought


def answer_tokens(
    tokenizer: Any, conversations: Sequence[Conversation], ends: Sequence[int]
) -> tuple[list[list[int] | str], list[int]]:
    """Return each conversation up to the end of its last turn, and where that turn's text begins.

    A conversation that the template refuses is the reason why, as `render_each` gives it.
    """
    prompts = render_each(
        tokenizer, [turns[:-1] for turns in conversations], add_generation_prompt=True
    )
    sequences, starts = render_each(tokenizer, conversations), [1] * len(prompts)
    for index, (prompt, ids) in enumerate(zip(prompts, sequences, strict=True)):
        if isinstance(prompt, list) and isinstance(ids, list):
            starts[index] = max(1, _common_prefix(prompt, ids))
            sequences[index] = _to_end_of_turn(ids, starts[index], ends)
        else:
            sequences[index] = ids if isinstance(ids, str) else prompt
    return sequences, starts


def completion_logprobs(
    loaded: LoadedModel, sequences: Sequence[list[int]], starts: Sequence[int]
) -> list[float]:
    """Return the log-probability of each sequence's tokens from its start on, given those before.

    The model's head runs on the positions that predict a completion token of some row only.

    Raises:
        ModelError: the model's forward pass can't be limited to some positions.
    """
    import torch

    padding = loaded.tokenizer.pad_token_id or 0
    tokens, mask = right_padded(sequences, padding, loaded.device)
    first = min(starts) - 1
    kept = torch.arange(first, tokens.shape[1] - 1, device=loaded.device)
    with torch.inference_mode():
        logits = loaded.model(
            input_ids=tokens, attention_mask=mask, use_cache=False, logits_to_keep=kept
        ).logits
        if logits.shape[1] != len(kept):
            raise ModelError(
                f"{type(loaded.model).__name__} does not know `logits_to_keep`",
                expected="a causal language model of transformers 5",
            )
        sums = []
        for row, ids, start in zip(logits, sequences, starts, strict=True):
            predicted = row[start - 1 - first : len(ids) - 1 - first].float().log_softmax(dim=-1)
            made = torch.tensor(ids[start:], device=loaded.device)[:, None]
            sums.append(predicted.gather(1, made).double().sum())
    totals: list[float] = torch.stack(sums).tolist()
    return totals


def end_tokens(loaded: LoadedModel) -> list[int]:
    """Return the ids at which the model stops."""
    ends: Any = loaded.model.generation_config.eos_token_id
    listed = ends if isinstance(ends, list) else [ends]
    return [end for end in {*listed, loaded.tokenizer.eos_token_id} if end is not None]


def _to_end_of_turn(ids: list[int], start: int, ends: Sequence[int]) -> list[int]:
    """Return ``ids`` without what the template writes after the end of the last turn."""
    places = [place for place in range(start, len(ids)) if ids[place] in ends]
    return ids[: places[-1] + 1] if places else ids


def _common_prefix(one: list[int], other: list[int]) -> int:
    """Return how many leading tokens both share: there, as in TRL, the completion starts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
