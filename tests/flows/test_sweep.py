"""Sweeps: several datasets of one run's stored judgments."""

from __future__ import annotations

import json

import polars as pl
import pytest

from flows.configuration import resolve
from flows.curation import score_candidates
from flows.shards import groups
from flows.stage_runner import RunContext, StageSpec, run_stage, utc_now
from flows.sweep import sweep
from flows.sweep_page import write_page
from flows.sweep_variants import variants
from lineage.query import query
from lineage.records import RunRecord, read_stage_runs, require_run, write_run
from lineage.workspace import Workspace
from stages.errors import ConfigError, DataError
from stages.judgment_rows import as_judgments
from stages.tables import CANDIDATES, JUDGMENTS, PROMPTS
from tests.stages.rows import table_of

CONFIG = resolve(
    {
        "name": "small",
        "scoring": {
            "scorers": [
                {"kind": "rules", "name": "rules"},
                {"kind": "votes", "name": "votes", "path": "votes.jsonl"},
            ]
        },
        "filters": {"minimum_margin": 0.3},
    },
    "test",
)
RULES = [0.0, 0.25, 0.5, 1.0]
"""What `rules` gives a prompt's answers. By `votes` the second beats each of the others."""
TOKENS = [20, 25, 30, 40]


def stored(context, stage, inputs, schema, parts):
    """Write a stage output, as the flow would, and return its one dataset."""
    kind = stage.partition(":")[0]
    spec = StageSpec(kind, 1, {"stage": stage}, inputs, (schema.name,))

    def make(writer):
        for index, rows in enumerate(parts):
            writer.write(schema.name, rows, index)

    return run_stage(context, stage, spec, make).output(schema.name)


def judgments_of(candidates, scorer):
    """Return one scorer's judgments of some prompts' candidates."""
    place, of_prompt = pl.col("sample_index"), "candidate_id"
    if scorer == "votes":
        first = candidates.filter(place == 1).select("prompt_id", winner=of_prompt)
        met = candidates.filter(place != 1).join(first, on="prompt_id")
        said = met.select(
            candidate_id="winner",
            other_candidate_id=of_prompt,
            score=pl.lit(1.0),
            order=pl.lit("first"),
        )
    else:
        gold = pl.col("weights_hash") == "gold"
        score = (
            pl.when(gold)
            .then(1.0 - place)
            .otherwise(place.replace_strict(range(4), RULES, return_dtype=pl.Float64))
        )
        said = candidates.select(of_prompt, score=score)
    return as_judgments(
        said.with_columns(scorer=pl.lit(scorer), scorer_version=pl.lit("1"), raw=pl.lit(""))
    )


def prompts_of(splits):
    numbered = pl.DataFrame({"split": splits}).with_row_index("i")
    gold = pl.when(pl.col("split") == "gold").then(pl.lit("{}"))
    return filled(PROMPTS, numbered.select("split", prompt_id=pl.format("p{}", "i"), gold=gold))


def candidates_of(prompts):
    """Return four answers to each prompt, and two planted ones to each of split gold."""
    places = pl.DataFrame({"sample_index": range(4), "completion_tokens": TOKENS})
    every = prompts.select("prompt_id", "split").join(places, how="cross")
    asked = every.filter((pl.col("split") != "gold") | (pl.col("sample_index") < 2))
    place = pl.col("sample_index").cast(pl.String)
    rows = asked.select(
        "prompt_id",
        "sample_index",
        "completion_tokens",
        candidate_id=pl.col("prompt_id") + "_" + place,
        completion="answer " + place + " to " + pl.col("prompt_id"),
        weights_hash=pl.col("split"),
        finish_reason=pl.lit("stop"),
    )
    return filled(CANDIDATES, rows)


def filled(schema, frame):
    """Return ``frame`` with the columns that it lacks: null where they may be, else plain."""
    (plain,) = table_of(schema, [{"prompt_id": "p"}]).drop(frame.columns).iter_rows(named=True)
    types = schema.empty().schema
    return frame.with_columns(
        pl.lit(pl.Series([value], dtype=types[name])).first().alias(name)
        for name, value in plain.items()
    ).select(schema.column_names)


