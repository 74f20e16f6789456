"""How far the estimated share of wrong labels is from the planted one, and what training gains.

The rules of the bundled tasks know the better answer. Judges with errors of a known size label
right and flawed answers; the label noise is estimated in each of the ways of docs/noise.md and
compared with what the rules say. Then the bundled model is trained twice on the same pairs of its
own answers, 30 % of them labelled wrongly: plain DPO on all of them, and with what prefmill makes
of the estimate, `filters.maximum_label_noise` and `label_smoothing: estimated`.

Run from a clean checkout after `make test`: .venv/bin/python benchmarks/noise.py
[--seeds 2, of the trainings]; with --full the estimate has 20 seeds instead of 5, the training 5.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import polars as pl
from machine import last_line
from reinforcement import HELDOUT_SAMPLES, LEAST_GAP, MODEL, SAMPLES, prompts_of, sampled
from rounds import mean_and_low

from stages.aggregation import aggregate
from stages.filter_settings import FilteringConfig
from stages.filtering import filter_pairs
from stages.label_noise import Noise, Unselected, estimate, noise_rows
from stages.noise_evidence import contradictions, evidence, gold_labels, neighbours
from stages.noise_voters import NoiseConfig, Voters
from stages.pairing import PairingConfig, pair
from stages.tables import JUDGMENTS, SCORES
from stages.task_families import FAMILIES, demonstrate, sample_prompts, score

if TYPE_CHECKING:
    from collections.abc import Callable

    Labelled = tuple[Noise, pl.DataFrame]

RATES = (0.0, 0.1, 0.2, 0.4)
PROMPTS = 1500
GOLD_PROMPTS = 300
FLAWED = 3
"""Flawed answers beside the right one, where more than two answers are judged."""
OTHERS_RIGHT = (0.8, 0.75)
"""How often two other scorers are right."""
GOAL = 0.08

TRAINING_RATE = 0.3
"""Of the pairs trained on."""
TRAINED_PER_FAMILY, HELDOUT_PER_FAMILY = 120, 60
"""Prompts."""
MAXIMUM_LABEL_NOISE = 0.3
DPO = {
    "beta": 1.0,
    "learning_rate": 2e-4,
    "lr_scheduler": "linear",
    "warmup_steps": 5,
    "epochs": 2,
    "batch_size": 16,
    "max_length_tokens": 256,
    "threads": 1,
}
"""As in configs/demo.yaml."""


def answers(prompts: int, seed: int, flawed: int) -> pl.DataFrame:
    """Return candidates with `truth`, the rules' score: to each prompt one right, some flawed."""
    rng, rows = random.Random(seed), []
    per_family = prompts // len(FAMILIES)
    for family in FAMILIES:
        for number, task in enumerate(sample_prompts(family, "base", per_family, seed)):
            for index in range(flawed + 1):
                text = demonstrate(family, task.ground_truth, rng, flawed=index > 0)
                truth = score(family, task.ground_truth, text)
                rows.append((f"{family}{number:05}", index, len(text.split()), truth))
    names = ["prompt_id", "sample_index", "completion_tokens", "truth"]
    frame = pl.DataFrame(rows, schema=names, orient="row")
    best_alone = pl.col("truth").filter(pl.col("sample_index") > 0).max().over("prompt_id") < 1
    ids = pl.format("{}:{}", "prompt_id", "sample_index")
    return frame.filter(best_alone).with_columns(candidate_id=ids, weights_hash=pl.lit("w"))


def scores_of(candidates: pl.DataFrame, scorer: str, values: np.ndarray) -> pl.DataFrame:
    """Return rows of `scores`."""
    return (
        candidates.select("candidate_id", "prompt_id")
        .with_columns(
            scorer=pl.lit(scorer),
            score=pl.Series(values, dtype=pl.Float64),
            spread=pl.lit(None, dtype=pl.Float64),
            judgments=pl.lit(1, dtype=pl.Int64),
            missing_share=pl.lit(0.0),
        )
        .select(SCORES.column_names)
    )


