"""The real command on real input, small: one process, one Prefect server, the bundled model."""

from __future__ import annotations

import glob
import json
import shutil
from pathlib import Path

import datasets
import pytest

from lineage.records import list_runs, read_stage_runs, require_run
from lineage.workspace import Workspace, stage_record_path
from stages.part_files import read_parts
from stages.tables import (
    CAPABILITIES,
    CAPABILITY_ITEMS,
    EDITS,
    LABEL_NOISE,
    NOISE_RATES,
    PAIR_MEASURES,
    PAIR_SIGNATURES,
    ROW_TABLES,
    TRAININGS,
)

STAGES = 15


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workspace in which `rounds` ran once; filled by the first test that asks for it."""
    return tmp_path_factory.mktemp("finished") / "my [1] workspace"


@pytest.fixture
def workspace(finished, run_cli, small_config):
    if not (finished / "lineage.duckdb").exists():
        code, out, err = run_cli("rounds", "-c", small_config(), "-w", finished, "--json")
        assert code == 0, err
        (finished / "summary.json").write_text(out)
    return finished


def summary(workspace: Path) -> dict:
    return json.loads((workspace / "summary.json").read_text())


def test_a_round_makes_every_table_and_says_where(workspace):
    (run,) = summary(workspace)["runs"]
    assert run["status"] == "completed"
    # Label noise has no rows: one scorer, rules, and nothing that could tell of its errors.
    # Not estimated, not looked for, a sweep's, an editor's, a file's, and a capability card's
    absent = (LABEL_NOISE, NOISE_RATES, PAIR_SIGNATURES, PAIR_MEASURES, EDITS, TRAININGS)
    absent += (CAPABILITIES, CAPABILITY_ITEMS)
    for schema in [table for table in ROW_TABLES if table not in absent]:
        assert list((workspace / "store" / schema.name).glob("*/*.parquet")), schema.name
    counts = {(r["step"], r["split"]): r["rows"] for r in run["funnel"]}
    assert counts["prompts", "train"] == counts["prompts", "heldout"] == 20
    assert counts["candidates", "train"] == 20 * 4
    assert counts["candidates", "heldout"] == 20 * 2
    assert counts["pairs", "train"] <= 20
    dropped = sum(
        n for (step, split), n in counts.items() if "dropped" in step and split == "train"
    )
    assert counts["kept", "train"] + dropped == counts["pairs", "train"]
    for path in [*run["exports"], run["report"], workspace / run["round"]["result_path"]]:
        assert Path(path).exists()
    assert {(e["metric"], e["decoding"]) for e in run["evaluations"]} >= {
        ("success", "sampled"),
        ("success", "greedy"),
        ("length_controlled_win_rate", "sampled"),
        ("kl_nats", "sampled"),
    }


def test_the_export_is_what_trl_loads_and_never_mixes_splits(workspace):
    (run,) = summary(workspace)["runs"]
    by_name = {Path(path).name: path for path in run["exports"]}
    loaded = datasets.load_dataset(
        "json", data_files=glob.escape(by_name["train.jsonl"]), split="train"
    )
    assert {"prompt", "chosen", "rejected"} <= set(loaded.column_names)
    assert loaded[0]["chosen"][0]["role"] == "assistant"
    heldout = read_parts(Path(by_name["heldout.parquet"]))
    train = read_parts(Path(by_name["train.parquet"]))
    assert train.join(heldout, on="prompt", how="semi").is_empty()


def test_the_trained_model_loads_and_its_round_is_recorded(workspace):
    from transformers import AutoModelForCausalLM

    from stages.content_ids import weights_hash

    (run,) = summary(workspace)["runs"]
    folder = workspace / run["round"]["result_path"]
    AutoModelForCausalLM.from_pretrained(folder)
    assert weights_hash(folder) == run["round"]["result_weights_hash"]
    assert run["round"]["base_weights_hash"] == run["round"]["reference_weights_hash"]
    assert run["round"]["result_weights_hash"] != run["round"]["base_weights_hash"]


def test_the_same_command_again_makes_nothing(workspace, run_cli, small_config):
    before = {p: p.stat().st_mtime_ns for p in (workspace / "store").rglob("*.parquet")}
    code, out, err = run_cli("rounds", "-c", small_config(), "-w", workspace, "--json")
    assert code == 0, err
    assert err.count("done before") == STAGES
    after = {p: p.stat().st_mtime_ns for p in (workspace / "store").rglob("*.parquet")}
    assert after == before
    again = json.loads(out)["runs"][0]
    assert again["round"] == summary(workspace)["runs"][0]["round"]


def test_curate_pairs_again_without_generating(workspace, run_cli, small_config):
    stricter = small_config("stricter.yaml", filters={"minimum_margin": 0.5})
    (run,) = summary(workspace)["runs"]
    before = set((workspace / "store" / "candidates").rglob("*.parquet"))
    code, out, err = run_cli(
        "curate", "--run", run["run_id"], "-c", stricter, "-w", workspace, "--json"
    )
    assert code == 0, err
    (curated,) = json.loads(out)["runs"]
    assert set((workspace / "store" / "candidates").rglob("*.parquet")) == before
    kept = {(r["split"], r["step"]): r["rows"] for r in curated["funnel"]}
    was = {(r["split"], r["step"]): r["rows"] for r in run["funnel"]}
    assert kept["train", "pairs"] == was["train", "pairs"]
    assert kept["train", "kept"] <= was["train", "kept"]


def test_curate_refuses_to_generate(workspace, run_cli, small_config, tmp_path):
    (run,) = summary(workspace)["runs"]
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(workspace, elsewhere, ignore=shutil.ignore_patterns("prefect", "models"))
    for stage in read_stage_runs(Workspace(elsewhere), run["run_id"]):
        if stage.stage == "generate":
            stage_record_path(Workspace(elsewhere), stage.stage_key).unlink()
    code, _, err = run_cli("curate", "-c", small_config(), "--run", "latest", "-w", elsewhere)
    assert code == 3
    assert "no stored candidates" in err


def test_train_uses_a_stored_run(workspace, run_cli, small_config):
    gentle = small_config("gentle.yaml", training={"learning_rate": 1e-6})
    before = set((workspace / "store" / "pairs").rglob("*.parquet"))
    (run,) = summary(workspace)["runs"]
    code, out, err = run_cli(
        "train",
        "--run",
        run["run_id"],
        "-c",
        gentle,
        "-w",
        workspace,
        "--json",
        "--require-promotion",
    )
    (trained,) = json.loads(out)["runs"]
    assert code == (0 if trained["round"]["promoted"] else 4), err
    assert trained["round"]["round_id"] != run["round"]["round_id"]
    assert set((workspace / "store" / "pairs").rglob("*.parquet")) == before


def test_a_second_round_starts_from_the_policy_promoted_by_force(
    workspace, run_cli, small_config, tmp_path
):
    texts = tmp_path / "texts.jsonl"
    turns = [{"role": "user", "content": "Add 1 + 2."}, {"role": "assistant", "content": "3."}]
    texts.write_text(json.dumps({"messages": turns}))
    strict = small_config(
        "strict.yaml",
        gate={"minimum_win_rate": 1.0, "maximum_text_loss_growth_nats": 0.0},
        evaluation={"texts": str(texts)},
    )
    code, out, err = run_cli(
        "rounds", "-c", strict, "--rounds", 2, "-w", workspace, "--json", "--force"
    )
    assert code == 0, err
    first, second = json.loads(out)["runs"]
    assert first["round"]["promoted"]
    held = [gate["criterion"] for gate in first["gates"] if not gate["passed"]]
    assert "length_controlled_win_rate/sampled lower bound" in held
    assert held[-1] == "not met, overruled by force"
    asked = {gate["criterion"]: gate["value"] for gate in first["gates"]}
    (read,) = [row for row in first["evaluations"] if row["decoding"] == "read"]
    assert read["difference"] == asked["text_nats_per_token growth"] != 0
    assert "Promoted by force" in Path(first["report"]).read_text()
    assert second["round"]["base_weights_hash"] == first["round"]["result_weights_hash"]
    prompts = {run["run_id"]: set(run_prompts(workspace, run["run_id"])) for run in (first, second)}
    assert prompts[first["run_id"]].isdisjoint(prompts[second["run_id"]])


def run_prompts(workspace: Path, run_id: str) -> list[str]:
    from flows.run_outputs import read_output

    prompts = read_output(Workspace(workspace), run_id, "prompts", "prompts")
    return prompts.filter(split="train")["prompt_id"].to_list()


def test_export_copies_and_checks_the_files(workspace, run_cli, tmp_path):
    (run,) = summary(workspace)["runs"]
    out = tmp_path / "pairs"
    code, printed, err = run_cli("export", "--run", run["run_id"], "--out", out, "-w", workspace)
    assert code == 0, err
    assert sorted(p.name for p in out.iterdir()) == [
        "heldout.jsonl", "heldout.parquet", "train.jsonl", "train.parquet",
    ]  # fmt: skip
    train = next(path for path in run["exports"] if path.endswith("train.jsonl"))
    assert (out / "train.jsonl").read_bytes() == Path(train).read_bytes()
    assert f"{out / 'train.jsonl'}" in printed
    code, story, err = run_cli("why", out / "train.jsonl", "-w", workspace, "--json")
    assert code == 0, err
    assert json.loads(story)["export"]["path"] == str(Path(train).relative_to(workspace))


def test_other_formats_of_a_run_are_beside_it(workspace, run_cli, tmp_path):
    (run,) = summary(workspace)["runs"]
    latest = require_run(Workspace(workspace), "latest").run_id
    arguments = ("export", "--run", run["run_id"], "-w", workspace, "--out", tmp_path / "lines")
    code, printed, err = run_cli(*arguments, "--format", "openai_jsonl")
    assert code == 0, err
    assert [line.rsplit("/", 1)[1].split()[0] for line in printed.splitlines()] == [
        "train.openai.jsonl", "heldout.openai.jsonl",
    ]  # fmt: skip
    (made,) = [r for r in list_runs(Workspace(workspace)) if r.flow == "export"]
    assert made.status == "completed"
    assert require_run(Workspace(workspace), "latest").run_id == latest
    sql = f"SELECT count(*) AS n FROM stale WHERE '{made.run_id}' IN (run_id, about)"
    code, out, err = run_cli("sql", "-w", workspace, "--format", "json", sql)
    assert (code, json.loads(out)) == (0, [{"n": 0}]), err
    code, _, err = run_cli(*arguments, "--format", "openai")
    assert code == 2
    assert "'openai' is none of trl_jsonl, " in err


def test_sql_why_runs_and_report_answer(workspace, run_cli):
    code, out, _ = run_cli("sql", "-w", workspace, "--format", "json", "FROM runs")
    assert code == 0
    (run,) = [r for r in json.loads(out) if r["run_id"] == summary(workspace)["runs"][0]["run_id"]]
    pair = summary(workspace)["runs"][0]["kept_example"]
    code, out, _ = run_cli("why", pair["pair_id"], "-w", workspace)
    assert code == 0
    assert pair["chosen"].splitlines()[0][:40] in out
    code, out, _ = run_cli("why", pair["pair_id"], "-w", workspace, "--json")
    assert json.loads(out)["id"] == pair["pair_id"]
    code, out, _ = run_cli("runs", "-w", workspace)
    assert run["run_id"] in out
    code, out, _ = run_cli("report", "--run", run["run_id"], "-w", workspace)
    assert Path(out.strip()).is_file()
    code, out, _ = run_cli("lineage", "rebuild", "-w", workspace)
    assert code == 0
    code, out, _ = run_cli("doctor", "-w", workspace, "--json")
    assert {f["subject"] for f in json.loads(out)} >= {"python", "torch", "workspace"}


def test_several_generators_and_planted_gold(run_cli, small_config, tmp_path):
    policy = {"engine": "transformers", "model": "policy", "threads": 1}
    generators = [policy, {**policy, "name": "cool", "temperature": 0.5, "samples_per_prompt": 1}]
    rules = {"scorers": [{"kind": "rules"}], "health": {"minimum_gold_accuracy": 1.0}}
    config = small_config(
        prompts={
            "sources": [{"kind": "bundled", "train": 10, "heldout": 5}],
            "gold": {"share": 0.3},
        },
        generation={"generators": generators},
        scoring=rules,
    )
    code, out, err = run_cli("refresh", "-c", config, "-w", tmp_path, "--json")
    assert code == 0, err
    (run,) = json.loads(out)["runs"]
    counts = {(r["step"], r["split"]): r["rows"] for r in run["funnel"]}
    assert counts["prompts", "gold"] == 3
    assert counts["candidates", "gold"] == counts["candidates scored", "gold"] == 6
    assert counts["candidates", "train"] == 10 * (4 + 1)
    assert counts["candidates", "heldout"] == 5 * (2 + 2)
    assert counts.get(("pairs", "gold"), 0) == 0
    code, out, _ = run_cli("sql", "-w", tmp_path, "--format", "json", "FROM candidates")
    assert code == 0
    rows = json.loads(out)
    found = {(r["generator"], r["model"], r["temperature"]) for r in rows}
    assert found == {("bundled", "bundled", 1.0), ("cool", "bundled", 0.5), ("gold", "gold", 0.0)}
    assert Path(run["report"]).is_file()
