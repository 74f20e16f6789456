"""Rewards from a sequence-classification model on a vLLM pooling server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.chat_template import check_rendering, template_fingerprint
from stages.content_ids import weights_hash
from stages.endpoints import RequestFailedError
from stages.errors import ModelError
from stages.model_loading import context_limit, load_tokenizer, readable
from stages.progress import Tell, say_nothing
from stages.reward_model import RewardOutcome, output_index, rewarded, unreadable
from stages.text_batches import render_each

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from stages.chat_template import Conversation
    from stages.endpoints import EndpointPool

POOLING_PATH = "/../pooling"
"""vLLM serves it beside /v1, not within."""


class RewardServer:
    """The model in a folder, served by `vllm serve --runner pooling`: `RewardModel`'s numbers.

    Conversations are rendered here and sent as token ids, so that the server adds no special
    tokens, and what it scores is what the fingerprint stands for. The folder's weights aren't
    loaded.
    """

    def __init__(
        self,
        pool: EndpointPool,
        served_name: str,
        folder: Path,
        *,
        output: str | None = None,
        max_length_tokens: int | None = None,
    ) -> None:
        """Check folder and server; ask nothing yet.

        Raises:
            ModelError: the folder holds no such model, or its template can't be used.
            ConfigError: ``output`` is none of the model's, or needed and not given.
            EndpointError: no server can be used, or none serves ``served_name``.
        """
        self.pool, self.model_name = pool, served_name
        config, self.tokenizer, self.weights_hash = unloaded(folder)
        self.outputs: int = config.num_labels
        self.output = output_index(config, output, str(folder))
        check_rendering(self.tokenizer, str(folder))
        self.template_fingerprint = template_fingerprint(self.tokenizer)
        limit = context_limit(config, self.tokenizer)
        served = pool.check(served_name).context_tokens or limit
        self.max_length_tokens = min(limit, served, max_length_tokens or limit)

    def score(
        self, conversations: Sequence[Conversation], tell: Tell = say_nothing
    ) -> list[RewardOutcome]:
        """Return the reward of each conversation's last turn, the assistant's, in their order.

        Those that a request failed for have none, and why.

        Raises:
            BudgetError: the budget is exhausted.
            EndpointError: no request can succeed.
            ModelError: the server gives other outputs than the folder's model has.
        """
        sequences = render_each(self.tokenizer, conversations)
        outcomes = [unreadable(sequence, self.max_length_tokens) for sequence in sequences]
        todo = [index for index, outcome in enumerate(outcomes) if outcome is None]

        async def ask(index: int) -> tuple[int, RewardOutcome]:
            return index, await self._ask(sequences[index])

        first = len(sequences) - len(todo) + 1
        for done, (index, outcome) in enumerate(self.pool.map(ask, todo), start=first):
            outcomes[index] = outcome
            tell(done, len(sequences))
        return [outcome for outcome in outcomes if outcome is not None]

    async def _ask(self, ids: list[int] | str) -> RewardOutcome:
        body = {"model": self.model_name, "input": [ids], "use_activation": False}
        try:
            reply = await self.pool.post(POOLING_PATH, body)
        except RequestFailedError as error:
            return RewardOutcome(None, len(ids), error.reason)
        values = _values(reply.body)
        if values is None or len(values) != self.outputs:
            given = "no list of numbers" if values is None else f"{len(values)} outputs"
            raise ModelError(
                f"the server gives {given} where {self.model_name!r} has {self.outputs}",
                expected="the logits of a sequence-classification head",
                where=reply.url,
                remedy="serve the same model with `--runner pooling`",
            )
        return rewarded(values[self.output], len(ids))


def _values(body: dict[str, Any]) -> list[float] | None:
    """Return the outputs in a response (null, which is JSON's NaN, as NaN); None without them."""
    match body:
        case {"data": [{"data": [*values]}]}:
            numbers = [float("nan") if value is None else value for value in values]
            return numbers if all(isinstance(number, int | float) for number in numbers) else None
    return None


def unloaded(folder: Path) -> tuple[Any, Any, str]:
    """Return a reward model's configuration, tokenizer and weights hash.

    Raises:
        ModelError: they can't be read, or are those of a model with another head.
    """
    from transformers import AutoConfig

    with readable("model", folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        name = weights_hash(folder)
    tokenizer = load_tokenizer(folder)
    architectures = config.architectures or []
    if not any(name.endswith("ForSequenceClassification") for name in architectures):
        raise ModelError(
            f"the model's architecture is {', '.join(architectures) or 'not given'}",
            expected="one that ends in ForSequenceClassification",
            where=str(folder),
            remedy="name a model that was saved with its reward head",
        )
    return config, tokenizer, name
