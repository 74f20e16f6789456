"""Bradley-Terry strengths of candidates, from verdicts on two of them at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MAX_CELLS = 1_000_000
"""Numbers in one array: so many prompts are fitted together."""

MAX_STEPS = 100
"""Of Newton's method; ten are usual."""

TOLERANCE = 1e-9
"""A fit ends when no strength moves by more, in log-odds."""

DECIMALS = 6
"""Kept of a strength: candidates that no verdict tells apart come out equal."""


def strengths(verdicts: pl.DataFrame) -> pl.DataFrame:
    """Return `candidate_id` and `strength`, in log-odds, of every candidate that was compared.

    Within a prompt, A beats B with probability 1 / (1 + exp(B - A)) of their strengths (Bradley
    and Terry, Biometrika 39, 1952). Every candidate also counts as having won once and lost once
    against one of strength 0 (Newman, arXiv 2207.00076): one that always won stays finite, and
    candidates that met nobody in common can be compared.

    Args:
        verdicts: `prompt_id`, `candidate_id`, `other_candidate_id` and `score`, the first one's
            share of the win: 0.5 is a tie.
    """
    players = _places(verdicts)
    opponents = players.select(other_candidate_id="candidate_id", other_place="place")
    games = (
        verdicts.select("candidate_id", "other_candidate_id", "score")
        .join(players, on="candidate_id")
        .join(opponents, on="other_candidate_id")
    )
    fitted = [
        _fitted(of_prompts, players.filter(size=size, batch=batch))
        for (size, batch), of_prompts in games.partition_by("size", "batch", as_dict=True).items()
    ]
    empty = pl.DataFrame(schema={"candidate_id": pl.String, "strength": pl.Float64})
    return pl.concat([empty, *fitted])


def _places(verdicts: pl.DataFrame) -> pl.DataFrame:
    """Return of every candidate its place in its prompt, and its prompt's in a batch.

    Columns: candidate_id, place, size (candidates of the prompt), batch, row (of the batch).
    """
    sides = [
        verdicts.select("prompt_id", candidate_id=side)
        for side in ("candidate_id", "other_candidate_id")
    ]
    of_prompt = pl.concat(sides).unique().group_by("prompt_id").agg("candidate_id")
    sized = of_prompt.with_columns(
        pl.col("candidate_id").list.sort(), size=pl.col("candidate_id").list.len().cast(pl.Int64)
    )
    together = (MAX_CELLS // pl.col("size") ** 2).clip(lower_bound=1)
    number = pl.int_range(pl.len()).over("size")
    numbered = sized.with_columns(
        place=pl.int_ranges("size"), batch=number // together, row=number % together
    )
    return numbered.explode("candidate_id", "place").drop("prompt_id")


def _fitted(games: pl.DataFrame, players: pl.DataFrame) -> pl.DataFrame:
    """Return the strengths of one batch's candidates."""
    import numpy as np

    shape = (players["row"].n_unique(), players["size"][0], players["size"][0])
    score, sides = games["score"].to_numpy(), (games["place"], games["other_place"])
    cells, swapped = (
        np.ravel_multi_index((games["row"], one, other), shape)
        for one, other in (sides, sides[::-1])
    )
    won: Floats = np.zeros(np.prod(shape))
    won += np.bincount(cells, score, won.size)
    won += np.bincount(swapped, 1 - score, won.size)
    found = fit(won.reshape(shape))[players["row"], players["place"]]
    # -0.0 + 0.0 is 0.0
    return players.select("candidate_id", strength=pl.Series(found.round(DECIMALS) + 0.0))


def fit(won: Floats) -> Floats:
    """Return the most probable strengths, shape (prompts, n), in log-odds.

    ``won``, shape (prompts, n, n), counts the wins of the row's candidate over the column's.
    Newton's method with steps shortened as in Sun and Tran-Dinh, Generalized self-concordant
    functions, Mathematical Programming 178, 2019 (equation 12, nu = 2): it converges from
    anywhere.
    """
    import numpy as np

    played = won + won.swapaxes(1, 2)
    own = np.eye(won.shape[1], dtype=bool)
    fitted = np.zeros(won.shape[:2])
    for _ in range(MAX_STEPS):
        wins = 1 / (1 + np.exp(fitted[:, None, :] - fitted[:, :, None]))
        alone = 1 / (1 + np.exp(-fitted))
        gradient = (won - played * wins).sum(axis=2) + 1 - 2 * alone
        curvature = -played * wins * (1 - wins)
        curvature[:, own] = 2 * alone * (1 - alone) - curvature.sum(axis=2)
        step = np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
        length = np.sqrt(2 * (step**2).sum(axis=1, keepdims=True))
        fitted += step * np.log1p(length) / np.maximum(length, np.finfo(float).tiny)
        if np.abs(step).max() < TOLERANCE:
            break
    return fitted
