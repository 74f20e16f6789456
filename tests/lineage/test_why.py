import io
import json
import shutil
from dataclasses import replace

import polars as pl
import pytest
from rich.console import Console

from lineage.database import publish
from lineage.erasure import find, forget
from lineage.records import write_run
from lineage.story import visible
from lineage.why import render, why
from lineage.workspace import Workspace
from stages.content_ids import file_sha256
from stages.errors import DataError, MissingFileError, UnknownIdError
from stages.export_formats import FORMATS, UNPAIRED
from stages.tables import table
from stages.unpaired import unpaired_rows
from tests.lineage.small_workspace import (
    CANDIDATES,
    JUDGMENTS,
    NASTY,
    PAIRS,
    PROMPTS,
    RUN_A,
    SCORES,
    write_small_workspace,
    write_stage,
    write_stages_of_run,
)
from tests.stages.rows import table_of


def printed(story, *, full=False):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, color_system=None, width=200)
    console.print(render(story, full=full))
    return stream.getvalue()


def pairs_by_run(story):
    return {
        run["run_id"]: use["pairs"]
        for account in story.facts["accounts"]
        for use in account["uses"]
        for run in use["runs"]
    }


def test_the_story_of_a_pair(published):
    story = why(published, "pair_22")
    assert (story.kind, story.id) == ("pair", "pair_22")
    assert story.facts["prompt"]["messages"] == [{"role": "user", "content": "2+2?"}]
    (account,) = story.facts["accounts"]
    assert [c["completion"] for c in account["candidates"]] == ["4", "5"]
    assert [c["scores"][0]["score"] for c in account["candidates"]] == [1.0, 0.75]
    assert [c["judgments"][0]["raw"] for c in account["candidates"]] == ["right", "near"]
    (in_a,), (in_b,) = (pairs_by_run(story)[run] for run in ("refresh_a1", "dpo_round_b2"))
    assert (in_a["kept"], in_b["kept"]) == (False, True)
    assert [d["filter"] for d in in_a["decisions"]] == ["margin", "length_ratio"]
    assert [d["reason"] for d in in_b["decisions"]] == [None]
    assert in_a["exports"] == in_a["rounds"] == []
    assert [(e["path"], e["line"]) for e in in_b["exports"]] == [("exports/k7/train.jsonl", 2)]
    assert [(r["round_id"], r["promoted"]) for r in in_b["rounds"]] == [("round_r1", True)]


def test_the_story_of_a_candidate(published):
    story = why(published, "candidate_p3b")
    assert story.kind == "candidate"
    (account,) = story.facts["accounts"]
    assert [c["candidate_id"] for c in account["candidates"]] == ["candidate_p3a", "candidate_p3b"]
    assert account["candidates"][1]["scores"][0]["score"] is None
    assert set(map(len, pairs_by_run(story).values())) == {0}
    text = printed(story)
    assert "no parsed verdict" in text
    assert "no pair was made of it" in text


def test_the_story_of_an_evaluation_candidate(published):
    (account,) = why(published, "candidate_e1").facts["accounts"]
    assert account["uses"][0]["runs"][0]["stage"] == "evaluate_after_sampled"
    assert account["candidates"][0]["judgments"][0]["raw"] == "right after training"


PAIRWISE = {
    "judgment_id": "judgment_x",
    "candidate_id": "candidate_p2b",
    "other_candidate_id": "candidate_p2a",
    "order": "second",
    "scorer": "strict",
    "scorer_version": "1",
    "scorer_model": "big-model",
    "score": 0.5,
    "flag": "order_disagreement",
    "raw": "I prefer A",
}


