"""Generators by configuration: which model each is, whether it may be used, and its engine."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from flows.adapted_policy import adapted
from flows.models import Policy, find_policy
from flows.vllm_server import ServerSpec, adapter_rank, interpreter, running_server
from stages.content_ids import content_hash
from stages.endpoints import EndpointPool
from stages.errors import ConfigError, ModelError
from stages.generation import room_for_prompts
from stages.generation_settings import (
    POLICY,
    Generator,
    OpenAIGenerator,
    Sampling,
    TransformersGenerator,
    VllmGenerator,
    sampling_of,
)
from stages.model_loading import context_in, load_tokenizer
from stages.openai_engine import KnownModel, OpenAIEngine, OpenAISettings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flows.adapted_policy import AdaptedPolicy
    from flows.adapter_requests import Adapter
    from flows.configuration import PipelineConfig
    from lineage.workspace import Workspace
    from stages.budget import Budget
    from stages.endpoint_settings import EndpointConfig
    from stages.generation import Engine
    from stages.judges import JudgeScorer
    from stages.scoring import RewardModelScorer


def managed_endpoint(
    config: VllmGenerator | JudgeScorer | RewardModelScorer,
    model: Policy,
    workspace: Workspace,
    runner: Literal["generate", "pooling"] = "generate",
    adapter: Adapter | None = None,
) -> EndpointConfig:
    """Return the endpoint of servers that run already, else of one that runs now, started or kept.

    Raises:
        MissingFileError: no environment with vLLM.
        ModelError: the server ended, did not answer, or refuses the adapter; with the cause.
    """
    if config.endpoint.base_urls:
        return config.endpoint
    spec = ServerSpec(str(model.folder), model.name, config.server, runner, model.fingerprint)
    url = running_server(spec, workspace.root / "logs" / f"vllm-{runner}.log", adapter)
    # A server that dies is started again, which takes as long as a start.
    patience = max(config.endpoint.give_up_after_seconds, config.server.start_timeout_seconds)
    return config.endpoint.model_copy(
        update={"base_urls": (url,), "give_up_after_seconds": patience}
    )


def check_server(
    config: VllmGenerator | OpenAIGenerator | JudgeScorer | RewardModelScorer, served_name: str
) -> None:
    """Return if a running server has the model, or if vLLM is there to start one.

    Raises:
        EndpointError: no server, a wrong key or an unknown model.
        MissingFileError: no environment with vLLM.
    """
    if config.endpoint.base_urls:
        with EndpointPool(config.endpoint) as pool:
            pool.check(served_name)
    elif config.engine == "vllm":
        interpreter(config.server)


@dataclass(frozen=True)
class ReadyGenerator:
    """One generator of a run with its model found."""

    config: Generator
    name: str
    model: Policy | None
    """The model's folder; None for one that only its endpoint holds."""
    policy: Policy
    """The model that the run trains."""
    sampling: Sampling
    first: str
    """The model that the run's series began with, as its configuration names it."""

    def deciding(self) -> dict[str, Any]:
        """Return what decides its completions, as JSON."""
        model = self.model.identity if self.model else {"served": self.config.model}
        chosen = {"model": model, "name": self.name, "sampling": self.sampling.deciding()}
        adapters = {"adapters": self._adapted.identity} if self._adapted else {}
        return {**self.config.deciding(), **chosen, **adapters}

    def check(self) -> None:
        """Return if the generator can be used, as far as that is known without a request.

        Raises:
            ModelError: the model can't be used, or its chat template is not the policy's.
            ConfigError: a completion may fill the whole context of a model in this process.
            EndpointError: no server, a wrong key or an unknown model.
        """
        self._require_same_template(self._known_model.template_fingerprint)
        if not isinstance(self.config, TransformersGenerator):
            check_server(self.config, self._served_name())
        elif self.model and (context := context_in(self.model.folder)):
            room_for_prompts(context, self.sampling, self.name)

    @contextlib.contextmanager
    def engine(self, workspace: Workspace, budget: Budget) -> Iterator[Engine]:
        """Yield the engine, started; its server stays for the next one that wants the same.

        Raises:
            ModelError: the model can't be used, or its chat template is not the policy's.
            EndpointError: no server, a wrong key or an unknown model.
        """
        if isinstance(self.config, TransformersGenerator):
            from stages.transformers_engine import TransformersEngine

            assert self.model is not None
            model, config = self.model, self.config
            engine = TransformersEngine(
                model.folder, model.name, config.threads, config.prompts_per_batch
            )
            self._require_same_template(engine.template_fingerprint)
            yield engine
            return
        known = self._known_model
        self._require_same_template(known.template_fingerprint)
        with self._pool(workspace, budget) as pool:
            served_name = self._served_name()
            served = pool.check(served_name)
            if self._adapted:  # of adapters vLLM does not tell it
                served = pool.check(self._adapted.base.name)
            known = known._replace(context_tokens=served.context_tokens)
            yield OpenAIEngine(pool, served_name, known, self._settings())

    def _served_name(self) -> str:
        if self._adapted:
            return self._adapted.served_name
        if isinstance(self.config, VllmGenerator) and self.config.served_name:
            return self.config.served_name
        return self.model.name if self.model else self.config.model

    def _pool(self, workspace: Workspace, budget: Budget) -> EndpointPool:
        assert not isinstance(self.config, TransformersGenerator)
        endpoint = self.config.endpoint
        if isinstance(self.config, VllmGenerator):
            assert self.model is not None
            adapter = self._adapted.adapter() if self._adapted else None
            model = self._adapted.base if self._adapted else self.model
            endpoint = managed_endpoint(self.config, model, workspace, adapter=adapter)
        return EndpointPool(endpoint, budget, getattr(self.config, "prices", None))

    def _settings(self) -> OpenAISettings:
        if isinstance(self.config, OpenAIGenerator):
            config = self.config
            return OpenAISettings(
                config.prices, config.maximum_choices_per_request, config.token_limit_field
            )
        assert isinstance(self.config, VllmGenerator)
        return OpenAISettings(
            None, 1024, "max_tokens", logprobs=self.config.logprobs, token_ids=True
        )

    @functools.cached_property
    def _adapted(self) -> AdaptedPolicy | None:
        """The model as its server will have it, where that is adapters over a base."""
        if not isinstance(self.config, VllmGenerator) or self.config.endpoint.base_urls:
            return None
        rank = adapter_rank(self.config.server)
        found = adapted(self.model, self.first, rank) if rank and self.model else None
        return found if found and _template_of(found.base) == _template_of(self.model) else None

    @functools.cached_property
    def _known_model(self) -> KnownModel:
        """What is known of a served model: all of a local one, of others what is told."""
        from stages.chat_template import check_template, template_fingerprint

        if self.model is not None:
            tokenizer: Any = load_tokenizer(self.model.folder)
            check_template(tokenizer, str(self.model.folder))
            fingerprint = template_fingerprint(tokenizer)
            return KnownModel(
                self.model.name, self.model.weights_hash, fingerprint, None, tokenizer
            )
        assert isinstance(self.config, OpenAIGenerator)
        name = self.config.model
        named = KnownModel(name, content_hash({"served": name}))
        if self.config.tokenizer is None:
            return named
        tokenizer = load_tokenizer(self.config.tokenizer)
        return named._replace(
            tokenizer=tokenizer, template_fingerprint=template_fingerprint(tokenizer)
        )

    def _require_same_template(self, fingerprint: str | None) -> None:
        """Refuse a model whose conversations become other tokens than the policy's.

        Raises:
            ModelError: they do, and the generator doesn't allow it.
        """
        same_model = self.model is not None and self.model.fingerprint == self.policy.fingerprint
        if fingerprint is None or self.config.allow_other_template or same_model:
            return
        require_same_template(fingerprint, self.policy, f"generator {self.name!r}")


