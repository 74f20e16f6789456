import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.bootstrap import paired_interval
from trainer.win_rate import duels, judged_duels, length_controlled


def samples(*entries, stratum="sum", decoding="sampled"):
    """Samples from (prompt_id, score, completion_tokens)."""
    frame = pl.DataFrame(
        entries,
        schema={"prompt_id": str, "score": pl.Float64, "completion_tokens": pl.Int64},
        orient="row",
    )
    return frame.with_columns(stratum=pl.lit(stratum), decoding=pl.lit(decoding))


def met(*entries):
    """Duels from (wins, lost, length_gap), each entry a prompt."""
    rows = [
        {"prompt_id": f"p{number}", "win": win, "length_gap": float(gap)}
        for number, (won, lost, gap) in enumerate(entries)
        for win in [1.0] * won + [0.0] * lost
    ]
    return pl.DataFrame(rows)


def test_every_new_answer_meets_every_former_one_of_its_prompt_that_has_a_score():
    before = samples(("a", 0.5, 10), ("a", 1.0, 12), ("b", 0.0, 3), ("c", None, 5))
    after = samples(("a", 0.5, 11), ("a", None, 99), ("b", 0.25, 2), ("c", 1.0, 5))
    assert duels(before, after).select("prompt_id", "win", "length_gap").rows() == [
        ("a", 0.5, 1.0),
        ("a", 0.0, -1.0),
        ("b", 1.0, -1.0),
    ]


def test_answers_meet_within_one_decoding():
    sampled, greedy = samples(("a", 0.0, 1)), samples(("a", 1.0, 1), decoding="greedy")
    assert duels(sampled, greedy).is_empty()


def answers(side, *tokens):
    """Answers a0-SIDE, a1-SIDE ... to prompt a, of so many tokens each."""
    frame = samples(*[("a", None, length) for length in tokens])
    index = pl.Series("sample_index", range(len(tokens)), pl.Int64)
    name = pl.format("a{}-{}", index, pl.lit(side))
    return frame.with_columns(index, candidate_id=name, completion=name)


def test_answers_of_one_index_meet_by_the_verdicts_on_both():
    # 0: the new answer wins in both orders; 1: the former one, which leads, wins half of its
    # samples: 0.75 of 1 for it; 2: the orders disagree; 3: one order is missing; 4: nobody asked.
    rows = [
        ("a0-new", "a0-old", "first", 1.0, None),
        ("a0-new", "a0-old", "second", 1.0, None),
        ("a1-old", "a1-new", "first", 1.0, None),
        ("a1-old", "a1-new", "second", 1.0, None),
        ("a1-old", "a1-new", "first", 0.5, "order_disagreement"),
        ("a1-old", "a1-new", "second", 0.5, "order_disagreement"),
        ("a2-old", "a2-new", "first", 0.5, "order_disagreement"),
        ("a2-old", "a2-new", "second", 0.5, "order_disagreement"),
        ("a3-new", "a3-old", "first", None, None),
        ("a3-new", "a3-old", "second", None, None),
        ("a4-new", None, None, None, None),
    ]
    columns = ["candidate_id", "other_candidate_id", "order", "score", "flag"]
    judgments = pl.DataFrame(rows, columns, orient="row")
    before, after = answers("old", 5, 5, 5, 5, 5), answers("new", 7, 5, 4, 5, 5)
    found = judged_duels(before, after, judgments)
    assert found.select("win", "length_gap", "flipped").rows() == [
        (1.0, 2.0, 0.0),
        (0.25, 0.0, 0.5),
        (0.5, -1.0, 1.0),
        (None, 0.0, None),
        (None, 0.0, None),
    ]
    swapped = judged_duels(after, before, judgments)
    assert swapped["win"].to_list() == [0.0, 0.75, 0.5, None, None]
    one_order = judged_duels(before, after, judgments.filter(order="first"))
    assert one_order["flipped"].null_count() == 5
    unasked = judged_duels(before, after.with_columns(before["completion"]), judgments.clear())
    assert unasked["win"].to_list() == [0.5] * 5, "the same word for word"


