"""Prompts passed over: overlapping with evaluation sets, or nearly the same as another."""

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import DataError, MissingFileError
from stages.near_duplicates import representatives, signatures
from stages.prompt_cleaning import NearDuplicatePromptsConfig, prompt_texts
from stages.prompt_sampling import NoNewPromptsError, PromptSamplingConfig, fingerprints, sample
from stages.prompt_sources import FileSource, ListSource, Message
from stages.tables import DROPPED_PROMPTS

QUESTION = "A farmer has 17 sheep, and all but 9 of them run away; how many are left?"
DROP = NearDuplicatePromptsConfig()
SPLIT = NearDuplicatePromptsConfig(split_only=True)


def said(prompts):
    """Return the ids by the last turn's text."""
    last = pl.col("messages").list.last().struct.field("content")
    return dict(prompts.select(last, "prompt_id").rows())


def listed(*prompts, name="list", **rest):
    return ListSource(name=name, prompts=prompts, **{"heldout_share": 0, **rest})


def sampled(*sources, seen=None, **rest):
    return sample(PromptSamplingConfig(sources=sources, **rest), seen)


def turns(*contents, system=None):
    roles = ["user", "assistant"] * len(contents)
    said = [Message(role=r, content=c) for r, c in zip(roles, contents, strict=False)]
    return (*([Message(role="system", content=system)] if system else []), *said)


def test_the_first_source_keeps_a_near_duplicate_and_what_is_dropped_is_recorded():
    other, marked = "Where is Rome on a map of Europe?", QUESTION.upper()
    result = sampled(
        listed(QUESTION, name="a"), listed(marked, other, name="b"), near_duplicates=DROP
    )
    ids = said(result.prompts)
    assert set(ids) == {QUESTION, other}
    (row,) = result.dropped.to_dicts()
    assert row == {
        "prompt_id": said(sampled(listed(marked)).prompts)[marked],
        "messages": [{"role": "user", "content": marked}],
        "source": "b",
        "reason": "near_duplicate",
        "kept_prompt_id": ids[QUESTION],
        "evaluation_set": None,
        "matched_text": None,
    }
    DROPPED_PROMPTS.to_arrow(result.dropped)
    assert sampled(listed(QUESTION, marked)).dropped.equals(DROPPED_PROMPTS.empty())


def test_a_prompt_that_an_earlier_run_has_had_stands_for_its_cluster():
    both = listed(QUESTION, name="a"), listed(QUESTION.upper(), "Another one?", name="b")
    ids = said(sampled(*both).prompts)
    seen = pl.DataFrame({"prompt_id": [ids[QUESTION.upper()]], "split": ["train"]})
    result = sampled(*both, near_duplicates=DROP, seen=seen)
    assert set(said(result.prompts)) == {"Another one?"}
    assert result.dropped["prompt_id"].to_list() == [ids[QUESTION]]
    with pytest.raises(NoNewPromptsError):
        sampled(both[0], listed(QUESTION.upper()), near_duplicates=DROP, seen=seen)


def test_all_turns_count_but_the_system_turn():
    long = "You are a helpful assistant who answers in one short sentence, whatever is asked."
    rome, oslo = turns("Where is Rome?", system=long), turns("Where is Oslo?", system=long)
    talks = [turns("Hello there!", answer, QUESTION) for answer in ("Hi.", "Hi. " + long)]
    result = sampled(listed(rome, oslo, *talks), near_duplicates=DROP)
    assert result.dropped.is_empty()
    assert set(prompt_texts(result.prompts)) >= {"Where is Rome?", f"Hello there!\nHi.\n{QUESTION}"}


def test_near_duplicates_kept_are_in_one_split():
    """12 groups of 4: 60 words of which each but the first has another word changed, J = 0.9."""
    draw = np.random.default_rng(5)
    groups = []
    for words in draw.integers(0, 10**6, (12, 60)).tolist():
        changed = [[*words[:i], "other", *words[i + 1 :]] for i in (10, 30, 50)]
        groups.append([" ".join(map(str, each)) for each in [words, *changed]])
    source = listed(*(text for group in groups for text in group), heldout_share=0.5)
    result = sampled(source, near_duplicates=SPLIT)
    split = dict(zip(prompt_texts(result.prompts), result.prompts["split"], strict=True))
    assert len(split) == 48
    assert [len({split[text] for text in group}) for group in groups] == [1] * 12
    assert {split[group[0]] for group in groups} == {"train", "heldout"}
    alone = sampled(source).prompts
    plain = dict(zip(prompt_texts(alone), alone["split"], strict=True))
    assert any(len({plain[text] for text in group}) == 2 for group in groups)


