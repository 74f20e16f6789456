"""The `dpo_round` and `rounds` flows: curate, train, evaluate, judge, promote; then again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from flows.configuration import PipelineConfig, load_config
from flows.curation import curate
from flows.generators import policy_generator
from flows.models import Policy, find_policy
from flows.progress import say
from flows.tracked_run import tracked_run
from flows.training_round import (
    evaluate,
    judge_round,
    measure_kl,
    promote,
    require_comparable,
    train_policy,
)
from lineage.workspace import Workspace
from stages.prompt_sources import BundledSource


@flow(name="rounds", persist_result=False)
def rounds(
    config_file: str,
    workspace: str = "prefmill-workspace",
    overrides: dict[str, Any] | None = None,
) -> list[str]:
    """Run the configured number of on-policy rounds; return their run ids.

    A round that the gate holds leaves the policy as it was; the next one tries fresh prompts.
    """
    config = load_config(Path(config_file), overrides)
    place = Workspace(Path(workspace))
    place.require_writable()
    initial = policy = find_policy(config.policy)
    policy_generator(config, policy)  # without one a round would stop only after its training
    require_comparable(config)
    run_ids = []
    for index in range(1, config.rounds + 1):
        if config.rounds > 1:
            say(f"round {index} of {config.rounds}: policy {policy.name}")
        reference = policy if config.reference == "policy" else initial
        run_id, policy = dpo_round(place, config, policy, reference, index)
        run_ids.append(run_id)
    return run_ids


@flow(name="dpo-round", persist_result=False, validate_parameters=False)
def dpo_round(
    workspace: Workspace, config: PipelineConfig, policy: Policy, reference: Policy, index: int
) -> tuple[str, Policy]:
    """Run one round; return its run id and the policy to go on with."""
    config = of_round(config, policy, index)
    with tracked_run(workspace, "dpo_round", config, policy, index) as context:
        curated = curate(context, config, policy)
        trained = train_policy(context, config, policy, reference, curated, index)
        compared = evaluate(context, config, curated, policy, trained.policy)
        _, sampled = compared[0]
        log_ratios = measure_kl(context, config, curated.prompts, trained, sampled)
        verdict = judge_round(context, config, curated.prompts, trained, compared, log_ratios)
        promoted = bool(verdict.read(workspace)["promoted"][0])
        if promoted:
            promote(workspace, config.name, trained)
    return context.run_id, trained.policy if promoted else policy


def of_round(config: PipelineConfig, policy: Policy, index: int) -> PipelineConfig:
    """Return the configuration of round ``index``: its policy, and prompts not used before."""
    sources = tuple(
        source.model_copy(update={"skip": source.skip + (index - 1) * source.train})
        if isinstance(source, BundledSource)
        else source
        for source in config.prompts.sources
    )
    prompts = config.prompts.model_copy(update={"sources": sources})
    # A later round's own configuration names its own policy, so that it can be run again by itself.
    name = config.policy if index == 1 else str(policy.folder)
    return config.model_copy(update={"prompts": prompts, "policy": name})
