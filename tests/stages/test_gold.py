"""Planted gold pairs: the good answer is better by its verifier, and nothing else moves."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import DataError, MissingFileError
from stages.gold import GoldConfig
from stages.prompt_sampling import PromptSamplingConfig, gold_fingerprint, sample
from stages.prompt_sources import BundledSource, FileSource
from stages.tables import PROMPTS
from stages.task_families import FAMILIES, score

ROWS = [
    {"prompt": f"What is {i} + {i}?", "good": f"{2 * i}", "damaged": f"{2 * i + 1}"}
    for i in range(1, 11)
]


def sampled(gold, train=50, heldout=5, seed=0, families=FAMILIES):
    source = BundledSource(train=train, heldout=heldout, families=families)
    return sample(PromptSamplingConfig(sources=(source,), gold=gold, seed=seed)).prompts


def written(tmp_path, rows, name="gold.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def planted(prompts):
    """Return {prompt text: (good, damaged)}."""
    rows = prompts.filter(split="gold").iter_rows(named=True)
    answers = [(row["messages"][0]["content"], json.loads(row["gold"])) for row in rows]
    return {text: (both["good"], both["damaged"]) for text, both in answers}


# --- of the bundled families


@pytest.mark.parametrize(
    ("train", "share", "expected"),
    # Rounded up: 2 % of 50 is 1, of 51 is 1.02; of no train prompts none
    [(50, 0.02, 1), (51, 0.02, 2), (50, 0.5, 25), (50, 1.0, 50), (0, 0.02, 0)],
)
def test_the_share_is_of_the_train_prompts_and_rounded_up(train, share, expected):
    prompts = sampled(GoldConfig(share=share), train=train)
    PROMPTS.to_arrow(prompts)
    splits = dict(prompts.group_by("split").len().iter_rows())
    assert splits.get("gold", 0) == expected
    assert splits.get("train", 0) == train
    assert splits["heldout"] == 5


def test_the_good_answer_is_the_better_one_by_its_own_verifier():
    prompts = sampled(GoldConfig(share=1.0), train=100).filter(split="gold")
    assert prompts.height == 100
    assert set(prompts["verifier"]) == set(FAMILIES)
    for row in prompts.iter_rows(named=True):
        answers = json.loads(row["gold"])
        truth = json.loads(row["ground_truth"])
        good, damaged = (score(row["verifier"], truth, answers[k]) for k in ("good", "damaged"))
        assert good > damaged, row
        assert (row["source"], row["stratum"]) == ("gold", row["verifier"])


def test_gold_changes_no_other_prompt():
    without = sampled(None)
    assert without["gold"].null_count() == without.height
    with_gold = sampled(GoldConfig(share=0.2))
    assert with_gold.filter(with_gold["split"] != "gold").equals(without)


def test_the_seed_decides_which_gold_prompts():
    one, same, other = (planted(sampled(GoldConfig(share=0.2), seed=s)) for s in (1, 1, 2))
    assert one == same
    assert one != other


# --- of a file


def test_rows_of_a_file_are_prompts_with_two_answers(tmp_path):
    path = written(tmp_path, ROWS)
    prompts = sampled(GoldConfig(path=path, share=1.0))
    PROMPTS.to_arrow(prompts)
    assert planted(prompts) == {row["prompt"]: (row["good"], row["damaged"]) for row in ROWS}
    gold = prompts.filter(split="gold")
    assert gold["verifier"].null_count() == gold["ground_truth"].null_count() == 10


@settings(max_examples=15)
@given(st.randoms(use_true_random=False))
def test_the_draw_from_a_file_does_not_depend_on_its_order(tmp_path_factory, rng):
    folder = tmp_path_factory.mktemp("gold")
    mixed = rng.sample(ROWS, len(ROWS))
    drawn = [
        planted(sampled(GoldConfig(path=written(folder, rows, name), share=0.08)))
        for rows, name in ((ROWS, "a.jsonl"), (mixed, "b.jsonl"))
    ]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 4  # 8 % of 50


def test_a_verifier_beside_the_answers_is_kept(tmp_path):
    row = {**ROWS[0], "verifier": "numeric", "ground_truth": '{"answer": 2}'}
    (made,) = sampled(GoldConfig(path=written(tmp_path, [row]))).filter(split="gold").to_dicts()
    assert (made["verifier"], made["ground_truth"]) == ("numeric", '{"answer": 2}')


def test_ground_truth_that_is_no_text_becomes_json(tmp_path):
    row = {**ROWS[0], "verifier": "numeric", "ground_truth": {"answer": 2}}
    (made,) = sampled(GoldConfig(path=written(tmp_path, [row]))).filter(split="gold").to_dicts()
    assert json.loads(made["ground_truth"]) == {"answer": 2}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "good": "b"},
        {"prompt": "a", "good": "b", "damaged": "b"},
        {"prompt": "a", "good": "b", "damaged": None},
        {"prompt": "", "good": "b", "damaged": "c"},
        {"prompt": "a", "good": 1, "damaged": 2},
        {"chosen": "b", "rejected": "c"},
    ],
)
def test_a_row_that_is_no_gold_pair_is_named(tmp_path, row):
    path = written(tmp_path, [ROWS[0], row])
    with pytest.raises(DataError, match="without three texts, or with two equal answers") as caught:
        sampled(GoldConfig(path=path))
    assert f"{path}, line 2" in caught.value.where


def test_a_gold_file_that_is_not_there(tmp_path):
    config = PromptSamplingConfig(gold=GoldConfig(path=tmp_path / "none.jsonl"))
    for call in (sample, gold_fingerprint):
        with pytest.raises(MissingFileError, match=r"none\.jsonl"):
            call(config)


def test_the_fingerprint_follows_the_files_content(tmp_path):
    assert gold_fingerprint(PromptSamplingConfig()) == ""
    assert gold_fingerprint(PromptSamplingConfig(gold=GoldConfig())) == ""
    path = written(tmp_path, ROWS)
    config = PromptSamplingConfig(gold=GoldConfig(path=path))
    before = gold_fingerprint(config)
    written(tmp_path, ROWS[:5])
    assert gold_fingerprint(config) != before


def test_a_prompt_that_is_also_asked_stays_a_train_prompt(tmp_path):
    """One conversation is one row: the source that brought it first keeps it."""
    asked = tmp_path / "prompts.jsonl"
    asked.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in ROWS[:3]))
    source = FileSource(name="mine", path=asked, heldout_share=0.0)
    gold = GoldConfig(path=written(tmp_path, ROWS), share=1.0)
    prompts = sample(PromptSamplingConfig(sources=(source,), gold=gold)).prompts
    assert prompts.filter(split="train").height == 3
    assert prompts["prompt_id"].n_unique() == prompts.height


def test_of_two_gold_pairs_on_one_prompt_one_is_kept(tmp_path):
    twice = [ROWS[0], {**ROWS[0], "damaged": "eleven"}]
    prompts = sampled(GoldConfig(path=written(tmp_path, twice), share=1.0))
    ((good, damaged),) = planted(prompts).values()
    assert good == "2"
    assert damaged in {"3", "eleven"}
