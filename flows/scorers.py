"""Scorers by configuration: what decides their verdicts, and the scorer opened for use."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Any, TypeVar

from flows.generators import check_server, managed_endpoint, require_same_template
from flows.models import find_policy
from flows.progress import note_done, say
from flows.vllm_server import make_room
from stages import scoring
from stages.content_ids import content_hash
from stages.endpoints import EndpointPool
from stages.generation_settings import POLICY
from stages.judge_prompts import load_rubric, prompt_hash
from stages.judges import JUDGE_VERSION, Judge, JudgeScorer, judge_candidates
from stages.log_probability import LogProbability, LogProbabilityScorer, judge_by_log_probability
from stages.text_classifier import TextClassifier, TextClassifierScorer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import polars as pl

    from flows.models import Policy
    from flows.stage_runner import StageWriter
    from lineage.workspace import Dataset, Workspace
    from stages.budget import Budget
    from stages.scoring import Scorer

    JudgePart = Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame]
    """From candidates and their prompts to judgments."""


T = TypeVar("T")

OwnModels = (
    scoring.RewardModelScorer
    | scoring.ImplicitRewardScorer
    | TextClassifierScorer
    | LogProbabilityScorer
)
"""Scorers with models that prefmill finds by folder or hub id."""


def deciding(scorer: Scorer, policy: Policy) -> dict[str, Any]:
    """Return what decides a scorer's verdicts, besides the candidates, as JSON.

    Raises:
        MissingFileError: its model, votes or rubric is not there.
    """
    settings = scorer.deciding()
    if isinstance(scorer, scoring.RulesScorer):
        return settings | {"version": scoring.RULES_VERSION}
    if isinstance(scorer, scoring.VotesScorer):
        hashed = {"votes": scoring.votes_fingerprint(scorer)}
        return settings | {"version": scoring.VOTES_VERSION, **hashed}
    if isinstance(scorer, OwnModels):
        roles = [role for role in ("model", "reference") if hasattr(scorer, role)]
        return settings | {role: _model(scorer, policy, role).identity for role in roles}
    if isinstance(scorer, JudgeScorer):
        rubric = prompt_hash(load_rubric(scorer.rubric), system_role=scorer.system_role)
        judged = {"version": JUDGE_VERSION, "rubric": rubric}
        local = {"model": find_policy(scorer.model).identity} if _is_managed(scorer) else {}
        return settings | judged | local
    return settings


def _model(scorer: OwnModels, policy: Policy, role: str = "model") -> Policy:
    """Return the model that a scorer names."""
    named = getattr(scorer, role)
    if isinstance(scorer, LogProbabilityScorer) and named == POLICY:
        return policy
    return find_policy(named)


def _is_managed(scorer: JudgeScorer) -> bool:
    """Return whether the judge runs on a server that prefmill starts."""
    return scorer.engine == "vllm" and not scorer.endpoint.base_urls


def check(scorer: Scorer, policy: Policy) -> None:
    """Return if a scorer can be used, as far as that is known without loading or asking it.

    Raises:
        ModelError: its model has another head, or reads conversations otherwise than the policy.
        EndpointError: no server, a wrong key or an unknown model.
        MissingFileError: its model, votes or rubric is not there.
    """
    deciding(scorer, policy)
    if isinstance(scorer, scoring.VotesScorer):
        scoring.read_votes(scorer)
    if isinstance(scorer, TextClassifierScorer):
        from stages.reward_model import output_index
        from stages.reward_server import unloaded

        folder = find_policy(scorer.model).folder
        config, _, _ = unloaded(folder)
        for label in scorer.labels:
            output_index(config, label, str(folder), "labels")
    if isinstance(scorer, scoring.RewardModelScorer):
        from stages.chat_template import template_fingerprint
        from stages.reward_server import unloaded

        _, tokenizer, _ = unloaded(find_policy(scorer.model).folder)
        if not scorer.allow_other_template:
            require_same_template(
                template_fingerprint(tokenizer), policy, f"scorer {scorer.name!r}"
            )
    if isinstance(scorer, JudgeScorer | scoring.RewardModelScorer):
        check_server(scorer, _served_name(scorer))


def _served_name(scorer: JudgeScorer | scoring.RewardModelScorer) -> str:
    """Return what its server calls the scorer's model."""
    local = isinstance(scorer, scoring.RewardModelScorer)
    return find_policy(scorer.model).name if local else scorer.model


