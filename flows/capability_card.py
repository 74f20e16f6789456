"""The capability card: the same battery asked of every policy, each compared with the first one.

Everything asked is a stage output of its own, named by its content: a policy, a file or a judge
that was there before is not asked again.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from flows import scorers
from flows.answering import answer_prompts
from flows.capability_card_page import write_page
from flows.capability_items import (
    instruction_items,
    lm_eval_items,
    lm_eval_version,
    of,
    rated_items,
    success_items,
    text_items,
)
from flows.capability_prompts import after_answers, asked_of
from flows.curation import judge_in_parts
from flows.generators import policy_generator
from flows.policy_duels import Answers, judge_duels
from flows.spending import budget_of
from flows.stage_runner import RunContext, StageSpec, StageWriter, run_stage
from flows.stage_task import stage_task
from stages import generation
from stages.content_ids import content_hash, file_sha256
from stages.errors import ConfigError
from stages.judges import is_pairwise
from trainer.capabilities import (
    INSTRUCTIONS,
    TEXTS,
    CardConfig,
    as_items,
    capabilities,
    controlled_row,
)
from trainer.evaluation import EVEN, WIN_RATE, scored_samples
from trainer.win_rate import judged_duels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from flows.capability_prompts import Asked
    from flows.configuration import PipelineConfig
    from flows.models import Policy
    from lineage.workspace import Dataset, Workspace

ANSWERS_VERSION = VERDICTS_VERSION = ITEMS_VERSION = CARD_VERSION = 1


class Answered(NamedTuple):
    """One policy's answers to one capability's prompts."""

    prompts: Dataset
    candidates: Dataset


class Duel(NamedTuple):
    """A pairwise judge's verdicts on a policy's answers and the first policy's."""

    policy: Policy
    asked: Asked
    first: Answered
    own: Answered
    judgments: Dataset


@stage_task(name="card")
def make_card(context: RunContext, config: PipelineConfig, policies: Sequence[Policy]) -> Dataset:
    """Return the `capabilities` of ``policies``, the first of which is what others are compared to.

    Raises:
        ConfigError: two policies have the same name, or the card asks for what cannot be.
        PrefmillError: a file, a model, a server or a task cannot be used.
    """
    card = config.evaluation.card or CardConfig()
    _require_distinct(policies)
    asked = require_askable(config, card)
    # All answers before all verdicts: a server that one model holds is not started twice.
    answered = {
        (policy.name, one.capability): _answered(context, config, policy, one)
        for policy in policies
        for one in asked
    }
    items, duels = [], []
    for policy in policies:
        for one in asked:
            own = answered[policy.name, one.capability]
            if not is_pairwise(one.scorer):
                items.append(_items(context, config, policy, one, own))
            elif policy is not policies[0]:
                first = answered[policies[0].name, one.capability]
                sides = (
                    Answers(policies[0], policies[0].name, first.candidates),
                    Answers(policy, policy.name, own.candidates),
                )
                name = _name(policy, one.capability, "duels")
                judgments = judge_duels(context, config, name, one.scorer, own.prompts, sides)
                duels.append(Duel(policy, one, first, own, judgments))
    # What loads a model into this process comes last: it stops the servers.
    items += [read for policy in policies for read in _in_process(context, config, card, policy)]
    return _compared(context, config, policies, items, duels)


def card_of_round(
    context: RunContext, config: PipelineConfig, former: Policy, trained: Policy
) -> Dataset | None:
    """Return the card of a round's policies, if `evaluation.card` asks for it; draw its page."""
    if config.evaluation.card is None:
        return None
    made: Dataset = make_card(context, config, (former, trained))
    write_page(made.read(context.workspace), page_of(context.workspace, context.run_id))
    return made


def page_of(workspace: Workspace, run_id: str) -> Path:
    """Return where a run's card lies as a page."""
    return workspace.runs / run_id / "card.html"