def clusters(count, size):
    """Return so many groups of prompts that are nearly the same, each of 60 words."""
    draw = np.random.default_rng(7)
    groups = []
    for words in draw.integers(0, 10**6, (count, 60)).tolist():
        changed = [[*words[:i], "other", *words[i + 1 :]] for i in range(5, 5 * size, 5)]
        groups.append([" ".join(map(str, each)) for each in [words, *changed]])
    return groups


@pytest.mark.parametrize("config", [DROP, SPLIT])
def test_the_share_held_out_is_that_of_the_clusters(config):
    groups = clusters(400, 8)
    source = listed(*(text for group in groups for text in group), heldout_share=0.1)
    result = sampled(source, near_duplicates=config)
    texts = dict(zip(prompt_texts(result.prompts), result.prompts["split"], strict=True))
    held = [any(texts.get(text) == "heldout" for text in group) for group in groups]
    assert 0.05 < sum(held) / len(held) < 0.16  # 40 clusters, three standard deviations: 22 to 58


@pytest.mark.parametrize("seen_splits", [["train"], ["train", "heldout"]])
def test_what_was_seen_keeps_its_cluster_in_its_split(seen_splits):
    """Runs that each draw a part: of no cluster one prompt is trained on and one held out."""
    groups = clusters(60, 4)
    source = listed(*(text for group in groups for text in group), heldout_share=0.4)
    seen = pl.DataFrame(schema={"prompt_id": pl.String, "split": pl.String})
    split_of, group_of = {}, {text: i for i, group in enumerate(groups) for text in group}
    for night in range(4):
        found = sampled(source, near_duplicates=SPLIT, seen=seen, maximum_prompts=50, seed=night)
        for text, split in zip(prompt_texts(found.prompts), found.prompts["split"], strict=True):
            assert split_of.setdefault(group_of[text], split) == split
        had = found.prompts.select("prompt_id", "split")
        seen = pl.concat([seen, had.filter(pl.col("split").is_in(seen_splits))])
    assert set(split_of.values()) == {"train", "heldout"}


@settings(max_examples=25, deadline=None)
@given(
    windows=st.lists(st.integers(0, 40), min_size=2, max_size=25, unique=True),
    share=st.sampled_from([0.2, 0.5, 0.8]),
    config=st.sampled_from([DROP, SPLIT]),
    random=st.randoms(use_true_random=False),
)
def test_no_cluster_is_in_both_splits_and_order_has_no_say(windows, share, config, random):
    texts = [" ".join(f"w{i}" for i in range(start, start + 30)) for start in windows]
    half = len(texts) // 2
    a, b = texts[:half], texts[half:]

    def drawn():
        sources = [listed(*p, name=n, heldout_share=share) for n, p in (("a", a), ("b", b)) if p]
        return sampled(*sources, near_duplicates=config)

    result = drawn()
    prompts = result.prompts
    assert prompts.height + result.dropped.height == len(texts)
    signed = signatures(prompt_texts(prompts), config)
    cluster = representatives(signed, pl.Series(range(prompts.height)), config)
    splits = prompts.group_by(cluster.alias("cluster")).agg(pl.col("split").n_unique())
    assert splits["split"].to_list() == [1] * splits.height
    if config is DROP:
        assert splits.height == prompts.height
    random.shuffle(a)
    random.shuffle(b)
    again = drawn()
    assert again.prompts.equals(prompts)
    assert again.dropped.equals(result.dropped)


def test_contaminated_prompts_are_dropped_with_the_words_they_share(tmp_path):
    path = tmp_path / "school.jsonl"
    path.write_text(json.dumps({"question": QUESTION, "prompt": "no question"}) + "\n")
    school = FileSource(name="school", path=path, prompt_column="question")
    facts = listed("What is the capital of France?", name="facts")
    quoting = "Solve: a farmer has 17 SHEEP and all but 9 of them -- run away. How many remain?"
    source = listed(quoting, "What is the capital of France", "What is the capital of Spain?")
    asked = {"decontaminate": (school, facts)}
    result = sampled(source, **asked)
    assert set(said(result.prompts)) == {"What is the capital of Spain?"}
    facts_of = ["source", "reason", "kept_prompt_id", "evaluation_set", "matched_text"]
    assert sorted(result.dropped.select(facts_of).rows(), key=str) == [
        ("list", "contaminated", None, "facts", "what is the capital of france"),
        (
            "list",
            "contaminated",
            None,
            "school",
            "a farmer has 17 sheep and all but 9 of them run away",
        ),
    ]
    with pytest.raises(DataError, match=r"all 1 prompts overlap.*school, facts"):
        sampled(listed(quoting), **asked)
    config = PromptSamplingConfig(sources=(source,), **asked)
    before = fingerprints(config)
    path.write_text(json.dumps({"question": "Another?"}) + "\n")
    assert fingerprints(config) != before
    path.unlink()
    with pytest.raises(MissingFileError, match=r"school\.jsonl"):
        fingerprints(config)
