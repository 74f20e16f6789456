"""Reference answers as candidates, and pairs of them over sampled ones."""

import polars as pl
import pytest

from stages.errors import DataError
from stages.no_pairs import explain_no_pairs
from stages.pairing import PairingConfig, pair
from stages.references import reference_candidates
from stages.tables import CANDIDATES, PAIRS
from tests.stages.rows import candidates_of, scores

CONFIG = PairingConfig(strategy="reference_over_sampled")


def words(texts):
    return [len(text.split()) for text in texts]


def answered(*rows):
    """Return the columns of `prompts` that count, from (id, split, reference)."""
    names = ["prompt_id", "split", "reference"]
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")


def test_every_reference_is_a_candidate_with_its_length():
    prompts = answered(
        ("p1", "train", "Yes, it is."),
        ("p2", "heldout", "No."),
        ("p3", "train", None),
        ("p4", "train", " \n"),
        ("p5", "gold", "Planted."),
    )
    rows = reference_candidates(prompts, words)
    CANDIDATES.to_arrow(rows)
    columns = ["prompt_id", "completion", "completion_tokens", "weights_hash", "finish_reason"]
    assert rows.select(columns).rows() == [
        ("p1", "Yes, it is.", 3, "reference", "stop"),
        ("p2", "No.", 1, "reference", "stop"),
    ]
    assert reference_candidates(prompts[::-1], words).sort("prompt_id").equals(rows)
    assert reference_candidates(prompts[2:], words).is_empty()


def paired(by_prompt, config=CONFIG):
    """Return {prompt: (chosen, rejected)}; candidates named `ref…` are references."""
    is_reference = pl.col("candidate_id").str.starts_with("ref")
    marked = pl.when(is_reference).then(pl.lit("reference")).otherwise("weights_hash")
    asked = candidates_of(by_prompt).with_columns(weights_hash=marked), scores(by_prompt), config
    pairs = pair(*asked)
    PAIRS.to_arrow(pairs)
    if pairs.is_empty():
        explain_no_pairs(*asked)
    columns = ["prompt_id", "chosen_candidate_id", "rejected_candidate_id"]
    return {p: (chosen, rejected) for p, chosen, rejected in pairs.select(columns).iter_rows()}


def test_the_reference_is_chosen_where_it_scores_higher():
    by_prompt = {
        "p1": {"ref1": 0.5, "a": 0.9, "b": 0.5, "c": 0.2},
        "p2": {"ref2": 0.5, "d": 0.5, "e": 0.8},
        "p3": {"ref3": None, "f": 0.1},
        "p4": {"g": 0.9, "h": 0.1},
    }
    assert paired(by_prompt) == {"p1": ("ref1", "c")}


def test_any_sampled_answer_below_it_is_rejected_by_the_seed():
    by_prompt = {"p1": {"ref1": 1.0, "a": 0.9, "b": 0.5, "c": 0.0}}
    seeds = [CONFIG.model_copy(update={"seed": seed}) for seed in range(20)]
    assert {paired(by_prompt, config)["p1"][1] for config in seeds} == {"a", "b", "c"}


def test_the_other_strategies_pair_sampled_answers_only():
    by_prompt = {"p1": {"ref1": 1.0, "a": 0.9, "b": 0.5}, "p2": {"ref2": 0.0, "c": 0.9, "d": 0.5}}
    found = paired(by_prompt, PairingConfig())
    assert found == {"p1": ("a", "b"), "p2": ("c", "d")}


def test_why_no_reference_is_chosen_is_told_in_counts():
    by_prompt = {"p1": {"a": 1.0, "b": 0.0}, "p2": {"ref2": 0.5, "c": 0.9}, "p3": {"ref3": 1.0}}
    with pytest.raises(DataError) as caught:
        paired(by_prompt)
    message = str(caught.value)
    assert "of 3 prompts 0 have only tied candidates and 1 fewer than two scored ones" in message
    assert "1 have no reference answer" in message
    assert "1 have pairs, none with a reference scored above a sampled answer" in message
    assert "name the sources' `reference_column`" in message
