"""The statistics of a capability card, on items whose means are worked out by hand."""

import polars as pl
import pytest

from stages.tables import CAPABILITIES
from trainer.capabilities import CardConfig, as_items, capabilities, controlled_row, wilson


def items(policy, values, metric="success", strata=None, weights=None, **same):
    """Items of one policy, named by their places."""
    rows = {
        "item": [str(place) for place in range(len(values))],
        "value": values,
        "stratum": strata or ["all"] * len(values),
        "weight": weights or [1.0] * len(values),
    }
    facts = {"capability": "tasks", "metric": metric, "policy": policy, "weights_hash": policy}
    return as_items(pl.DataFrame(rows), **{**facts, **same})


def card(*frames, **tolerances):
    made = capabilities(pl.concat(frames), tolerances, seed=0, resamples=200)
    CAPABILITIES.to_arrow(made)
    return made.rows(named=True)


@pytest.mark.parametrize(
    ("met", "count", "low", "high"),
    [
        (3, 4, 0.3006, 0.9544),
        (0, 20, 0.0, 0.1611),
        (20, 20, 0.8389, 1.0),
        (50, 100, 0.4038, 0.5962),
    ],
)
def test_wilsons_interval_as_tabulated(met, count, low, high):
    assert wilson(met, count) == pytest.approx((low, high), abs=5e-5)


def test_a_policy_is_compared_with_the_first_on_the_items_that_both_have():
    first, second = card(items("a", [1.0, 1.0, 1.0, 0.0]), items("b", [0.0, 1.0, 1.0]))
    assert (first["policy"], first["items"], first["value"]) == ("a", 4, 0.75)
    assert (first["value_low"], first["value_high"]) == pytest.approx((0.3006, 0.9544), abs=5e-5)
    assert (first["paired"], first["difference"], first["regressed"]) == (None, None, False)
    assert (second["items"], second["paired"]) == (3, 3)
    assert second["value"] == pytest.approx(2 / 3)
    assert second["difference"] == pytest.approx(-1 / 3)
    assert second["low"] <= second["difference"] <= second["high"] == 0.0
    assert not second["regressed"], "an interval that reaches 0 is no regression"


def test_a_regression_is_a_whole_interval_worse_than_the_tolerance():
    sides = items("a", [1.0] * 8), items("b", [0.0] * 8)
    for tolerance, regressed in ((0.0, True), (0.9, True), (1.0, False)):
        _, second = card(*sides, tasks=tolerance)
        assert (second["low"], second["high"]) == (-1.0, -1.0)
        assert (second["tolerance"], second["regressed"]) == (tolerance, regressed)
    losses = {"metric": "nats", "higher_is_better": False}
    _, worse = card(items("a", [1.0, 2.0], **losses), items("b", [1.5, 2.5], **losses))
    assert (worse["difference"], worse["regressed"]) == (0.5, True)
    _, better = card(items("a", [1.5, 2.5], **losses), items("b", [1.0, 2.0], **losses))
    assert not better["regressed"]


def test_a_mean_weighs_its_items_and_strata_have_rows_of_their_own():
    # 3 instructions, a third of them followed, and 1 followed: 2 of 4.
    (row,) = card(items("a", [1 / 3, 1.0], weights=[3.0, 1.0]))
    assert row["value"] == pytest.approx(0.5)
    assert row["value_low"] == pytest.approx(1 / 3)
    rows = card(items("a", [1.0, 0.0, 0.0], strata=["x", "x", "y"]))
    found = [(row["stratum"], row["items"], row["value"]) for row in rows]
    assert found == [("all", 3, pytest.approx(1 / 3)), ("x", 2, 0.5), ("y", 1, 0.0)]


def test_policies_without_a_common_item_are_not_compared():
    second = items("b", [0.0, 0.0]).with_columns(item=pl.lit("other ") + pl.col("item"))
    _, row = card(items("a", [1.0, 1.0]), second)
    assert (row["paired"], row["difference"], row["regressed"]) == (0, None, False)


def test_the_win_rate_at_equal_lengths_is_a_row_against_even():
    met = pl.DataFrame(
        {"prompt_id": list("abcd"), "win": [0.0] * 4, "length_gap": [2.0, -2.0, 2.0, -2.0]}
    )
    facts = {"policy": "b", "weights_hash": "b", "first_weights_hash": "a", "capability": "mine"}
    row = controlled_row(met, facts, {"mine": 0.1}, 0, 200).row(0, named=True)
    assert row["value"] < 0.2
    assert row["difference"] == pytest.approx(row["value"] - 0.5)
    assert row["high"] < -0.1
    assert row["regressed"]
    assert controlled_row(met.clear(), facts, {}, 0, 200).is_empty()


def test_the_names_that_a_tolerance_can_have():
    judged = {"name": "mine", "path": "mine.jsonl", "scorer": "judge"}
    config = CardConfig.checked({"judged": [judged], "lm_eval": {"tasks": ["ifeval"]}})
    both = ["mine", "lm_eval/ifeval"]
    assert config.named(texts=True) == ["instruction_following", "tasks", "texts", *both]
    assert CardConfig(tasks_per_family=0).named(texts=False) == ["instruction_following"]
