"""The `dpo_round` and `rounds` flows: curate, train, evaluate, judge, promote; then again."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow

from flows import series
from flows.capability_card import card_of_round
from flows.configuration import PipelineConfig, load_config
from flows.curation import curate
from flows.evaluating import evaluate, require_comparable, require_samples
from flows.generators import policy_generator
from flows.mixing import mix_earlier_pairs
from flows.models import Policy, Promoted, find_policy, write_promoted
from flows.progress import say
from flows.prompt_choice import nothing_new
from flows.run_outputs import read_output
from flows.tracked_run import tracked_run
from flows.training_round import judge_round, measure_kl, train_policy
from flows.vllm_server import adapter_rank, kept_between_runs, visible
from lineage.workspace import Workspace
from stages.errors import ConfigError
from stages.generation_settings import VllmGenerator
from trainer.readiness import require_ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stages.generation_settings import Generator
    from trainer.adapters import AdapterConfig

AVERAGE_RATE = 0.5
"""In TR-DPO's experiments 0.5 and 0.6 did best."""


@flow(name="rounds", persist_result=False)
def rounds(
    config_file: str,
    workspace: str = "prefmill-workspace",
    overrides: dict[str, Any] | None = None,
) -> list[str]:
    """Run the configured number of on-policy rounds; return their run ids.

    A round that the gate holds leaves the policy as it was; the next one tries fresh prompts. The
    series ends before its time when there are none, or the gate held `stop_after_held` in a row.
    """
    return run_rounds(Path(config_file), Path(workspace), overrides or {})


def run_rounds(config_file: Path, workspace: Path, overrides: dict[str, Any]) -> list[str]:
    """Do what `rounds` says, within whatever flow calls."""
    asked = load_config(config_file, overrides)
    place = Workspace(workspace)
    place.require_writable()
    with using_devices(asked.training_devices):
        config = series.opened(place, asked)
        policy = find_policy(config.policy)
        generator = policy_generator(config, policy)  # else a round would stop after its training
        require_fitting_adapters(generator.config, config.training.adapter)
        require_samples(generator)
        require_comparable(config)
        require_ready(config.training)
        with kept_between_runs():
            run_ids = _run_series(place, config, policy)
    series.close(place, asked)
    return run_ids


def require_fitting_adapters(generator: Generator, adapter: AdapterConfig | None) -> None:
    """Return unless the policy's server pays for adapters and has no room for a round's.

    Raises:
        ConfigError: they have a higher rank.
    """
    room = adapter_rank(generator.server) if isinstance(generator, VllmGenerator) else 0
    if room and adapter and adapter.rank > room:
        raise ConfigError(
            f"training.adapter.rank is {adapter.rank}, and the server's max_lora_rank {room}",
            expected="at least as much, better the sum of several rounds' ranks",
            where="generation.generators, server.options of the policy's",
            remedy="raise max_lora_rank; or take enable_lora out, and merged weights are served",
        )


def _run_series(place: Workspace, config: PipelineConfig, policy: Policy) -> list[str]:
    run_ids: list[str] = []
    held, first = 0, len(config.earlier_rounds) + 1
    last = first + config.rounds - 1
    for index in range(first, last + 1):
        if found := nothing_new(place, config) if config.earlier_rounds else "":
            say(f"the series ends before round {index}: {found}")
            break
        if last > 1:
            say(f"round {index} of {last}: policy {policy.name}, reference {config.reference}")
        run_id, promoted = one_round(place, config, policy, index)
        run_ids.append(run_id)
        config = series.following(config, run_id)
        held = 0 if promoted else held + 1
        if promoted:
            policy = promoted.policy
            config = series.with_policy(config, policy, promoted.average)
        if index < last and held == config.stop_after_held:
            say(f"the series ends after round {index}: the gate held {held} in a row")
            break
    return run_ids


@flow(name="round", persist_result=False, validate_parameters=False)
def one_round(
    workspace: Workspace, config: PipelineConfig, policy: Policy, index: int
) -> tuple[str, Promoted | None]:
    """Run one round; return its run id, and what it promoted if the gate let it."""
    reference = reference_of(config, policy)
    with tracked_run(workspace, "dpo_round", config, policy, index, reference) as context:
        curated = curate(context, config, policy)
        mixed = mix_earlier_pairs(context, config, curated)
        trained = train_policy(context, config, policy, reference, mixed, index)
        compared = evaluate(context, config, curated, policy, trained.policy)
        sampled = compared[0].after
        log_ratios = measure_kl(context, config, curated.prompts, trained, sampled)
        card = card_of_round(context, config, trained.former, trained.policy)
        beside = (log_ratios, card)
        verdict = judge_round(context, config, curated.prompts, trained, compared, beside)
        promoted = None
        if verdict.read(workspace)["promoted"][0]:
            promoted = promote(workspace, config, reference, trained.policy)
        say(f"round {index}: {verdict_line(workspace, context.run_id)}")
    return context.run_id, promoted


def reference_of(config: PipelineConfig, policy: Policy) -> Policy:
    """Return the model that DPO compares with in the round of ``config``."""
    named = {
        "policy": None,
        "initial": config.initial_policy,
        "moving_average": config.average_policy,
    }[config.reference]
    return find_policy(named) if named else policy


def promote(
    workspace: Workspace, config: PipelineConfig, reference: Policy, policy: Policy
) -> Promoted:
    """Make ``policy`` the promoted one of the configuration's name, and move the average on."""
    average = None
    if config.reference == "moving_average":
        from trainer.averaging import average_models

        rate = config.moving_average_rate or AVERAGE_RATE
        average = average_models(reference.folder, policy.folder, rate, workspace.models)
    promoted = Promoted(policy, average)
    write_promoted(workspace, config.name, promoted)
    return promoted


def verdict_line(workspace: Workspace, run_id: str) -> str:
    """Return what a round came to: the measure before and after, its interval, KL, the verdict.

    With a pairwise judge, also how often it went by the place.
    """
    measured = read_output(workspace, run_id, "gate", "evaluations").filter(stratum="all")
    whole = {(row["metric"], row["decoding"]): row for row in measured.to_dicts()}
    said = []
    for metric in ("success", "length_controlled_win_rate"):
        if row := whole.get((metric, "sampled")):
            change = f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
            name = metric.replace("_", " ")
            said.append(f"{name} {row['before']:.3f} -> {row['after']:.3f} ({change})")
    if flips := whole.get(("judge_flip_rate", "sampled")):
        said.append(f"the judge's two orders disagree on {flips['after']:.0%}")
    if kl := whole.get(("kl_nats", "sampled")):
        said.append(f"KL {kl['after']:.3f} nats")
    row = read_output(workspace, run_id, "gate", "rounds").row(0, named=True)
    return ", ".join([*said, "promoted" if row["promoted"] else "held"])


@contextlib.contextmanager
def using_devices(devices: tuple[int, ...]) -> Iterator[None]:
    """Show this process, and what it starts, only these GPUs; all of them if none are named.

    CUDA looks when it is first used, so that has to be after this.
    """
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ.update(visible(devices))
    try:
        yield
    finally:
        if devices and before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        elif before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
