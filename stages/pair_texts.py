"""The candidates that pairs are made of."""

from __future__ import annotations

import polars as pl


def of_pairs(candidates: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of ``candidates`` that are chosen or rejected in ``pairs``.

    Two of eight, mostly: looking each up among these alone takes half the time.
    """
    ids = pl.concat([pairs["chosen_candidate_id"], pairs["rejected_candidate_id"]])
    return candidates.join(ids.to_frame("candidate_id"), on="candidate_id", how="semi")
