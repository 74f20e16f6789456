"""Bad input: one sentence that says what, where and what to do; exit code 3; nothing lost."""

from __future__ import annotations

import json

import polars as pl
import pytest

from lineage.records import list_runs
from lineage.workspace import Workspace


def prompts_from(path, **rest):
    return {"sources": [{"kind": "file", "name": "mine", "path": str(path), **rest}]}


def refused(run_cli, *arguments):
    code, out, err = run_cli(*arguments)
    assert code == 3, (code, out, err)
    assert "Traceback" not in err
    assert "could not be written" not in err
    return err


def test_a_missing_prompts_file(run_cli, small_config, tmp_path):
    config = small_config(prompts=prompts_from(tmp_path / "nowhere.jsonl"))
    err = refused(run_cli, "refresh", "-c", config, "-w", tmp_path / "w")
    assert "nowhere.jsonl" in err
    assert not (tmp_path / "w" / "runs").exists(), "found before anything was started"


def test_a_broken_jsonl_line_is_named_with_line_and_column(run_cli, small_config, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b",,}\n')
    err = refused(
        run_cli, "refresh", "-c", small_config(prompts=prompts_from(path)), "-w", tmp_path
    )
    assert f"{path}, line 2, column 16" in err
    (run,) = list_runs(Workspace(tmp_path))
    assert run.status == "failed"
    assert "line 2" in run.error
    report = (tmp_path / "runs" / run.run_id / "report.html").read_text()
    assert "line 2" in report, "the report of a failed run says why"


def test_an_empty_dataset(run_cli, small_config, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n")
    err = refused(
        run_cli, "refresh", "-c", small_config(prompts=prompts_from(path)), "-w", tmp_path
    )
    assert "no prompts to sample" in err
    assert "'mine'" in err


@pytest.mark.parametrize(
    ("sections", "wrong", "near"),
    [
        ({"generation": {"temprature": 1}}, "generation.temprature", "temperature"),
        ({"filter": {}}, "'filter'", "filters"),
        ({"training": {"learning_rat": 1}}, "training.learning_rat", "learning_rate"),
    ],
)
def test_an_unknown_key_names_the_nearest(run_cli, small_config, tmp_path, sections, wrong, near):
    err = refused(run_cli, "refresh", "-c", small_config(**sections), "-w", tmp_path / "w")
    assert wrong in err
    assert f"nearest known: {near}" in err
    assert not (tmp_path / "w").exists()


def test_a_prompt_longer_than_the_context_stops_before_generation(run_cli, small_config, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "word " * 400}) + "\n" + json.dumps({"prompt": "a"}))
    err = refused(
        run_cli, "refresh", "-c", small_config(prompts=prompts_from(path)), "-w", tmp_path
    )
    assert "1 of 2 prompts are too long" in err
    assert not list((tmp_path / "store" / "candidates").rglob("*.parquet"))


def test_candidates_without_scores_make_no_pairs_but_are_kept(run_cli, small_config, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "no verifier knows this"}\n{"prompt": "nor this"}\n')
    config = small_config(prompts=prompts_from(path, heldout_share=0.0))
    err = refused(run_cli, "refresh", "-c", config, "-w", tmp_path)
    assert "'rules' gave none of 8 candidates a score" in err
    assert f'FROM judgments GROUP BY ALL" -w {tmp_path}`' in err, "it can be pasted"
    assert list((tmp_path / "store" / "candidates").rglob("*.parquet"))
    code, out, _ = run_cli("sql", "-w", tmp_path, "--format", "json", "FROM funnel")
    assert code == 0
    assert {(r["step"], r["rows"]) for r in json.loads(out)} >= {("candidates", 8), ("pairs", 0)}


def test_all_candidates_tied(run_cli, small_config, tmp_path):
    config = small_config(generation={"temperature": 0.0})
    err = refused(run_cli, "refresh", "-c", config, "-w", tmp_path)
    assert "of 40 prompts 40 have only tied candidates" in err