def require_askable(config: PipelineConfig, card: CardConfig) -> list[Asked]:
    """Return what the card asks, if all that it names is there.

    Raises:
        PrefmillError: a file, a scorer or lm-eval is not there, or a row cannot be used.
    """
    if card.lm_eval is not None:
        lm_eval_version()
    return asked_of(config, card)


def _require_distinct(policies: Sequence[Policy]) -> None:
    names = [policy.name for policy in policies]
    if len(set(names)) < len(names):
        raise ConfigError(
            f"two policies of the card have the same name: {', '.join(names)}",
            expected="policies with names of their own",
            remedy="name each folder once",
        )


def _answered(
    context: RunContext, config: PipelineConfig, policy: Policy, asked: Asked
) -> Answered:
    """Return the policy's greedy answers, to second turns as well where they are judged."""
    generator = policy_generator(config, policy)
    sampling = generator.sampling._replace(temperature=0.0, heldout_samples=1)
    generator = dataclasses.replace(generator, name=policy.name, sampling=sampling)
    second_turns = {} if is_pairwise(asked.scorer) else asked.second_turns
    settings = {
        "prompts_per_part": config.generation.prompts_per_part,
        "control_tokens": config.generation.control_tokens,
        "generator": generator.deciding(),
        "prompts": content_hash(asked.prompts.to_dicts()),
        "second_turns": content_hash(second_turns),
    }
    spec = StageSpec("card_answers", ANSWERS_VERSION, settings, (), ("prompts", "candidates"))

    def make(writer: StageWriter) -> None:
        writer.write("prompts", asked.prompts)
        answer_prompts(writer, asked.prompts, generator, config)
        if second_turns:
            there = generation.count_parts(asked.prompts, config.generation)
            later = after_answers(asked, writer.read(writer.dataset("candidates")))
            writer.write("prompts", later, 1)
            answer_prompts(writer, later, generator, config, there)

    record = run_stage(context, _name(policy, asked.capability, "answers"), spec, make)
    return Answered(record.output("prompts"), record.output("candidates"))


def _name(policy: Policy, capability: str, what: str) -> str:
    """Return a stage's name within the run."""
    return f"card:{capability} {what} {policy.name}"


def _items(
    context: RunContext, config: PipelineConfig, policy: Policy, asked: Asked, answered: Answered
) -> Dataset:
    """Return how the policy's answers to one capability's prompts are, rated where it needs to."""
    inputs: tuple[Dataset, ...] = answered
    if asked.scorer is not None:
        inputs = (*answered, _verdicts(context, config, policy, asked, answered))
    settings = {"capability": asked.capability, **of(policy)}
    spec = StageSpec("card_items", ITEMS_VERSION, settings, inputs, ("capability_items",))

    def make(writer: StageWriter) -> None:
        prompts, candidates, *judged = map(writer.read, inputs)
        if judged:
            rows = rated_items(asked.prompts, prompts, candidates, *judged)
        elif asked.capability == INSTRUCTIONS:
            rows = instruction_items(prompts, candidates)
        else:
            rows = success_items(prompts, candidates)
        writer.write("capability_items", as_items(rows, **settings))

    name = _name(policy, asked.capability, "items")
    return run_stage(context, name, spec, make).output("capability_items")


def _verdicts(
    context: RunContext, config: PipelineConfig, policy: Policy, asked: Asked, answered: Answered
) -> Dataset:
    """Return the ratings of a policy's answers."""
    scorer = asked.scorer
    assert scorer is not None
    settings = {"scorer": scorers.deciding(scorer, policy)}
    spec = StageSpec("card_verdicts", VERDICTS_VERSION, settings, answered, ("judgments",))

    def make(writer: StageWriter) -> None:
        budget = budget_of(context, config.budget)
        with scorers.opened(scorer, writer, policy, budget, answered.candidates) as judge:
            judge_in_parts(writer, judge, answered.candidates, writer.read(answered.prompts))

    name = _name(policy, asked.capability, "verdicts")
    return run_stage(context, name, spec, make).output("judgments")


