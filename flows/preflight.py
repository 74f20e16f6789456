"""What is found wrong before anything is generated or paid for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows import scorers
from flows.editing import require_editable
from stages import scoring

if TYPE_CHECKING:
    import polars as pl

    from flows.configuration import PipelineConfig
    from flows.generators import ReadyGenerator


def require_usable(
    config: PipelineConfig, generators: list[ReadyGenerator], prompts: pl.DataFrame
) -> None:
    """Stop before the first completion is paid for if a generator or a scorer can't be used.

    Raises:
        PrefmillError: a model, key, server, rubric, instruction, file or ground truth can't be.
    """
    for generator in generators:
        generator.check()
    if config.pairing.needs_edits:
        require_editable(config, generators[0].policy)
    for scorer in config.scoring.judges:
        scorers.check(scorer, generators[0].policy)
        if isinstance(scorer, scoring.RulesScorer):
            scoring.read_checks(prompts, scorer)
