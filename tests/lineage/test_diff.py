"""Two runs of seven prompts that differ in one way each, with the numbers worked out by hand."""

import io
import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from rich.console import Console

from flows.cli import cli
from lineage.database import publish
from lineage.diff import diff, flat, previous
from lineage.diff_page import describe
from lineage.records import write_run
from lineage.workspace import Workspace
from stages.errors import DataError, UnknownIdError
from stages.tables import DECISIONS
from tests.lineage.small_workspace import (
    RUN_A,
    write_small_workspace,
    write_stage,
    write_stages_of_run,
)
from tests.stages.rows import pairs, prompts, scores, table_of

BEFORE = replace(
    RUN_A,
    run_id="refresh_before",
    name="weekly",
    config={
        "seed": 1,
        "filters": {"minimum_margin": 0.1},
        "scoring": {"scorers": [{"name": "rm", "model": "old"}]},
        "languages": ["en"],
    },
)
AFTER = replace(
    BEFORE,
    run_id="refresh_after",
    started_at="2026-11-08T10:00:00+00:00",
    code_version="0.2.0 [bold]",
    config={
        "seed": 1,
        "filters": {"minimum_margin": 0.4, "empty": True},
        "scoring": {"scorers": [{"name": "rm", "model": "new"}]},
        "languages": ["en", "de"],
    },
)
AB = {"a": 1.0, "b": 0.5}
SCORES_BEFORE = {f"q{n}": AB for n in range(1, 8)} | {"q6": {**AB, "c": 0.75}}
PAIRS_BEFORE = [(f"q{n}", "a", "b", 0.5) for n in range(1, 8)]
SCORES_AFTER = {
    "q1": AB,
    "q2": AB,
    "q3": {"a": 0.0, "b": 1.0},
    "q5": {"a": 1.0, "d": 0.0},
    "q6": {**AB, "c": 0.0},
    "q7": {"a": 1.0, "b": 1.0},
}
PAIRS_AFTER = [
    ("q1", "a", "b", 0.5),
    ("q2", "a", "b", 0.25),
    ("q3", "b", "a", 1.0),
    ("q5", "a", "d", 1.0),
    ("q6", "a", "c", 1.0),
]


def of_prompt(prompt, answer):
    return f"candidate_{prompt}{answer}"


def write_curation(workspace, run, scored, paired, minimum, stages=("filter",)):
    """The stages of one run: prompts, scores, pairs and, unless left out, a margin filter."""
    keys = {stage: f"{stage}_{run.run_id}" for stage in ("prompts", "score", "pair", "filter")}
    asked = [{"prompt_id": prompt, "source": "s", "stratum": "t"} for prompt in scored]
    write_stage(workspace, "prompts", keys["prompts"], {"prompts": prompts(*asked)}, run=run)
    by_prompt = {
        prompt: {of_prompt(prompt, answer): score for answer, score in answers.items()}
        for prompt, answers in scored.items()
    }
    write_stage(
        workspace, "score", keys["score"], {"scores": scores(by_prompt, scorer="rm")}, run=run
    )
    made = [
        {
            # As content ids are: of both answers, in this order.
            "pair_id": f"pair_{prompt}{chosen}{rejected}",
            "prompt_id": prompt,
            "chosen_candidate_id": of_prompt(prompt, chosen),
            "rejected_candidate_id": of_prompt(prompt, rejected),
            "margin": margin,
            "chosen_tokens": 4,
            "rejected_tokens": 2,
        }
        for prompt, chosen, rejected, margin in paired
    ]
    write_stage(workspace, "pair", keys["pair"], {"pairs": pairs(*made)}, run=run)
    ruled = [
        {
            "pair_id": pair["pair_id"],
            "filter": "margin",
            "position": 0,
            "kept": pair["margin"] >= minimum,
            "reason": None if pair["margin"] >= minimum else "margin_below_minimum",
            "value": pair["margin"],
            "limit": minimum,
        }
        for pair in made
    ]
    write_stage(
        workspace, "filter", keys["filter"], {"decisions": table_of(DECISIONS, ruled)}, run=run
    )
    write_run(workspace, run)
    used = ("prompts", "score", "pair", *stages)
    write_stages_of_run(workspace, run, {stage: keys[stage] for stage in used})


