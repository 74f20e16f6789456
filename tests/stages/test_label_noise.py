import numpy as np
import polars as pl
import pytest

from stages.label_noise import Unselected, estimate, noise_rows, rate_row
from stages.noise_evidence import contradictions, evidence, gold_labels, neighbours
from stages.noise_voters import NoiseConfig, Voters
from stages.tables import JUDGMENTS, LABEL_NOISE, NOISE_RATES, SCORES
from tests.stages.rows import candidates, pairs, scores, table_of

TWO = Voters(others=("first", "second"))
NO_JUDGMENTS = JUDGMENTS.empty()
NOTHING_ELSE = Unselected(pl.DataFrame(), contradictions(NO_JUDGMENTS))


def votes_on(rows):
    """Return `judgments` from (candidate, other, order, score, flag)."""
    names = ("candidate_id", "other_candidate_id", "order", "score", "flag")
    records = [dict(zip(names, row, strict=True)) for row in rows]
    return table_of(JUDGMENTS, [{"scorer": "rules", **record} for record in records])


ONE_PAIR = pairs(
    {
        "pair_id": "pair_1",
        "scorer": "rules",
        "chosen_candidate_id": "a",
        "rejected_candidate_id": "b",
        "margin": 0.5,
    }
)


def facts_of(scored=None, judgments=NO_JUDGMENTS, voters=TWO):
    scored = scores({"p": {"a": 1.0, "b": 0.5}}) if scored is None else scored
    return evidence(ONE_PAIR, scored, judgments, voters).row(0, named=True)


def test_repeated_judgments_tell_the_margins_standard_error():
    repeated = {"scorer": "rules", "prompt_id": "p", "judgments": 8, "missing_share": 0.5}
    scored = table_of(
        SCORES,
        [
            {"candidate_id": "a", "score": 1.0, "spread": 0.6, **repeated},
            {"candidate_id": "b", "score": 0.5, "spread": 0.8, **repeated},
        ],
    )
    facts = facts_of(scored)

    # sqrt(0.36 / 4 + 0.64 / 4) = 0.5: four of eight judgments could be read.
    assert facts["margin_standard_error"] == pytest.approx(0.5)
    assert facts["clearness"] == pytest.approx(0.5 / (0.5 + 0.5))
    assert facts_of()["clearness"] is None


def test_the_judges_two_orders_are_read_from_either_side():
    agreeing = votes_on([("b", "a", "first", 0.0, None), ("b", "a", "second", 0.0, None)])
    flagged = votes_on(
        [("a", "b", order, 0.5, "order_disagreement") for order in ("first", "second")]
    )
    alone = votes_on([("a", "b", "first", 1.0, None)])
    columns = ("order_verdict", "order_disagreement")

    assert [facts_of(judgments=agreeing)[name] for name in columns] == [1, 0]
    assert [facts_of(judgments=flagged)[name] for name in columns] == [0, 1]
    assert [facts_of(judgments=alone)[name] for name in columns] == [None, None]


def test_other_scorers_and_people_vote():
    scored = pl.concat(
        [
            scores({"p": {"a": 1.0, "b": 0.5}}),
            scores({"p": {"a": 1.0, "b": 7.0}}, "first"),
            scores({"p": {"a": 2.0, "b": None}}, "second"),
            scores({"p": {"a": 1.0, "b": 0.0}}, "ann"),
            scores({"p": {"a": 0.0, "b": 0.0}}, "bob"),
        ]
    )
    facts = facts_of(scored, voters=TWO._replace(people=("ann", "bob", "cleo")))

    assert (facts["vote:first"], facts["vote:second"], facts["people"]) == (-1, None, 1)
    assert facts_of()["people"] is None


def test_planted_pairs_make_labels_with_a_known_answer():
    planted = candidates(
        *(
            {"prompt_id": p, "candidate_id": f"{p}{i}", "sample_index": i}
            for p in ("p", "q", "t", "half")
            for i in (0, 1)
        )
    )
    scored = scores(
        {
            "p": {"p0": 1.0, "p1": 0.2},
            "q": {"q0": 0.1, "q1": 0.4},
            "t": {"t0": 1.0, "t1": 1.0},
            "half": {"half0": 0.0, "half1": None},
        }
    )
    found = gold_labels(planted, scored, "rules")

    chosen = ["pair_id", "chosen_candidate_id", "rejected_candidate_id", "wrong"]
    assert found.select(chosen).rows() == [("p", "p0", "p1", False), ("q", "q1", "q0", True)]
    assert found["margin"].to_list() == pytest.approx([0.8, 0.3])


