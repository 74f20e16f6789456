"""N completions per prompt from one or several generators, as the `candidates` table."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import polars as pl

from stages.chat_template import find_control_tokens
from stages.content_ids import content_hash, content_ids
from stages.errors import ConfigError, DataError
from stages.gold import ANSWERS as GOLD_ANSWERS
from stages.tables import CANDIDATES, GOLD_SPLIT, SPLITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from stages.generation_settings import GenerationConfig, Sampling

VERSION = 2

OWN_COLUMNS = (
    "prompt_id",
    "sample_index",
    "seed",
    "completion",
    "finish_reason",
    "error",
    "prompt_tokens",
    "completion_tokens",
    "logprob_sum",
    "latency_seconds",
    "cost",
)
"""Of CANDIDATES: those that differ between the candidates of one generator."""


class SampledCompletion(NamedTuple):
    """One sample, or why there is none."""

    text: str | None
    finish_reason: str
    tokens: int
    logprob_sum: float | None = None
    error: str | None = None


class Request(NamedTuple):
    """One prompt for an engine: its messages, the seed of its samples and how many."""

    prompt_id: str
    messages: list[dict[str, str]]
    seed: int
    samples: int

    def after(self, answer: Answer) -> Request:
        """Return what to ask for the samples that an earlier answer lacks.

        Its seed is another one, so that the server does not give the same samples again.
        """
        there = self.samples - answer.missing
        seed = prompt_seed(self.seed, f"after {there}") if there else self.seed
        return self._replace(samples=answer.missing, seed=seed)


class Answer(NamedTuple):
    """What an engine gives for one request: exactly as many samples as asked."""

    prompt_id: str
    samples: list[SampledCompletion]
    prompt_tokens: int | None = None
    latency_seconds: float | None = None
    cost: float | None = None

    @property
    def missing(self) -> int:
        """How many samples have no text."""
        return sum(sample.text is None for sample in self.samples)

    def completed_by(self, later: Answer) -> Answer:
        """Return the answer with a later one's samples in place of the missing ones.

        Every sample that is there keeps its index.
        """
        there = [sample for sample in self.samples if sample.text is not None]
        latency, cost = (
            None if first is None and second is None else (first or 0.0) + (second or 0.0)
            for first, second in (
                (self.latency_seconds, later.latency_seconds),
                (self.cost, later.cost),
            )
        )
        prompt_tokens = later.prompt_tokens if self.prompt_tokens is None else self.prompt_tokens
        return Answer(self.prompt_id, [*there, *later.samples], prompt_tokens, latency, cost)


class Engine(Protocol):
    """What generation asks of an engine; tests pass a fake one."""

    model_name: str
    weights_hash: str
    control_tokens: frozenset[str]

    @property
    def template_fingerprint(self) -> str | None:
        """Hash of chat template and tokenizer; None where the server keeps them to itself."""

    @property
    def context_tokens(self) -> int | None:
        """The model's context; None where it isn't known."""

    def count_prompt_tokens(
        self, conversations: Sequence[list[dict[str, str]]]
    ) -> list[int] | None:
        """Return each conversation's length in tokens, rendered for generation, where known."""

    def answers(
        self, batches: Iterable[Sequence[Request]], sampling: Sampling
    ) -> Iterator[list[Answer]]:
        """Yield one answer per request, in any order, as soon as they are there.

        Those of one list were computed together: one of them asked for again without the others
        could come out otherwise, in its log-probability's last digits at least.
        """


