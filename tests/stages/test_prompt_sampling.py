"""Sampling: by content alone deduplicated, split and mixed, whatever the order of rows."""

import random

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import ConfigError, DataError
from stages.prompt_sampling import NoNewPromptsError, PromptSamplingConfig, quotas, sample
from stages.prompt_sources import BundledSource
from tests.stages.prompt_files import file_source, jsonl, numbered, sampled


def test_the_first_source_keeps_a_duplicate_and_only_exact_ones_are_duplicates(tmp_path):
    first = jsonl(tmp_path / "a.jsonl", [{"prompt": p} for p in ("x", "y", "x")])
    second = jsonl(tmp_path / "b.jsonl", [{"prompt": p} for p in ("y", "z", "x ", "X")])
    sources = file_source(first, "first"), file_source(second, "second")

    def owners(prompts):
        return {m[0]["content"]: s for m, s in prompts.select("messages", "source").iter_rows()}

    assert owners(sampled(*sources)) == {
        "x": "first",
        "y": "first",
        "z": "second",
        "x ": "second",
        "X": "second",
    }
    assert owners(sampled(*reversed(sources)))["y"] == "second"


@pytest.mark.parametrize(
    ("maximum", "expected"),
    [
        # strata of 10, 2 and 1 rows are drawn from in turns
        (3, {"a": 1, "b": 1, "c": 1}),
        (6, {"a": 3, "b": 2, "c": 1}),
        (7, {"a": 4, "b": 2, "c": 1}),
        (13, {"a": 10, "b": 2, "c": 1}),
        (100, {"a": 10, "b": 2, "c": 1}),
    ],
)
def test_strata_share_equally_as_far_as_they_last(tmp_path, maximum, expected):
    topics = "a" * 10 + "bb" + "c"
    rows = [{"prompt": f"Prompt {i}", "topic": t} for i, t in enumerate(topics)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    prompts = sampled(file_source(path, stratum_column="topic", maximum_rows=maximum))
    assert dict(prompts.group_by("stratum").len().iter_rows()) == expected


def test_the_seed_decides_the_sample(tmp_path):
    source = file_source(numbered(tmp_path / "a.jsonl", 100), maximum_rows=20)
    ids = [frozenset(sampled(source, seed=seed)["prompt_id"]) for seed in (1, 1, 2)]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]


def test_the_order_of_the_file_does_not_change_the_sample(tmp_path):
    path = numbered(tmp_path / "a.jsonl", 60, strata=("a", "b", "b"))
    source = file_source(path, stratum_column="topic", maximum_rows=31)
    before, lines = sampled(source), path.read_text().splitlines(keepends=True)
    for seed in range(5):
        random.Random(seed).shuffle(lines)
        path.write_text("".join(lines))
        assert sampled(source).equals(before)


def test_adding_rows_never_moves_a_prompt_to_the_other_split(tmp_path):
    def splits(count, name="mine", **rest):
        path = numbered(tmp_path / f"{count}.jsonl", count)
        prompts = sampled(file_source(path, name, heldout_share=0.25, **rest))
        return dict(prompts.select("prompt_id", "split").iter_rows())

    many = splits(2000)
    # 4 standard deviations of a share of 0.25 over 2000 prompts: 0.039
    assert sum(s == "heldout" for s in many.values()) / 2000 == pytest.approx(0.25, abs=0.039)
    for fewer in (splits(10), splits(500), splits(500, "other", maximum_rows=100)):
        assert fewer.items() <= many.items()


def test_a_larger_held_out_share_only_adds_to_the_held_out_prompts(tmp_path):
    path = numbered(tmp_path / "a.jsonl", 300)
    heldout = []
    for share in (0.0, 0.1, 0.5):
        prompts = sampled(file_source(path, heldout_share=share))
        heldout.append(set(prompts.filter(pl.col("split") == "heldout")["prompt_id"]))
    assert not heldout[0]
    assert heldout[0] < heldout[1] < heldout[2]


def test_prompts_are_sorted_by_split_and_id(tmp_path):
    prompts = sampled(file_source(numbered(tmp_path / "a.jsonl", 50), heldout_share=0.5))
    keys = list(prompts.select("split", "prompt_id").iter_rows())
    assert keys == sorted(keys, key=lambda key: (key[0] == "heldout", key[1]))
    assert {split for split, _ in keys} == {"train", "heldout"}


