"""What a run's configuration says about generation: the generators, and how they sample."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, Self

import pydantic

from stages.budget import Prices
from stages.configuration import NOT_EMPTY, OPERATIONAL, Config
from stages.endpoint_settings import EndpointConfig
from stages.vllm_settings import VllmServerConfig

POLICY = "policy"
"""As a generator's or scorer's model: the model that the run trains."""

Temperature = Annotated[float, pydantic.Field(ge=0, le=5)]
TopP = Annotated[float, pydantic.Field(gt=0, le=1)]
Samples = Annotated[int, pydantic.Field(ge=1, le=1024)]


class GeneratorConfig(Config):
    """What every generator can say for itself; null takes the value of `generation`."""

    name: str | None = None
    """The generator's name in the tables; null: its model's name."""
    samples_per_prompt: Samples | None = None
    """Completions of each train prompt by this generator."""
    temperature: Temperature | None = None
    """0 is greedy."""
    top_p: TopP | None = None
    """Nucleus sampling mass."""
    system_prompt: str | None = None
    """Put before each conversation, in place of a system turn that it has; recorded."""
    allow_other_template: Annotated[bool, OPERATIONAL] = False
    """Let this model's chat template or tokenizer differ from the policy's."""


class TransformersGenerator(GeneratorConfig):
    """A model that runs in this process, for small models."""

    engine: Literal["transformers"] = "transformers"
    model: str = POLICY
    """`policy` (the run's own), a folder or a hub id."""
    threads: pydantic.PositiveInt | None = None
    """CPU threads; null is torch's own choice. Tiny models want 1."""
    prompts_per_batch: pydantic.PositiveInt = 32
    """Prompts generated together: what a kill can lose. Memory goes with it times the samples."""


class VllmGenerator(GeneratorConfig):
    """A model on a vLLM server, which prefmill starts and stops itself."""

    engine: Literal["vllm"] = "vllm"
    model: str = POLICY
    """`policy` (the run's own), a folder or a hub id."""
    server: VllmServerConfig = VllmServerConfig()
    """How the server is started."""
    endpoint: Annotated[EndpointConfig, OPERATIONAL] = EndpointConfig()
    """How it is spoken to; with `base_urls` servers that run already are used, none is started."""
    logprobs: bool = False
    """Record each completion's log-probability; it costs the server time and the network bytes."""
    served_name: Annotated[str | None, OPERATIONAL] = None
    """The model's name at servers that run already; null: as in `model`."""


class OpenAIGenerator(GeneratorConfig):
    """A model behind any OpenAI-compatible endpoint."""

    engine: Literal["openai"] = "openai"
    model: str
    """The model's name at the endpoint."""
    endpoint: Annotated[EndpointConfig, OPERATIONAL] = EndpointConfig()
    """Where it is and how it is spoken to."""
    tokenizer: str | None = None
    """A folder or hub id with the model's tokenizer: prompts are then counted beforehand."""
    prices: Annotated[Prices | None, OPERATIONAL] = None
    """What its tokens cost."""
    maximum_choices_per_request: Annotated[pydantic.PositiveInt, OPERATIONAL] = 128
    """The endpoint's limit of `n`; more samples are asked for in several requests."""
    token_limit_field: Annotated[Literal["max_tokens", "max_completion_tokens"], OPERATIONAL] = (
        "max_completion_tokens"  # noqa: S105 - no password
    )
    """What the endpoint calls the limit of a completion's tokens."""


Generator = Annotated[
    TransformersGenerator | VllmGenerator | OpenAIGenerator,
    pydantic.Field(discriminator="engine"),
]


class GenerationConfig(Config):
    """How completions are sampled, and by whom."""

    generators: Annotated[tuple[Generator, ...], NOT_EMPTY] = (TransformersGenerator(),)
    """Each answers every prompt. Evaluation uses the first one whose model is `policy`."""
    samples_per_prompt: Samples = 8
    """N: completions of each train prompt by each generator."""
    heldout_samples_per_prompt: Samples = 4
    """Completions of each held-out prompt by each generator."""
    temperature: Temperature = 1.0
    """0 is greedy."""
    top_p: TopP = 1.0
    """Nucleus sampling mass."""
    max_completion_tokens: pydantic.PositiveInt = 512
    """A completion is cut here and recorded as `finish_reason: length`."""
    prompts_per_part: pydantic.PositiveInt = 512
    """Prompts of a part-file of candidates. Until it is whole, its answers are in a journal."""
    control_tokens: Literal["skip", "refuse"] = "skip"
    """A prompt with a control token's text in it could fake turns: missing answers, or an error."""
    maximum_missing_share: Annotated[float, pydantic.Field(ge=0, le=1), OPERATIONAL] = 0.05
    """More completions missing after all attempts stop the run; started again, it asks anew."""
    seed: int = 0
    """Each prompt's own seed is derived from this one and its id."""

    @pydantic.model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [generator.name or generator.model for generator in self.generators]
        if len(set(names)) < len(names):
            raise ValueError(f"two generators have the same name: {', '.join(names)}")
        return self


class Sampling(NamedTuple):
    """How one generator samples, with nothing left to look up."""

    samples: int
    heldout_samples: int
    temperature: float
    top_p: float
    max_completion_tokens: int
    system_prompt: str | None
    seed: int

    def samples_for(self, split: str) -> int:
        """Return how many completions each prompt of a split gets."""
        return self.heldout_samples if split == "heldout" else self.samples

    def deciding(self) -> dict[str, Any]:
        """Return the values as JSON."""
        return self._asdict()


def sampling_of(generator: GeneratorConfig, config: GenerationConfig) -> Sampling:
    """Return how ``generator`` samples: its own values, else the generation's."""

    def own(name: str) -> Any:
        value = getattr(generator, name)
        return getattr(config, name) if value is None else value

    return Sampling(
        own("samples_per_prompt"),
        config.heldout_samples_per_prompt,
        own("temperature"),
        own("top_p"),
        config.max_completion_tokens,
        generator.system_prompt,
        config.seed,
    )
