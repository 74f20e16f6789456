"""N completions per prompt from an engine, as the `candidates` table."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Protocol

import polars as pl
import pydantic

from stages.configuration import Config
from stages.content_ids import content_hash, content_ids
from stages.errors import ConfigError, DataError
from stages.tables import CANDIDATES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

VERSION = 1


class GenerationConfig(Config):
    """How completions are sampled."""

    engine: Literal["transformers"] = "transformers"
    """What runs the model; `transformers` runs it in this process."""
    samples_per_prompt: Annotated[int, pydantic.Field(ge=1, le=1024)] = 8
    """N: completions of each train prompt."""
    heldout_samples_per_prompt: Annotated[int, pydantic.Field(ge=1, le=1024)] = 4
    """Completions of each held-out prompt."""
    temperature: Annotated[float, pydantic.Field(ge=0, le=5)] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, pydantic.Field(gt=0, le=1)] = 1.0
    """Nucleus sampling mass."""
    max_completion_tokens: pydantic.PositiveInt = 512
    """A completion is cut here and recorded as `finish_reason: length`."""
    prompts_per_part: pydantic.PositiveInt = 32
    """Prompts generated together and committed together: what a kill can lose."""
    threads: pydantic.PositiveInt | None = None
    """CPU threads of the in-process engine; null is torch's own choice. Tiny models want 1."""
    seed: int = 0
    """Each prompt's own seed is derived from this one and its id."""


class SampledCompletion(NamedTuple):
    """What an engine returns for one sample."""

    text: str
    finish_reason: str
    tokens: int
    logprob_sum: float | None


class Request(NamedTuple):
    """One prompt for an engine: its messages and the seed of its samples."""

    messages: list[dict[str, str]]
    seed: int


class Engine(Protocol):
    """What generation asks of an engine; tests pass a fake one."""

    model_name: str
    weights_hash: str
    template_fingerprint: str
    context_tokens: int

    def count_prompt_tokens(self, conversations: Sequence[list[dict[str, str]]]) -> list[int]:
        """Return each conversation's length in tokens, rendered for generation."""

    def generate(
        self, requests: Sequence[Request], samples: int, config: GenerationConfig
    ) -> list[list[SampledCompletion]]:
        """Return ``samples`` completions for each request, in the order of the requests."""


def prompt_seed(seed: int, prompt_id: str) -> int:
    """Return the 63-bit seed of one prompt: it doesn't depend on batches, order or resuming."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{prompt_id}".encode()).digest()[:8], "big") >> 1


def plan_parts(
    prompts: pl.DataFrame, engine: Engine, config: GenerationConfig
) -> list[pl.DataFrame]:
    """Return the prompts in parts to generate together, of one split and of similar length.

    Each part is the `prompts` table with a `prompt_tokens` column. The plan depends on the
    prompts and the configuration alone, so a resumed run plans the same parts.

    Raises:
        ConfigError: the longest completion alone fills the model's context.
        DataError: a prompt and its completion do not fit into the model's context.
    """
    if config.max_completion_tokens >= engine.context_tokens:
        raise ConfigError(
            f"max_completion_tokens {config.max_completion_tokens} leaves no room for a prompt",
            expected=f"less than the model's context of {engine.context_tokens} tokens",
            where=f"generation.max_completion_tokens, model {engine.model_name}",
        )
    counts = engine.count_prompt_tokens(prompts["messages"].to_list())
    counted = prompts.with_columns(pl.Series("prompt_tokens", counts, dtype=pl.Int64))
    limit = engine.context_tokens - config.max_completion_tokens
    too_long = counted.filter(pl.col("prompt_tokens") > limit)
    if too_long.height:
        worst = too_long.sort("prompt_tokens", descending=True).row(0, named=True)
        raise DataError(
            f"{too_long.height} of {prompts.height} prompts are too long: the longest has "
            f"{worst['prompt_tokens']} tokens",
            expected=f"at most {limit} tokens (context {engine.context_tokens} less "
            f"max_completion_tokens {config.max_completion_tokens})",
            where=f"{worst['prompt_id']} of source {worst['source']!r}",
            remedy="drop or shorten those prompts, or lower generation.max_completion_tokens",
        )
    return list(_chunks(counted, config.prompts_per_part))


def _chunks(counted: pl.DataFrame, size: int) -> Iterator[pl.DataFrame]:
    for split in ("train", "heldout"):
        of_split = counted.filter(pl.col("split") == split).sort("prompt_tokens", "prompt_id")
        yield from of_split.iter_slices(size)


def samples_for(part: pl.DataFrame, config: GenerationConfig) -> int:
    """Return how many completions each prompt of ``part`` (one split) gets."""
    heldout = part["split"][0] == "heldout"
    return config.heldout_samples_per_prompt if heldout else config.samples_per_prompt


def generate(part: pl.DataFrame, engine: Engine, config: GenerationConfig) -> pl.DataFrame:
    """Return the `candidates` table for one part of `plan_parts`.

    Raises:
        DataError: the engine returned other counts than asked.
    """
    samples = samples_for(part, config)
    seeds = [prompt_seed(config.seed, prompt_id) for prompt_id in part["prompt_id"]]
    requests = [Request(m, s) for m, s in zip(part["messages"].to_list(), seeds, strict=True)]
    completions = engine.generate(requests, samples, config)
    counts = {len(of_prompt) for of_prompt in completions}
    if len(completions) != part.height or counts - {samples}:
        raise DataError(
            f"the engine returned {len(completions)} answers with {sorted(counts)} completions",
            expected=f"{part.height} answers with {samples} completions each",
            where=engine.model_name,
        )
    return _candidates(part, seeds, completions, engine, config)


def _candidates(
    part: pl.DataFrame,
    seeds: list[int],
    completions: list[list[SampledCompletion]],
    engine: Engine,
    config: GenerationConfig,
) -> pl.DataFrame:
    """Return one row per completion, with ids."""
    rows = [
        {
            "prompt_id": prompt_id,
            "sample_index": index,
            "seed": seed,
            "completion": sample.text,
            "finish_reason": sample.finish_reason,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": sample.tokens,
            "logprob_sum": sample.logprob_sum,
        }
        for prompt_id, prompt_tokens, seed, of_prompt in zip(
            part["prompt_id"], part["prompt_tokens"], seeds, completions, strict=True
        )
        for index, sample in enumerate(of_prompt)
    ]
    schema = CANDIDATES.empty().schema
    frame = pl.DataFrame(rows, schema={name: schema[name] for name in rows[0]}).with_columns(
        generator=pl.lit(engine.model_name),
        generator_hash=pl.lit(generator_hash(engine.weights_hash, config)),
        weights_hash=pl.lit(engine.weights_hash),
        temperature=pl.lit(config.temperature, dtype=pl.Float64),
        top_p=pl.lit(config.top_p, dtype=pl.Float64),
        max_completion_tokens=pl.lit(config.max_completion_tokens, dtype=pl.Int64),
        template_fingerprint=pl.lit(engine.template_fingerprint),
    )
    identity = ["prompt_id", "generator_hash", "seed", "sample_index", "completion"]
    ids = content_ids(frame, "candidate", identity)
    return frame.with_columns(ids).select(CANDIDATES.column_names)


def generator_hash(weights_hash: str, config: GenerationConfig) -> str:
    """Return what names a generator: its weights and how it samples."""
    sampling = config.model_dump(include={"temperature", "top_p", "max_completion_tokens"})
    return content_hash({"weights": weights_hash, **sampling})
