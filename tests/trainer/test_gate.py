import polars as pl
import pytest

from stages.errors import ConfigError, DataError
from stages.tables import EVALUATIONS, GATES
from trainer.gate import GateConfig, judge_gate


def evaluations(*rows):
    """Evaluations from (metric, stratum, before, after, low), sampled."""
    frame = pl.DataFrame(
        [
            {
                "metric": metric,
                "decoding": "sampled",
                "stratum": stratum,
                "prompts": 100,
                "before": before,
                "after": after,
                "difference": after - before,
                "low": low,
                "high": after - before + 0.1,
            }
            for metric, stratum, before, after, low in rows
        ]
    )
    EVALUATIONS.to_arrow(frame.with_columns(round_id=pl.lit("r")))
    return frame


WIN = ("length_controlled_win_rate", "all", 0.5, 0.75, 0.125)
LENGTH = ("completion_tokens", "all", 20.0, 25.0, 4.0)
KL = ("kl_nats", "all", 0.0, 3.0, 2.0)
SUCCESS = ("success", "all", 0.25, 0.5, 0.125)
BETTER = ("success", "support", 0.25, 1.0, 0.5)
WORSE = ("success", "sum", 0.75, 0.5, -0.375)

OFF = {"minimum_win_rate": None, "maximum_length_growth": None, "maximum_kl_nats": None}


def test_a_policy_that_wins_at_equal_lengths_within_its_budgets_is_promoted():
    gates, promoted = judge_gate(evaluations(WIN, LENGTH, KL), GateConfig())
    assert promoted
    assert gates.rows() == [
        ("length_controlled_win_rate/sampled lower bound", 0.625, 0.5, True),
        ("completion_tokens/sampled growth", 1.25, 1.5, True),
        ("kl_nats/sampled", 3.0, 10.0, True),
    ]
    GATES.to_arrow(gates.with_columns(round_id=pl.lit("r")))


@pytest.mark.parametrize(
    ("config", "failed"),
    [
        ({"minimum_win_rate": 0.625}, "length_controlled_win_rate/sampled lower bound"),
        ({"maximum_length_growth": 1.2}, "completion_tokens/sampled growth"),
        ({"maximum_kl_nats": 2.9}, "kl_nats/sampled"),
        ({"maximum_text_loss_growth_nats": 0.2}, "text_nats_per_token growth"),
        ({"metric": "success", "minimum_lower_bound": 0.125}, "success/sampled lower bound"),
        ({"metric": "success", "maximum_stratum_drop": 0.2}, "success/sampled drop in sum"),
    ],
)
def test_one_criterion_that_fails_holds_the_policy(config, failed):
    texts = evaluations(("text_nats_per_token", "all", 1.0, 1.25, 0.2))
    texts = texts.with_columns(decoding=pl.lit("read"))
    measured = pl.concat([evaluations(WIN, LENGTH, KL, SUCCESS, BETTER, WORSE), texts])
    gates, promoted = judge_gate(measured, GateConfig(**config))
    assert not promoted
    assert gates.filter(~pl.col("passed"))["criterion"].to_list() == [failed]


@pytest.mark.parametrize("low", [0.0, -0.01, float("nan")])
def test_an_interval_that_reaches_the_limit_is_held(low):
    config = GateConfig(**OFF, metric="success")
    gates, promoted = judge_gate(evaluations((*SUCCESS[:4], low)), config)
    assert not promoted
    assert gates["passed"].to_list() == [False]


def test_drop_in_each_stratum_of_the_metric_else_of_the_win_rate():
    config = GateConfig(**OFF, metric="success", maximum_stratum_drop=0.25)
    gates, promoted = judge_gate(evaluations(SUCCESS, BETTER, WORSE), config)
    assert promoted
    assert gates.rows()[1:] == [
        ("success/sampled drop in sum", 0.25, 0.25, True),
        ("success/sampled drop in support", -0.75, 0.25, True),
    ]
    loses = ("length_controlled_win_rate", "sum", 0.5, 0.25, -0.5)
    gates, promoted = judge_gate(
        evaluations(WIN, loses, WORSE), GateConfig(**OFF, maximum_stratum_drop=0.1)
    )
    assert not promoted
    assert gates.rows() == [("length_controlled_win_rate/sampled drop in sum", 0.25, 0.1, False)]