def test_the_verdicts_of_every_scorer_are_told(empty_workspace):
    unread = {
        **PAIRWISE,
        "judgment_id": "judgment_y",
        "order": "first",
        "score": None,
        "flag": None,
        "error": "unparsed",
        "raw": "Well ...",
    }
    lost = CANDIDATES.filter(candidate_id="candidate_p2a").with_columns(
        candidate_id=pl.lit("candidate_p2c"),
        completion=pl.lit(None, pl.String),
        finish_reason=pl.lit("error"),
        error=pl.lit("timeout"),
        system_prompt=pl.lit("Be brief."),
    )
    write_stage(empty_workspace, "prompts", "k0", {"prompts": PROMPTS})
    write_stage(empty_workspace, "generate", "k1", {"candidates": pl.concat([CANDIDATES, lost])})
    write_stage(empty_workspace, "judge", "j1", {"judgments": JUDGMENTS})
    strict = {"judgments": table_of(table("judgments"), [PAIRWISE, unread])}
    write_stage(empty_workspace, "judge", "j2", strict)
    stages = {"prompts": "k0", "generate": "k1", "judge:rule": "j1", "judge:strict": "j2"}
    write_run(empty_workspace, RUN_A)
    write_stages_of_run(empty_workspace, RUN_A, stages)
    publish(empty_workspace)
    story = why(empty_workspace, "candidate_p2b")
    (account,) = story.facts["accounts"]
    said = {c["candidate_id"]: [j["raw"] for j in c["judgments"]] for c in account["candidates"]}
    assert said == {
        "candidate_p2a": ["right", "I prefer A", "Well ..."],
        "candidate_p2b": ["near", "I prefer A", "Well ..."],
        "candidate_p2c": [],
    }
    text = printed(story)
    assert "verdict of strict (big-model) 0.5" in text
    assert "candidate_p2b (shown second) against candidate_p2a  order_disagreement" in text
    assert "verdict of strict (big-model) missing: unparsed" in text
    assert "no completion: timeout" in text
    assert "system prompt Be brief." in text


def test_the_story_of_a_prompt(published):
    story = why(published, "prompt_h1")
    generated, evaluated = sorted(
        story.facts["accounts"], key=lambda account: -len(account["candidates"])
    )
    assert [c["candidate_id"] for c in generated["candidates"]] == [
        "candidate_h1a",
        "candidate_h1b",
    ]
    assert [c["candidate_id"] for c in evaluated["candidates"]] == ["candidate_e1"]
    assert generated["prompt"]["split"] == "heldout"
    assert [len(use["pairs"]) for use in generated["uses"]] == [1, 1]


def test_the_story_of_an_export(published):
    story = why(published, "export_b")
    assert story.facts["export"]["path"] == "exports/k7/train.jsonl"
    assert [run["run_id"] for run in story.facts["runs"]] == ["dpo_round_b2"]
    assert [r["round_id"] for r in story.facts["rounds"]] == ["round_r1"]
    (part,) = story.facts["composition"]
    assert (part["source"], part["pairs"], part["mean_margin"]) == ("bundled", 2, 0.625)
    assert "trained in round 1" in printed(story)


def test_a_line_of_an_export(published, tmp_path):
    file = published.exports / "k7" / "train.jsonl"
    assert why(published, f"{file}:2").id == "pair_22"
    assert why(published, "exports/k7/train.jsonl:1").id == "pair_11"
    copy = tmp_path / "copy.jsonl"
    shutil.copy(file, copy)
    assert why(published, f"{copy}:2").id == "pair_22"


@pytest.mark.parametrize(
    ("line", "content", "message"),
    [
        (3, '{"pair_id": "pair_11"}\n' * 2, "Expected 1 to 2"),
        (0, '{"pair_id": "pair_11"}\n', "no line 0"),
        (10**20, '{"pair_id": "pair_11"}\n', "Expected 1 to 1"),
        (1, "{broken\n", "not a line of JSON"),
        (1, '{"prompt": 1}\n', "has no pair_id"),
        (1, "[1]\n", "has no pair_id"),
    ],
)
def test_a_line_that_is_no_pair(published, tmp_path, line, content, message):
    file = tmp_path / "x.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        why(published, f"{file}:{line}")


def test_an_exported_file_is_its_export(published, tmp_path):
    file = published.exports / "k7" / "train.jsonl"
    for named in (file, published.relative(file)):
        assert why(published, str(named)).id == "export_b"
    other = tmp_path / "other.jsonl"
    other.write_text("{}\n")
    with pytest.raises(DataError, match=r"no exported file\. Expected .* or .*other\.jsonl:LINE"):
        why(published, str(other))


