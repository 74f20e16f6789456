"""A series that is killed in its second round ends as one that nothing disturbed."""

from __future__ import annotations

import json
import signal
import time

import pytest
import yaml

from lineage.records import list_runs
from lineage.workspace import Workspace
from tests.flows.small import SMALL
from tests.flows.test_kill_anywhere import assert_same, launch, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

PROMOTED = {
    "gate": {"force": True},
    "reference": "moving_average",
    "mix_earlier_rounds": {"share": 0.4},
    "rounds": 3,
}
HELD = {
    "gate": {"minimum_win_rate": 1.0},
    "reference": "initial",
    "stop_after_held": 3,
    "rounds": 2,
}
PROMPTS = {"sources": [{"kind": "bundled", "train": 12, "heldout": 10}]}


def kill_in_second_round(process, workspace, stage):
    """Kill once the second round has finished ``stage``, in the middle of the next one's work."""
    while not list(workspace.glob(f"runs/*-round2-*/stages/{stage}.json")):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def outcome(workspace):
    """What the series came to: its runs with their models, and what is promoted."""
    runs = {
        run.run_id: (run.status, {**run.config, "policy": None, "average_policy": None})
        for run in list_runs(Workspace(workspace))
    }
    pointer = workspace / "models" / "small.promoted.json"
    return runs, json.loads(pointer.read_text()) if pointer.exists() else None


@pytest.mark.parametrize(
    ("ended", "by_resume"), [(PROMOTED, True), (HELD, False)], ids=["promoted", "held"]
)
def test_it_goes_on_in_the_round_and_stage_that_it_was_in(
    prefect_server, tmp_path, ended, by_resume
):
    values = {**SMALL, "prompts": PROMPTS, "start_from": "promoted", **ended}
    config = tmp_path / "series.yaml"
    config.write_text(yaml.safe_dump(values))
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start(config, undisturbed, prefect_server).wait(900) == 0
    for stage in ("generate", "train"):
        kill_in_second_round(start(config, killed, prefect_server), killed, stage)
    assert [run.status for run in list_runs(Workspace(killed))] == ["dead", "completed"]
    if by_resume:
        config.unlink()
        again = launch(killed, prefect_server, "resume", "latest")
    else:
        again = start(config, killed, prefect_server)
    assert again.wait(900) == 0
    assert outcome(killed) == outcome(undisturbed)
    assert len(outcome(killed)[0]) == ended["rounds"]
    assert_same(undisturbed, killed)
    log = (tmp_path / "killed.log").read_text()
    assert log.count("round 3 of 3") == ended["rounds"] - 2
    assert not list((killed / "store" / "series").glob("*.json")), "the next series starts anew"