def test_a_judge_that_goes_by_the_place_holds_the_policy():
    def flips(*rows):
        measured = evaluations(WIN, *[(name, "all", 0.0, value, value) for name, value in rows])
        gates, promoted = judge_gate(measured, GateConfig(**OFF, maximum_judge_flip_rate=0.25))
        assert gates["criterion"].to_list() == ["judge_flip_rate/sampled"]
        return gates["value"].item(), promoted

    assert flips(("judge_flip_rate", 0.25), ("judge_missing_rate", 0.5)) == (0.25, True)
    assert flips(("judge_flip_rate", 0.375), ("judge_missing_rate", 0.0)) == (0.375, False)
    # Both policies answered all prompts the same.
    assert flips(("judge_missing_rate", 0.0)) == (0.0, True)
    for nothing_measured in ([("judge_missing_rate", 1.0)], []):
        with pytest.raises(DataError, match="found 0 evaluations of judge_"):
            flips(*nothing_measured)


def test_a_judge_that_says_too_little_holds_the_policy():
    config = GateConfig(**OFF, maximum_judge_missing_rate=0.1)
    for rate, passes in ((0.1, True), (0.2, False)):
        measured = evaluations(WIN, ("judge_missing_rate", "all", 0.0, rate, rate))
        gates, promoted = judge_gate(measured, config)
        assert gates.rows() == [("judge_missing_rate/sampled", rate, 0.1, passes)]
        assert promoted == passes
    with pytest.raises(DataError, match="0 evaluations of judge_missing_rate"):
        judge_gate(evaluations(WIN), config)


def test_force_promotes_and_records_what_it_overruled():
    held = evaluations((*WIN[:4], -0.25), LENGTH, (*KL[:3], 30.0, 20.0))
    gates, promoted = judge_gate(held, GateConfig(force=True))
    assert promoted
    assert gates["passed"].to_list() == [False, True, False, False]
    assert gates.rows()[-1] == ("not met, overruled by force", 2.0, 0.0, False)
    met = evaluations(WIN, LENGTH, KL)
    assert judge_gate(met, GateConfig(force=True))[0].equals(judge_gate(met, GateConfig())[0])


def test_a_measure_that_is_not_there_is_an_error():
    with pytest.raises(DataError, match="0 evaluations of success/greedy over all strata"):
        judge_gate(evaluations(SUCCESS), GateConfig(**OFF, metric="success", decoding="greedy"))
    with pytest.raises(
        DataError, match=r"0 evaluations of kl_nats/sampled.*metrics are completion"
    ):
        judge_gate(evaluations(WIN, LENGTH), GateConfig())


def test_misspelt_settings_are_refused():
    with pytest.raises(ConfigError, match="nearest known: minimum_lower_bound"):
        GateConfig.checked({"minimum_lower_bond": 0.1})


def on_card(capability, metric, difference, *, better=True, stratum="all"):
    """A row of a card, as far as the gate reads it."""
    return {
        "capability": capability,
        "metric": metric,
        "stratum": stratum,
        "difference": difference,
        "higher_is_better": better,
    }


def test_no_metric_of_a_capability_may_fall_below_its_tolerance():
    rows = [
        on_card("tasks", "success", None),  # the policy before
        on_card("tasks", "success", -0.25),
        on_card("tasks", "success", -0.5, stratum="sum"),
        on_card("texts", "nats_per_token", 0.5, better=False),
        on_card("other", "score", -9.0),
    ]
    card = pl.DataFrame(rows)
    config = GateConfig.checked({**OFF, "capability_tolerances": {"tasks": 0.25, "texts": 0.25}})
    gates, promoted = judge_gate(evaluations(WIN), config, card)
    assert not promoted
    assert gates.rows() == [
        ("tasks/success drop", 0.25, 0.25, True),
        ("texts/nats_per_token drop", 0.5, 0.25, False),
    ]
    unknown = GateConfig.checked({**OFF, "capability_tolerances": {"mine": 0.1}})
    with pytest.raises(DataError, match="no capability 'mine' of both policies"):
        judge_gate(evaluations(WIN), unknown, card)
