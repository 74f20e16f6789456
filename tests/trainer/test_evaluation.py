import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import DataError
from stages.tables import CANDIDATES, EVALUATIONS, PROMPTS, SCORES
from trainer.bootstrap import paired_interval
from trainer.evaluation import compare, evaluations, per_prompt_metrics, scored_samples


def measures(values, stratum="sum", metric="success", decoding="sampled"):
    """Prompts p0, p1, ... with these values."""
    return pl.DataFrame(
        {
            "prompt_id": [f"p{number}" for number in range(len(values))],
            "stratum": stratum,
            "decoding": decoding,
            "metric": metric,
            "value": values,
        },
        schema_overrides={"value": pl.Float64},
    )


def test_means_and_difference_by_hand():
    before = measures([0.0, 0.5, 1.0, 0.5])
    after = measures([0.5, 0.5, 1.0, 1.0])
    row = compare(before, after, seed=0).filter(pl.col("stratum") == "all").row(0, named=True)
    assert (row["prompts"], row["before"], row["after"], row["difference"]) == (4, 0.5, 0.75, 0.25)
    # differences 1/2, 0, 0, 1/2: a resample of four has k halves, k ~ Binomial(4, 1/2), so that
    # P(mean = 0) = P(mean = 1/2) = 1/16 > 2.5 %: the interval reaches both ends.
    assert (row["low"], row["high"]) == (0.0, 0.5)


def test_interval_of_many_prompts_is_the_normal_one():
    # 50 of 100 prompts gain 1: the mean's standard deviation is 0.5 / 10
    low, high = paired_interval(np.repeat([0.0, 1.0], 50), seed=0, resamples=20_000)
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.011)
    assert high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.011)


def test_a_constant_gain_has_an_interval_of_width_zero_however_hard_the_prompts():
    row = compare(measures([0.0, 0.25, 0.75]), measures([0.25, 0.5, 1.0]), seed=0).row(
        0, named=True
    )
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((0.25, 0.25, 0.25))


def test_rows_match_the_evaluations_table_and_cover_strata():
    before = pl.concat([measures([0.0, 1.0]), measures([5.0, 7.0], metric="completion_tokens")])
    strata = pl.when(pl.col("prompt_id") == "p0").then(pl.lit("sort")).otherwise(pl.lit("sum"))
    before = before.with_columns(stratum=strata)
    found = compare(before, before.with_columns(pl.col("value") + 1), seed=1)
    assert found.select("metric", "stratum", "prompts", "difference").rows() == [
        ("completion_tokens", "all", 2, 1.0),
        ("completion_tokens", "sort", 1, 1.0),
        ("completion_tokens", "sum", 1, 1.0),
        ("success", "all", 2, 1.0),
        ("success", "sort", 1, 1.0),
        ("success", "sum", 1, 1.0),
    ]
    EVALUATIONS.to_arrow(found.with_columns(round_id=pl.lit("r")))


def test_prompts_are_joined_by_id_not_by_position():
    before, after = measures([0.0, 0.5, 1.0]), measures([0.25, 0.75, 1.25])
    assert compare(before, after.reverse(), seed=0).equals(compare(before, after, seed=0))


def test_other_prompts_are_an_error_with_counts_and_examples():
    with pytest.raises(DataError, match=r"0 values are only in before \(none\), 1 only in after"):
        compare(measures([0.0, 1.0]), measures([0.0, 1.0, 1.0]), seed=0)
    with pytest.raises(DataError, match=r"1 values are only in before \(p1/success/sampled\)"):
        compare(measures([0.0, 1.0]), measures([0.0]), seed=0)