def prompt_seed(seed: int, prompt_id: str) -> int:
    """Return the 63-bit seed of one prompt: it doesn't depend on batches, order or resuming."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()[:8], "big") >> 1


def plan_parts(
    prompts: pl.DataFrame, engine: Engine, sampling: Sampling, config: GenerationConfig
) -> list[pl.DataFrame]:
    """Return the prompts in parts to commit together, of one split and of similar length.

    Each part is the `prompts` table with the columns `prompt_tokens` (null where the engine can't
    count) and `control_token` (one found in the text, or null). The plan depends on the prompts
    and the configuration alone, so a resumed run plans the same parts.

    Raises:
        ConfigError: the longest completion alone fills the model's context.
        DataError: a prompt and its completion do not fit into the model's context, or one holds a
            control token and they are refused.
    """
    asked = prompts.filter(pl.col("split") != GOLD_SPLIT)
    conversations = [conversation(m, sampling) for m in asked["messages"].to_list()]
    texts = ["\n".join(turn["content"] for turn in turns) for turns in conversations]
    found = find_control_tokens(texts, engine.control_tokens)
    counts = engine.count_prompt_tokens(conversations)
    counted = asked.with_columns(
        pl.Series("prompt_tokens", [None] * asked.height if counts is None else counts, pl.Int64),
        pl.Series("control_token", found, dtype=pl.String),
    )
    _require_no_control_tokens(counted, config)
    if engine.context_tokens is not None:
        _require_fitting(counted, engine, engine.context_tokens, sampling)
    return list(_chunks(counted, config.prompts_per_part))


def count_parts(prompts: pl.DataFrame, config: GenerationConfig) -> int:
    """Return how many parts `plan_parts` makes of ``prompts``, whatever the engine."""
    per_split = [prompts.filter(pl.col("split") == split).height for split in SPLITS]
    return sum(-(-rows // config.prompts_per_part) for rows in per_split)


def conversation(messages: list[dict[str, str]], sampling: Sampling) -> list[dict[str, str]]:
    """Return the messages with the generator's own system prompt, if it has one."""
    if sampling.system_prompt is None:
        return messages
    others = [turn for turn in messages if turn["role"] != "system"]
    return [{"role": "system", "content": sampling.system_prompt}, *others]


def _require_no_control_tokens(counted: pl.DataFrame, config: GenerationConfig) -> None:
    held = counted.filter(pl.col("control_token").is_not_null())
    if config.control_tokens == "skip" or held.is_empty():
        return
    first = held.row(0, named=True)
    raise DataError(
        f"{held.height} of {counted.height} prompts hold a control token's text, such as "
        f"{first['control_token']!r}: as tokens it could fake turns",
        expected="text without the control tokens of the model's chat template",
        where=f"{first['prompt_id']} of source {first['source']!r}",
        remedy="drop those prompts, or set `generation.control_tokens: skip` to record their "
        "answers as missing",
    )


def room_for_prompts(context_tokens: int, sampling: Sampling, model: str) -> int:
    """Return how many tokens a prompt may have.

    Raises:
        ConfigError: a completion may fill the whole context.
    """
    room = context_tokens - sampling.max_completion_tokens
    if room <= 0:
        raise ConfigError(
            f"max_completion_tokens {sampling.max_completion_tokens} leaves no room for a prompt",
            expected=f"less than the model's context of {context_tokens} tokens",
            where=f"generation.max_completion_tokens, model {model}",
            remedy="lower it, or use a model with a longer context",
        )
    return room


def _require_fitting(
    counted: pl.DataFrame, engine: Engine, context_tokens: int, sampling: Sampling
) -> None:
    limit = room_for_prompts(context_tokens, sampling, engine.model_name)
    too_long = counted.filter(pl.col("prompt_tokens") > limit)
    if too_long.height:
        worst = too_long.sort("prompt_tokens", descending=True).row(0, named=True)
        raise DataError(
            f"{too_long.height} of {counted.height} prompts are too long: the longest has "
            f"{worst['prompt_tokens']} tokens",
            expected=f"at most {limit} tokens (context {context_tokens} less "
            f"max_completion_tokens {sampling.max_completion_tokens})",
            where=f"{worst['prompt_id']} of source {worst['source']!r}",
            remedy="drop or shorten those prompts, or lower generation.max_completion_tokens",
        )


def _chunks(counted: pl.DataFrame, size: int) -> Iterator[pl.DataFrame]:
    for split in SPLITS:
        of_split = counted.filter(pl.col("split") == split).sort("prompt_tokens", "prompt_id")
        yield from of_split.iter_slices(size)


def requests_of(part: pl.DataFrame, sampling: Sampling) -> list[Request]:
    """Return what to ask an engine for one part of `plan_parts`: its prompts that may be asked."""
    samples = sampling.samples_for(part["split"][0])
    asked = part.filter(pl.col("control_token").is_null())
    return [
        Request(
            prompt_id,
            conversation(messages, sampling),
            prompt_seed(sampling.seed, prompt_id),
            samples,
        )
        for prompt_id, messages in zip(asked["prompt_id"], asked["messages"].to_list(), strict=True)
    ]


