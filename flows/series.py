"""A series of rounds: where it starts, and what a round hands to the next.

All of it stands in the configuration that a round runs with and stores, so that each round can be
run again by itself, on the same prompts and models.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from flows.configuration import PipelineConfig
from flows.models import find_promoted
from lineage.records import list_runs, read_stage_runs
from lineage.workspace import commit_json
from stages.content_ids import content_hash
from stages.prompt_sources import BundledSource

if TYPE_CHECKING:
    from pathlib import Path

    from flows.models import Policy
    from lineage.workspace import Workspace
    from stages.prompt_sampling import PromptSamplingConfig


HANDED_ON = {
    "policy",
    "initial_policy",
    "average_policy",
    "earlier_rounds",
    "prompts",
    "rounds",
}
"""What a round's configuration has from the one before it."""


def continued(
    workspace: Workspace, config: PipelineConfig, *, fresh: bool = True
) -> PipelineConfig:
    """Return ``config`` with `start_from` resolved: the promoted policy, after earlier rounds.

    Without ``fresh`` the prompts that these had are no matter.

    Raises:
        MissingFileError: the promoted policy's folder is gone.
        ModelError: it holds another model than the gate promoted.
    """
    if config.start_from == "policy":
        return config
    earlier = earlier_rounds(workspace, config.name) if fresh else ()
    prompts = advanced(config.prompts, len(earlier))
    config = config.model_copy(
        update={"start_from": "policy", "earlier_rounds": earlier, "prompts": prompts}
    )
    promoted = find_promoted(workspace, config.name)
    return with_policy(config, promoted.policy, promoted.average) if promoted else config


def earlier_rounds(workspace: Workspace, name: str) -> tuple[str, ...]:
    """Return the completed rounds of ``name``, the oldest first; of those on equal prompts one."""
    of_prompts: dict[str, str] = {}
    for run in reversed(list_runs(workspace)):
        if run.status == "completed" and run.name == name and run.round_index:
            for stage in read_stage_runs(workspace, run.run_id):
                if stage.stage == "prompts":
                    of_prompts[stage.stage_key] = run.run_id
    return tuple(of_prompts.values())


def following(config: PipelineConfig, run_id: str) -> PipelineConfig:
    """Return the configuration of the round after ``run_id``: fresh prompts, the same policy."""
    prompts = advanced(config.prompts, 1).model_copy(update={"of_run": None})
    earlier = (*config.earlier_rounds, run_id)
    left = max(config.rounds - 1, 1)
    return config.model_copy(update={"prompts": prompts, "earlier_rounds": earlier, "rounds": left})


def with_policy(
    config: PipelineConfig, policy: Policy, average: Path | None = None
) -> PipelineConfig:
    """Return ``config`` with a later policy than the series began with."""
    return config.model_copy(
        update={
            "policy": str(policy.folder),
            "initial_policy": config.initial_policy or config.policy,
            "average_policy": str(average) if average else None,
        }
    )


def advanced(prompts: PromptSamplingConfig, rounds: int) -> PromptSamplingConfig:
    """Return ``prompts`` with the bundled ones that so many rounds have had passed over.

    They are made, not stored: what is left of other sources is known by what earlier rounds had.
    """
    sources = tuple(
        source.model_copy(update={"skip": source.skip + rounds * source.train})
        if isinstance(source, BundledSource)
        else source
        for source in prompts.sources
    )
    return prompts.model_copy(update={"sources": sources})


def start_of(workspace: Workspace, config: PipelineConfig) -> PipelineConfig:
    """Return how the series of ``config`` begins: anew, or as one that was cut short began.

    Its own first rounds may have promoted a policy since: to start from that would be another
    series.
    """
    path = _path(workspace, config)
    if path.is_file():
        return PipelineConfig.checked(json.loads(path.read_bytes()), str(path))
    return continued(workspace, config)


def opened(workspace: Workspace, config: PipelineConfig) -> PipelineConfig:
    """Return `start_of` the series, and note it for the case that the series is cut short."""
    start = start_of(workspace, config)
    if start is not config:
        commit_json(_path(workspace, config), start.model_dump(mode="json"))
    return start


def close(workspace: Workspace, config: PipelineConfig) -> None:
    """Forget how the series began that ``config`` asked for, or a resumed round's goes on with.

    Started again, it is a new one.
    """
    _path(workspace, config).unlink(missing_ok=True)
    ended = config.model_dump(mode="json")
    for note in _notes(workspace).glob("*.json"):
        if _goes_on(ended, json.loads(note.read_bytes())):
            note.unlink(missing_ok=True)


def _goes_on(config: dict[str, Any], start: dict[str, Any]) -> bool:
    """Return whether a round of ``config`` is one of the series that began with ``start``."""
    first, earlier = start["earlier_rounds"], config["earlier_rounds"]
    same_last = len(first) + start["rounds"] == len(earlier) + config["rounds"]
    unchanging = (name for name in start.keys() | config.keys() if name not in HANDED_ON)
    return (
        same_last
        and earlier[: len(first)] == first
        and all(start.get(name) == config.get(name) for name in unchanging)
    )


def _notes(workspace: Workspace) -> Path:
    return workspace.store / "series"


def _path(workspace: Workspace, config: PipelineConfig) -> Path:
    return _notes(workspace) / f"{content_hash(config.model_dump(mode='json'))}.json"
