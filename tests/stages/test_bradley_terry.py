"""Bradley-Terry strengths, and the pairs that they make."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from stages import bradley_terry
from stages.bradley_terry import fit, strengths
from stages.errors import DataError
from stages.no_pairs import explain_no_pairs
from stages.pairing import PairingConfig, pair
from stages.tables import JUDGMENTS, PAIRS
from tests.stages.rows import candidates_of, scores, shuffled, table_of

CONFIG = PairingConfig(strategy="pairwise_winners", scorer="judge")


def verdicts(by_prompt):
    """Return verdicts from {prompt: ["ab", "a=b"]}: the first beats the second, or a tie."""
    rows = [
        {"prompt_id": p, "candidate_id": g[0], "other_candidate_id": g[-1], "score": 1 / len(g) * 2}
        for p, games in by_prompt.items()
        for g in games
    ]
    tie = pl.when(pl.col("score") < 1).then(0.5).otherwise(1.0)
    return pl.DataFrame(rows).with_columns(score=tie)


def found(frame):
    return dict(strengths(frame).iter_rows())


def test_two_candidates_by_hand():
    """One won twice: with x = e^strength, 2 / (1 + x^2) = (x - 1) / (x + 1), so x = 2.13040."""
    of_both = found(verdicts({"p": ["ab", "ab"]}))
    assert of_both == {"a": pytest.approx(np.log(2.130395), abs=1e-6), "b": -of_both["a"]}


@pytest.mark.parametrize("games", [["a=b"], ["ab", "ba"], ["ab", "bc", "ca"]])
def test_who_is_even_is_exactly_equal(games):
    assert set(found(verdicts({"p": games})).values()) == {0.0}


def test_who_beat_the_strong_is_stronger_than_who_beat_the_weak():
    """By win rates `a` and `z` would be equal, and so would all the losers."""
    of_all = found(verdicts({"p": ["ab", "bc", "bd", "be", "ze"]}))
    assert max(of_all, key=of_all.get) == "a"
    assert of_all["z"] < of_all["a"]
    assert min(of_all, key=of_all.get) == "e"
    assert of_all["c"] == of_all["d"]


def test_a_very_long_row_of_wins_stays_finite_and_converges():
    won = np.zeros((1, 3, 3))
    won[0, 0, 1] = 1e6
    fitted = fit(won)[0]
    pull = 1 / (1 + np.exp(-fitted))
    # At the maximum what a candidate won beyond expectation is what the prior takes: 2 p - 1.
    beyond = 1e6 / (1 + np.exp(fitted[0] - fitted[1]))
    assert beyond == pytest.approx(2 * pull[0] - 1, abs=1e-6)
    assert fitted[2] == 0


games_won = st.lists(
    st.lists(st.sampled_from([0, 0.5, 1, 2, 7.25]), min_size=25, max_size=25),
    min_size=1,
    max_size=3,
)


@settings(max_examples=25)
@given(games_won)
def test_the_fit_is_the_most_probable(values):
    """Against scipy's minimiser of the same posterior, written out."""
    won = np.array(values).reshape(-1, 5, 5) * (1 - np.eye(5))

    def surprise(fitted, of_prompt):
        gaps = fitted[:, None] - fitted[None, :]
        alone = np.logaddexp(0, fitted) + np.logaddexp(0, -fitted)
        return (of_prompt * np.logaddexp(0, -gaps)).sum() + alone.sum()

    for of_prompt, fitted in zip(won, fit(won), strict=True):
        expected = minimize(surprise, np.zeros(5), (of_prompt,), method="BFGS", tol=1e-9)
        assert fitted == pytest.approx(expected.x, abs=1e-4)


game = st.tuples(
    st.sampled_from("abcd"), st.sampled_from("abcd"), st.sampled_from([0, 0.3, 0.5, 1])
)
played = st.dictionaries(st.sampled_from("pqr"), st.lists(game, min_size=1, max_size=8))


def of_games(by_prompt):
    rows = [
        (p, p + a, p + b, float(s)) for p, games in by_prompt.items() for a, b, s in games if a != b
    ]
    columns = ["prompt_id", "candidate_id", "other_candidate_id"]
    return pl.DataFrame(
        rows, schema=dict.fromkeys(columns, pl.String) | {"score": pl.Float64}, orient="row"
    )


@settings(max_examples=25)
@given(played, st.integers(0, 9))
def test_rows_and_sides_and_batches_have_no_say(by_prompt, seed):
    frame = of_games(by_prompt)
    swapped = frame.select(
        "prompt_id",
        candidate_id="other_candidate_id",
        other_candidate_id="candidate_id",
        score=1 - pl.col("score"),
    )
    before = found(frame)
    assert found(shuffled(swapped, seed)) == before
    alone = [found(of_prompt) for of_prompt in frame.partition_by("prompt_id")]
    assert {k: v for of_prompt in alone for k, v in of_prompt.items()} == before
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bradley_terry, "MAX_CELLS", 1)
        assert found(frame) == before


@settings(max_examples=50)
@given(played)
def test_inverting_the_verdicts_inverts_the_strengths(by_prompt):
    frame = of_games(by_prompt)
    inverted = found(frame.with_columns(score=1 - pl.col("score")))
    assert inverted == {name: -value for name, value in found(frame).items()}


# --- pairs


def judged(by_prompt):
    """Return candidates, scores (win rates have no say: 0) and judgments."""
    names = {p: sorted({c for g in games for c in g} - {"="}) for p, games in by_prompt.items()}
    rates = {p: dict.fromkeys(ids, 0.0) for p, ids in names.items()}
    rows = verdicts(by_prompt).drop("prompt_id").with_columns(scorer=pl.lit("judge"))
    return (
        candidates_of(rates),
        scores(rates, scorer="judge"),
        table_of(JUDGMENTS, rows.to_dicts()),
    )


def test_pairs_are_the_widest_in_strength():
    candidates, rates, judgments = judged({"p": ["ab", "ab"], "q": ["c=d"], "r": ["ef", "fg"]})
    pairs = pair(candidates, rates, CONFIG, judgments)
    PAIRS.to_arrow(pairs)
    columns = ["chosen_candidate_id", "rejected_candidate_id"]
    assert sorted(map("".join, pairs.select(columns).rows())) == ["ab", "ef", "eg", "fg"]
    margin = pairs.row(by_predicate=pl.col("prompt_id") == "p", named=True)["margin"]
    assert margin == pytest.approx(2 * np.log(2.130395), abs=1e-5)
    one = CONFIG.model_copy(update={"maximum_pairs_per_prompt": 1})
    widest = pair(candidates, rates, one, judgments)
    assert sorted(map("".join, widest.select(columns).rows())) == ["ab", "eg"]


def test_unread_verdicts_and_other_scorers_have_no_say():
    candidates, rates, judgments = judged({"p": ["ab"]})
    unread = judgments.with_columns(score=pl.lit(None, dtype=pl.Float64))
    others = judgments.with_columns(scorer=pl.lit("other"))
    assert pair(candidates, rates, CONFIG, pl.concat([unread, others])).is_empty()


def test_a_scorer_that_compared_nothing_is_told():
    candidates, rates, judgments = judged({"p": ["ab"]})
    single = judgments.with_columns(other_candidate_id=pl.lit(None, dtype=pl.String))
    assert pair(candidates, rates, CONFIG, single).is_empty()
    with pytest.raises(DataError, match="'judge' judged 1 candidates one by one"):
        explain_no_pairs(candidates, rates, CONFIG, single)