def test_repeated_prompts_and_numbers_that_are_none_are_errors():
    one = measures([1.0])
    with pytest.raises(DataError, match="before holds several values for one prompt"):
        compare(pl.concat([one, one]), one, seed=0)
    with pytest.raises(DataError, match="after holds values that are null or not finite"):
        compare(one, measures([float("nan")]), seed=0)
    with pytest.raises(DataError, match="stratum 'all'"):
        compare(measures([1.0], stratum="all"), measures([1.0], stratum="all"), seed=0)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30),
    st.integers(0, 1000),
)
def test_interval_lies_within_the_differences_and_repeats(pairs, seed):
    before, after = measures([a for a, _ in pairs]), measures([b for _, b in pairs])
    found = compare(before, after, seed, resamples=50)
    assert found.equals(compare(before, after, seed, resamples=50))
    differences = [b - a for a, b in pairs]
    row = found.row(0, named=True)
    assert min(differences) - 1e-9 <= row["low"] <= row["high"] <= max(differences) + 1e-9


def test_resamples_drawn_in_blocks_are_all_drawn(monkeypatch):
    monkeypatch.setattr("trainer.bootstrap.RESAMPLED_AT_ONCE", 10)
    low, high = paired_interval(np.array([0.0, 1.0, 1.0]), seed=0, resamples=1000)
    assert (low, high) == (0.0, 1.0)


def candidates(*entries, name="c"):
    """Candidates c0, c1, ... from (prompt_id, temperature, completion)."""
    frame = pl.DataFrame(
        [
            {
                "candidate_id": f"{name}{number}",
                "prompt_id": prompt_id,
                "temperature": float(temperature),
                "completion": text,
                "completion_tokens": len(text.split()) + 1,
                "finish_reason": "length" if text.endswith("...") else "stop",
            }
            for number, (prompt_id, temperature, text) in enumerate(entries)
        ]
    )
    return pl.concat([CANDIDATES.empty(), frame], how="diagonal")


def scores(*values, name="c"):
    """Scores of c0, c1, ..."""
    frame = pl.DataFrame(
        [
            {"candidate_id": f"{name}{i}", "scorer": "rules", "score": value}
            for i, value in enumerate(values)
        ],
        schema_overrides={"score": pl.Float64},
    )
    return pl.concat([SCORES.empty(), frame], how="diagonal")


def prompts(**verifiers):
    frame = pl.DataFrame(
        [{"prompt_id": p, "stratum": "sum", "verifier": v} for p, v in verifiers.items()],
        schema_overrides={"verifier": pl.String},
    )
    return pl.concat([PROMPTS.empty(), frame], how="diagonal")


def values(found):
    """Return {(prompt_id, decoding, metric): value}."""
    assert found.columns == ["prompt_id", "stratum", "decoding", "metric", "value"]
    return {(row[0], row[2], row[3]): row[4] for row in found.rows()}


def test_per_prompt_metrics_by_hand():
    answers = candidates(
        ("a", 1, "so it is"), ("a", 1, "so it is"), ("a", 1, "So ..."), ("a", 0, "x"), ("b", 1, "y")
    )
    given = scored_samples(answers, scores(1.0, 0.5, None, 1.0, 0.2), prompts(a="sum", b=None))
    assert values(per_prompt_metrics(given)) == {
        ("a", "sampled", "success"): 1 / 3,
        ("a", "sampled", "score"): 0.75,
        ("a", "sampled", "completion_tokens"): (4 + 4 + 3) / 3,
        ("a", "sampled", "truncated"): 1 / 3,
        ("a", "sampled", "distinct_answers"): 2 / 3,
        # "so it", "it is", "is END" twice; then "so .", ". .", ". .", ". END"
        ("a", "sampled", "distinct_bigrams"): (3 + 3) / (3 + 3 + 4),
        ("a", "greedy", "success"): 1.0,
        ("a", "greedy", "score"): 1.0,
        ("a", "greedy", "completion_tokens"): 2.0,
        ("a", "greedy", "truncated"): 0.0,
        ("b", "sampled", "score"): 0.2,
        ("b", "sampled", "completion_tokens"): 2.0,
        ("b", "sampled", "truncated"): 0.0,
    }


def test_samples_refuse_two_scorers_and_unknown_prompts():
    one = candidates(("a", 1, "x"))
    with pytest.raises(DataError, match="1 candidates have several scores"):
        scored_samples(one, pl.concat([scores(1.0), scores(0.0)]), prompts(a="sum"))
    with pytest.raises(DataError, match=r"1 prompts of candidates are not .* such as a"):
        scored_samples(one, scores(1.0), prompts(b="sum"))


