import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.noise_estimators import (
    RateSum,
    Tally,
    by_agreement,
    by_jury,
    by_swaps,
    calibrate,
    drawn_interval,
    over_patterns,
)

# The labelling scorer is right on 80 % of the pairs, two others on 75 % and 90 %: of 1000 pairs so
# many have each pattern of votes, and so many of those a wrong label.
VOTES = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [1, -1, -1]], dtype=float)
PAIRS = np.array([545, 105, 195, 155], dtype=float)
WRONG = np.array([5, 45, 15, 135], dtype=float)


def test_three_voters_tell_how_often_each_is_right():
    wrong = by_agreement(VOTES, PAIRS[None, :], VOTES)

    assert wrong[0] == pytest.approx(WRONG / PAIRS)
    assert (wrong[0] * PAIRS).sum() == pytest.approx(200)


def test_a_fourth_voter_that_abstains_changes_nothing():
    votes = np.column_stack([VOTES, np.zeros(4)])

    assert by_agreement(votes, PAIRS[None, :], votes)[0] == pytest.approx(WRONG / PAIRS)


def test_voters_that_do_not_agree_tell_nothing():
    chance = Tally(VOTES, np.full(4, 250.0))

    assert np.isnan(by_agreement(VOTES, np.full((1, 4), 250.0), VOTES)).all()
    assert np.isnan(by_jury(VOTES, np.full((1, 4), 250.0), VOTES)).all()
    assert over_patterns(by_agreement, chance, chance, np.random.default_rng(0)) is None


def test_a_jurys_labels_are_asked_about_with_votes_cast_elsewhere():
    # Right on 80, 75 and 90 %: the odds that the chosen is better are products of 4, 3 and 9.
    unanimous, split = by_jury(VOTES, PAIRS[None, :], np.array([[1.0, 1, 1], [1, 1, -1]]))[0]

    assert (unanimous, split) == pytest.approx((1 / (1 + 108), 1 / (1 + 12 / 9)))


def test_a_judge_that_contradicts_itself_on_a_third_errs_on_a_fifth():
    # 2 * 0.2 * 0.8 = 0.32; both orders wrong where they agree: 0.04 / (0.04 + 0.64).
    readings, verdicts = np.array([[0.0], [1.0]]), np.array([[1.0], [-1.0], [0.0]])
    wrong = by_swaps(readings, np.array([[680.0, 320.0]]), verdicts)

    assert wrong[0] == pytest.approx([1 / 17, 16 / 17, 1 / 2])


def test_a_judge_that_contradicts_itself_on_half_tells_nothing():
    readings = np.array([[0.0], [1.0]])

    assert np.isnan(by_swaps(readings, np.array([[50.0, 50.0]]), readings)).all()


def test_the_bootstrap_interval_holds_the_planted_rate():
    tally = Tally(VOTES, PAIRS)
    wrong, draws = over_patterns(by_agreement, tally, tally, np.random.default_rng(0))
    rate, low, high = drawn_interval((wrong * PAIRS).sum(), draws, 1000)

    assert rate == pytest.approx(0.2)
    # Six standard deviations of 200 wrong among 1000 at the most: it is neither empty nor all.
    assert 0.1 < low < 0.19
    assert 0.21 < high < 0.3


def test_without_evidence_the_share_of_wrong_labels_is_all_there_is():
    wrong = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0], dtype=float)
    calibration = calibrate(np.full((9, 2), np.nan), wrong)

    # Half a wrong and half a right one more: 3.5 of 10.
    assert calibration.probability(np.array([[np.nan, np.nan], [5, 7]])) == pytest.approx(
        [0.35, 0.35]
    )


def test_labels_that_are_all_right_leave_some_doubt():
    total = RateSum(calibrate(np.full((99, 1), np.nan), np.zeros(99)))
    total.add(np.full((1000, 1), np.nan))

    # Half a wrong one of 100: Jeffreys' upper limit of 0 in 99 is 0.025, the exact one 0.037.
    assert total.interval().rate == pytest.approx(0.005)
    assert 0.02 < total.interval().high < 0.037


def test_wider_margins_are_less_often_wrong():
    margin = np.repeat([0.0, 1.0, 2.0], 200)[:, None]
    wrong = np.concatenate([np.arange(200) < share * 200 for share in (0.4, 0.2, 0.1)])
    found = calibrate(margin, wrong.astype(float)).probability(np.array([[0.0], [1.0], [2.0]]))

    assert found == pytest.approx([0.4, 0.2, 0.1], abs=0.03)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 100))
def test_blocks_have_no_say(sizes, seed):
    rng = np.random.default_rng(seed)
    evidence, wrong = rng.normal(size=(60, 2)), rng.random(60) < 0.3
    calibration = calibrate(evidence, wrong.astype(float))
    pairs = rng.normal(size=(sum(sizes), 2))
    whole, parts = RateSum(calibration), RateSum(calibration)
    whole.add(pairs)
    for block in np.split(pairs, np.cumsum(sizes)[:-1]):
        parts.add(block)

    assert parts.interval() == pytest.approx(whole.interval())
    assert 0 <= whole.interval().low <= whole.interval().rate <= whole.interval().high <= 1