def flipped(candidates: pl.DataFrame, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Return the truth of two answers to a prompt, exchanged in a share of the prompts."""
    truth = candidates["truth"].to_numpy().reshape(-1, 2)
    exchange = rng.random(len(truth)) < rate
    return np.where(exchange[:, None], truth[:, ::-1], truth).ravel()


def blurred(candidates: pl.DataFrame, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Return the truth with normal noise, so much that ``rate`` of best against worst is wrong."""
    truth = candidates["truth"].to_numpy()
    noise, low, high = rng.normal(size=len(truth)), 0.0, 30.0
    for _ in range(20 if rate else 0):
        middle = (low + high) / 2
        found = wrong_labels(labelled(candidates, truth + middle * noise), candidates).mean() or 0
        low, high = (middle, high) if found < rate else (low, middle)
    return truth + low * noise


def labelled(candidates: pl.DataFrame, values: np.ndarray) -> pl.DataFrame:
    """Return the pairs that a scorer with these scores makes."""
    return pair(candidates, scores_of(candidates, "judge", values), PairingConfig(scorer="judge"))


def wrong_labels(pairs: pl.DataFrame, candidates: pl.DataFrame) -> pl.Series:
    """Return which labels the rules contradict; null where they hold both answers equal."""
    truth = candidates.select("candidate_id", "truth")
    for role in ("chosen", "rejected"):
        known = truth.rename({"candidate_id": f"{role}_candidate_id", "truth": role})
        pairs = pairs.join(known, on=f"{role}_candidate_id", maintain_order="left")
    wrong = pl.when(pl.col("chosen") != pl.col("rejected")).then(
        pl.col("chosen") < pl.col("rejected")
    )
    return pairs.select(wrong=wrong).to_series()


def told_apart(pairs: pl.DataFrame, candidates: pl.DataFrame) -> pl.DataFrame:
    """Return the pairs whose better answer the rules know."""
    return pairs.filter(wrong_labels(pairs, candidates).is_not_null())


NOTHING = Unselected(pl.DataFrame(), contradictions(JUDGMENTS.empty()))


def no_gold(facts: pl.DataFrame) -> pl.DataFrame:
    """Return an empty calibration."""
    return facts.with_columns(wrong=pl.lit(value=False)).clear()


def by_gold(judge: Callable[..., np.ndarray], flawed: int, rate: float, seed: int) -> Labelled:
    """A judge whose scores are calibrated on planted pairs that it scored too."""
    rng, candidates = np.random.default_rng(seed), answers(PROMPTS, seed, flawed)
    planted = answers(GOLD_PROMPTS, seed + 1000, 1)
    together = pl.concat([candidates, planted.with_columns(pl.col("candidate_id") + "g")])
    values = judge(candidates, rate, rng)
    strength = 0.0 if judge is flipped else float(np.std(values - candidates["truth"].to_numpy()))
    of_gold = (
        flipped(planted, rate, rng)
        if judge is flipped
        else planted["truth"].to_numpy() + strength * rng.normal(size=planted.height)
    )
    scores = scores_of(together, "judge", np.concatenate([values, of_gold]))
    pairs = told_apart(labelled(candidates, values), candidates)
    gold = planted.with_columns(pl.col("candidate_id") + "g")
    labels = gold_labels(gold, scores, "judge")
    of_labels = evidence(labels, scores, JUDGMENTS.empty(), Voters())
    facts = evidence(pairs, scores, JUDGMENTS.empty(), Voters())
    calibration = of_labels.with_columns(labels["wrong"])
    noise = estimate(facts, calibration, NOTHING, Voters(), NoiseConfig())
    return noise, pl.DataFrame({"wrong": wrong_labels(pairs, candidates)})


def by_scorers(judge: Callable[..., np.ndarray], flawed: int, rate: float, seed: int) -> Labelled:
    """A judge and two other scorers; nobody knows who is right."""
    candidates = answers(PROMPTS, seed, flawed)
    noise, pairs, _ = agreement(candidates, judge, rate, seed)
    return noise, pl.DataFrame({"wrong": wrong_labels(pairs, candidates)})


def agreement(
    candidates: pl.DataFrame, judge: Callable[..., np.ndarray], rate: float, seed: int
) -> tuple[Noise, pl.DataFrame, pl.DataFrame]:
    """Return the noise, the pairs and their evidence of a judge and two other scorers."""
    rng = np.random.default_rng(seed)
    values = judge(candidates, rate, rng)
    voters = Voters(others=("first", "second"))
    others = [
        scores_of(candidates, name, judge(candidates, 1 - right, rng))
        for name, right in zip(voters.others, OTHERS_RIGHT, strict=True)
    ]
    scores = pl.concat([scores_of(candidates, "judge", values), *others])
    pairs = told_apart(labelled(candidates, values), candidates)
    facts = evidence(pairs, scores, JUDGMENTS.empty(), voters)
    return estimate(facts, no_gold(facts), NOTHING, voters, NoiseConfig()), pairs, facts


def by_jury(rate: float, seed: int) -> Labelled:
    """The majority of three scorers, each wrong so often that ``rate`` of the labels are."""
    rng, candidates = np.random.default_rng(seed), answers(PROMPTS, seed, 1)
    # Of three that err with e, two or more do with 3 e^2 - 2 e^3.
    errors = np.linspace(0, 0.5, 5001)
    error = errors[np.argmin(np.abs(3 * errors**2 - 2 * errors**3 - rate))]
    voters = Voters(members=("a", "b", "c"), several=True)
    said = [flipped(candidates, error, rng) for _ in voters.members]
    scores = pl.concat(
        scores_of(candidates, name, values)
        for name, values in zip(voters.members, said, strict=True)
    )
    pairs = labelled(candidates, sum(said) / len(said))
    facts = evidence(pairs, scores, JUDGMENTS.empty(), voters)
    votes = neighbours(scores, voters.members)
    noise = estimate(facts, no_gold(facts), NOTHING._replace(votes=votes), voters, NoiseConfig())
    return noise, pl.DataFrame({"wrong": wrong_labels(pairs, candidates)})


def by_swaps(flawed: int, rate: float, seed: int) -> Labelled:
    """A pairwise judge asked in both orders; ``rate`` of what both orders agree on is wrong."""
    rng, candidates = np.random.default_rng(seed), answers(PROMPTS, seed, flawed)
    error = rate**0.5 / (rate**0.5 + (1 - rate) ** 0.5)
    both = candidates.join(candidates, on="prompt_id", suffix="_other").filter(
        pl.col("candidate_id") < pl.col("candidate_id_other"),
        pl.col("truth") != pl.col("truth_other"),
    )
    right = (both["truth"] > both["truth_other"]).to_numpy()
    readings = [np.where(rng.random(len(right)) < error, ~right, right) for _ in range(2)]
    differ = readings[0] != readings[1]
    judgments = pl.concat(
        both.select("candidate_id", other_candidate_id="candidate_id_other").with_columns(
            judgment_id=pl.format("{}:{}:" + order, "candidate_id", "other_candidate_id"),
            order=pl.lit(order),
            scorer=pl.lit("judge"),
            score=pl.Series(np.where(differ, 0.5, reading)),
            flag=pl.when(pl.Series(differ)).then(pl.lit("order_disagreement")),
        )
        for order, reading in zip(("first", "second"), readings, strict=True)
    )
    scores = aggregate(judgments, candidates)
    pairs = told_apart(pair(candidates, scores, PairingConfig(scorer="judge")), candidates)
    facts = evidence(pairs, scores, judgments, Voters())
    unselected = NOTHING._replace(contradictions=contradictions(judgments))
    noise = estimate(facts, no_gold(facts), unselected, Voters(), NoiseConfig())
    return noise, pl.DataFrame({"wrong": wrong_labels(pairs, candidates)})


SETUPS: dict[str, tuple[str, Callable[[float, int], Labelled]]] = {
    "calibrated": ("gold, verdicts flipped", lambda r, s: by_gold(flipped, 1, r, s)),
    "agreement": ("2 others, verdicts flipped", lambda r, s: by_scorers(flipped, 1, r, s)),
    "jury": ("majority of 3, verdicts flipped", by_jury),
    "swaps": ("both orders, verdicts flipped", lambda r, s: by_swaps(1, r, s)),
    "calibrated_scores": ("gold, scores blurred", lambda r, s: by_gold(blurred, FLAWED, r, s)),
    "agreement_scores": (
        "2 others, scores blurred",
        lambda r, s: by_scorers(blurred, FLAWED, r, s),
    ),
    "swaps_tournament": ("both orders, 4 answers", lambda r, s: by_swaps(FLAWED, r, s)),
}
"""The first four keep the methods' assumptions; in the others they hold only roughly."""
KEPT = ("calibrated", "agreement", "jury")
"""Of the headline figure. Swaps are the last resort: near 40 % half of the readings contradict."""


def on_policy(prompts: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Return the bundled model's best and worst answer to each prompt where they differ."""
    rows = []
    for row, found in sampled(MODEL, prompts, SAMPLES, seed):
        both = [pick(found, key=lambda answer: answer[2]) for pick in (max, min)]
        if both[0][2] - both[1][2] >= LEAST_GAP:
            rows += [
                (row["prompt_id"], row["messages"], index, *answer)
                for index, answer in enumerate(both)
            ]
    names = ["prompt_id", "prompt", "sample_index", "completion", "completion_tokens", "truth"]
    return pl.DataFrame(rows, schema=names, orient="row").with_columns(
        candidate_id=pl.format("{}:{}", "prompt_id", "sample_index"),
        weights_hash=pl.lit("w"),
        finish_reason=pl.lit("stop"),
    )


def curated(candidates: pl.DataFrame, seed: int) -> dict[str, tuple[pl.DataFrame, float, float]]:
    """Return each arm's pairs, label smoothing and true share of wrong labels."""
    noise, pairs, facts = agreement(candidates, flipped, TRAINING_RATE, seed)
    known = noise_rows(facts, noise).select("pair_id", "probability_wrong")
    pairs = pairs.join(known, on="pair_id", validate="1:1", maintain_order="left")
    off = {"minimum_margin": None, "maximum_length_ratio": None, "maximum_similarity": None}
    config = FilteringConfig(**off, truncated=False, maximum_label_noise=MAXIMUM_LABEL_NOISE)
    kept = filter_pairs(pairs, candidates, config).kept
    left = pairs.join(kept, on="pair_id", how="semi")
    return {
        name: (arm, smoothing, wrong_labels(arm, candidates).mean())
        for name, arm, smoothing in (
            ("plain", pairs, 0.0),
            ("filtered", left, left["probability_wrong"].mean()),
        )
    }


def preferences(pairs: pl.DataFrame, candidates: pl.DataFrame) -> pl.DataFrame:
    """Return pairs as the trainer takes them."""
    for role in ("chosen", "rejected"):
        texts = candidates.select(
            pl.col("candidate_id").alias(f"{role}_candidate_id"), pl.col("completion").alias(role)
        )
        pairs = pairs.join(texts, on=f"{role}_candidate_id", validate="1:1")
    prompts = candidates.select("prompt_id", "prompt").unique("prompt_id")
    return pairs.join(prompts, on="prompt_id").select("pair_id", "prompt", "chosen", "rejected")


def answered(model: Path, heldout: pl.DataFrame) -> tuple[float, float]:
    """Return the share of answers to held-out prompts that succeed, and their mean tokens."""
    found = [said for _, of in sampled(model, heldout, HELDOUT_SAMPLES, 0) for said in of]
    return fmean(points == 1 for *_, points in found), fmean(tokens for _, tokens, _ in found)


def trainings(seeds: int) -> dict[str, float]:
    """Train both arms with every seed, print a table and return the figures."""
    import torch

    from trainer.dpo import train_dpo
    from trainer.dpo_settings import DPOTrainingConfig

    torch.set_num_threads(1)
    heldout = prompts_of("heldout", HELDOUT_PER_FAMILY, 0)
    before, length = answered(MODEL, heldout)
    print(f"\ntraining on {TRAINING_RATE:.0%} wrong labels; before: success {before:.3f}")
    success, growth = defaultdict(list), defaultdict(list)
    for seed in range(1, seeds + 1):
        candidates = on_policy(prompts_of("train", TRAINED_PER_FAMILY, seed), seed)
        for name, (pairs, smoothing, wrong) in curated(candidates, seed).items():
            config = DPOTrainingConfig.checked(
                {**DPO, "seed": seed, "label_smoothing": round(smoothing, 6)}
            )
            with tempfile.TemporaryDirectory(prefix="prefmill-benchmark-") as folder:
                policy = Path(folder) / "policy"
                rows = preferences(pairs, candidates)
                done = train_dpo(rows, MODEL, MODEL, config, policy, Path(folder) / "checkpoints")
                after, tokens = answered(policy, heldout)
            success[name].append(after)
            growth[name].append(tokens / length)
            print(
                f"seed {seed}  {name:<9} {len(pairs):4} pairs, {wrong:5.1%} wrong, smoothing "
                f"{smoothing:.3f}, {done.steps:3} steps  success {after:.3f} "
                f"{after - before:+.3f}  length x {tokens / length:.3f}",
                flush=True,
            )
    gains = [a - b for a, b in zip(success["filtered"], success["plain"], strict=True)]
    gain, low, high = mean_and_low(gains)
    print(f"filtered - plain: {gain:+.3f} [{low:+.3f}, {high:+.3f}] over {seeds} seeds")
    return {
        "lift_filtered_minus_plain": gain,
        "lift_filtered_minus_plain_low": low,
        **{f"lift_{arm}": float(np.mean(of)) - before for arm, of in success.items()},
        **{f"length_growth_{arm}": float(np.mean(of)) for arm, of in growth.items()},
        "training_seeds": seeds,
    }


def estimates(seeds: int) -> dict[str, float]:
    """Estimate every setup's noise with every seed, print a table and return the figures."""
    gaps: dict[str, list[float]] = {}
    covered: dict[str, list[bool]] = {}
    print(f"{'method':<18} {'judge':<32} planted   true  estimate  largest gap  covered")
    for name, (judge, run) in SETUPS.items():
        for rate in RATES:
            rows = []
            for seed in range(1, seeds + 1):
                noise, labels = run(rate, seed)
                true = float(labels["wrong"].mean() or 0)
                if noise.interval is not None:
                    rows.append((true, *noise.interval))
            found = np.array(rows).reshape(-1, 4)
            if not rows:
                print(f"{name:<18} {judge:<32} {rate:>6.0%}   no estimate in any of {seeds} seeds")
                continue
            gap = np.abs(found[:, 0] - found[:, 1])
            inside = (found[:, 2] <= found[:, 0]) & (found[:, 0] <= found[:, 3])
            gaps.setdefault(name, []).extend(gap)
            covered.setdefault(name, []).extend(inside)
            print(
                f"{name:<18} {judge:<32} {rate:>6.0%} {found[:, 0].mean():>7.1%} "
                f"{found[:, 1].mean():>8.1%} {gap.max():>11.1%} {inside.sum():>6} of {len(rows)}"
                + (f", {seeds - len(rows)} without estimate" if len(rows) < seeds else ""),
                flush=True,
            )
    figures = {"noise_error_max": float(max(max(gaps[name]) for name in KEPT)), "seeds": seeds}
    figures["coverage"] = float(np.mean([hit for name in KEPT for hit in covered[name]]))
    for name in SETUPS:
        figures[f"noise_error_max_{name}"] = float(max(gaps[name]))
        figures[f"coverage_{name}"] = float(np.mean(covered[name]))
    return figures


def main() -> None:
    """Estimate and train, print both tables, end with the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="20 seeds, of the trainings 5")
    parser.add_argument("--seeds", type=int, default=2, help="of the trainings, from 1 on")
    asked = parser.parse_args()
    figures = estimates(20 if asked.full else 5)
    figures |= trainings(5 if asked.full else asked.seeds)
    goals = {"lift_filtered_minus_plain": 0.0}
    print(last_line("noise", figures, at_most={"noise_error_max": GOAL}, at_least=goals))


if __name__ == "__main__":
    main()
