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


SUCCESS = ("success", "all", 0.25, 0.5, 0.125)
LENGTH = ("completion_tokens", "all", 20.0, 25.0, 4.0)
BETTER = ("success", "support", 0.25, 1.0, 0.5)
WORSE = ("success", "sum", 0.75, 0.5, -0.375)


def test_a_gain_with_its_interval_above_zero_is_promoted():
    gates, promoted = judge_gate(evaluations(SUCCESS), GateConfig())
    assert promoted
    assert gates.rows() == [("success/sampled lower bound", 0.125, 0.0, True)]
    GATES.to_arrow(gates.with_columns(round_id=pl.lit("r")))


@pytest.mark.parametrize("low", [0.0, -0.01, float("nan")])
def test_an_interval_that_reaches_zero_is_held(low):
    gates, promoted = judge_gate(evaluations((*SUCCESS[:4], low)), GateConfig())
    assert not promoted
    assert gates["passed"].to_list() == [False]


@pytest.mark.parametrize(("limit", "passed"), [(1.25, True), (1.2, False)])
def test_length_growth(limit, passed):
    gates, promoted = judge_gate(
        evaluations(SUCCESS, LENGTH), GateConfig(maximum_length_growth=limit)
    )
    assert promoted is passed
    assert gates.rows()[1] == ("completion_tokens/sampled growth", 1.25, limit, passed)


@pytest.mark.parametrize(("limit", "passed"), [(0.25, True), (0.2, False)])
def test_drop_in_one_stratum(limit, passed):
    gates, promoted = judge_gate(
        evaluations(SUCCESS, BETTER, WORSE), GateConfig(maximum_stratum_drop=limit)
    )
    assert promoted is passed
    assert gates.rows()[1:] == [
        ("success/sampled drop in sum", 0.25, limit, passed),
        ("success/sampled drop in support", -0.75, limit, True),
    ]


def test_a_measure_that_is_not_there_is_an_error():
    with pytest.raises(DataError, match="0 evaluations of success/greedy over all strata"):
        judge_gate(evaluations(SUCCESS), GateConfig(decoding="greedy"))
    with pytest.raises(DataError, match="0 evaluations of completion_tokens/sampled"):
        judge_gate(evaluations(SUCCESS), GateConfig(maximum_length_growth=1.2))


def test_misspelt_settings_are_refused():
    with pytest.raises(ConfigError, match="nearest known: minimum_lower_bound"):
        GateConfig.checked({"minimum_lower_bond": 0.1})
