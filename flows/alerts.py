"""Alerts: what a run tells Prefect's server when it ends, and what the server does about it.

A run that ends by a broken check or at a gate sends an event with its id and a sentence; no text
of a prompt or a completion is in it. The automations here pass those events, and the deployed runs
that failed or crashed, on to a webhook, and mark a run as crashed that is silent.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from flows.prefect_requests import asked
from flows.run_outputs import read_output
from stages.content_ids import content_hash
from stages.errors import ConfigError, ValidationError

if TYPE_CHECKING:
    from pathlib import Path

    from lineage.workspace import Workspace

BROKEN = "prefmill.validation.failed"
HELD = "prefmill.gate.held"
PROMOTED = "prefmill.gate.promoted"
FAILED = "prefmill.flow-run.failed"
CRASHED = "prefmill.flow-run.crashed"
DONE = "prefmill.flow-run.ended"
"""Otherwise: it completed, or somebody cancelled it."""
ALERTED = (BROKEN, HELD, PROMOTED, FAILED, CRASHED)

BLOCK = "prefmill-alerts"
"""The Webhook block that holds the address, encrypted in the server's database."""
SILENT_SECONDS = 300
"""A run beats every half minute; on a busy machine a few beats come late."""
ENDED = [f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")]
AS_JSON = '{"text": {{ text | tojson }}}'


def tell_ending(workspace: Workspace, run_id: str, error: BaseException | None = None) -> None:
    """Send the event of how a run ended, if it has one and a server is there that may listen."""
    if not os.environ.get("PREFECT_API_URL"):
        return
    found = _ending(workspace, run_id, error)
    if found:
        event, sentence = found
        send_event(event, workspace.root, run_id, sentence)


def send_event(event: str, root: Path, run_id: str, sentence: str = "") -> None:
    """Send an event about a run; only within a process that Prefect's settings are made for."""
    from prefect.events import emit_event

    payload = {"run_id": run_id, "workspace": str(root), "sentence": sentence}
    resource = {"prefect.resource.id": f"prefmill.run.{run_id}", "prefect.resource.name": run_id}
    emit_event(event, resource=resource, payload=payload)


def tell_of_flow_run(flow: Any, flow_run: Any, state: Any) -> None:
    """Send the event that a deployed flow's run ended; a hook, which a worker calls for a dead one.

    Prefect's own event of it comes 15 minutes late where the scheduler made the run: it waits for
    one before it that is never sent.
    """
    from prefect.events import emit_event

    event = {"Failed": FAILED, "Crashed": CRASHED}.get(state.name, DONE)
    sentence = f"the run {flow_run.name} of {flow.name} {state.name.lower()}"
    resource = {
        "prefect.resource.id": f"prefect.flow-run.{flow_run.id}",
        "prefect.resource.name": flow_run.name,
    }
    emit_event(event, resource=resource, payload={"sentence": sentence})


def _ending(
    workspace: Workspace, run_id: str, error: BaseException | None
) -> tuple[str, str] | None:
    """Return event and sentence of a run's end; None for one that nobody asked to hear of."""
    if isinstance(error, ValidationError):
        # Its text names rows by ids, which may come from the data.
        return BROKEN, f"{run_id} stopped: a check that must hold is broken at {error.where}"
    rounds = read_output(workspace, run_id, "gate", "rounds").to_dicts()
    if error is not None or not rounds:
        return None
    gates = read_output(workspace, run_id, "gate", "gates").sort("criterion").to_dicts()
    missed = [
        f"{gate['criterion']} is {gate['value']:.4g}, limit {gate['limit']:.4g}"
        for gate in gates
        if not gate["passed"] and None not in {gate["value"], gate["limit"]}
    ]
    if rounds[0]["promoted"]:
        forced = f" by force, though {'; '.join(missed)}" if missed else ""
        return PROMOTED, f"{run_id}: the gate promoted the model{forced}"
    return HELD, f"{run_id}: the gate held the model: {'; '.join(missed)}"


def set_up(api_url: str, webhook: str | None = None) -> None:
    """Make or update the automations of the server; alerts go to ``webhook``, None: as before.

    Raises:
        ConfigError: ``webhook`` is no address.
        EndpointError: the server refuses.
    """
    block = _webhook_block(api_url, webhook)
    _automate(api_url, _silent_is_crashed(block))
    if block is not None:
        _automate(api_url, _alert(block))


def _silent_is_crashed(block: str | None) -> dict[str, Any]:
    """Return what ends a run in Prefect whose process and worker are both gone.

    It would hold its place in the queue `gpu`, which runs one at a time, for ever.
    """
    beat = "prefect.flow-run.heartbeat"
    crashed = {
        "type": "change-flow-run-state",
        "state": "CRASHED",
        "message": f"no sign of life for {SILENT_SECONDS} s: its process is gone",
    }
    text = "prefmill: the run {{ flow_run.name }} of {{ flow.name }} gives no sign of life"
    return {
        "name": "prefmill: a run that is silent has crashed",
        "description": "Its process is gone; what it finished is kept, the next run goes on.",
        "trigger": {
            "type": "event",
            "posture": "Proactive",
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "for_each": ["prefect.resource.id"],
            "after": [beat],
            "expect": [beat, *ENDED, FAILED, CRASHED, DONE],
            "threshold": 1,
            "within": SILENT_SECONDS,
        },
        "actions": [crashed, *([_posting(block, text)] if block else [])],
    }


def _alert(block: str) -> dict[str, Any]:
    """Return what passes the events of ALERTED on."""
    return {
        "name": "prefmill: alerts",
        "description": f"Posts to the Webhook block {BLOCK!r}.",
        "trigger": {
            "type": "event",
            "posture": "Reactive",
            "match": {"prefect.resource.id": ["prefmill.run.*", "prefect.flow-run.*"]},
            "expect": list(ALERTED),
            "threshold": 1,
            "within": 0,
        },
        "actions": [_posting(block, "{{ event.event }}: {{ event.payload.sentence }}")],
    }


def _posting(block: str, text: str) -> dict[str, Any]:
    """Return the action that posts ``text``, as Slack and its like take it.

    The server makes it JSON, whatever is in it.
    """
    payload = f"{{% set text %}}{text}{{% endset %}}{AS_JSON}"
    return {"type": "call-webhook", "block_document_id": block, "payload": payload}


def _automate(api_url: str, automation: dict[str, Any]) -> None:
    """Make an automation, or bring the one of its name up to date; switched off, it stays so.

    One that is as it shall be is not touched: an update makes the server forget whom it waits for.
    """
    tags = [f"prefmill-{content_hash(automation)[:10]}"]
    same = {"automations": {"name": {"any_": [automation["name"]]}}}
    known = asked(api_url, "automations/filter", same)
    if not known:
        asked(api_url, "automations/", {**automation, "tags": tags})
    elif known[0]["tags"] != tags:
        values = {**automation, "tags": tags, "enabled": known[0]["enabled"]}
        asked(api_url, f"automations/{known[0]['id']}", values, "PUT")


def _webhook_block(api_url: str, webhook: str | None) -> str | None:
    """Return the id of the block that holds the address, made or updated; None: there is none."""
    if webhook is not None and not webhook.startswith(("http://", "https://")):
        raise ConfigError(
            "the alerts' webhook is no address",
            expected="one that begins with https:// or http://",
            where="--alert-webhook",
        )
    kind = asked(api_url, "block_types/slug/webhook")["id"]
    named = {"block_documents": {"name": {"any_": [BLOCK]}, "block_type_id": {"any_": [kind]}}}
    known = [block["id"] for block in asked(api_url, "block_documents/filter", named)]
    if webhook is None:
        return known[0] if known else None
    of_kind = {"block_schemas": {"block_type_id": {"any_": [kind]}}, "limit": 1}
    schema = asked(api_url, "block_schemas/filter", of_kind)[0]["id"]
    headers = {"Content-Type": "application/json"}
    data = {"method": "POST", "url": webhook, "headers": headers}
    values: dict[str, Any] = {"data": data, "block_schema_id": schema}
    if known:
        asked(api_url, f"block_documents/{known[0]}", values, "PATCH")
        return str(known[0])
    values |= {"name": BLOCK, "block_type_id": kind}
    return str(asked(api_url, "block_documents/", values)["id"])
