"""The `refresh` flow: prompts to exported preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from flows.configuration import load_config
from flows.curation import curate
from flows.models import find_policy
from flows.progress import say
from flows.prompt_choice import nothing_new, with_runs_to_pass_over
from flows.series import continued
from flows.tracked_run import tracked_run
from lineage.workspace import Workspace


@flow(name="refresh", persist_result=False)
def refresh(
    config_file: str,
    workspace: str = "prefmill-workspace",
    overrides: dict[str, Any] | None = None,
    stored_only: bool = False,
    recorded_as: str = "refresh",
) -> str | None:
    """Sample, generate, score, pair, filter and export; return the run's id.

    With `prompts.only_new` and no new prompt there is no run, and None is returned.

    Args:
        config_file: the pipeline's YAML file.
        workspace: the folder that holds everything made.
        overrides: keys to lay over the file's.
        stored_only: refuse to generate: pair and filter what is stored.
        recorded_as: the run's flow in the lineage.
    """
    return run_refresh(
        Path(config_file),
        Path(workspace),
        overrides or {},
        stored_only=stored_only,
        recorded_as=recorded_as,
    )


def run_refresh(
    config_file: Path,
    workspace: Path,
    overrides: dict[str, Any],
    *,
    stored_only: bool = False,
    recorded_as: str = "refresh",
) -> str | None:
    """Do what `refresh` says, within whatever flow calls."""
    place = Workspace(workspace)
    place.require_writable()
    config = load_config(config_file, overrides)
    new = config.prompts.only_new and not stored_only
    config = continued(place, config, fresh=new)
    if new:
        config = with_runs_to_pass_over(place, config)
        if found := nothing_new(place, config):
            say(f"nothing to do: {found}")
            return None
    policy = find_policy(config.policy)
    with tracked_run(place, recorded_as, config, policy) as context:
        curate(context, config, policy, stored_only=stored_only)
    return context.run_id
