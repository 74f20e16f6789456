from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.errors import ConfigError, ValidationError
from stages.tables import DRIFT
from validators import require_valid, validate_part
from validators.drift import (
    Profile,
    ValidationConfig,
    binned,
    drift,
    ks_distance,
    profile,
    psi,
    require_within,
)

COUNTS = st.lists(st.integers(0, 1000), min_size=2, max_size=12)


def config(**values):
    return ValidationConfig.checked(values)


def of(values, prompts=10_000, counts=None, run_id="run"):
    return Profile(run_id, prompts, {"margin": np.array(values, dtype=float)}, counts or {})


def judged(rows):
    """Return {(measure, statistic): (value, maximum, passed)}."""
    DRIFT.to_arrow(rows)
    require_valid([validate_part(DRIFT, rows)], "a test")
    return {
        (row["measure"], row["statistic"]): (row["value"], row["maximum"], row["passed"])
        for row in rows.iter_rows(named=True)
    }


def test_psi_by_hand():
    """Shares 20.5/41, 20.5/41 against 30.5/41, 10.5/41; an empty bin on both sides is no bin."""
    index, bins = psi([20, 20, 0], [30, 10, 0])
    expected = -10 / 41 * math.log(20.5 / 30.5) + 10 / 41 * math.log(20.5 / 10.5)
    assert (index, bins) == (pytest.approx(expected), 2)


@given(COUNTS, st.data())
def test_psi_is_never_negative_and_nought_without_drift(old, data):
    new = data.draw(st.lists(st.integers(0, 1000), min_size=len(old), max_size=len(old)))
    assert psi(new, old)[0] >= 0
    assert psi(old, old)[0] == 0


def test_bins_lie_between_the_deciles_of_the_run_before():
    old = np.arange(100.0)
    at_rest = [0, 9, 10, 10, 10, 10, 10, 10, 10, 10, 10, 1]
    assert binned(old, old) == (at_rest, at_rest)
    assert binned(old + 50, old) == ([0] * 6 + [9] + [10] * 4 + [51], at_rest)
    # Two values, as a rule's scores: each is a bin, however rare.
    rare = np.array([0.0] * 99 + [1.0])
    assert binned(1 - rare, rare) == ([0, 1, 99], [0, 99, 1])


def test_the_distance_is_the_largest_gap():
    """Of five values three are below the other run's least."""
    assert ks_distance(np.array([1.0, 2, 3, 8, 9]), np.array([4.0, 5, 6, 7])) == pytest.approx(0.6)


def test_without_a_run_before_only_bands_are_judged():
    band = {"measure": "margin", "statistic": "mean", "minimum": 1.0, "maximum": 3.0}
    found = judged(drift(of([1, 2, 3]), None, config(bands=[band])))
    assert found == {("margin", "mean"): (2.0, 3.0, True), ("margin", "sd"): (1.0, None, None)}
    found = judged(drift(of([4, 5]), None, config(bands=[band])))
    assert found["margin", "mean"] == (4.5, 3.0, False)


def test_a_band_on_nothing_measured_is_broken():
    band = {"measure": "score:judge", "statistic": "sd", "minimum": 0.1}
    found = judged(drift(of([1, 2]), None, config(bands=[band])))
    assert found["score:judge", "sd"] == (None, None, False)


def test_a_shift_is_drift_and_the_same_distribution_is_not():
    rng = np.random.default_rng(0)
    old, same = rng.normal(size=5000), rng.normal(size=5000)
    found = judged(drift(of(same), of(old, run_id="before"), config()))
    assert found["margin", "psi"][1:] == (0.25, True)
    assert found["margin", "ks"][1:] == (0.2, True)
    found = judged(drift(of(same + 1), of(old, run_id="before"), config()))
    assert not found["margin", "psi"][2]
    assert not found["margin", "ks"][2]


