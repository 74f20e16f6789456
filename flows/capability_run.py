"""A capability card as a run of its own, recorded like any other."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

from flows.capability_card import make_card
from flows.models import find_policy
from flows.stage_runner import MAX_ERROR, RunContext, utc_now
from flows.tracked_run import code_version
from flows.vllm_server import stop_all
from lineage.database import publish
from lineage.liveness import at_work
from lineage.records import RunRecord, read_run, write_run
from stages.content_ids import content_hash
from stages.errors import PrefmillError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from flows.configuration import PipelineConfig
    from flows.models import Policy
    from lineage.workspace import Workspace

FLOW = "card"


def named_policies(models: Sequence[str]) -> list[Policy]:
    """Return the policies of a card; folders of the same name go by their paths.

    Raises:
        MissingFileError: a model is neither a folder nor on the hub.
        ModelError: a folder holds no model.
    """
    found = [find_policy(model) for model in models]
    names = [policy.name for policy in found]
    return [
        dataclasses.replace(policy, name=model) if names.count(policy.name) > 1 else policy
        for policy, model in zip(found, models, strict=True)
    ]


def run_card(workspace: Workspace, config: PipelineConfig, policies: Sequence[Policy]) -> str:
    """Make the card of ``policies`` as a run of its own, and return the run's id.

    Raises:
        PrefmillError: as `make_card`; the run is recorded as failed.
    """
    values = {k: v for k, v in config.deciding().items() if k in {"generation", "scoring"}}
    about = [values, config.evaluation.deciding(), config.gate.deciding(), config.seed]
    digits = content_hash([about, [policy.identity for policy in policies]])[:10]
    context = RunContext(workspace, f"{config.name}-{FLOW}-{digits}")
    with at_work(workspace, context.run_id), _recorded(context, config):
        make_card(context, config, policies)
    publish(workspace)
    return context.run_id


@contextlib.contextmanager
def _recorded(context: RunContext, config: PipelineConfig) -> Iterator[None]:
    """Record the run and how it ended."""
    workspace, run_id = context.workspace, context.run_id
    earlier = read_run(workspace, run_id)
    record = RunRecord(
        run_id=run_id,
        flow=FLOW,
        name=config.name,
        round_index=0,
        config=config.model_dump(mode="json"),
        code_version=code_version(),
        status="running",
        started_at=earlier.started_at if earlier else utc_now(),
        attempts=earlier.attempts + 1 if earlier else 1,
    )
    write_run(workspace, record)
    status, error = "completed", None
    try:
        yield
    except BaseException as found:
        status, error = "failed", f"{type(found).__name__}: {found}"[:MAX_ERROR]
        raise
    finally:
        stop_all()
        ended = dataclasses.replace(record, status=status, error=error, ended_at=utc_now())
        with contextlib.suppress(PrefmillError, OSError):  # the first error is the one to tell
            write_run(workspace, ended)