def of_two_values(path, first, second):
    rows = [{"prompt": "a", "topic": t, "truth": str(n)} for t, n in (first, second)]
    path = jsonl(path, rows)
    return sampled(file_source(path, stratum_column="topic", ground_truth_column="truth"))


def test_which_of_two_rows_of_one_prompt_stays_is_decided_by_their_values(tmp_path):
    one, two = ("x", 2), ("x", 1)
    prompts = of_two_values(tmp_path / "a.jsonl", one, two)
    assert prompts.equals(of_two_values(tmp_path / "b.jsonl", two, one))
    assert prompts["ground_truth"].to_list() == ["1"]


# --- mixing


@pytest.mark.parametrize(
    ("total", "weights", "limits", "expected"),
    [
        (10, [1, 1], [100, 100], [5, 5]),
        # exact shares 2.5, 2.5, 5: of equal remainders the first wins
        (10, [1, 1, 2], [100, 100, 100], [3, 2, 5]),
        # exact shares 3.33, 6.67: the larger remainder wins
        (10, [1, 2], [100, 100], [3, 7]),
        # the first gives what it has not; 9 are left for weights 1 and 2
        (10, [1, 1, 2], [1, 100, 100], [1, 3, 6]),
        # then the third is short, too: the second takes all that is left
        (10, [1, 1, 2], [1, 100, 4], [1, 5, 4]),
        (10, [1, 1], [2, 3], [2, 3]),
        (0, [1, 1], [2, 3], [0, 0]),
        (3, [0.1, 0.2], [100, 100], [1, 2]),
        (3, [1], [0], [0]),
    ],
)
def test_quotas_by_hand(total, weights, limits, expected):
    assert quotas(total, weights, limits) == expected


@settings(max_examples=50)
@given(
    st.integers(0, 200),
    st.lists(st.tuples(st.floats(0.01, 100), st.integers(0, 60)), min_size=1, max_size=8),
)
def test_quotas_are_whole_exact_and_fair(total, shares):
    weights, limits = zip(*shares, strict=True)
    given_ = quotas(total, weights, limits)
    assert sum(given_) == min(total, sum(limits))
    assert all(0 <= quota <= limit for quota, limit in zip(given_, limits, strict=True))
    # Who got less than its limit got no less, per weight, than anybody else, but for rounding.
    short = [(g, w) for g, w, limit in zip(given_, weights, limits, strict=True) if g < limit]
    for quota, weight in short:
        for other, other_weight in zip(given_, weights, strict=True):
            assert (quota + 1) / weight >= (other - 1) / other_weight - 1e-9


def mixed(folder, total, seed=0, **of_sources):
    """Return how many prompts of each source, of those in files of the given sizes."""
    sources = []
    for name, (count, rest) in of_sources.items():
        path = folder / f"{name}.jsonl"
        rows = [{"prompt": f"{name} {i}"} for i in range(count)]
        sources.append(file_source(jsonl(path, rows), name, **rest))
    config = PromptSamplingConfig(sources=tuple(sources), maximum_prompts=total, seed=seed)
    prompts = sample(config).prompts
    return dict(prompts.group_by("source").len().iter_rows()), set(prompts["prompt_id"])


def test_sources_are_mixed_by_weight_and_one_that_falls_short_gives_its_rest(tmp_path):
    counts, _ = mixed(tmp_path, 30, a=(50, {}), b=(50, {"weight": 2}))
    assert counts == {"a": 10, "b": 20}
    counts, _ = mixed(tmp_path, 30, a=(50, {}), b=(50, {"weight": 2, "maximum_rows": 5}))
    assert counts == {"a": 25, "b": 5}
    counts, _ = mixed(tmp_path, 30, a=(7, {}), b=(8, {}))
    assert counts == {"a": 7, "b": 8}


def test_a_larger_mix_only_adds_prompts(tmp_path):
    smaller, larger = (mixed(tmp_path, n, a=(40, {}), b=(40, {}))[1] for n in (10, 30))
    assert len(smaller) == 10
    assert smaller < larger


def test_a_source_fills_its_maximum_from_what_other_sources_have_not(tmp_path):
    """Duplicates are removed before the draw: today's 20 rows are 20 prompts."""
    first = jsonl(tmp_path / "a.jsonl", [{"prompt": f"Prompt {i}"} for i in range(30)])
    second = jsonl(tmp_path / "b.jsonl", [{"prompt": f"Prompt {i}"} for i in range(60)])
    sources = file_source(first, "first"), file_source(second, "second", maximum_rows=20)
    counts = dict(sampled(*sources).group_by("source").len().iter_rows())
    assert counts == {"first": 30, "second": 20}


