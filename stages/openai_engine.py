"""The engine over HTTP: a model behind OpenAI-compatible servers, vLLM's or another."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from stages import chat_template
from stages.budget import Usage
from stages.endpoints import RequestFailedError
from stages.errors import BudgetError, EndpointError
from stages.generation import Answer, SampledCompletion, prompt_seed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from stages.budget import Prices
    from stages.endpoints import EndpointPool
    from stages.errors import PrefmillError
    from stages.generation import Request
    from stages.generation_settings import Sampling

FINISH_REASONS = {
    "stop": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "length": "length",
    "max_tokens": "length",
}
"""What servers call a completion that is whole, or was cut at the limit; nothing else is one."""


class KnownModel(NamedTuple):
    """What is known of a served model beforehand; the tokenizer where it is at hand."""

    name: str
    weights_hash: str
    template_fingerprint: str | None = None
    context_tokens: int | None = None
    tokenizer: Any = None


class OpenAISettings(NamedTuple):
    """How its endpoint is asked."""

    prices: Prices | None = None
    maximum_choices_per_request: int = 128
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # noqa: S105 - no secret
    logprobs: bool = False
    """Ask for the log-probability of every token, for `logprob_sum`."""
    token_ids: bool = False
    """Ask for every token's id, which vLLM gives: token counts are then exact."""


class OpenAIEngine:
    """Asks for a prompt's samples in one request where the endpoint allows it."""

    def __init__(
        self, pool: EndpointPool, served_name: str, known: KnownModel, settings: OpenAISettings
    ) -> None:
        self.pool, self.served_name, self.settings = pool, served_name, settings
        self.model_name, self.weights_hash = known.name, known.weights_hash
        self.template_fingerprint = known.template_fingerprint
        self.context_tokens = known.context_tokens
        self.tokenizer = known.tokenizer
        self.control_tokens: frozenset[str] = (
            chat_template.control_tokens(known.tokenizer) if known.tokenizer else frozenset()
        )

    def count_prompt_tokens(
        self, conversations: Sequence[list[dict[str, str]]]
    ) -> list[int] | None:
        """Return each conversation's length in tokens; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        return [len(ids) for ids in chat_template.render(self.tokenizer, conversations)]

    def answers(
        self, batches: Iterable[Sequence[Request]], sampling: Sampling
    ) -> Iterator[list[Answer]]:
        """Yield one answer per request, in any order, each as soon as it is there.

        What stops the run between two requests for one prompt is raised at the end: the samples
        that are there come before.

        Raises:
            EndpointError: no further request can succeed.
            BudgetError: the budget is spent.
        """
        stopped_by: list[PrefmillError] = []

        async def answer(request: Request) -> list[Answer]:
            return [await self._answer(request, sampling, stopped_by)]

        yield from self.pool.map(answer, (request for batch in batches for request in batch))
        if stopped_by:
            raise stopped_by[0]

    async def _answer(
        self, request: Request, sampling: Sampling, stopped_by: list[PrefmillError]
    ) -> Answer:
        """Ask until every sample is there, or nothing new came `attempts` times.

        A choice that is null, empty or not whole is asked for again, with another seed. An error
        that stops all requests is added to ``stopped_by`` where some samples are there.
        """
        whole: list[SampledCompletion] = []
        faulty: list[SampledCompletion] = []
        usages: list[Usage] = []
        latency, asked, fruitless = 0.0, 0, 0
        reason = "fewer_choices"
        while (missing := request.samples - len(whole)) and fruitless < self.pool.config.attempts:
            wanted = min(missing, self.settings.maximum_choices_per_request)
            body = self._body(request, sampling, wanted, asked)
            try:
                if asked:
                    self.pool.require_budget()
                reply = await self.pool.post("/chat/completions", body)
            except RequestFailedError as error:
                reason = error.reason
                break
            except (BudgetError, EndpointError) as error:
                if not whole:
                    raise
                stopped_by.append(error)
                reason = "stopped"
                break
            choices = read_choices(reply.body, wanted)
            good = [choice for choice in choices if choice.text]
            whole += good
            faulty = [choice for choice in choices if not choice.text]
            usages.append(Usage.of(reply.body))
            latency += reply.latency_seconds
            asked += 1
            fruitless += not good
        absent = SampledCompletion(None, "error", 0, error=reason)
        # An empty completion tells more than none at all.
        faulty.sort(key=lambda choice: choice.text is None)
        samples = [*whole, *faulty, *[absent] * request.samples][: request.samples]
        prompt_tokens = next((usage.prompt_tokens for usage in usages), 0) or None
        return Answer(
            request.prompt_id,
            samples,
            prompt_tokens,
            latency if usages else None,
            self._cost(usages),
        )

    def _body(
        self, request: Request, sampling: Sampling, choices: int, asked: int
    ) -> dict[str, Any]:
        """Return a request; ``asked`` is how many went before for the same prompt."""
        body = {
            "model": self.served_name,
            "messages": request.messages,
            "n": choices,
            "seed": prompt_seed(request.seed, f"again {asked}") if asked else request.seed,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self.settings.token_limit_field: sampling.max_completion_tokens,
        }
        wanted = {"logprobs": self.settings.logprobs, "return_token_ids": self.settings.token_ids}
        return body | {name: True for name, is_wanted in wanted.items() if is_wanted}

    def _cost(self, usages: list[Usage]) -> float | None:
        if self.settings.prices is None:
            return None
        return sum(map(self.settings.prices.cost, usages))


def read_choices(body: dict[str, Any], wanted: int) -> list[SampledCompletion]:
    """Return at most ``wanted`` choices of a response, whatever it holds.

    One that isn't whole has text None and an error; an empty one has text "" and an error. Without
    token ids and log-probabilities the tokens of each are its share, by length, of those that the
    response counts.
    """
    found = body.get("choices")
    listed = found if isinstance(found, list) else []
    choices = [choice for choice in listed if isinstance(choice, dict)]
    texts = [_text(choice) for choice in choices]
    characters = sum(len(text or "") for text in texts)
    total = Usage.of(body).completion_tokens
    samples = []
    for choice, text in zip(choices[:wanted], texts, strict=False):
        logprobs, ids = _logprobs(choice), choice.get("token_ids")
        counted = ids if isinstance(ids, list) else logprobs
        share = round(total * len(text or "") / characters) if characters else 0
        tokens = share if counted is None else len(counted)
        logprob_sum = None if logprobs is None else min(sum(logprobs), 0.0)
        finish_reason = FINISH_REASONS.get(str(choice.get("finish_reason")))
        if finish_reason is None or text is None:
            ended = (
                "null_choice" if finish_reason else f"ended_by_{choice.get('finish_reason')!s:.40}"
            )
            samples.append(SampledCompletion(None, "error", tokens, error=ended))
        else:
            error = None if text else "empty_completion"
            samples.append(SampledCompletion(text, finish_reason, tokens, logprob_sum, error))
    return samples


def _text(choice: dict[str, Any]) -> str | None:
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else None
    return text if isinstance(text, str) else None


def _logprobs(choice: dict[str, Any]) -> list[float] | None:
    """Return the log-probability of each token, None where the server gives none."""
    found = choice.get("logprobs")
    if found is None:
        return None
    content = found.get("content") if isinstance(found, dict) else None
    try:
        values = [float(token["logprob"]) for token in content]  # type: ignore[union-attr]
    except (TypeError, KeyError, ValueError, OverflowError):
        return None
    return values if all(map(math.isfinite, values)) else None