def test_nothing_left_says_which_filter_took_how_many(run_cli, small_config, tmp_path):
    config = small_config(filters={"minimum_margin": 1.1})
    err = refused(run_cli, "refresh", "-c", config, "-w", tmp_path)
    assert "nothing is left of" in err
    assert "margin dropped" in err
    assert "(limit 1.1)" in err
    code, out, _ = run_cli("sql", "-w", tmp_path, "--format", "json", "FROM drops")
    assert code == 0
    assert {row["reason"] for row in json.loads(out)} >= {"margin_below_minimum"}


def test_a_workspace_that_cannot_be_written(run_cli, small_config, tmp_path):
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "store").write_text("a file where a folder must be")
    err = refused(run_cli, "refresh", "-c", small_config(), "-w", occupied)
    assert "cannot write to the workspace" in err


def test_an_unknown_run_names_the_nearest(run_cli, small_config, tmp_path):
    refused(run_cli, "report", "--run", "demo", "-w", tmp_path)
    config = small_config(filters={"minimum_margin": 1.1})
    refused(run_cli, "refresh", "-c", config, "-w", tmp_path)
    (run,) = list_runs(Workspace(tmp_path))
    err = refused(run_cli, "report", "--run", run.run_id[:-3] + "xyz", "-w", tmp_path)
    assert run.run_id in err


@pytest.mark.parametrize(
    "command",
    [
        ("runs",),
        ("resume",),
        ("why", "latest"),
        ("sql", "FROM runs"),
        ("diff", "latest"),
        ("report",),
        ("export", "--out", "pairs"),
        ("train",),
        ("lineage", "rebuild"),
        ("lineage", "gc", "--keep", 1),
    ],
    ids=lambda command: " ".join(map(str, command)),
)
def test_a_misspelt_workspace_is_none(command, run_cli, tmp_path):
    err = refused(run_cli, *command, "-w", tmp_path / "typo")
    assert err.startswith("prefmill: there is no workspace. ")
    assert f"Where: {tmp_path / 'typo'}. " in err
    assert not list(tmp_path.iterdir()), "none is made"


def test_a_policy_that_is_not_there(run_cli, small_config, tmp_path):
    err = refused(
        run_cli, "refresh", "-c", small_config(policy="no/such-model"), "-w", tmp_path / "w"
    )
    assert "no/such-model" in err


def test_a_missing_configuration_and_a_wrong_command_line(run_cli, tmp_path):
    assert "nowhere.yaml" in refused(run_cli, "refresh", "-c", tmp_path / "nowhere.yaml")
    code, _, err = run_cli("refresh", "--no-such-option")
    assert code == 2
    assert "no-such-option" in err


def test_a_broken_must_stops_the_stage_and_names_the_rows(
    run_cli, small_config, tmp_path, monkeypatch
):
    from stages import scoring

    judge = scoring.judge_by_rules
    planted: list[str] = []

    def broken(candidates, prompts, scorer):
        judgments = judge(candidates, prompts, scorer)
        planted.append(judgments["judgment_id"][3])
        first = pl.col("judgment_id") == planted[0]
        return judgments.with_columns(
            score=pl.when(first).then(float("inf")).otherwise(pl.col("score"))
        )

    monkeypatch.setattr(scoring, "judge_by_rules", broken)
    err = refused(run_cli, "refresh", "-c", small_config(), "-w", tmp_path)
    assert planted[0] in err
    assert "score" in err
    stages = [path.stem for path in tmp_path.glob("runs/*/stages/*.json")]
    assert sorted(stages) == ["generate", "prompts"]
    monkeypatch.undo()


def test_a_ground_truth_that_cannot_be_used_stops_before_generation(
    run_cli, small_config, tmp_path
):
    path = tmp_path / "prompts.jsonl"
    rows = [
        {"prompt": "1 + 1?", "verifier": "numeric", "truth": {"answer": 2}},
        {"prompt": "2 + 2?", "verifier": "numeric", "truth": {"answr": 4}},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    columns = {"verifier_column": "verifier", "ground_truth_column": "truth"}
    config = small_config(prompts=prompts_from(path, heldout_share=0.0, **columns))
    err = refused(run_cli, "refresh", "-c", config, "-w", tmp_path)
    assert "answr" in err
    assert "nearest known: answer" in err
    assert not list((tmp_path / "store" / "candidates").rglob("*.parquet"))
