"""Two policies' answers to the same prompts before a judge that says which of two is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows import scorers
from flows.shards import prompts_of
from flows.spending import budget_of
from flows.stage_runner import RunContext, StageSpec, StageWriter, run_stage
from stages.judges import is_pairwise

if TYPE_CHECKING:
    import polars as pl

    from flows.configuration import PipelineConfig
    from flows.models import Policy
    from lineage.workspace import Dataset
    from stages.judges import JudgeScorer

VERSION = 1


@dataclass(frozen=True)
class Answers:
    """A policy's answers: those of one generator among the candidates."""

    policy: Policy
    generator: str
    candidates: Dataset
    scores: Dataset | None = None
    """None: their judge compares them with another policy's."""


def comparing_judge(config: PipelineConfig) -> JudgeScorer | None:
    """Return the judge that is shown both policies' answers; None: each policy's are scored."""
    named = (s for s in config.scoring.scorers if s.name == config.evaluating_scorer)
    return next(filter(is_pairwise, named), None)


def judge_duels(
    context: RunContext,
    config: PipelineConfig,
    stage: str,
    scorer: JudgeScorer,
    prompts: Dataset,
    sides: tuple[Answers, Answers],
) -> Dataset:
    """Return the judgments on the second side's answers against the first one's.

    Of each prompt those with the same `sample_index` meet; two that are the same word for word are
    not asked about. Who is shown first is drawn by a hash, and with the scorer's `both_orders` the
    other order is asked for too.

    Raises:
        EndpointError: the judge's server can't be used.
        BudgetError: the budget is spent.
    """
    settings = {
        "scorer": scorers.deciding(scorer, sides[1].policy),
        "generators": [side.generator for side in sides],
    }
    inputs = (prompts, *(side.candidates for side in sides))
    spec = StageSpec("duels", VERSION, settings, inputs, ("judgments",))

    def make(writer: StageWriter) -> None:
        import polars as pl

        former, own = (_answers(writer, side) for side in sides)
        met = pl.concat([former.join(own, on="prompt_id", how="semi"), own])
        texts = pl.col("completion").n_unique().over("prompt_id", "sample_index")
        parts = met.filter(texts > 1).partition_by("sample_index")
        parts.sort(key=lambda part: int(part["sample_index"][0]))
        columns = ["prompt_id", "messages", "reference"]
        asked = prompts_of(writer.workspace, prompts, own["prompt_id"], columns)
        budget = budget_of(context, config.budget)
        with scorers.opened(scorer, writer, sides[1].policy, budget, sides[1].candidates) as judge:
            for index, part in enumerate(parts):
                if writer.existing("judgments", index) is None:
                    writer.write("judgments", judge(part, asked), index)
                writer.advance(index + 1, len(parts))

    return run_stage(context, stage, spec, make).output("judgments")


def _answers(writer: StageWriter, side: Answers) -> pl.DataFrame:
    answers = side.candidates.scan(writer.workspace).filter(generator=side.generator)
    return answers.select("candidate_id", "prompt_id", "sample_index", "completion").collect()
