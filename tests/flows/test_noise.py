"""Label noise through the store: shard by shard, into the filter and the training's settings."""

from __future__ import annotations

import random

import polars as pl
import pytest

from flows import noise, shards, summary
from flows.configuration import TrainingFileConfig, resolve
from flows.curation import filter_pairs, pair_candidates
from flows.noise import estimate_noise, known_smoothing
from flows.stage_runner import RunContext, StageSpec, run_stage
from lineage.workspace import Dataset, Workspace
from stages.errors import ConfigError, DataError
from stages.tables import GOLD_SPLIT
from tests.stages import rows
from trainer.dpo import train_dpo

REAL, GOLD = 300, 120
ERRORS = 0.25
CONFIG = {
    "name": "noisy",
    "prompts": {"sources": [{"kind": "bundled", "train": 20, "heldout": 20}], "gold": {}},
    "filters": {"maximum_label_noise": 0.2, "identical": False, "maximum_similarity": None},
    "training": {"loss_type": "robust", "label_smoothing": "estimated"},
}


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "CANDIDATES_JUDGED_TOGETHER", 20)
    monkeypatch.setattr(shards, "CANDIDATES_PER_SHARD", 200)
    # Without Prefect: what the task does, not how it is scheduled.
    monkeypatch.setattr(noise, "_estimate", noise._estimate.fn)
    context = RunContext(Workspace(tmp_path), "run")
    context.workspace.require_writable()
    return context


def stored(context, name, parts):
    spec = StageSpec(f"make {name}", 1, {}, (), (name,))

    def make(writer):
        for index, part in enumerate(parts):
            writer.write(name, part, index)

    return run_stage(context, "score", spec, make).output(name)


@pytest.fixture
def scored(context):
    """Candidates, scores and prompts: narrow margins are wrong in a quarter of the pairs."""
    rng, prompts, records, by_prompt = random.Random(0), [], [], {}
    for number in range(REAL + GOLD):
        prompt, narrow = f"p{number:04}", number % 2 == 0
        gold = number >= REAL
        wrong = narrow and rng.random() < 2 * ERRORS
        good, other = (0.6, 0.4) if narrow else (1.0, 0.0)
        first, second = (other, good) if wrong else (good, other)
        by_prompt[prompt] = {f"{prompt}a": first, f"{prompt}b": second}
        planted = {"split": GOLD_SPLIT, "gold": '{"good": "a", "damaged": "b"}'}
        prompts.append({"prompt_id": prompt, **(planted if gold else {})})
        records += [
            {
                "prompt_id": prompt,
                "candidate_id": f"{prompt}{letter}",
                "sample_index": index,
                "weights_hash": GOLD_SPLIT if gold else "w",
                "completion": f"answer {letter}",
            }
            for index, letter in enumerate("ab")
        ]
    candidates = stored(context, "candidates", [rows.candidates(*records)])
    parts = []
    for shard in shards.shards(context.workspace, candidates):
        of_shard = shard.read(["prompt_id"])["prompt_id"].unique().sort()
        parts.append(rows.scores({prompt: by_prompt[prompt] for prompt in of_shard}))
    assert len(parts) > 2
    return (
        candidates,
        stored(context, "scores", parts),
        stored(context, "prompts", [rows.prompts(*prompts)]),
    )