def test_a_win_by_length_alone_is_no_win():
    # The longer answer wins 9 of 10, whoever gave it, and the new policy's is longer on four
    # prompts of five: it wins 0.8 * 0.9 + 0.2 * 0.1 = 0.74 of all. Where it is 30 tokens longer
    # theta + b = log 9, where it is 30 shorter theta - b = -log 9: theta is 0, the win rate 1/2.
    longer = [(1, 0, 30)] * 36 + [(0, 1, 30)] * 4
    wins = met(*longer, (1, 0, -30), *[(0, 1, -30)] * 9)
    assert wins["win"].mean() == pytest.approx(0.74)
    rate, (low, high) = length_controlled(wins, seed=0, resamples=500)
    assert rate == pytest.approx(0.5, abs=0.005)
    assert low < 0.5 < high


def test_a_win_at_equal_lengths_stays_whatever_the_lengths_elsewhere():
    wins = met(*[(8, 2, 0)] * 30, *[(9, 1, 20)] * 30, *[(6, 4, -20)] * 30)
    rate, (low, high) = length_controlled(wins, seed=0, resamples=500)
    # log-odds log 4 = 1.386 at no gap; log 9 and log 1.5 lie 0.811 above and 0.981 below, so that
    # one slope fits nearly: the middle is drawn down by a part of their difference
    assert rate == pytest.approx(0.8, abs=0.02)
    assert 0.7 < low < rate < high < 0.9


def test_without_a_difference_in_length_it_is_the_win_rate_with_its_own_interval():
    shares = [0, 2, 4, 6, 8, 10, 9, 7, 9, 10] * 20
    wins = met(*[(won, 10 - won, 5) for won in shares])
    rate, (low, high) = length_controlled(wins, seed=3, resamples=4000)
    assert rate == pytest.approx(0.65, abs=1e-4)
    plain = paired_interval(np.array(shares) / 10, seed=3, resamples=4000)
    assert (low, high) == pytest.approx(plain, abs=0.002)


def test_every_prompt_weighs_the_same():
    wins = met((90, 0, 0), *[(0, 3, 0)] * 3)
    assert length_controlled(wins, 0, 100)[0] == pytest.approx(0.25, abs=0.005)


@pytest.mark.parametrize(("won", "lost"), [(1, 0), (0, 1)])
def test_a_policy_that_wins_or_loses_all_has_a_finite_rate(won, lost):
    rate, (low, high) = length_controlled(met(*[(won, lost, 4), (won, lost, -4)] * 100), 0, 100)
    assert abs(rate - won) < 0.01
    assert 0 <= low <= high <= 1


def test_one_newton_step_gives_nearly_the_interval_of_full_refits():
    generator = np.random.default_rng(5)
    gaps = generator.normal(10, 30, 150)
    chance = 1 / (1 + np.exp(-0.4 - 1.5 * np.tanh(gaps / 30)))
    wins = met(
        *[(int(w), 4 - int(w), g) for w, g in zip(generator.binomial(4, chance), gaps, strict=True)]
    )
    rate, quick = length_controlled(wins, seed=1, resamples=2000)
    prompts, refitted = wins.partition_by("prompt_id"), []
    for _ in range(100):
        drawn = [prompts[i] for i in generator.integers(0, 150, 150)]
        again = pl.concat([d.with_columns(prompt_id=pl.lit(f"p{n}")) for n, d in enumerate(drawn)])
        refitted.append(length_controlled(again, 0, 1)[0])
    assert math.isclose(rate, 0.6, abs_tol=0.05)
    assert quick == pytest.approx(np.percentile(refitted, (2.5, 97.5)), abs=0.02)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.integers(-50, 50)), min_size=1, max_size=20
    )
)
def test_exchanging_the_policies_mirrors_rate_and_is_repeatable(entries):
    wins = pl.DataFrame(
        [
            {"prompt_id": f"p{i}", "win": w, "length_gap": float(g)}
            for i, (w, g) in enumerate(entries)
        ]
    )
    mirrored = wins.with_columns(win=1 - pl.col("win"), length_gap=-pl.col("length_gap"))
    rate, (low, high) = length_controlled(wins, 0, 50)
    other, (low_other, high_other) = length_controlled(mirrored, 0, 50)
    assert rate + other == pytest.approx(1, abs=1e-6)
    assert (low + high_other, high + low_other) == pytest.approx((1, 1), abs=1e-6)
    assert length_controlled(wins, 0, 50) == (rate, (low, high))