def test_evaluations_hold_win_rates_and_the_divergence_with_what_they_start_from():
    asked = prompts(a="sum", b="sum")
    before = scored_samples(
        candidates(("a", 1, "x"), ("a", 1, "y z"), ("b", 1, "x"), ("b", 1, "")),
        scores(0.0, 1.0, None, 0.5),
        asked,
    )
    after = scored_samples(
        candidates(("a", 1, "x"), ("a", 1, "y"), ("b", 1, ""), ("b", 1, ""), name="d"),
        scores(1.0, 1.0, 0.0, 0.25, name="d"),
        asked,
    )
    ratios = pl.DataFrame({"candidate_id": ["d0", "d1", "d2"], "score": [0.5, 1.5, None]})
    found = evaluations(before, after, ratios, seed=0, resamples=100)
    EVALUATIONS.to_arrow(found.with_columns(round_id=pl.lit("r")))
    whole = {row["metric"]: row for row in found.filter(stratum="all").to_dicts()}
    # a: 1 beats 0 twice and equals 1 twice; b: 0 and 0.25 lose to 0.5
    assert (whole["win_rate"]["before"], whole["win_rate"]["after"]) == (0.5, (0.75 + 0) / 2)
    assert (whole["win_rate"]["low"], whole["win_rate"]["high"]) == (-0.5, 0.25)
    assert whole["length_controlled_win_rate"]["prompts"] == 2
    divergence = [whole["kl_nats"][name] for name in ("prompts", "before", "after", "low", "high")]
    assert divergence == [1, 0.0, 1.0, 1.0, 1.0]
    # b's new answers have no word
    assert whole["distinct_bigrams"]["prompts"] == 1
    assert whole["distinct_answers"]["prompts"] == 2


def test_a_prompt_scored_on_one_side_only_has_no_score_and_is_no_error():
    asked = prompts(a=None, b=None)
    answers = candidates(("a", 1, "x"), ("b", 1, "x"))
    before = scored_samples(answers, scores(0.0, None), asked)
    after = scored_samples(answers, scores(1.0, 1.0), asked)
    none = pl.DataFrame(schema={"candidate_id": pl.String, "score": pl.Float64})
    found = evaluations(before, after, none, seed=0, resamples=100).filter(stratum="all")
    counts = dict(found.select("metric", "prompts").iter_rows())
    assert counts["score"] == counts["win_rate"] == 1
    assert counts["completion_tokens"] == 2
    assert "kl_nats" not in counts


def test_a_judge_of_both_answers_gives_win_rates_and_its_doubts_and_no_scores():
    asked = prompts(a="sum", b="sum", c="sum")
    before, after = (
        scored_samples(
            candidates(*[(prompt, 1, text) for prompt in "abc"], name=name).with_columns(
                sample_index=pl.lit(0, pl.Int64)
            ),
            None,
            asked,
        )
        for name, text in (("c", "x"), ("d", "y"))
    )
    # a is won, the orders disagree about b, and about c nothing could be read.
    verdicts = pl.DataFrame(
        [
            (f"d{number}", f"c{number}", order, score, flag)
            for number, score, flag in (
                (0, 1.0, None),
                (1, 0.5, "order_disagreement"),
                (2, None, None),
            )
            for order in ("first", "second")
        ],
        ["candidate_id", "other_candidate_id", "order", "score", "flag"],
        orient="row",
    )
    none = pl.DataFrame(schema={"candidate_id": pl.String, "score": pl.Float64})
    found = evaluations(before, after, none, 0, 100, verdicts).filter(stratum="all")
    EVALUATIONS.to_arrow(found.with_columns(round_id=pl.lit("r")))
    rows = {r["metric"]: (r["prompts"], r["before"], r["after"]) for r in found.to_dicts()}
    assert rows["win_rate"] == (2, 0.5, 0.75)
    assert rows["judge_flip_rate"] == (2, 0.0, 0.5)
    assert rows["judge_missing_rate"] == (3, 0.0, pytest.approx(1 / 3))
    assert not {"success", "score"} & set(rows)
