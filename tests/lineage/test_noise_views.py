"""What the lineage says of label noise and length bias."""

from dataclasses import replace

import polars as pl
import pytest

from lineage.database import publish
from lineage.query import query
from lineage.records import write_run
from lineage.why import render, why
from stages.length_bias import length_bias
from tests.lineage.small_workspace import (
    RUN_A,
    RUN_B,
    SHARED,
    frame,
    write_run_a,
    write_run_b,
    write_stage,
    write_stages_of_run,
)

ROWS = frame(
    "label_noise",
    ("pair_11", 0.125, 0.5, 0.0, 2, 0, 1.0),
    ("pair_22", 0.5, None, None, 1, 1, None),
    ("pair_33", None, None, None, 0, 0, None),
)
RATES = frame("noise_rates", ("rule", "agreement", 0.3, 0.25, 0.375, 3, 0, "3 of 3 pairs"))


@pytest.fixture
def workspace(empty_workspace):
    empty_workspace.require_writable()
    write_run_a(empty_workspace)
    write_run_b(empty_workspace)
    write_stage(empty_workspace, "noise", "n1", {"label_noise": ROWS, "noise_rates": RATES})
    for run in (RUN_A, RUN_B):
        write_stages_of_run(empty_workspace, run, {"noise": "n1"})
    publish(empty_workspace)
    return empty_workspace


def test_confidence_is_the_probability_that_the_label_is_right(workspace):
    found = query(
        workspace, "SELECT pair_id, confidence FROM pair_quality WHERE run_id = ?", [RUN_A.run_id]
    )

    assert dict(found.rows()) == {"pair_11": 0.875, "pair_22": 0.5, "pair_33": None}
    assert "probability wrong 0.125" in render_text(why(workspace, "pair_11"))


def render_text(story):
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as captured:
        console.print(render(story))
    return captured.get()


def test_the_rate_of_the_kept_pairs_stands_beside_that_of_all(workspace):
    found = query(workspace, "SELECT run_id, method, rate, rate_kept FROM run_noise")

    # refresh_a keeps pair_11; dpo_b keeps all three, one of which nothing tells of.
    assert found.rows() == [
        (RUN_B.run_id, "agreement", 0.3, (0.125 + 0.5) / 2),
        (RUN_A.run_id, "agreement", 0.3, 0.125),
    ]


def test_the_length_bias_is_that_of_the_filter(workspace):
    found = query(workspace, "SELECT * FROM length_bias WHERE run_id = ?", [RUN_B.run_id])
    pairs = query(
        workspace,
        "SELECT pair_id, chosen_tokens, rejected_tokens FROM pair_quality WHERE run_id = ?",
        [RUN_B.run_id],
    )
    measured = length_bias(pairs)

    # Gaps -2, 0 and -6: each stratum's majority is right about its one pair.
    for row in found.iter_rows(named=True):
        assert (row["pairs"], row["bias"], row["longer_wins"]) == (3, pytest.approx(2 / 3), 0)
        assert row["correlation"] == pytest.approx(-8 / (2 * 40) ** 0.5)
        assert row["correlation"] == pytest.approx(measured.correlation)
        assert row["bias"] == pytest.approx(measured.bias)
    assert found["pairs_of"].to_list() == ["proposed", "kept"]
    assert found.schema["pairs"] == pl.Int64


def test_the_length_bias_is_also_told_as_the_weights_have_it(workspace):
    weighed = replace(RUN_B, run_id="refresh_c3")
    rulings = [
        (f"pair_{name}", "length_weight", 0, True, None, weight, None)
        for name, weight in (("11", 0.5), ("22", 1.5), ("33", 1.0))
    ]
    write_run(workspace, weighed)
    write_stage(workspace, "filter", "kw", {"decisions": frame("decisions", *rulings)}, run=weighed)
    write_stages_of_run(workspace, weighed, {**SHARED, "filter": "kw"})
    publish(workspace)
    found = query(workspace, "FROM length_bias WHERE run_id = ?", [weighed.run_id])

    # Of the gaps -2, 0 and -6 a half and one of three; -7 over sqrt((0.5 + 1) * (0.5 * 4 + 36)).
    assert found.select("pairs_of", "pairs", "bias", "longer_wins").rows() == [
        ("proposed", 3, pytest.approx(2 / 3), 0),
        ("kept", 3, pytest.approx(2 / 3), 0),
        ("weighted", 3, 0.5, 0),
    ]
    assert found["correlation"][2] == pytest.approx(-7 / 57**0.5)
    every = query(workspace, "SELECT run_id, kept, length_weight FROM pair_quality ORDER BY ALL")
    assert every.filter(run_id=weighed.run_id).rows() == [
        (weighed.run_id, True, weight) for weight in (0.5, 1.0, 1.5)
    ]
    assert every.filter(run_id=RUN_A.run_id)["length_weight"].null_count() == 3