def candidates_of(
    part: pl.DataFrame,
    answers: Mapping[str, Answer],
    engine: Engine,
    sampling: Sampling,
    generator: str,
) -> pl.DataFrame:
    """Return the `candidates` table for one part: N rows for every prompt, joined by its id.

    Args:
        part: one part of `plan_parts`.
        answers: by prompt id; a prompt that was not asked has none, and N missing completions.
        engine: what answered.
        sampling: how.
        generator: the generator's name.

    Raises:
        DataError: an answer holds another number of samples than asked.
    """
    samples = sampling.samples_for(part["split"][0])
    rows = [
        row
        for prompt in part.iter_rows(named=True)
        for row in _rows(prompt, answers.get(prompt["prompt_id"]), sampling, samples)
    ]
    same = {
        "generator": generator,
        "generator_hash": generator_hash(engine.weights_hash, sampling),
        "model": engine.model_name,
        "weights_hash": engine.weights_hash,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_completion_tokens": sampling.max_completion_tokens,
        "system_prompt": sampling.system_prompt,
        "template_fingerprint": engine.template_fingerprint,
    }
    columns = dict(zip(OWN_COLUMNS, zip(*rows, strict=True), strict=True))
    columns |= {name: (value,) * len(rows) for name, value in same.items()}
    schema = CANDIDATES.empty().schema
    return with_ids(pl.DataFrame(columns, schema={name: schema[name] for name in columns}))


def _rows(
    prompt: dict[str, Any], answer: Answer | None, sampling: Sampling, samples: int
) -> Iterator[tuple[Any, ...]]:
    """Yield OWN_COLUMNS of one prompt's candidates."""
    prompt_id = prompt["prompt_id"]
    if answer is None:
        reason = "control_token_in_prompt" if prompt["control_token"] else "not_asked"
        missing = SampledCompletion(None, "error", 0, None, reason)
        answer = Answer(prompt_id, [missing] * samples)
    require_samples(answer, samples)
    seed = prompt_seed(sampling.seed, prompt_id)
    counted = prompt["prompt_tokens"] if answer.prompt_tokens is None else answer.prompt_tokens
    cost = None if answer.cost is None else answer.cost / samples
    for index, (text, finish_reason, tokens, logprob_sum, error) in enumerate(answer.samples):
        own = (prompt_id, index, seed, text, finish_reason, error, counted, tokens, logprob_sum)
        yield (*own, answer.latency_seconds, cost)


def require_samples(answer: Answer, samples: int) -> None:
    """Return if an engine gave as many samples as asked.

    Raises:
        DataError: it gave more or fewer.
    """
    if len(answer.samples) != samples:
        raise DataError(
            f"the engine returned {len(answer.samples)} completions",
            expected=f"{samples}",
            where=answer.prompt_id,
        )


def with_ids(frame: pl.DataFrame) -> pl.DataFrame:
    """Return candidates with their ids, made of what tells them apart, and columns in order."""
    identity = ["prompt_id", "generator", "generator_hash", "seed", "sample_index", "completion"]
    ids = content_ids(frame, "candidate", identity)
    return frame.with_columns(ids).select(CANDIDATES.column_names)


def generator_hash(weights_hash: str, sampling: Sampling) -> str:
    """Return what names a generator's way of answering: its weights and how it samples."""
    keys = ("temperature", "top_p", "max_completion_tokens", "system_prompt")
    return content_hash({"weights": weights_hash, **{key: getattr(sampling, key) for key in keys}})


def gold_candidates(prompts: pl.DataFrame) -> pl.DataFrame:
    """Return the planted answers of split gold: per prompt the good one (0) and the damaged (1)."""
    rows = []
    for prompt_id, gold in prompts.filter(split=GOLD_SPLIT).select("prompt_id", "gold").iter_rows():
        answers = json.loads(gold)
        rows += [
            {"prompt_id": prompt_id, "sample_index": index, "completion": answers[kind]}
            for index, kind in enumerate(GOLD_ANSWERS)
        ]
    schema = CANDIDATES.empty().schema
    given = {name: schema[name] for name in ("prompt_id", "sample_index", "completion")}
    marked = dict.fromkeys(("generator", "generator_hash", "model", "weights_hash"), GOLD_SPLIT)
    zeros = ("temperature", "top_p", "max_completion_tokens", "seed", "completion_tokens")
    known = {**marked, **dict.fromkeys(zeros, 0), "finish_reason": "stop"}
    filled = [
        pl.lit(known.get(name), dtype=kind).alias(name)
        for name, kind in schema.items()
        if name not in given and name != "candidate_id"
    ]
    return with_ids(pl.DataFrame(rows, schema=given).with_columns(filled))