@contextlib.contextmanager
def opened(
    scorer: Scorer,
    writer: StageWriter,
    policy: Policy,
    budget: Budget,
    candidates: Dataset,
    *,
    patient: bool = False,
) -> Iterator[JudgePart]:
    """Yield the scorer as a function on one part.

    Its model is loaded, or its server reached, for the first part: where all parts are there from
    an earlier start, nothing is.

    Raises:
        DataError: votes on candidates that aren't there, and they are refused.
        ModelError: its model can't be used; or, of a judge that is not to be ``patient``, none of
            its first answers can be read.
        EndpointError: its server can't be used.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(scorer, scoring.RulesScorer):
            yield functools.partial(scoring.judge_by_rules, scorer=scorer)
        elif isinstance(scorer, scoring.VotesScorer):
            yield _voters(scorer, writer, candidates)
        elif isinstance(scorer, scoring.RewardModelScorer | scoring.ImplicitRewardScorer):
            source = _once(stack, _reward_source(scorer, writer.workspace, policy, budget))
            yield lambda answers, prompts: scoring.judge_by_rewards(
                answers, prompts, scorer.name, source(), note_done
            )
        elif isinstance(scorer, TextClassifierScorer):
            model = functools.cache(functools.partial(_classifier, scorer))
            yield lambda answers, prompts: scoring.judge_by_rewards(
                answers, prompts, scorer.name, model(), note_done
            )
        elif isinstance(scorer, LogProbabilityScorer):
            yield _log_probabilities(scorer, policy)
        else:
            assert isinstance(scorer, JudgeScorer)
            memory = stack.enter_context(writer.journal(content_hash(scorer.name)))
            opening = opened_judge(scorer, writer.workspace, budget, patient=patient)
            judge = _once(stack, opening)
            yield lambda answers, prompts: judge_candidates(
                answers, prompts, judge(), memory, note_done
            )
            memory.remove()


def _once(stack: contextlib.ExitStack, context: AbstractContextManager[T]) -> Callable[[], T]:
    """Return a function that enters a context when it is called first, and what that gave."""
    return functools.cache(functools.partial(stack.enter_context, context))


@contextlib.contextmanager
def opened_judge(
    scorer: JudgeScorer, workspace: Workspace, budget: Budget, *, patient: bool = False
) -> Iterator[Judge]:
    """Yield a judge whose server is reached, and started if prefmill runs it.

    Raises:
        EndpointError: its server can't be used.
        ModelError: its own server doesn't start.
    """
    endpoint = scorer.endpoint
    if _is_managed(scorer):
        model = find_policy(scorer.model)
        endpoint = managed_endpoint(scorer, model, workspace)
        scorer = scorer.model_copy(update={"model": model.name})
    with EndpointPool(endpoint, budget, scorer.prices) as pool:
        pool.check(scorer.model)
        yield Judge(scorer, load_rubric(scorer.rubric), pool, patient=patient)


def _voters(scorer: scoring.VotesScorer, writer: StageWriter, candidates: Dataset) -> JudgePart:
    """Return people's votes as a scorer; say so if some can't be read or are on no candidate."""
    votes = scoring.read_votes(scorer)
    known = writer.read(candidates, ["candidate_id", "prompt_id"])
    scoring.require_same_prompt(votes, known, scorer)
    unknown = scoring.unknown_votes(votes, known["candidate_id"], scorer)
    for warning in filter(None, (unknown, scoring.unread_votes(votes, scorer))):
        say(warning)

    def judge(answers: pl.DataFrame, _prompts: pl.DataFrame) -> pl.DataFrame:
        return scoring.judge_by_votes(answers, votes, scorer)

    return judge


def _classifier(scorer: TextClassifierScorer) -> TextClassifier:
    """Return the classifier, loaded."""
    make_room()
    model = find_policy(scorer.model)
    return TextClassifier(
        model.folder,
        scorer.labels,
        model.name,
        multi_label=scorer.multi_label,
        batch_tokens=scorer.batch_tokens,
    )


def _log_probabilities(scorer: LogProbabilityScorer, policy: Policy) -> JudgePart:
    """Return a model's log-probabilities as a scorer; it is loaded for what it didn't sample."""
    model = _model(scorer, policy)

    @functools.cache
    def source() -> LogProbability:
        make_room()
        loaded = LogProbability(model.folder, scorer.batch_tokens, model.name)
        if not scorer.allow_other_template:
            where = f"scorer {scorer.name!r}"
            require_same_template(loaded.template_fingerprint, policy, where)
        return loaded

    def judge(candidates: pl.DataFrame, prompts: pl.DataFrame) -> pl.DataFrame:
        def compute(others: pl.DataFrame) -> pl.DataFrame:
            return scoring.judge_by_rewards(others, prompts, scorer.name, source(), note_done)

        return judge_by_log_probability(candidates, model.weights_hash, scorer.name, compute)

    return judge


@contextlib.contextmanager
def _reward_source(
    scorer: scoring.RewardModelScorer | scoring.ImplicitRewardScorer,
    workspace: Workspace,
    policy: Policy,
    budget: Budget,
) -> Iterator[scoring.RewardSource]:
    """Yield the model that rewards, loaded or served, if it reads conversations as the policy."""
    model = find_policy(scorer.model)
    with contextlib.ExitStack() as open_pools:
        if isinstance(scorer, scoring.ImplicitRewardScorer):
            from stages.implicit_reward import ImplicitReward

            make_room()
            reference = find_policy(scorer.reference).folder
            source: Any = ImplicitReward(
                model.folder, reference, scorer.beta, scorer.batch_tokens, model.name
            )
        elif scorer.engine == "transformers":
            from stages.reward_model import RewardModel

            make_room()
            source = RewardModel(
                model.folder,
                model.name,
                output=scorer.output,
                batch_tokens=scorer.batch_tokens,
                max_length_tokens=scorer.maximum_tokens,
            )
        else:
            from stages.reward_server import RewardServer

            endpoint = managed_endpoint(scorer, model, workspace, "pooling")
            source = RewardServer(
                open_pools.enter_context(EndpointPool(endpoint, budget)),
                model.name,
                model.folder,
                output=scorer.output,
                max_length_tokens=scorer.maximum_tokens,
            )
        if not scorer.allow_other_template:
            where = f"scorer {scorer.name!r}"
            require_same_template(source.template_fingerprint, policy, where)
        yield source
