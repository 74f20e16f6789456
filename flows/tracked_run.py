"""The record of a run: opened before the first stage, closed however it ends, then published."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flows.progress import say
from flows.sampling import content_of, seen_prompts
from flows.stage_runner import RunContext, utc_now
from flows.vllm_server import stop_all
from lineage.database import publish
from lineage.records import RunRecord, read_run, write_run
from lineage.workspace import commit_bytes
from stages.content_ids import content_hash
from stages.errors import PrefmillError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flows.configuration import PipelineConfig
    from flows.models import Policy
    from lineage.workspace import Workspace

MAX_ERROR = 2000
"""Characters of an error kept in the record."""


@contextlib.contextmanager
def tracked_run(
    workspace: Workspace, flow: str, config: PipelineConfig, policy: Policy, round_index: int = 0
) -> Iterator[RunContext]:
    """Yield the context of a run and record how it ended; the lineage is published either way.

    The run id comes from the resolved configuration, the policy and the sources' content: the
    same work has the same id, and starting it again continues it.
    """
    content = content_of(config, seen_prompts(workspace, config))
    run_id = make_run_id(flow, config, policy, content, round_index)
    earlier = read_run(workspace, run_id)
    record = RunRecord(
        run_id=run_id,
        flow=flow,
        name=config.name,
        round_index=round_index,
        config=config.model_dump(mode="json"),
        code_version=code_version(),
        status="running",
        started_at=earlier.started_at if earlier else utc_now(),
        ended_at=None,
        attempts=earlier.attempts + 1 if earlier else 1,
        error=None,
    )
    write_run(workspace, record)
    text = yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True)
    commit_bytes(workspace.runs / run_id / "config.yaml", text.encode())
    try:
        yield RunContext(workspace, run_id)
    except BaseException as error:
        with contextlib.suppress(PrefmillError, OSError):  # the first error is the one to tell
            text = f"{type(error).__name__}: {error}"[:MAX_ERROR]
            _close(workspace, record, status="failed", error=text)
        raise
    finally:
        stop_all()
    _close(workspace, record, status="completed")


def _close(workspace: Workspace, record: RunRecord, **outcome: Any) -> None:
    """Write how the run ended, publish the lineage and draw the report."""
    write_run(workspace, dataclasses.replace(record, ended_at=utc_now(), **outcome))
    publish(workspace)
    from flows.report_data import report_run

    try:
        report_run(workspace, record.run_id)
    except Exception as error:  # noqa: BLE001 - a picture that can't be drawn is no failed run
        say(f"report.html could not be written: {type(error).__name__}: {error}")


def make_run_id(
    flow: str, config: PipelineConfig, policy: Policy, content: dict[str, Any], round_index: int
) -> str:
    """Return the id of a run: name, flow or round, and a hash of all that decides its rows.

    ``content`` is what decides the prompts beyond the configuration.
    """
    # `rounds` says how many there will be, not what this one makes; a model is its content.
    values = {k: v for k, v in config.deciding().items() if k not in {"rounds", "policy"}}
    digits = content_hash([flow, values, policy.fingerprint, content, round_index])[:10]
    kind = f"round{round_index}" if round_index else flow
    return f"{config.name}-{kind}-{digits}"


@cache
def code_version() -> str:
    """Return prefmill's version, in a git checkout with its commit and whether it is modified."""
    root = Path(__file__).parent.parent
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return version("prefmill")
    suffix = f"+{commit.stdout.strip()}" if commit.stdout else ""
    return version("prefmill") + suffix
