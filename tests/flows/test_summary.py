"""What a run says at its end."""

from __future__ import annotations

import pytest

from flows.summary import _places, _spending

ROUND = {"result_path": "models/r1"}


@pytest.mark.parametrize(
    ("run_id", "of_round", "expected"),
    [
        ("nightly-refresh-1a2b", None, "prefmill train -w w --run nightly-refresh-1a2b"),
        ("demo-round1-1a2b", ROUND, "prefmill demo -w w --rounds 3"),
        ("nightly-round1-1a2b", ROUND, "prefmill diff -w w"),
    ],
)
def test_what_to_try_next_goes_on_from_this_run(run_id, of_round, expected):
    run = {"run_id": run_id, "round": of_round, "report": "r", "exports": [],
           "dropped_example": None, "kept_example": None}  # fmt: skip
    lines = [line.plain.strip() for line in _places({"workspace": "w", "lineage": "l"}, run)]
    assert lines[-1] == expected


@pytest.mark.parametrize(
    ("spent", "expected"),
    [
        ((0, 0.0, 10, 1.0), []),
        ((1234, 0.0, None, None), ["Endpoints: 1,234 tokens"]),
        (
            (1234, 1.5, 1000, 1.25),
            ["Endpoints: 1,234 tokens (limit 1,000), cost 1.50 (limit 1.25)"],
        ),
    ],
)
def test_what_endpoints_were_asked_for_stands_beside_the_limits(spent, expected):
    of_run = dict(zip(("tokens", "cost", "max_tokens", "max_cost"), spent, strict=True))
    assert list(_spending({"spent": of_run})) == expected
