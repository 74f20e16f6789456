"""The flows that `prefect.yaml` deploys: what the `prefmill` commands do, with a form for each.

A refresh that ends well sends the event `prefmill.refresh.accepted`, which starts a round on its
pairs. What a run says while it works goes to Prefect's log too.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pydantic
from prefect import flow, get_run_logger

from flows.alerts import send_event, tell_of_flow_run
from flows.changes import PipelineChanges, as_overrides, unforced
from flows.progress import say, told_to
from flows.settings import configure_libraries

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lineage.workspace import Workspace

ACCEPTED = "prefmill.refresh.accepted"
"""Sent when a refresh has exported pairs and every check that must hold held."""

HOOKS: dict[str, Any] = {
    f"on_{ending}": [tell_of_flow_run]
    for ending in ("completion", "failure", "cancellation", "crashed")
}

configure_libraries()


@contextlib.contextmanager
def _logged() -> Iterator[None]:
    with told_to(get_run_logger().info):
        yield


@flow(name="refresh", persist_result=False, **HOOKS)
def refresh(
    config_file: Path, workspace: Path | None = None, changes: PipelineChanges | None = None
) -> str | None:
    """Turn prompts into exported preference pairs; return the run's id, None if none were new.

    Args:
        config_file: The pipeline's YAML file, relative to the working directory.
        workspace: The folder that holds everything made; null is the worker's, PREFMILL_WORKSPACE.
        changes: Keys to lay over the file's.
    """
    from flows.refresh import run_refresh

    with _logged():
        place = _place(workspace)
        run_id = run_refresh(config_file, place.root, as_overrides(changes))
    if run_id:
        send_event(ACCEPTED, place.root, run_id)
    return run_id


@flow(name="dpo-round", persist_result=False, **HOOKS)
def dpo_round(
    run_id: str = "latest", workspace: Path | None = None, changes: PipelineChanges | None = None
) -> list[str]:
    """Train on the pairs of a run, evaluate, judge and promote or hold; return the run's id.

    Args:
        workspace: The folder that holds everything made; null is the worker's, PREFMILL_WORKSPACE.
        run_id: The run whose stored configuration and pairs are used: its id, a prefix, `latest`.
        changes: Keys to lay over its configuration's, such as `training`, `evaluation`, `gate`.
            That run's `gate.force` is not taken over.
    """
    from flows.prompt_choice import of_stored_run
    from flows.rounds import run_rounds

    with _logged():
        place = _place(workspace)
        stored, of_run = of_stored_run(place, run_id)
        overrides = unforced({**of_run, "rounds": 1, **as_overrides(changes)})
        return run_rounds(stored, place.root, overrides)


@flow(name="on-policy-rounds", persist_result=False, **HOOKS)
def on_policy_rounds(
    config_file: Path, workspace: Path | None = None, changes: PipelineChanges | None = None
) -> list[str]:
    """Run `rounds` on-policy rounds, each from the policy promoted last; return their run ids.

    Args:
        config_file: The pipeline's YAML file, relative to the working directory.
        workspace: The folder that holds everything made; null is the worker's, PREFMILL_WORKSPACE.
        changes: Keys to lay over the file's, such as `rounds`.
    """
    from flows.rounds import run_rounds

    with _logged():
        return run_rounds(config_file, _place(workspace).root, as_overrides(changes))


@flow(name="report", persist_result=False, **HOOKS)
def report(run_id: str = "latest", workspace: Path | None = None) -> str:
    """Write a run's report.html again; return its path.

    Args:
        workspace: The folder that holds everything made; null is the worker's, PREFMILL_WORKSPACE.
        run_id: The run's id, a prefix of it, or `latest`.
    """
    from flows.report_data import report_run
    from lineage.records import require_run

    with _logged():
        place = _place(workspace)
        return str(report_run(place, require_run(place, run_id).run_id))


@flow(name="lineage-gc", persist_result=False, **HOOKS)
def lineage_gc(
    keep: Annotated[int, pydantic.Field(ge=1)] | None = None,
    older_than_days: Annotated[float, pydantic.Field(ge=0)] | None = None,
    workspace: Path | None = None,
) -> int:
    """Remove old runs' texts, exports and models; return the bytes freed. Their record stays.

    With both limits a run goes only if both say so.

    Args:
        keep: Of each configuration's name, this many completed runs stay whole.
        older_than_days: Runs started later than so long ago stay whole.
        workspace: The folder that holds everything made; null is the worker's, PREFMILL_WORKSPACE.
    """
    from lineage.retention import Retention, collect, plan
    from stages.errors import ConfigError

    if keep is None and older_than_days is None:
        raise ConfigError("nothing says which runs go", expected="keep, older_than_days, or both")
    with _logged():
        place = _place(workspace)
        removed = collect(place, plan(place, Retention(keep, older_than_days)))
        freed = sum(removal.bytes_freed for removal in removed)
        say(f"{len(removed)} outputs lost their texts, {freed:,} bytes are free again")
    return freed


def _place(folder: Path | None) -> Workspace:
    from lineage.workspace import Workspace

    return Workspace(folder or Path(os.environ.get("PREFMILL_WORKSPACE", "prefmill-workspace")))


FLOWS: tuple[Any, ...] = (refresh, dpo_round, on_policy_rounds, report, lineage_gc)
"""All of them: `prefect.yaml` has a deployment for each."""
