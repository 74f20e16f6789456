"""`prefmill resume` goes on with what failed or died, and with nothing else."""

from __future__ import annotations

import json

from flows import curation
from lineage.records import list_runs
from lineage.workspace import Workspace
from stages.errors import DataError
from stages.prompt_sampling import PromptSamplingConfig, sample
from tests.flows.test_kill_anywhere import committed

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