def test_a_file_that_is_not_there(published):
    with pytest.raises(MissingFileError, match=r"no file 'nowhere.jsonl'"):
        why(published, "nowhere.jsonl:3")


def test_every_story_is_json_and_prints(published):
    for row_id in ("pair_11", "candidate_p1a", "candidate_e1", "prompt_h1", "export_a"):
        story = why(published, row_id)
        assert json.loads(json.dumps(story.to_json()))["id"] == row_id
        assert row_id in printed(story)


def test_texts_are_shown_literally(published):
    text = printed(why(published, "pair_11"))
    assert "[red]bold[/red] [U+001B][31mred[U+001B][0m [U+202E]evil[U+000D]2" in text
    assert "right [U+001B]]0;owned[U+0007]again" in text
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(text)


def test_visible_keeps_ordinary_text():
    assert visible("naïve 数学 🙂\nsecond line") == "naïve 数学 🙂\nsecond line"
    assert visible("\t\x00\x7f\x9b\u200b\u2028") == "\t[U+0000][U+007F][U+009B][U+200B][U+2028]"
    assert visible("👩\u200d💻") == "👩\u200d💻", "a zero-width joiner belongs to the emoji"
    assert visible(NASTY) != NASTY


def test_a_unique_beginning_is_enough(published):
    assert why(published, "pair_2").id == "pair_22"
    assert why(published, "22").id == "pair_22"


def test_an_ambiguous_beginning_names_what_fits(published):
    with pytest.raises(UnknownIdError, match="'pair_' fits more than one id: pair_11, pair_22, pa"):
        why(published, "pair_")


def test_an_unknown_id_names_the_nearest(published):
    with pytest.raises(UnknownIdError, match=r"unknown id 'pair_29'; nearest known: pair_22, "):
        why(published, "pair_29")
    with pytest.raises(UnknownIdError, match=r"nearest known: dpo_round_b2, "):
        why(published, "dpo_round_b3")
    with pytest.raises(UnknownIdError, match=r"'p1z'; nearest known: \w+_p1[ab]?, \w+_p1"):
        why(published, "p1z")


def test_one_run_s_story_alone(published):
    story = why(published, "pair_22", "dpo")
    assert list(pairs_by_run(story)) == ["dpo_round_b2"]
    assert [c["completion"] for c in story.facts["accounts"][0]["candidates"]] == ["4", "5"]
    with pytest.raises(UnknownIdError, match=r"refresh_a1 has no export_b|a run of: dpo_round_b2"):
        why(published, "candidate_e1", "refresh_a1")
    with pytest.raises(UnknownIdError, match="unknown run 'nobody'"):
        why(published, "pair_22", "nobody")


def test_why_each_candidate_was_chosen_or_not(published):
    (use, _) = why(published, "pair_22").facts["accounts"][0]["uses"]
    assert use["choices"] == [
        {
            "candidate_id": "candidate_p2a",
            "role": "chosen",
            "score": 1.0,
            "reason": "the highest score",
        },
        {
            "candidate_id": "candidate_p2b",
            "role": "rejected",
            "score": 0.75,
            "reason": "the lowest score",
        },
    ]


def test_the_story_of_a_run(published):
    story = why(published, "latest")
    assert (story.kind, story.id) == ("run", "dpo_round_b2")
    facts = story.facts
    assert (facts["run"]["status"], facts["config"]) == ("failed", {"seed": 1, "name": "it's"})
    assert {s["stage"]: s["outputs"] for s in facts["stages"]}["filter"] == [
        {"table": "decisions", "rows": 3}
    ]
    assert [(p["split"], p["prompts"]) for p in facts["prompts"]] == [("heldout", 1), ("train", 3)]
    assert [(m["weights_hash"], m["candidates"]) for m in facts["models"]] == [("w1", 1), ("w0", 8)]
    assert facts["pairs"] == [{"fate": "kept", "filter": None, "reason": None, "pairs": 3}]
    assert why(published, "refresh_").facts["pairs"] == [
        {"fate": "kept", "filter": None, "reason": None, "pairs": 1},
        {"fate": "dropped", "filter": "margin", "reason": "margin_below_minimum", "pairs": 1},
        {
            "fate": "dropped",
            "filter": "length_ratio",
            "reason": "length_ratio_above_maximum",
            "pairs": 1,
        },
    ]
    assert "trained in round 1 round_r1 of run dpo_round_b2: promoted" in printed(story)


