"""The commented `configs/refresh.yaml` runs, with the bundled model in the real one's place."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from flows.configuration import resolve

ROOT = Path(__file__).parents[2]


def test_the_shipped_refresh_configuration_makes_pairs(run_cli, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    values = yaml.safe_load((ROOT / "configs" / "refresh.yaml").read_text())
    values["policy"] = "bundled"
    values["generation"] |= {"max_completion_tokens": 48, "samples_per_prompt": 2}
    values["generation"]["generators"][0]["threads"] = 1
    source = values["prompts"]["sources"][0]
    few = (ROOT / source["path"]).read_text().splitlines(keepends=True)[::6]
    source["path"] = str(tmp_path / "few.jsonl")
    (tmp_path / "few.jsonl").write_text("".join(few))
    config = tmp_path / "refresh.yaml"
    config.write_text(yaml.safe_dump(values))
    code, out, err = run_cli("refresh", "-c", config, "-w", tmp_path / "w", "--json")
    assert code == 0, err
    (run,) = json.loads(out)["runs"]
    counts = {(row["step"], row["split"]): row["rows"] for row in run["funnel"]}
    assert counts["prompts", "train"] + counts["prompts", "heldout"] == 50
    assert counts["candidates", "train"] == 2 * counts["prompts", "train"]
    assert counts["kept", "train"] > 0
    assert run["round"] is None

    code, out, err = run_cli("refresh", "-c", config, "-w", tmp_path / "w", "--json")
    assert (code, json.loads(out)["runs"]) == (0, []), err
    assert "nothing to do: no new prompts: earlier runs have had all 50" in err


def test_what_is_commented_out_is_right_too():
    text = (ROOT / "configs" / "refresh.yaml").read_text()
    body = text.split("\nname: ")[1]
    # Keys are in lower case, sentences begin with a capital letter.
    body = re.sub(r"(?m)^( *)# ( *(?:- )?[a-z_]+:(?: |$))", r"\1\2", body)
    config = resolve(yaml.safe_load(f"name: {body}"), "refresh.yaml")
    assert [source.kind for source in config.prompts.sources] == [
        "file",
        "dataset",
        "query",
        "list",
    ]
    engines = [generator.engine for generator in config.generation.generators]
    assert engines == ["transformers", "vllm", "openai"]
    kinds = [scorer.kind for scorer in config.scoring.scorers]
    assert kinds == ["rules", "votes", "reward_model", "judge", "jury"]
    assert config.prompts.gold is not None
    assert config.budget.max_cost == 20.0