def run_with_judgments(root, splits):
    """Return a workspace with a run that has judged, as the flow leaves it."""
    workspace = Workspace(root)
    workspace.require_writable()
    context = RunContext(workspace, "small-refresh-1")
    config = CONFIG.model_dump(mode="json")
    now = utc_now()
    write_run(
        workspace,
        RunRecord(context.run_id, "refresh", "small", 0, config, "1", "completed", now, now),
    )
    rows = prompts_of(splits)
    prompts = stored(context, "prompts", (), PROMPTS, [rows])
    made = candidates_of(rows)
    candidates = stored(context, "generate", (prompts,), CANDIDATES, [made])
    of_groups = [group.frame.collect() for group in groups(workspace, candidates)]
    judgments = {
        name: stored(
            context,
            f"judge:{name}",
            (prompts, candidates),
            JUDGMENTS,
            [judgments_of(group, name) for group in of_groups],
        )
        for name in ("rules", "votes")
    }
    score_candidates(context, CONFIG, candidates, judgments)
    return workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    splits = ["train"] * 10 + ["heldout"] * 2 + ["gold"] * 2
    return run_with_judgments(tmp_path_factory.mktemp("sweep"), splits)


def swept(workspace, *written):
    return sweep(workspace, "small-refresh-1", variants(CONFIG, *written))


def test_datasets_are_compared_by_hand(workspace):
    strategies = ["best_vs_worst", "max_margin_k", "all_pairs_above_margin:minimum_margin=0.6"]
    worst, widest, above = (item.measures for item in swept(workspace, strategies))
    # Of 0, 0.25, 0.5 and 1 with 20, 25, 30 and 40 tokens; train prompts alone.
    assert worst == {
        "proposed": 10,
        "kept": 10,
        "prompts": 10,
        "mean_margin": 1,
        "median_margin": 1,
        "mean_length_gap": 20,
        "longer_chosen_rate": 1,
        "gold_accuracy": 1,
        "distinct_chosen_rate": 1,
        "distinct_bigram_rate": 0.4,  # of 3 a text, the last is its own: 12 of 30
        "agreement:rules": 1,
        "agreement:votes": None,  # ties
    }
    # Margins 1, 0.75, 0.5 and 0.5; gaps 20, 15, 10 and 10; chosen are the fourth and the third.
    assert (widest["kept"], widest["mean_margin"], widest["median_margin"]) == (40, 0.6875, 0.625)
    assert (widest["mean_length_gap"], widest["distinct_chosen_rate"]) == (13.75, 0.5)
    assert (above["kept"], above["mean_margin"]) == (20, 0.875)


def test_pairwise_verdicts_and_mixes_are_swept_too(workspace):
    (verdicts,) = swept(workspace, ["pairwise_winners"], ["votes"])
    # The second, of 25 tokens, over those of 20, 30 and 40; by `rules` it is better than the first.
    found = verdicts.measures
    assert (found["kept"], found["mean_length_gap"]) == (30, -5)
    third = pytest.approx(1 / 3)
    assert found["longer_chosen_rate"] == found["agreement:rules"] == third
    assert (found["agreement:votes"], found["gold_accuracy"]) == (1, 0)
    mixed, alone = swept(workspace, ["best_vs_worst"], ["rules*1+votes*3", "rules"])
    assert mixed.run_id != alone.run_id
    assert mixed.measures["gold_accuracy"] == 0
    sql = "SELECT scorer FROM strategy_comparison WHERE run_id = ?"
    assert query(workspace, sql, [mixed.run_id]).item() == "mix:rules*0.25+votes*0.75"


def test_each_dataset_is_a_run_and_is_made_once(workspace):
    first, again = (swept(workspace, ["best_vs_random"]) for _ in range(2))
    assert first == again
    stages = {s.stage: s for s in read_stage_runs(workspace, first[0].run_id)}
    judged = ["prompts", "generate", "judge:rules", "judge:votes", "score"]
    assert list(stages) == [*judged, "pair", "noise", "filter", "compare"]
    assert stages["pair"].made_by == first[0].run_id
    run = require_run(workspace, first[0].run_id)
    assert (run.flow, run.status, run.attempts) == ("sweep", "completed", 2)
    assert run.config["pairing"]["strategy"] == "best_vs_random"
    assert require_run(workspace, "latest").run_id == "small-refresh-1"


