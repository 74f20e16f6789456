"""What is asked of the estimate of label noise, and who besides the labels' scorer tells of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, NamedTuple

import pydantic

from stages.configuration import Config
from stages.judges import JudgeScorer, is_pairwise
from stages.scoring import VotesScorer

if TYPE_CHECKING:
    from stages.pairing import PairingConfig
    from stages.scoring import ScoringConfig

TRIPLET = 3
"""Independent scorers that it takes to tell from their agreement how often each is right."""


class NoiseConfig(Config):
    """When the share of wrong labels is estimated: docs/noise.md."""

    minimum_calibration_pairs: Annotated[int, pydantic.Field(ge=20)] = 100
    """Gold pairs and pairs that people voted on; with fewer the labels are not calibrated."""
    minimum_pairs: Annotated[int, pydantic.Field(ge=50)] = 300
    """With fewer, agreement and swaps say too little."""
    seed: int = 0
    """Of the bootstrap."""


class Voters(NamedTuple):
    """Single scorers besides the one that made the labels, by name."""

    members: tuple[str, ...] = ()
    """Those that had a say, in a jury, a mix or as agreeing: evidence, but not independent."""
    others: tuple[str, ...] = ()
    """Those that had none."""
    people: tuple[str, ...] = ()
    """People, whose majority counts as the truth."""
    several: bool = False
    """Whether several scorers made the labels: a jury's or a mix's."""


def noise_voters(scoring: ScoringConfig, pairing: PairingConfig) -> Voters:
    """Return who else scored the pairs."""
    juries = {jury.name: jury.members for jury in scoring.juries}
    named = [*pairing.deciding_scorers, *pairing.agreeing_scorers]
    had_a_say = {single for name in named for single in juries.get(name, (name,))}
    people = {scorer.name for scorer in scoring.judges if isinstance(scorer, VotesScorer)}
    singles = [s.name for s in scoring.judges if s.name not in scoring.gauges]
    makers = [m for name in pairing.deciding_scorers for m in juries.get(name, (name,))]
    # Of the one scorer that made the labels the vote is the label.
    maker = makers if len(makers) == 1 else []
    return Voters(
        members=tuple(name for name in singles if name in had_a_say and name not in maker),
        others=tuple(name for name in singles if name not in had_a_say | people),
        people=tuple(name for name in singles if name in people - had_a_say),
        several=len(makers) > 1,
    )


def asks_in_both_orders(scoring: ScoringConfig, pairing: PairingConfig) -> bool:
    """Return whether one judge made the labels, and was shown two answers in both orders."""
    deciding = pairing.deciding_scorers
    judges = [scorer for scorer in scoring.judges if isinstance(scorer, JudgeScorer)]
    return any(
        deciding == (judge.name,) and judge.both_orders and is_pairwise(judge) for judge in judges
    )


def why_no_noise(scoring: ScoringConfig, pairing: PairingConfig, *, gold: bool) -> str:
    """Return why nothing can tell of the labels' noise; "" where something may."""
    if pairing.needs_references:
        return "with `reference_over_sampled` people chose, not the scorer that is calibrated"
    if pairing.needs_edits:
        return f"with `{pairing.strategy}` the editor chose, not the scorer that is calibrated"
    voters = noise_voters(scoring, pairing)
    independent = [
        *voters.others,
        *(voters.members if voters.several else pairing.deciding_scorers),
    ]
    told = gold or voters.people or len(independent) >= TRIPLET
    if told or asks_in_both_orders(scoring, pairing):
        return ""
    return (
        "no gold pairs, no votes, fewer than three independent scorers, "
        "no judge asked in both orders"
    )