def test_the_story_of_a_round_and_of_its_models(published):
    made = why(published, "round_r1")
    assert [(e["export_id"], e["rows"]) for e in made.facts["exports"]] == [("export_b", 2)]
    assert made.facts["gates"] == [
        {"criterion": "sampled_low", "value": 0.125, "limit": 0.0, "passed": True}
    ]
    assert made.facts["metrics"] == [{"metric": "loss", "step": 2, "value": 0.5}]
    before, after = why(published, "w0"), why(published, "w1")
    assert (before.kind, before.facts["made_by"]) == ("model", [])
    assert [r["round_id"] for r in before.facts["next_rounds"]] == ["round_r1"]
    assert [r["round_id"] for r in after.facts["made_by"]] == ["round_r1"]
    assert [(a["stage"], a["candidates"]) for a in after.facts["answers"]] == [
        ("evaluate_after_sampled", 1)
    ]
    assert "came from outside" in printed(before)
    assert "metric loss, step 2, value 0.5" in printed(made)
    assert "success difference 0.25, low 0.125, high 0.375" in printed(made)


def test_the_keys_that_scripts_rely_on(published):
    story = why(published, "pair_22").to_json()
    assert list(story) == ["kind", "id", "prompt", "accounts"]
    assert list(story["prompt"]) == ["prompt_id", "messages", "removed"]
    (account,) = story["accounts"]
    assert list(account) == ["prompt", "candidates", "uses"]
    assert {"candidate_id", "completion", "removed", "scores", "judgments"} <= set(
        account["candidates"][0]
    )
    assert list(account["uses"][0]) == ["runs", "choices", "pairs"]
    assert {"pair_id", "kept", "label_noise", "decisions", "exports", "rounds"} <= set(
        account["uses"][0]["pairs"][0]
    )


def test_removed_texts_are_told_as_removed(empty_workspace):
    """`gc` takes words away and leaves rows; of an erased prompt other rows go as well."""
    no_words = PROMPTS.with_columns(messages=pl.lit([], PROMPTS.schema["messages"]))
    write_stage(empty_workspace, "prompts", "k0", {"prompts": no_words})
    lost = CANDIDATES.with_columns(completion=pl.lit(None, pl.String))
    lost = lost.filter(pl.col("candidate_id") != "candidate_p2b")
    write_stage(empty_workspace, "generate", "k1", {"candidates": lost})
    write_stage(empty_workspace, "score", "k2", {"scores": SCORES})
    write_stage(empty_workspace, "pair", "k3", {"pairs": PAIRS})
    write_run(empty_workspace, RUN_A)
    stages = {"prompts": "k0", "generate": "k1", "score": "k2", "pair": "k3"}
    write_stages_of_run(empty_workspace, RUN_A, stages)
    publish(empty_workspace)
    for asked in ("pair_22", "candidate_p2b", "prompt_p2"):
        story = why(empty_workspace, asked)
        candidates = story.facts["accounts"][0]["candidates"]
        assert story.facts["prompt"]["removed"]
        assert [c["candidate_id"] for c in candidates] == ["candidate_p2a", "candidate_p2b"]
        assert [c["removed"] for c in candidates] == [True, True]
        assert [c["scores"][0]["score"] for c in candidates] == [1.0, 0.75]
        assert printed(story).count("its text was removed from this workspace") == 3


def test_an_erased_prompt_is_told_as_erased(empty_workspace):
    workspace = empty_workspace
    write_small_workspace(workspace)
    forget(workspace, find(workspace, "prompt_p2"))
    with pytest.raises(UnknownIdError, match="the prompt 'prompt_p2' was erased at 20"):
        why(workspace, "prompt_p2")
    story = why(workspace, "candidate_p2a")
    assert story.facts["prompt"] == {"prompt_id": "prompt_p2", "messages": [], "removed": True}
    assert printed(story).count("no completion: erased") == 2