def test_a_weight_that_nothing_reads_is_refused():
    with pytest.raises(ValueError, match=r"read only with `prompts\.maximum_prompts`"):
        PromptSamplingConfig(sources=(BundledSource(weight=2),))


@pytest.mark.parametrize(
    ("maximum", "expected"),
    [
        # strata of 12, 6 and 2 rows of 20
        (10, {"a": 6, "b": 3, "c": 1}),
        (13, {"a": 8, "b": 4, "c": 1}),  # exact shares 7.8, 3.9, 1.3
        (20, {"a": 12, "b": 6, "c": 2}),
    ],
)
def test_strata_share_by_their_sizes_if_asked(tmp_path, maximum, expected):
    rows = [{"prompt": f"{i}", "topic": t} for i, t in enumerate("a" * 12 + "b" * 6 + "cc")]
    path = jsonl(tmp_path / "a.jsonl", rows)
    rest = {"stratum_column": "topic", "maximum_rows": maximum, "strata": "proportional"}
    prompts = sampled(file_source(path, **rest))
    assert dict(prompts.group_by("stratum").len().iter_rows()) == expected


# --- prompts seen before


def test_prompts_seen_before_are_passed_over_and_move_no_other(tmp_path):
    source = file_source(numbered(tmp_path / "a.jsonl", 40), heldout_share=0.5, maximum_rows=10)
    config, nights = PromptSamplingConfig(sources=(source,)), []
    seen = pl.DataFrame(schema={"prompt_id": pl.String, "split": pl.String})
    for _ in range(4):
        nights.append(sample(config, seen).prompts)
        seen = pl.concat([seen, nights[-1].select("prompt_id", "split")])
    every = sampled(file_source(tmp_path / "a.jsonl", heldout_share=0.5))
    assert pl.concat(nights).sort("prompt_id").equals(every.sort("prompt_id"))
    with pytest.raises(NoNewPromptsError, match="earlier runs have had all 40"):
        sample(config, seen)


# --- the bundled families


def bundled(split, train=20, heldout=10, skip=0, seed=0, **rest):
    prompts = sampled(BundledSource(train=train, heldout=heldout, skip=skip, **rest), seed=seed)
    return prompts.filter(pl.col("split") == split)


def test_bundled_prompts_come_in_equal_shares_and_the_remainder_goes_to_the_first():
    counts = dict(bundled("train", train=12).group_by("stratum").len().iter_rows())
    assert counts == {"sum": 3, "sort": 3, "words": 2, "support": 2, "extract": 2}


@pytest.mark.parametrize("skip", [5, 7, 20])
def test_skip_gives_the_next_train_prompts_and_the_same_held_out_ones(skip):
    first, fresh = bundled("train", train=skip), bundled("train", train=18, skip=skip)
    assert (first.height, fresh.height) == (skip, 18)
    for column in ("prompt_id", "ground_truth"):
        assert not set(first[column]) & set(fresh[column])
    assert set(first["prompt_id"]) | set(fresh["prompt_id"]) == set(
        bundled("train", train=18 + skip)["prompt_id"]
    )
    assert bundled("heldout", skip=skip).equals(bundled("heldout"))


def test_another_seed_gives_other_prompts_whose_content_stays_in_its_split():
    train = [set(bundled("train", seed=seed)["ground_truth"]) for seed in (1, 2)]
    heldout = [set(bundled("heldout", seed=seed)["ground_truth"]) for seed in (1, 2)]
    assert train[0] != train[1]
    assert not (train[0] | train[1]) & (heldout[0] | heldout[1])


def test_an_unknown_family_is_refused():
    with pytest.raises(ConfigError, match=r"'summ'; known: sum, .*prompt source 'bundled'"):
        sampled(BundledSource(families=("summ",)))


def test_more_bundled_prompts_than_there_are_is_refused(monkeypatch):
    monkeypatch.setattr("stages.task_families.MAX_STALE_DRAWS", 100)
    with pytest.raises(ConfigError, match=r"ask for at most \d+"):
        sampled(BundledSource(families=("support",), train=10**6))


def test_no_bundled_prompts_is_refused():
    with pytest.raises(DataError, match="no prompts to sample"):
        sampled(BundledSource(train=0, heldout=0))