def test_neighbours_are_the_candidates_next_by_id_in_their_prompt():
    scored = pl.concat(
        [
            scores({"p": {"c": 3.0, "a": 1.0, "b": 2.0}, "q": {"d": 0.0, "e": 0.0}}),
            scores({"p": {"a": 1.0, "b": 0.0}}, "first"),
        ]
    )
    votes = neighbours(scored, ["rules", "first"])

    assert votes.rows() == [(-1, 1), (-1, None), (0, None)]


def planted(count, rate, seed, right=(0.8, 0.75)):
    """Return evidence of pairs, and which labels are wrong: ``rate`` of them, fewer with margin."""
    rng = np.random.default_rng(seed)
    margin = rng.random(count)
    wrong = rng.random(count) < 2 * rate * (1 - margin)
    columns = {
        "pair_id": [f"pair_{number:05}" for number in range(count)],
        "margin": margin,
        "margin_standard_error": None,
        "clearness": None,
        "order_verdict": None,
        "order_disagreement": None,
    }
    for name, share in zip(TWO.others, right, strict=True):
        truth = np.where(wrong, -1, 1)
        columns[f"vote:{name}"] = np.where(rng.random(count) < share, truth, -truth)
    floats = dict.fromkeys(("margin_standard_error", "clearness"), pl.Float64)
    floats |= dict.fromkeys(("order_verdict", "order_disagreement"), pl.Float64)
    facts = pl.DataFrame(columns, schema_overrides=floats)
    return facts.with_columns(people=pl.lit(None, dtype=pl.Int8)), wrong


def unplanted():
    facts, _ = planted(1, 0, 0)
    return facts.with_columns(wrong=pl.lit(value=False)).clear()


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.4])
def test_calibrated_the_rate_and_the_pairs_come_out_right(rate):
    facts, wrong = planted(4000, rate, seed=1)
    gold, known = planted(400, rate, seed=2)
    noise = estimate(
        facts, gold.with_columns(wrong=pl.Series(known)), NOTHING_ELSE, TWO, NoiseConfig()
    )

    assert noise.method == "calibrated"
    assert noise.calibration_pairs == 400
    assert noise.interval.low <= wrong.mean() <= noise.interval.high
    assert noise.interval.rate == pytest.approx(wrong.mean(), abs=0.04)
    probability = noise.probability(facts).to_numpy()
    likely = probability > np.median(probability)
    assert probability.mean() == pytest.approx(noise.interval.rate)
    assert wrong[likely].mean() == pytest.approx(probability[likely].mean(), abs=0.05)
    assert wrong[likely].mean() > 1.5 * wrong[~likely].mean()


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.4])
def test_two_independent_scorers_are_enough_without_gold(rate):
    facts, wrong = planted(4000, rate, seed=3)
    noise = estimate(facts, unplanted(), NOTHING_ELSE, TWO, NoiseConfig())

    assert noise.method == "agreement"
    assert noise.interval.low <= wrong.mean() <= noise.interval.high
    assert noise.interval.rate == pytest.approx(wrong.mean(), abs=0.05)
    probability = noise.probability(facts).to_numpy()
    assert probability.mean() == pytest.approx(noise.interval.rate)
    assert wrong[probability > 0.5].mean() > 0.5 > wrong[probability < 0.5].mean()


def test_a_judges_contradictions_are_the_last_resort():
    facts, _ = planted(500, 0.2, seed=4)
    read = pl.int_range(500) < 400
    facts = facts.with_columns(order_verdict=pl.when(read).then(1.0))
    # 320 of 1000 double readings are contradictions, so e is 0.2; none of them became a pair.
    readings = pl.DataFrame({"order_disagreement": [1.0] * 320 + [0.0] * 680})
    noise = estimate(
        facts, unplanted(), Unselected(pl.DataFrame(), readings), Voters(), NoiseConfig()
    )

    assert noise.method == "swaps"
    assert noise.interval.rate == pytest.approx(1 / 17)
    assert noise.interval.low < 1 / 17 < noise.interval.high
    assert noise.probability(facts)[399:401].to_list() == [pytest.approx(1 / 17), None]


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_a_jury_is_judged_by_what_its_members_said_of_all_candidates(rate):
    rng = np.random.default_rng(10)
    truth = rng.choice([-1, 1], size=3000)
    said = np.array([np.where(rng.random(3000) < 1 - rate, truth, -truth) for _ in "abc"])
    voters = Voters(members=("a", "b", "c"), several=True)
    votes = [f"vote:{name}" for name in voters.members]
    elsewhere = pl.DataFrame(said.T.astype(np.int8), schema=votes)
    # Only where all agree is there a pair; its members' votes are all for the chosen.
    unanimous = np.abs(said.sum(axis=0)) == 3
    wrong = said[0, unanimous] != truth[unanimous]
    facts, _ = planted(unanimous.sum(), 0, seed=4)
    ones = [pl.lit(1, dtype=pl.Int8).alias(name) for name in votes]
    facts = facts.drop("vote:first", "vote:second").with_columns(ones)
    nothing_planted = facts.with_columns(wrong=pl.lit(value=False)).clear()
    unselected = Unselected(elsewhere, contradictions(NO_JUDGMENTS))
    noise = estimate(facts, nothing_planted, unselected, voters, NoiseConfig())

    assert noise.method == "agreement"
    assert noise.interval.low <= wrong.mean() <= noise.interval.high


