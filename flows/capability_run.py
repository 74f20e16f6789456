"""A capability card as a run of its own, recorded like any other."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from flows.capability_card import make_card
from flows.models import find_policy
from flows.stage_runner import RunContext
from flows.tracked_run import recorded, run_record
from stages.content_ids import content_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    with recorded(workspace, run_record(workspace, context.run_id, FLOW, config)):
        make_card(context, config, policies)
    return context.run_id