def test_long_texts_are_cut_unless_asked_for(published):
    story = why(published, "pair_22")
    (candidate, _) = story.facts["accounts"][0]["candidates"]
    long, tall = "x" * 1000 + "THE END", "\n".join(str(n) for n in range(21))
    told = replace(story, facts=json.loads(json.dumps(story.facts)))
    told.facts["accounts"][0]["candidates"] = [
        {**candidate, "completion": long},
        {**candidate, "completion": tall},
    ]
    text = printed(told)
    assert "(1,007 characters; --full shows them)" in text
    assert "19 ... (52 characters; --full shows them)" in text
    assert "THE END" not in text
    assert "THE END" in printed(told, full=True)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A workspace with two pairs in a file of every format."""
    made = Workspace(tmp_path_factory.mktemp("exported") / "workspace")
    write_small_workspace(made)
    prompt = [{"role": "user", "content": "2+2?"}]
    answers = {
        role: [[{"role": "assistant", "content": text}] for text in texts]
        for role, texts in (("chosen", ["2", "4"]), ("rejected", ["3", "5"]))
    }
    rows = pl.DataFrame(
        {
            "prompt": [prompt, prompt],
            **answers,
            "pair_id": ["pair_11", "pair_22"],
            **dict.fromkeys(
                ("chosen_score", "rejected_score", "margin", "confidence", "length_weight"), 1.0
            ),
            "prompt_id": ["prompt_p1", "prompt_p2"],
            "scorer": "rule",
            "chosen_candidate_id": ["candidate_p1a", "candidate_p2a"],
            "rejected_candidate_id": ["candidate_p1b", "candidate_p2b"],
        }
    )
    files = []
    for name, kind in FORMATS.items():
        path = exported_file(made, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            writer = kind.writer(file)
            writer.write(unpaired_rows(rows) if name == UNPAIRED else rows)
            writer.close()
        facts = {"split": "train", "path": made.relative(path), "sha256": file_sha256(path)}
        files.append({"export_id": f"export_{name}", "format": name, **facts})
    held = [
        {"export_id": file["export_id"], "pair_id": pair, "line": line}
        for file in files
        for line, pair in enumerate(rows["pair_id"], start=1)
    ]
    tables = {"exports": files, "export_rows": held}
    outputs = {name: table_of(table(name), records) for name, records in tables.items()}
    write_stage(made, "export", "k20", outputs)
    publish(made)
    return made


def exported_file(workspace, name):
    return workspace.exports / "k20" / FORMATS[name].name_of("train")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_line_of_every_format(exported, tmp_path, name):
    """The second of two pairs; of unpaired answers, the last of four."""
    place, copy = exported_file(exported, name), tmp_path / exported_file(exported, name).name
    line, expected = (4, "candidate_p2b") if name == UNPAIRED else (2, "pair_22")
    assert why(exported, f"{exported.relative(place)}:{line}").id == expected
    shutil.copy(place, copy)
    assert why(exported, f"{copy}:{line}").id == expected
    with pytest.raises(DataError, match=r"no (line|row) 9"):
        why(exported, f"{copy}:9")


def test_an_answer_that_no_pair_holds(published, tmp_path):
    file = tmp_path / "train.unpaired.jsonl"
    file.write_text(json.dumps({"pair_id": None, "candidate_id": "candidate_p3a"}) + "\n")
    story = why(published, f"{file}:1")
    assert story.id == "candidate_p3a"
    assert "no pair was made of it" in printed(story)


@pytest.mark.parametrize(
    "text", ["", "x" * 5000, "' OR 1=1 --", "%", "pair_22'; DROP TABLE runs; --"]
)
def test_odd_ids_are_only_unknown(published, text):
    with pytest.raises(UnknownIdError):
        why(published, text)


def test_an_unpublished_workspace(empty_workspace):
    with pytest.raises(MissingFileError, match="prefmill lineage rebuild"):
        why(empty_workspace, "pair_1")