@pytest.fixture(scope="module")
def weekly(tmp_path_factory):
    made = Workspace(tmp_path_factory.mktemp("weekly") / "workspace")
    write_small_workspace(made)
    write_curation(made, BEFORE, SCORES_BEFORE, PAIRS_BEFORE, 0.1)
    write_curation(made, AFTER, SCORES_AFTER, PAIRS_AFTER, 0.4)
    unfiltered = replace(AFTER, run_id="refresh_unfiltered", name="other")
    write_curation(made, unfiltered, SCORES_BEFORE, PAIRS_BEFORE[:1], 0.1, stages=())
    write_run(made, replace(unfiltered, run_id="refresh_just_begun"))
    publish(made)
    return made


def printed(found):
    stream = io.StringIO()
    Console(file=stream, width=200, color_system=None).print(describe(found))
    return stream.getvalue()


def test_the_configuration_s_changed_keys(weekly):
    found = diff(weekly, "refresh_before", "refresh_after")
    assert found.config == [
        {"key": "filters.empty", "before": None, "after": True},
        {"key": "filters.minimum_margin", "before": 0.1, "after": 0.4},
        {"key": "languages", "before": ["en"], "after": ["en", "de"]},
        {"key": "scoring.scorers[rm].model", "before": "old", "after": "new"},
    ]
    assert (found.before["code_version"], found.after["code_version"]) == ("0.1.0", "0.2.0 [bold]")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, {"": {}}),
        ({"a": {"b": {}}, "c": []}, {"a.b": {}, "c": []}),
        ({"a": [{"x": 1}, {"x": 2}]}, {"a[0].x": 1, "a[1].x": 2}),
    ],
)
def test_a_flat_configuration(value, expected):
    assert flat(value) == expected


def test_which_pairs_went_and_came(weekly):
    found = diff(weekly, "refresh_before", "refresh_after").pairs
    assert (found["before"], found["after"], found["in_both"]) == (7, 4, 1)

    def causes(rows):
        return {row["cause"]: (row["reason"], row["pairs"], row["examples"]) for row in rows}

    assert causes(found["gone"]) == {
        "dropped": ("margin_below_minimum", 1, ["pair_q2ab"]),
        "label_flipped": (None, 1, ["pair_q3ab"]),
        "prompt_not_there": (None, 1, ["pair_q4ab"]),
        "answers_not_there": (None, 1, ["pair_q5ab"]),
        "other_choice": (None, 1, ["pair_q6ab"]),
        "no_pair": (None, 1, ["pair_q7ab"]),
    }
    assert causes(found["came"]) == {
        "label_flipped": (None, 1, ["pair_q3ba"]),
        "answers_not_there": (None, 1, ["pair_q5ad"]),
        "other_choice": (None, 1, ["pair_q6ac"]),
    }


def test_a_run_that_stopped_early_has_no_kept_pairs(weekly):
    unfiltered = diff(weekly, "refresh_before", "refresh_unfiltered").pairs
    assert (unfiltered["before"], unfiltered["after"], unfiltered["in_both"]) == (7, 0, 0)
    assert [(row["cause"], row["pairs"]) for row in unfiltered["gone"]] == [
        ("no_pair", 6),
        ("not_filtered", 1),
    ]
    (begun,) = diff(weekly, "refresh_before", "refresh_just_begun").pairs["gone"]
    assert (begun["cause"], begun["pairs"]) == ("not_paired", 7)
    assert begun["examples"] == ["pair_q1ab", "pair_q2ab", "pair_q3ab"]


def section(found, name, *key):
    """Return (before, after, change) of the facts of a section with this key, by measure."""
    rows = [row for row in found.sections[name] if tuple(row.values())[: len(key)] == key]
    return {row.get("measure"): (row["before"], row["after"], row["change"]) for row in rows}


