"""The record of a run: opened before the first stage, closed however it ends, then published.

A run whose process dies closes nothing; its record says `running`, and whoever reads it sees that
nobody is at work on it (`lineage/liveness.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from flows.alerts import tell_ending
from flows.interruption import listen
from flows.progress import say
from flows.prompt_choice import content_of
from flows.stage_runner import MAX_ERROR, RunContext, utc_now
from flows.vllm_server import end_of_run
from lineage.database import publish
from lineage.disk_full import disk_full, is_disk_full
from lineage.liveness import at_work
from lineage.records import RunRecord, read_run, write_run
from lineage.workspace import commit_bytes
from stages.content_ids import content_hash
from stages.errors import PrefmillError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from flows.configuration import PipelineConfig
    from flows.models import Policy
    from lineage.workspace import Workspace


@contextlib.contextmanager
def tracked_run(
    workspace: Workspace,
    flow: str,
    config: PipelineConfig,
    policy: Policy,
    round_index: int = 0,
    reference: Policy | None = None,
) -> Iterator[RunContext]:
    """Yield the context of a run and record how it ended; the lineage is published either way.

    The run id comes from the resolved configuration, the policy, a reference that is another
    model, and the sources' content: the same work has the same id, and starting it again
    continues it.
    """
    content = content_of(workspace, config)
    if reference is not None and reference.fingerprint != policy.fingerprint:
        content["reference"] = reference.fingerprint
    run_id = make_run_id(flow, config, policy, content, round_index)
    with recorded(workspace, run_record(workspace, run_id, flow, config, round_index)):
        yield RunContext(workspace, run_id)


def run_record(
    workspace: Workspace, run_id: str, flow: str, config: PipelineConfig, round_index: int = 0
) -> RunRecord:
    """Return the record of a run that begins now, or begins again."""
    if config.prompts.of_run == run_id:  # it goes on with its own: recorded as it first began
        prompts = config.prompts.model_copy(update={"of_run": None})
        config = config.model_copy(update={"prompts": prompts})
    record = RunRecord(
        run_id=run_id,
        flow=flow,
        name=config.name,
        round_index=round_index,
        config=config.model_dump(mode="json"),
        code_version=code_version(),
        status="running",
        started_at=utc_now(),
    )
    return begun(workspace, record)


def begun(workspace: Workspace, record: RunRecord) -> RunRecord:
    """Return the record of a run that begins now, with what is known of it if it begins again."""
    earlier = read_run(workspace, record.run_id)
    if earlier is None:
        return record
    return dataclasses.replace(
        record,
        started_at=earlier.started_at,
        # That of a run that had completed stays: those after it are compared with it again.
        ended_at=earlier.ended_at if earlier.status != "failed" else None,
        attempts=earlier.attempts + 1,
    )


@contextlib.contextmanager
def recorded(workspace: Workspace, record: RunRecord, *, shown: bool = True) -> Iterator[None]:
    """Be at work on a run: write its record, and how it ended.

    If it is ``shown``, the lineage is published and its pages are drawn.
    """
    listen()
    with at_work(workspace, record.run_id):
        write_run(workspace, record)
        text = yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True)
        commit_bytes(workspace.stored_config(record.run_id), text.encode())
        try:
            yield
        except BaseException as error:
            told = _told(workspace, error)
            with contextlib.suppress(PrefmillError, OSError):  # the first error is the one to tell
                _close(workspace, record, told, shown=shown)
            if told is error:
                raise
            raise told from error
        finally:
            end_of_run()
        _close(workspace, record, shown=shown)


def _told(workspace: Workspace, error: BaseException) -> BaseException:
    """Return the error to tell of: a full disk is said with what is free where."""
    if isinstance(error, PrefmillError) or not is_disk_full(error):
        return error
    named = getattr(error, "filename", None)
    return disk_full(error, Path(named) if named else workspace.root / "a file of the workspace")


def _close(
    workspace: Workspace, record: RunRecord, error: BaseException | None = None, *, shown: bool
) -> None:
    """Write how the run ended; if ``shown``, publish, draw the report and make the artifacts."""
    # A clock that was set back meanwhile gives no run that ended before it began.
    now = max(utc_now(), record.started_at)
    outcome: dict[str, Any] = {"status": "completed", "ended_at": record.ended_at or now}
    if error is not None:
        text = f"{type(error).__name__}: {error}"[:MAX_ERROR]
        outcome = {"status": "failed", "ended_at": now, "error": text}
    write_run(workspace, dataclasses.replace(record, **outcome))
    if not shown:
        return
    tell_ending(workspace, record.run_id, error)
    publish(workspace)
    from flows.artifacts import show_run

    try:
        show_run(workspace, record.run_id)
    except Exception as undrawn:  # noqa: BLE001 - a picture that can't be drawn is no failed run
        say(f"report.html could not be written: {type(undrawn).__name__}: {undrawn}")


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