def test_files_are_written_when_asked_for(workspace):
    asked = variants(CONFIG, ["best_vs_worst"])
    (made,) = sweep(workspace, "small-refresh-1", asked, export=True)
    sql = "SELECT path, rows FROM exports JOIN stage_runs USING (stage_key) WHERE run_id = ?"
    files = dict(query(workspace, sql, [made.run_id]).rows())
    assert sorted(files.values()) == [2, 2, 10, 10]
    (jsonl,) = [path for path in files if path.endswith("train.jsonl")]
    assert len((workspace.root / jsonl).read_text().splitlines()) == 10


def test_the_view_says_what_was_measured(workspace):
    (made,) = swept(workspace, ["best_vs_worst"])
    sql = (
        "SELECT strategy, scorer, kept, prompts_share, mean_margin, gold_accuracy, gold_pairs, "
        "agreement['rules'], filters->>'minimum_margin' FROM strategy_comparison WHERE run_id = ?"
    )
    found = query(workspace, sql, [made.run_id]).row(0)
    assert found == ("best_vs_worst", "rules", 10, 1.0, 1.0, 1.0, 2, 1.0, "0.3")


def test_a_dataset_without_pairs_is_told_and_the_others_are_made(workspace, tmp_path):
    path = tmp_path / "sets.yaml"
    path.write_text("all: {minimum_margin: 5}\nnone: {minimum_margin: null}\n")
    nothing, some = swept(workspace, ["best_vs_worst"], [], [str(path)])
    assert (nothing.filters, some.filters) == ("all", "none")
    assert "nothing is left of 12 pairs: margin dropped 12" in nothing.error
    assert require_run(workspace, nothing.run_id).status == "failed"
    assert some.measures["kept"] == 10


def test_the_page_holds_every_name_as_text(workspace, tmp_path):
    compared = swept(workspace, ["best_vs_worst", "max_margin_k"])
    nasty = compared[0]._replace(scorer="<script>alert(1)</script>", error=None)
    page = write_page([nasty, compared[1]], "small-refresh-1", tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<svg" in page
    assert "0.6875" in page


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ((["best_vs_wurst"],), "pairing.strategy"),
        ((["best_vs_worst:quantile=0.5"],), "`quantile` decides nothing"),
        ((["best_vs_quantile:quantile=[0.1"],), "is no value"),
        ((["best_vs_worst"], ["jugde"]), "'jugde' is none of `scoring.scorers`"),
        ((["best_vs_worst"], ["rules*x+votes*1"]), "pairing.weights.rules"),
        ((["best_vs_worst"], ["rules*1+vote*1"]), "`pairing.weights` 'vote' is none of"),
        ((["pairwise_winners"], ["rules"]), "of kind 'rules' gives none"),
        ((["best_vs_worst"], [], ["strict"]), "'run' or a YAML file"),
    ],
)
def test_what_cannot_be_meant_is_refused(written, said):
    with pytest.raises(ConfigError) as caught:
        variants(CONFIG, *written)
    assert said in str(caught.value)


def test_a_run_that_has_not_scored_is_told(tmp_path):
    workspace = Workspace(tmp_path)
    with pytest.raises(DataError, match="run small-refresh-1 has no finished prompts, generate"):
        swept(workspace)


def test_the_command_prints_and_draws(workspace, capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["prefmill"])
        from flows.cli import cli

        arguments = ["sweep", "-w", str(workspace.root), "--strategies", "best_vs_worst"]
        cli([*arguments, "--json"], standalone_mode=False)
        found = json.loads(capsys.readouterr().out)
        cli(arguments, standalone_mode=False)
    (dataset,) = found["datasets"]
    assert (dataset["strategy"], dataset["kept"], dataset["agreement:votes"]) == (
        "best_vs_worst", 10, None,
    )  # fmt: skip
    out = capsys.readouterr().out
    assert found["page"] in out.replace("\n", "")
    assert "best_vs_worst" in out