def test_counts_quality_and_scores(weekly):
    found = diff(weekly, "refresh_before", "refresh_after")
    assert section(found, "steps", "train", "prompts") == {None: (7, 6, -1)}
    assert section(found, "steps", "train", "kept") == {None: (7, 4, -3)}
    drops = section(found, "drops", "train", "margin", "margin_below_minimum")
    assert drops["first_drops"] == (0, 1, 1)
    assert drops["limit"] == (0.1, 0.4, pytest.approx(0.3))
    quality = section(found, "quality", "train")
    assert quality["pairs"] == (7, 4, -3)
    assert quality["mean_margin"] == (0.5, 0.875, 0.375)
    assert quality["median_margin"] == (0.5, 1.0, 0.5)
    assert quality["mean_length_gap"] == (2.0, 2.0, 0.0)
    assert quality["mean_confidence"] == (None, None, None)
    rm = section(found, "scores", "rm")
    assert rm["candidates"] == (15, 13, -2)
    assert rm["mean"] == (
        pytest.approx(11.25 / 15),
        pytest.approx(8.5 / 13),
        pytest.approx(-0.0962, abs=1e-4),
    )


def test_training_and_exports(weekly):
    found = diff(weekly, "refresh_a1", "dpo_round_b2")
    assert section(found, "training")["promoted"] == (None, True, None)
    assert section(found, "training_metrics", "loss") == {None: (None, 0.5, None)}
    gain = section(found, "evaluations", "success", "sampled", "all")
    assert gain["difference"] == (None, 0.25, None)
    assert section(found, "gates", "sampled_low")["passed"] == (None, True, None)
    exported = section(found, "exports", "train", "trl_jsonl")
    assert exported["pairs"] == (1, 2, 1)
    assert exported["path"][:2] == ("exports/k5/train.jsonl", "exports/k7/train.jsonl")
    back = diff(weekly, "dpo_round_b2", "refresh_a1")
    assert section(back, "training")["promoted"] == (True, None, None)


def test_the_page_shows_what_changed_literally(weekly):
    text = printed(diff(weekly, "refresh_before", "refresh_after"))
    assert "0.2.0 [bold]" in text
    assert "Kept pairs: 7 before, 4 after; 1 in both, 6 gone, 3 came" in text
    assert "dropped by margin: margin_below_minimum" in text
    assert "mean_length_gap" not in text, "it is the same"
    assert "configuration" in printed(diff(weekly, "refresh_a1", "dpo_round_b2")).splitlines()[-1]


def test_the_run_before_is_of_the_same_name(weekly):
    assert previous(weekly, "refresh_after") == ("refresh_before", "refresh_after")
    with pytest.raises(UnknownIdError, match="no refresh named 'small' was started before"):
        previous(weekly, "refresh_a1")


def test_runs_that_cannot_be_compared(weekly):
    with pytest.raises(DataError, match="both are the run refresh_after"):
        diff(weekly, "refresh_after", "refresh_aft")
    with pytest.raises(UnknownIdError, match="nearest known: refresh_after"):
        diff(weekly, "refresh_after", "refresh_aftre")
    write_run(weekly, replace(RUN_A, run_id="refresh_unpublished"))
    with pytest.raises(UnknownIdError, match=r"not in lineage\.duckdb yet"):
        diff(weekly, "refresh_after", "refresh_unpublished")
    (weekly.runs / "refresh_unpublished" / "run.json").unlink()


def test_the_command_prints_json_of_one_run_against_the_one_before(weekly):
    asked = ["diff", "refresh_after", "-w", str(weekly.root), "--json"]
    found = json.loads(CliRunner().invoke(cli, asked, catch_exceptions=False).stdout)
    assert list(found)[:4] == ["before", "after", "config", "pairs"]
    assert (found["before"]["run_id"], found["after"]["run_id"]) == (
        "refresh_before",
        "refresh_after",
    )