def test_few_prompts_differ_by_chance():
    """2/20 * chi2's 99 % quantile with 10 degrees of freedom, 23.209; sqrt(2/20) * 1.6276."""
    values = list(range(40))
    found = judged(drift(of(values, 20), of(values, 20, run_id="before"), config()))
    assert found["margin", "psi"][1] == pytest.approx(2.3209, abs=1e-3)
    assert found["margin", "ks"][1] == pytest.approx(0.5147, abs=1e-3)
    fewer = judged(drift(of(values[:10], 20), of(values, 40, run_id="before"), config()))
    assert fewer["margin", "ks"][1] == pytest.approx((1 / 10 + 1 / 40) ** 0.5 * 1.6276, abs=1e-3)
    unlimited = config(drift={"maximum_psi": None, "maximum_ks": None})
    found = judged(drift(of(values, 20), of(values, 20, run_id="before"), unlimited))
    assert found["margin", "psi"] == (0.0, None, None)


def test_shares_of_sources_drift_too():
    now, before = {"source": {"web": 900, "new": 100}}, {"source": {"web": 500, "books": 500}}
    rows = drift(of([1], 1000, now), of([1], 1000, before, "before"), config())
    value, limit, passed = judged(rows)["source", "psi"]
    assert (limit, passed) == (0.25, False)
    assert value > 1
    assert rows.filter(measure="source").select("rows", "rows_before", "run_before").row(0) == (
        1000,
        1000,
        "before",
    )


def test_a_profile_is_of_real_prompts_and_kept_pairs():
    prompts = pl.LazyFrame({
        "prompt_id": ["a", "b", "g"], "source": ["s", "t", "s"], "stratum": ["x", "x", "x"],
        "split": ["train", "heldout", "gold"],
    })  # fmt: skip
    candidates = pl.LazyFrame(
        {"prompt_id": ["a", "a", "b", "g"], "completion_tokens": [4, 2, 3, 9]}
    )
    scores = pl.LazyFrame({
        "prompt_id": ["a", "b", "g"], "scorer": ["judge"] * 3, "score": [0.5, None, 9.0],
    })  # fmt: skip
    pairs = pl.LazyFrame({
        "pair_id": ["p", "q"], "prompt_id": ["a", "b"], "margin": [1.0, 2.0],
        "chosen_score": [1.0, 2.0], "rejected_score": [0.0, 0.0], "chosen_tokens": [4, 3],
        "rejected_tokens": [2, 3],
    })  # fmt: skip
    decisions = pl.LazyFrame({"pair_id": ["p", "q", "q"], "kept": [True, True, False]})
    tables = {"prompts": prompts, "candidates": candidates, "scores": scores, "pairs": pairs}
    found = profile("run", {**tables, "decisions": decisions})
    assert found.prompts == 2
    assert {name: values.tolist() for name, values in found.numbers.items()} == {
        "completion_tokens": [2, 3, 4],
        "margin": [1.0],
        "chosen_score": [1.0],
        "rejected_score": [0.0],
        "chosen_tokens": [4],
        "rejected_tokens": [2],
        "score:judge": [0.5],
    }
    assert found.counts == {
        "source": {"s": 1, "t": 1},
        "stratum": {"x": 2},
        "prompt_with_pair": {"yes": 1, "no": 1},
    }


def test_a_must_stops_and_names_what_is_broken():
    band = {"measure": "margin", "statistic": "mean", "maximum": 1.0}
    lenient, strict = config(bands=[band]), config(bands=[band], severity="must")
    rows = drift(of([2, 4]), None, lenient)
    require_within(rows, lenient)
    with pytest.raises(ValidationError, match=r"mean of margin is 3 \(limits any to 1\)"):
        require_within(rows, strict)
    require_within(drift(of([0, 1]), None, strict), strict)


@pytest.mark.parametrize(
    ("band", "message"),
    [
        ({"measure": "margins", "maximum": 1}, "unknown measure 'margins'; nearest known: margin"),
        ({"measure": "margin"}, "neither a minimum nor a maximum"),
    ],
)
def test_a_band_that_says_nothing_is_refused(band, message):
    with pytest.raises(ConfigError, match=message):
        config(bands=[band])