def require_same_template(fingerprint: str, policy: Policy, where: str) -> None:
    """Return if a model reads conversations as the policy does.

    Raises:
        ModelError: its chat template or tokenizer is another one.
    """
    expected = _template_of(policy)
    if fingerprint == expected:
        return
    raise ModelError(
        f"chat template or tokenizer with fingerprint {fingerprint}",
        expected=f"{expected}, that of the policy {policy.name!r}",
        where=where,
        remedy="choose a model of the policy's family, or set `allow_other_template: true` there",
    )


@functools.lru_cache(maxsize=4)
def _template_of(policy: Policy) -> str:
    """Return the fingerprint of a policy's chat template; every scorer is compared with it."""
    from stages.chat_template import template_fingerprint

    return template_fingerprint(load_tokenizer(policy.folder))


def ready_generators(config: PipelineConfig, policy: Policy) -> list[ReadyGenerator]:
    """Return the run's generators, their models found; nothing is loaded or asked.

    Raises:
        ConfigError: a served generator names no endpoint, or two have the same name.
        MissingFileError: a model is neither a folder nor on the hub.
    """
    ready = [_ready(generator, config, policy) for generator in config.generation.generators]
    names = [generator.name for generator in ready]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"two generators have the same name: {', '.join(names)}",
            expected="different names: candidates are told apart by them",
            where="generation.generators",
            remedy="give one of them a `name`",
        )
    return ready


def policy_generator(config: PipelineConfig, policy: Policy) -> ReadyGenerator:
    """Return the generator that answers held-out prompts for ``policy`` in an evaluation.

    Raises:
        ConfigError: no generator's model is `policy`.
    """
    for generator in config.generation.generators:
        if generator.model == POLICY:
            return _ready(generator, config, policy)
    raise ConfigError(
        "no generator's model is `policy`",
        expected="one, as a round compares the policy before and after training",
        where="generation.generators",
        remedy="add a generator with `model: policy`; or refresh without training",
    )


def _ready(generator: Generator, config: PipelineConfig, policy: Policy) -> ReadyGenerator:
    if isinstance(generator, OpenAIGenerator) and not generator.endpoint.base_urls:
        raise ConfigError(
            f"generator {generator.model!r} names no endpoint",
            expected="one or more `base_urls`",
            where="generation.generators, engine openai",
        )
    model = None
    if not isinstance(generator, OpenAIGenerator):
        model = policy if generator.model == POLICY else find_policy(generator.model)
    name = generator.name or (model.name if model else generator.model)
    sampling = sampling_of(generator, config.generation)
    first = config.initial_policy or config.policy
    return ReadyGenerator(generator, name, model, policy, sampling, first)
