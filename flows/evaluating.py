"""A round's policies on the same held-out prompts: both answer, and a scorer or judge compares."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

from flows import scorers
from flows.answering import answer_prompts
from flows.capability_card import require_askable
from flows.capability_texts import read_texts
from flows.curation import Curated, judge_in_parts
from flows.generators import policy_generator
from flows.policy_duels import Answers, comparing_judge, judge_duels
from flows.spending import budget_of
from flows.stage_runner import RunContext, StageSpec, StageWriter, run_stage
from flows.stage_task import stage_task
from stages import scoring
from stages.errors import ConfigError
from stages.judges import is_pairwise
from stages.scorer_health import require_every_candidate

if TYPE_CHECKING:
    from flows.configuration import PipelineConfig
    from flows.generators import ReadyGenerator
    from flows.models import Policy
    from lineage.workspace import Dataset
    from stages.judges import JudgeScorer

ANSWERS_VERSION = 2

COMPARES = "evaluation.scorer, or pairing.scorer where that is not set"
SCORED = ("success", "score")
"""Metrics of single answers' scores."""


class Compared(NamedTuple):
    """The answers of a round's policies in one decoding."""

    before: Answers
    after: Answers
    duels: Dataset | None = None
    """A pairwise judge's verdicts on both sides' answers."""

    @property
    def datasets(self) -> list[Dataset]:
        """All references."""
        sides = [d for side in (self.before, self.after) for d in (side.candidates, side.scores)]
        return [dataset for dataset in (*sides, self.duels) if dataset]


@stage_task(name="evaluate")
def answer_heldout(
    context: RunContext, config: PipelineConfig, policy: Policy, prompts: Dataset, stage: str
) -> Answers:
    """Answer the held-out prompts, greedily if the stage's name says so, and score the answers.

    A judge that compares two policies' answers is not asked yet.
    """
    generator = policy_generator(config, policy)
    needed = None
    if comparing_judge(config) is None:
        needed = config.scoring.needed_for(config.evaluating_scorer)
    if stage.endswith("_greedy"):
        sampling = generator.sampling._replace(temperature=0.0, heldout_samples=1)
        generator = dataclasses.replace(generator, sampling=sampling)
    settings = {
        "prompts_per_part": config.generation.prompts_per_part,
        "control_tokens": config.generation.control_tokens,
        "generator": generator.deciding(),
        "scorers": [scorers.deciding(s, policy) for s in (needed.scorers if needed else ())],
    }
    outputs = ("candidates", "judgments", "scores") if needed else ("candidates",)
    spec = StageSpec("answer_heldout", ANSWERS_VERSION, settings, (prompts,), outputs)

    def make(writer: StageWriter) -> None:
        heldout = writer.read(prompts).filter(split="heldout")
        answer_prompts(writer, heldout, generator, config)
        if needed is None:
            return
        answers = writer.dataset("candidates")
        budget = budget_of(context, config.budget)
        index = 0
        for scorer in needed.judges:
            with scorers.opened(scorer, writer, policy, budget, answers) as judge:
                index = judge_in_parts(writer, judge, answers, heldout, index)
        facts = writer.read(answers, ["candidate_id", "prompt_id"])
        verdicts = writer.read(writer.dataset("judgments"))
        require_every_candidate(verdicts, facts, needed.asked)
        writer.write("scores", scoring.scores(verdicts, facts, needed))

    record = run_stage(context, stage, spec, make)
    scores = record.output("scores") if needed else None
    return Answers(policy, generator.name, record.output("candidates"), scores)


@stage_task(name="evaluate")
def duel_heldout(
    context: RunContext,
    config: PipelineConfig,
    judge: JudgeScorer,
    prompts: Dataset,
    answers: Compared,
    stage: str,
) -> Compared:
    """Have a pairwise judge compare both sides' answers."""
    sides = (answers.before, answers.after)
    name = f"{stage}:{judge.name}"
    return answers._replace(duels=judge_duels(context, config, name, judge, prompts, sides))


def evaluate(
    context: RunContext, config: PipelineConfig, curated: Curated, base: Policy, trained: Policy
) -> list[Compared]:
    """Return the answers to the held-out prompts: sampled, then greedy if asked.

    The sampled answers before training are the ones that generation made already.
    """
    prompts = curated.prompts
    sampled = answer_heldout(context, config, trained, prompts, "evaluate_after_sampled")
    generator, judge = policy_generator(config, base).name, comparing_judge(config)
    scores = None if judge else curated.scores  # its scores are of one policy's answers
    before = Answers(base, generator, curated.candidates, scores)
    compared = {"evaluate_after_sampled": Compared(before, sampled)}
    if config.evaluation.greedy:
        # The trained policy first: where a server runs it, it is there already.
        after = answer_heldout(context, config, trained, prompts, "evaluate_after_greedy")
        before = answer_heldout(context, config, base, prompts, "evaluate_before_greedy")
        compared["evaluate_after_greedy"] = Compared(before, after)
    if judge is None:
        return list(compared.values())
    # All answers before all verdicts: a server that one model holds is not started twice.
    return [
        duel_heldout(context, config, judge, prompts, answers, stage)
        for stage, answers in compared.items()
    ]