def _in_process(
    context: RunContext, config: PipelineConfig, card: CardConfig, policy: Policy
) -> Iterator[Dataset]:
    """Yield what the policy shows in this process: losses on texts, tasks of lm-eval."""
    texts, tasks = config.evaluation.texts, card.lm_eval
    same = {**of(policy), "policy_content": policy.fingerprint}
    if texts is not None:
        read: dict[str, Any] = {**same, "texts": file_sha256(texts)}
        facts = {"capability": TEXTS, "higher_is_better": False, **of(policy)}
        yield _read(
            context,
            _name(policy, TEXTS, "items"),
            read,
            lambda: as_items(text_items(texts, policy), **facts),
        )
    if tasks is not None:
        own = tasks.include_path
        files = sorted(own.rglob("*")) if own else []
        asked = {
            **same,
            "lm_eval": lm_eval_version(),
            "tasks": tasks.deciding(),
            "files": [[str(f), file_sha256(f)] for f in files if f.is_file()],
        }
        yield _read(
            context,
            _name(policy, "lm_eval", "items"),
            asked,
            lambda: lm_eval_items(tasks, policy),
        )


def _read(
    context: RunContext, name: str, settings: dict[str, Any], measure: Callable[[], pl.DataFrame]
) -> Dataset:
    spec = StageSpec("card_read", ITEMS_VERSION, settings, (), ("capability_items",))

    def make(writer: StageWriter) -> None:
        writer.write("capability_items", measure())

    return run_stage(context, name, spec, make).output("capability_items")


def _compared(
    context: RunContext,
    config: PipelineConfig,
    policies: Sequence[Policy],
    items: Sequence[Dataset],
    duels: Sequence[Duel],
) -> Dataset:
    """Return the card: every policy's measures, and how they differ from the first one's."""
    settings = {
        "policies": [of(policy) for policy in policies],
        "tolerances": config.gate.capability_tolerances,
        "seed": config.evaluation.seed,
        "resamples": config.evaluation.resamples,
        "duels": [[duel.asked.capability, duel.policy.name] for duel in duels],
    }
    of_duels = [side for duel in duels for side in (*duel.first, *duel.own, duel.judgments)]
    inputs = (*items, *of_duels)
    spec = StageSpec("card", CARD_VERSION, settings, inputs, ("capabilities",))

    def make(writer: StageWriter) -> None:
        drawn = (config.gate.capability_tolerances, config.evaluation.seed)
        met = [(duel, _met(writer, duel)) for duel in duels]
        won = [
            as_items(
                duels_met.select(item="prompt_id", stratum="stratum", value=value),
                capability=duel.asked.capability,
                metric=WIN_RATE,
                **of(policy),
            )
            for duel, duels_met in met
            for policy, value in ((policies[0], pl.lit(EVEN)), (duel.policy, pl.col("win")))
        ]
        known = pl.concat([*map(writer.read, items), *won])
        order = {policy.name: place for place, policy in enumerate(policies)}
        known = known.unique(["policy", "capability", "metric", "item"], maintain_order=True)
        known = known.sort(pl.col("policy").replace_strict(order), maintain_order=True)
        card = capabilities(known, *drawn, config.evaluation.resamples)
        controlled = [
            controlled_row(
                duels_met,
                {"capability": duel.asked.capability, **of(duel.policy)}
                | {"first_weights_hash": policies[0].weights_hash},
                *drawn,
                config.evaluation.resamples,
            )
            for duel, duels_met in met
        ]
        writer.write("capabilities", pl.concat([card, *controlled]))

    return run_stage(context, "card", spec, make).output("capabilities")


def _met(writer: StageWriter, duel: Duel) -> pl.DataFrame:
    """Return prompt_id, stratum, win, length_gap: the policy's answers against the first one's.

    Prompts that the judge gave no verdict on are left out.
    """
    first, own = (
        scored_samples(writer.read(side.candidates), None, duel.asked.prompts)
        for side in (duel.first, duel.own)
    )
    return judged_duels(first, own, writer.read(duel.judgments)).drop_nulls("win")
