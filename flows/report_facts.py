"""What a report shows, as plain frames: gathered by `report_data`, drawn by `report`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Collection

    from flows.report_graph import Node

HEADLINES = ("success", "score", "length_controlled_win_rate")
"""The metrics that stand for all, the first that there is: a pairwise judge gives no scores."""


def _none() -> pl.DataFrame:
    return pl.DataFrame()


@dataclass(frozen=True)
class ReportData:
    """One run. Any frame may be empty, even without columns."""

    run: dict[str, Any]
    """The columns of RUNS."""
    funnel: pl.DataFrame = field(default_factory=_none)
    """split, position, step, rows; a step called ``dropped: REASON`` is a drop."""
    filters: pl.DataFrame = field(default_factory=_none)
    """The view `filter_funnel`."""
    pairs: pl.DataFrame = field(default_factory=_none)
    """split, scorer, margin, chosen_score, rejected_score, chosen_tokens, rejected_tokens, kept
    (null: not filtered), confidence (null: not known)."""
    examples: pl.DataFrame = field(default_factory=_none)
    """kind (best kept, narrowly kept, dropped: REASON), pair_id, prompt, chosen, rejected, margin,
    chosen_score, rejected_score; a text that was removed since is null."""
    scorers: pl.DataFrame = field(default_factory=_none)
    """The table SCORER_HEALTH."""
    scores: pl.DataFrame = field(default_factory=_none)
    """scorer, score: of some answers, by every scorer."""
    judged_margins: pl.DataFrame = field(default_factory=_none)
    """scorer, margin (chosen - rejected by that scorer), kept: of some pairs, by every scorer."""
    noise: pl.DataFrame = field(default_factory=_none)
    """The view `run_noise`."""
    drift: pl.DataFrame = field(default_factory=_none)
    """The table DRIFT."""
    training_metrics: pl.DataFrame = field(default_factory=_none)
    """round_id, step, metric, value."""
    evaluations: pl.DataFrame = field(default_factory=_none)
    """The table EVALUATIONS."""
    gates: pl.DataFrame = field(default_factory=_none)
    """The table GATES."""
    capabilities: pl.DataFrame = field(default_factory=_none)
    """The table CAPABILITIES."""
    rounds: pl.DataFrame = field(default_factory=_none)
    """The table ROUNDS."""
    validations: pl.DataFrame = field(default_factory=_none)
    """The table VALIDATIONS and ``stage``."""
    stage_runs: pl.DataFrame = field(default_factory=_none)
    """The table STAGE_RUNS and what each stage asked of models: calls, tokens_read,
    tokens_written, cost; null where it asked nothing or nobody counted."""
    lineage: tuple[Node, ...] = ()
    """The run's stages in order, each after those it read from."""
    config: dict[str, Any] = field(default_factory=dict)
    """The resolved configuration."""
    failed_stage: str = ""
    """The stage whose error ended the run."""
    series: str = ""
    """The address of the page of the rounds that this run is one of."""


def last_round(data: ReportData) -> str | None:
    """Return the id of the last round, or None when nothing was trained."""
    if not data.rounds.is_empty():
        return str(data.rounds.sort("round_index")["round_id"][-1])
    for frame in (data.evaluations, data.gates, data.training_metrics):
        if not frame.is_empty():
            return str(frame["round_id"][-1])
    return None


def of_round(frame: pl.DataFrame, round_id: str | None) -> pl.DataFrame:
    """Return the rows of one round."""
    return frame if frame.is_empty() else frame.filter(pl.col("round_id") == round_id)


def headline_metric(metrics: Collection[str]) -> str:
    """Return the first of `HEADLINES` among ``metrics``; "" without any."""
    return next((name for name in HEADLINES if name in metrics), "")


def main_metric(evaluations: pl.DataFrame) -> str:
    """Return the metric that stands for all: of `HEADLINES`, else any; "" without any."""
    names: list[str] = [] if evaluations.is_empty() else evaluations["metric"].unique().to_list()
    return headline_metric(names) or min(names, default="")
