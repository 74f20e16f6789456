"""Why a strategy put each candidate of a prompt into a pair, or passed over it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.tables import EDITED, EDITED_STRATEGY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lineage.row_reader import Row

PLANTED, REFERENCE = "gold", "reference"
"""In place of the weights hash, of answers that no model gave."""

WIDEST = ("max_margin_k", "all_pairs_above_margin", "pairwise_winners")
"""Strategies that make several pairs a prompt; the others make one, of the best answer."""

WANTED = {
    "best_vs_worst": "the lowest score",
    "best_vs_random": "drawn by a hash from those below the chosen",
    "best_vs_quantile": "nearest to the configured quantile of the prompt's scores",
    "best_vs_mean_minus_2_sigma": "nearest to the prompt's mean less the configured deviations",
    "reference_over_sampled": "drawn by a hash from those below the reference answer",
    EDITED_STRATEGY: "the lowest score",
}
"""What each strategy of one pair a prompt looks for in the rejected."""


@dataclass(frozen=True)
class _Prompt:
    """What one pairing made of one prompt."""

    strategy: str
    scorer: str
    pairing: Row
    pairs: Sequence[Row]
    scores: dict[str, float]
    """Of the candidates that took part, as far as they are on record."""

    @property
    def best(self) -> float:
        return max(self.scores.values())

    @property
    def worst(self) -> float:
        return min(self.scores.values())


def choices(candidates: Sequence[Row], pairs: Sequence[Row], pairing: Row) -> list[Row]:
    """Return a row per candidate of one prompt: candidate_id, role, score and reason.

    ``role`` is chosen, rejected, both or null; ``score`` is the one that the strategy compared,
    null where it is not on record. ``candidates`` hold their scores, ``pairs`` are all that the
    run made of the prompt, ``pairing`` is the run's configuration of it.
    """
    if not pairs and not pairing:
        return []
    first = pairs[0] if pairs else pairing
    scorer, strategy = first.get("scorer", ""), first.get("strategy", "")
    compared = {
        pair[f"{role}_candidate_id"]: pair[f"{role}_score"]
        for pair in pairs
        for role in ("chosen", "rejected")
    }
    for row in candidates:
        said = [s["score"] for s in row["scores"] if s["scorer"] == scorer]
        if said and said[0] is not None and not _left_out(row, strategy):
            # The pairs of `pairwise_winners` hold strengths, which others have no row of.
            compared.setdefault(row["candidate_id"], said[0])
    prompt = _Prompt(strategy, scorer, pairing, pairs, compared)
    return [_choice(row, prompt) for row in candidates]


def _choice(row: Row, prompt: _Prompt) -> Row:
    own = row["candidate_id"]
    roles = [
        role
        for role in ("chosen", "rejected")
        if any(pair[f"{role}_candidate_id"] == own for pair in prompt.pairs)
    ]
    reason = _why_paired(row, roles, prompt) if roles else _why_not(row, prompt)
    role = "both" if len(roles) > 1 else next(iter(roles), None)
    return {"candidate_id": own, "role": role, "score": prompt.scores.get(own), "reason": reason}


def _left_out(row: Row, strategy: str) -> str:
    """Return why a candidate took no part whatever its score, or nothing."""
    if row["weights_hash"] == PLANTED:
        return "planted to measure scorers: never in a pair"
    if row["weights_hash"] == REFERENCE and strategy != "reference_over_sampled":
        return "a reference answer: this strategy pairs sampled ones"
    if row["weights_hash"] == EDITED and strategy != EDITED_STRATEGY:
        return "an edited answer: this strategy pairs sampled ones"
    return ""


def _why_paired(row: Row, roles: list[str], prompt: _Prompt) -> str:
    if row["weights_hash"] == EDITED:
        return "the edited answer"
    if prompt.strategy in WIDEST:
        return f"in the {len(prompt.pairs)} widest pairs of the prompt"
    if roles == ["rejected"]:
        return WANTED.get(prompt.strategy, prompt.strategy)
    if prompt.strategy == "reference_over_sampled":
        return "the reference answer"
    if prompt.strategy == EDITED_STRATEGY and len(roles) > 1:
        return "above the lowest score, and edited"
    return "the highest score"


def _why_not(row: Row, prompt: _Prompt) -> str:
    if reason := _left_out(row, prompt.strategy):
        return reason
    if row["weights_hash"] == EDITED and row["error"]:
        return f"not to be used: {row['error']}"
    score = prompt.scores.get(row["candidate_id"])
    if score is None:
        mixed = prompt.pairing.get("weights") and any(s["score"] is not None for s in row["scores"])
        return f"passed over by {prompt.scorer}" if mixed else f"no score by {prompt.scorer}"
    if not prompt.pairs:
        return _why_no_pair(prompt)
    if prompt.strategy in WIDEST:
        return f"in none of the {len(prompt.pairs)} pairs made, the widest of the prompt"
    return _why_another(score, prompt)


def _why_no_pair(prompt: _Prompt) -> str:
    if len(prompt.scores) == 1:
        return "the only answer with a score: nothing to pair it with"
    if prompt.best == prompt.worst:
        return f"all {len(prompt.scores)} scored answers are equal: no pair"
    if agreeing := prompt.pairing.get("agreeing_scorers"):
        return f"no pair: not every one of {', '.join(agreeing)} scores the chosen higher"
    if least := prompt.pairing.get("minimum_margin"):
        return f"no pair: no margin of the prompt reaches {least:g}"
    if prompt.strategy == "reference_over_sampled":
        return "no pair: no sampled answer is scored below a reference"
    return "no pair was made of the prompt"


def _why_another(score: float, prompt: _Prompt) -> str:
    """Return why a scored candidate is not in the prompt's one pair."""
    made = prompt.pairs[0]
    if prompt.strategy == EDITED_STRATEGY:
        return "neither edited nor the lowest score"
    if score == made["chosen_score"]:
        return "as high as the chosen; a hash of seed and id decided"
    if prompt.strategy == "best_vs_worst":
        if score == made["rejected_score"]:
            return "as low as the rejected; a hash of seed and id decided"
        return "neither the highest score nor the lowest"
    if score > made["chosen_score"]:
        return "not below the reference answer"
    return f"below the chosen, but another is {WANTED.get(prompt.strategy, 'the rejected')}"