def require_comparable(config: PipelineConfig) -> None:
    """Return if two policies can be compared as the configuration says.

    Raises:
        ConfigError: a jury has a judge that only says which of two answers is better, or votes, or
            people do; or the gate asks for what only a score tells, or only verifiers, and another
            scorer compares; or it limits what such a judge alone shows, and none is asked so.
        MissingFileError: the file of `evaluation.texts` is not there.
        DataError: a row of it is no conversation that the assistant ends.
        PrefmillError: the capability card asks for what cannot be.
    """
    if config.evaluation.texts:
        read_texts(config.evaluation.texts)
    if config.evaluation.card:
        require_askable(config, config.evaluation.card)
    judge = comparing_judge(config)
    flips, missing = config.gate.maximum_judge_flip_rate, config.gate.maximum_judge_missing_rate
    if flips is not None and not (judge and judge.both_orders):
        raise _unmeasured("maximum_judge_flip_rate", " in both orders", " and `both_orders`")
    if missing is not None and not judge:
        raise _unmeasured("maximum_judge_missing_rate")
    if judge:
        if config.gate.metric in SCORED:
            raise ConfigError(
                f"the gate asks for {config.gate.metric!r}, and {judge.name!r}, who compares the "
                "policies, gives no single answer a score",
                expected=f"another metric than {' and '.join(SCORED)}, or none",
                where="gate.metric",
                remedy="set it to null: the win rate decides; or name in `evaluation.scorer` a "
                "scorer that rates single answers",
            )
        return
    for member in config.scoring.needed_for(config.evaluating_scorer).judges:
        if is_pairwise(member):
            raise ConfigError(
                f"{member.name!r}, of the jury {config.evaluating_scorer!r}, compares answers of "
                "one policy with each other: its scores don't tell whether another policy's "
                "answers are better",
                expected="a pairwise judge alone, or a jury whose members rate single answers",
                where=COMPARES,
                remedy=f"name {member.name!r} itself in `evaluation.scorer`, or rules, a reward "
                "model or a pointwise judge",
            )
    _require_scores_across_policies(config)


def require_samples(generator: ReadyGenerator) -> None:
    """Return if the policy's answers are samples: rounds compare them and estimate the KL by them.

    Raises:
        ConfigError: it answers greedily.
    """
    if generator.sampling.temperature == 0:
        raise ConfigError(
            "the policy answers at temperature 0: a round has no samples to compare it by, nor to "
            "estimate the KL divergence",
            expected="a temperature above 0; greedy answers are compared besides them",
            where="generation.temperature, or that of the generator whose model is `policy`",
            remedy="raise it; `gate.decoding: greedy` has the gate judge greedy answers",
        )


def _require_scores_across_policies(config: PipelineConfig) -> None:
    """Return if the scorer says of single answers, of any policy, how good they are."""
    name, remedy = config.evaluating_scorer, "name another scorer in `evaluation.scorer`"
    needed = config.scoring.needed_for(name)
    for voters in needed.judges:
        if isinstance(voters, scoring.VotesScorer):
            raise ConfigError(
                f"{voters.name!r} are people's votes, and nobody has voted on answers that a "
                "policy is still to give",
                expected="rules, a reward model or a judge",
                where=COMPARES,
                remedy=remedy,
            )
    for jury in needed.juries:
        if jury.name == name and jury.vote == "majority":
            raise ConfigError(
                f"the jury {name!r} votes on which of one policy's answers are better than its "
                "others: its scores don't tell whether another policy's are",
                expected="a jury with `vote: mean`, or a single scorer",
                where=COMPARES,
                remedy=remedy,
            )
    if config.gate.metric == "success" and not config.tells_success:
        raise ConfigError(
            f"the gate asks for 'success', which verifiers tell, and {name!r} compares policies",
            expected="the scorer of kind `rules`",
            where="gate.metric",
            remedy="name the rules in `evaluation.scorer`; or set the metric to `score`, or to "
            "null: the win rate decides",
        )


def _unmeasured(limit: str, asked: str = "", setting: str = "") -> ConfigError:
    return ConfigError(
        f"`gate.{limit}` limits what is not measured: no pairwise judge is shown both policies' "
        f"answers{asked}",
        expected=f"in `evaluation.scorer` a judge with a pairwise rubric{setting}",
        where=f"gate.{limit}",
        remedy="name such a judge, or set the limit to null",
    )
