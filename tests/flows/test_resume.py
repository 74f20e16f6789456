"""`prefmill resume` goes on with what failed or died, and with nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from flows import curation
from lineage.records import list_runs
from lineage.workspace import Workspace
from stages.errors import DataError
from stages.prompt_sampling import PromptSamplingConfig, sample
from tests.flows.test_kill_anywhere import ROOT, committed, start

SMALLER = {"prompts": {"sources": [{"kind": "bundled", "train": 10, "heldout": 4}]}}


def as_file(path):
    """Write bundled prompts as a user's file; return the section that samples from it."""
    prompts = sample(PromptSamplingConfig.checked(SMALLER["prompts"])).prompts
    rows = prompts.select("messages", "verifier", "ground_truth").to_dicts()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "file", "name": "mine", "path": str(path), "heldout_share": 0.3}
    source |= {f"{name}_column": name for name in ("verifier", "ground_truth")}
    return {"prompts": {"sources": [source]}}


def test_a_failed_refresh_goes_on_with_its_stored_configuration_and_prompts(
    run_cli, small_config, tmp_path, monkeypatch
):
    workspace, where = Workspace(tmp_path / "w"), ("-w", tmp_path / "w")
    prompts = tmp_path / "prompts.jsonl"

    def fails(*_):
        raise DataError("no room")

    config = small_config(**as_file(prompts))
    with monkeypatch.context() as patch:
        patch.setattr(curation, "export_pairs", fails)
        assert run_cli("refresh", "-c", config, *where)[0] == 3
    config.unlink()  # what is stored is enough
    prompts.write_text('{"prompt": "another one by now"}\n')
    (failed,) = list_runs(workspace)
    before = committed(workspace.root)
    code, out, err = run_cli("resume", "--json", *where)
    assert (code, [run["run_id"] for run in json.loads(out)]) == (0, [failed.run_id])

    code, out, err = run_cli("resume", "latest", *where)
    assert code == 0, err
    assert f"{failed.run_id}: prompts, generate, judge:rules" in err
    assert "it stopped: DataError: no room" in err
    (run,) = list_runs(workspace)
    assert (run.run_id, run.status, run.attempts) == (failed.run_id, "completed", 2)
    assert before.items() <= committed(workspace.root).items(), "nothing was made twice"

    for asked, sentence in [
        ("latest", "there is no run to continue"),
        (run.run_id[:8], "can't be continued: it is a refresh, completed"),
        ("nothing", "unknown run 'nothing'"),
    ]:
        code, _, err = run_cli("resume", asked, *where)
        assert code == 3
        assert sentence in err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_series_goes_on_with_the_round_it_was_in(prefect_server, small_config, tmp_path):
    config, root = small_config(**SMALLER, rounds=2, gate={"force": True}), tmp_path / "w"
    process = start(config, root, prefect_server)
    while process.poll() is None and len(list_runs(Workspace(root))) < 2:
        time.sleep(0.05)
    before = len(committed(root))
    while process.poll() is None and len(committed(root)) < before + 4:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    config.unlink()
    second, first = list_runs(Workspace(root))
    assert (first.status, second.status) == ("completed", "dead")

    environment = {**os.environ, "PREFECT_API_URL": prefect_server}
    command = [sys.executable, "-m", "flows.cli", "resume", "latest", "-w", root]
    done = subprocess.run(  # noqa: PLW1510 - asserted below, with the output
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{second.run_id}: prompts" in done.stderr
    runs = list_runs(Workspace(root))
    assert [(run.run_id, run.status) for run in runs] == [
        (second.run_id, "completed"),
        (first.run_id, "completed"),
    ]