def test_gold_pairs_tell_which_labels_to_drop_and_what_the_loss_is_told(context, scored):
    config = resolve(CONFIG, "here")
    candidates, scores, prompts = scored
    pairs = pair_candidates.fn(context, config, candidates, scores, {})
    estimated = estimate_noise(context, config, (candidates, scores), pairs, {})
    (rate,) = estimated.rates.read(context.workspace).to_dicts()
    facts = (prompts, scores, estimated.pairs)
    decisions = filter_pairs.fn(context, config, pairs, candidates, facts).read(context.workspace)

    assert (rate["method"], rate["pairs"], rate["calibration_pairs"]) == ("calibrated", REAL, GOLD)
    assert rate["low"] <= ERRORS <= rate["high"]
    assert len(estimated.pairs.parts) == len(pairs.parts)
    ruled = decisions.filter(filter="label_noise").join(pairs.read(context.workspace), on="pair_id")
    # The wide margins are all right, and the calibration has found that out.
    assert ruled.filter("kept")["margin"].to_list() == [1.0] * (REAL // 2)
    assert ruled.filter(~pl.col("kept"))["reason"].unique().to_list() == [
        "probability_wrong_above_maximum"
    ]

    kept = ruled.filter("kept")["pair_id"].to_list()
    training = known_smoothing(context.workspace, config.training, estimated, kept)
    mean = ruled.filter("kept")["value"].mean()
    assert training.label_smoothing == pytest.approx(mean, abs=1e-6)
    assert 0 < training.label_smoothing < 0.05
    assert training.loss_type == "robust"
    with pytest.raises(DataError, match=r"no estimate.*SELECT note FROM run_noise"):
        known_smoothing(context.workspace, config.training, None, kept)


def test_the_stage_is_skipped_where_nothing_tells_of_noise(context, capsys):
    config = resolve({"name": "plain"}, "here")
    nothing = Dataset("pairs", "k", ())

    assert estimate_noise(context, config, (nothing, nothing), nothing, {}) is None
    assert "not estimated: no gold pairs, no votes" in " ".join(capsys.readouterr().err.split())


def test_the_summary_says_both_before_and_after():
    known = {"rate": 0.2, "low": 0.125, "high": 0.3, "method": "agreement", "rate_kept": 0.05}
    unknown = {"rate": None, "note": "no estimate: 3 pairs, 300 needed"}
    lengths = [
        {"pairs_of": "proposed", "longer_wins": 0.625, "bias": 0.3},
        {"pairs_of": "kept", "longer_wins": 0.5, "bias": 0.1},
    ]

    assert list(summary._noise({"label_noise": [known, unknown]})) == [
        "Labels: 20.0% wrong [12.5%, 30.0%], agreement; of the kept 5.0%",
        "Labels: no estimate: 3 pairs, 300 needed",
    ]
    (line,) = summary._lengths({"length_bias": lengths})
    assert line.endswith("62.5% of the proposed (bias 0.30), 50.0% of the kept (bias 0.10)")
    weighted = {"pairs_of": "weighted", "longer_wins": 0.45, "bias": 0.05}
    (line,) = summary._lengths({"length_bias": [*lengths, weighted]})
    assert line.endswith("(bias 0.10), 45.0% of the kept by weight (bias 0.05)")
    assert list(summary._lengths({"length_bias": []})) == []


def test_one_training_by_itself_has_no_estimate(tmp_path):
    config = resolve(CONFIG, "here").training

    with pytest.raises(ConfigError, match="label_smoothing is still 'estimated'"):
        train_dpo(pl.DataFrame(), tmp_path, tmp_path, config, tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"filters": {"maximum_label_noise": 0.2}}, "`filters.maximum_label_noise` asks for"),
        ({"training": {"weight_by": "confidence"}}, "`training.weight_by: confidence` asks for"),
        (
            {"training": {"loss_type": "robust", "label_smoothing": "estimated"}},
            "`training.label_smoothing` asks for .* fewer than three independent scorers",
        ),
        (
            {
                "prompts": CONFIG["prompts"],
                "training": {"loss_type": "ipo", "label_smoothing": "estimated"},
            },
            "label_smoothing estimated would be ignored by loss_type 'ipo'",
        ),
    ],
)
def test_an_estimate_that_cannot_be_had_is_refused_beforehand(changed, found):
    with pytest.raises(ConfigError, match=found):
        resolve({"name": "plain", **changed}, "here")


@pytest.mark.parametrize("weight", ["confidence", "length_weight"])
def test_the_weights_of_a_file_are_its_own(weight):
    asked = {"name": "plain", "training": {"weight_by": weight}}

    assert resolve(asked, "here", TrainingFileConfig).training.weight_by == weight
    with pytest.raises(ConfigError, match=r"`training\.weight_by"):
        resolve(asked, "here")


def test_weights_are_read_where_they_are_made():
    filters = {"length_bias": "reweight", "maximum_length_bias": 0.1}
    training = {"weight_by": "length_weight"}

    assert resolve({"name": "plain", "filters": filters, "training": training}, "here")
    known = {**CONFIG, "training": {"weight_by": "confidence"}}
    assert resolve(known, "here").training.weight_by == "confidence"