def test_where_people_voted_they_are_right():
    facts, wrong = planted(1000, 0.2, seed=5)
    vote = pl.when(pl.int_range(1000) < 300).then(pl.Series(np.where(wrong, -1, 1)))
    facts = facts.with_columns(people=vote.cast(pl.Int8))
    noise = estimate(facts, unplanted(), NOTHING_ELSE, TWO, NoiseConfig())

    assert (noise.method, noise.calibration_pairs) == ("calibrated", 300)
    assert noise.probability(facts)[:300].to_list() == wrong[:300].astype(float).tolist()
    assert noise.interval.low <= wrong.mean() <= noise.interval.high


@pytest.mark.parametrize(
    ("facts", "voters", "missing"),
    [
        (planted(500, 0.2, 6)[0], Voters(members=("first", "second")), "0 other scorers that had"),
        (planted(200, 0.2, 6)[0], TWO, "200 pairs, 300 needed"),
        (planted(900, 0.5, 6, right=(0.5, 0.5))[0], TWO, "do not agree more often than not"),
    ],
)
def test_nothing_is_made_up(facts, voters, missing):
    facts = (
        facts.with_columns(
            pl.col("^vote:.*$")
            * pl.Series([1, -1]).sample(facts.height, with_replacement=True, seed=0)
        )
        if "agree" in missing
        else facts
    )
    noise = estimate(facts, unplanted(), NOTHING_ELSE, voters, NoiseConfig())

    assert (noise.method, noise.interval) == (None, None)
    assert missing in noise.note
    assert "0 calibration pairs, 100 needed" in noise.note
    assert "0 pairs judged in both orders, 300 needed" in noise.note
    assert noise.probability(facts).null_count() == facts.height
    assert rate_row(noise, "rules").row(0, named=True)["rate"] is None


@pytest.mark.parametrize("gold_pairs", [0, 200])
def test_neither_shards_nor_row_order_have_a_say(gold_pairs):
    facts, _ = planted(1500, 0.2, seed=7)
    gold, known = planted(gold_pairs, 0.2, seed=8)
    gold = gold.with_columns(wrong=pl.Series(known)) if gold_pairs else unplanted()
    one = estimate(facts, gold, NOTHING_ELSE, TWO, NoiseConfig())
    mixed = facts.sample(fraction=1, shuffle=True, seed=1)
    other = estimate(mixed, gold, NOTHING_ELSE, TWO, NoiseConfig())
    parts = [noise_rows(part, other) for part in mixed.iter_slices(400)]
    whole = noise_rows(facts, one)

    assert one.interval == pytest.approx(other.interval)
    again = pl.concat(parts).sort("pair_id")
    assert again["probability_wrong"].to_list() == pytest.approx(
        whole["probability_wrong"].to_list()
    )
    assert LABEL_NOISE.to_arrow(whole).num_rows == 1500
    assert NOISE_RATES.to_arrow(rate_row(one, "rules")).num_rows == 1


def test_a_jurys_members_count_for_and_against():
    facts, _ = planted(3, 0.2, seed=9)
    facts = facts.with_columns(
        pl.Series("vote:first", [1, -1, None]), pl.Series("vote:second", [1, 1, 0])
    )
    rows = noise_rows(facts, estimate(facts, unplanted(), NOTHING_ELSE, TWO, NoiseConfig()))

    assert rows.select("scorers_for", "scorers_against").rows() == [(2, 0), (1, 1), (0, 0)]
