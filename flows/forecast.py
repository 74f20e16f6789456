"""What a run will ask for and cost, before it asks: counted, or measured on a small sample."""

from __future__ import annotations

import time
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from flows.editing import ready_editor
from flows.generators import ReadyGenerator, policy_generator, ready_generators
from flows.policy_duels import comparing_judge
from flows.preflight import require_usable
from flows.prompt_choice import seen_prompts
from stages import generation, prompt_sampling
from stages.budget import Budget, Usage
from stages.content_ids import content_hash
from stages.edit_prompts import edit_messages, load_instruction
from stages.edits import ModelEditor
from stages.generation_settings import OpenAIGenerator, TransformersGenerator
from stages.gold import ANSWERS as GOLD_ANSWERS
from stages.judge_prompts import load_rubric, render
from stages.judges import JudgeScorer, questions_per_prompt
from stages.tables import GOLD_SPLIT, SPLITS

if TYPE_CHECKING:
    import polars as pl

    from flows.configuration import PipelineConfig
    from flows.models import Policy
    from lineage.workspace import Workspace
    from stages.configuration import Config
    from stages.scoring import ScoringConfig

SAMPLED_PROMPTS = 16
CHARACTERS_PER_TOKEN = 4
"""Of English text, roughly: used where no tokenizer is at hand."""


class Line(NamedTuple):
    """What one generator or scorer of a run will ask for."""

    who: str
    prompts: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    """None: no prices are configured."""
    seconds: float | None
    """None: not measured."""
    basis: str
    """How the numbers came about."""


def is_paid(config: Config) -> bool:
    """Return whether an endpoint has prices or wants a key: it is asked nothing without consent."""
    endpoint = getattr(config, "endpoint", None)
    return getattr(config, "prices", None) is not None or bool(endpoint and endpoint.has_key)


class _Ask(NamedTuple):
    """Prompts that are treated alike: how many, and completions of each."""

    prompts: int
    samples: int


def forecast(
    config: PipelineConfig,
    policy: Policy,
    workspace: Workspace,
    *,
    ask_paid: bool,
    rounds: int = 0,
) -> list[Line]:
    """Return a line per generator and judge. Paid endpoints are asked only with ``ask_paid``.

    With ``rounds`` it is for so many rounds, with the held-out answers that each compares: every
    round is taken to be like the first.

    Raises:
        PrefmillError: what would stop the run: unusable prompts, models or servers.
    """
    generators = ready_generators(config, policy)
    answering = policy_generator(config, policy).name if rounds else ""
    prompts = prompt_sampling.sample(config.prompts, seen_prompts(workspace, config)).prompts
    require_usable(config, generators, prompts)
    times, answer = max(rounds, 1), ""
    counts = {split: times * prompts.filter(split=split).height for split in (*SPLITS, GOLD_SPLIT)}
    compared = _compared(config, counts["heldout"]) if rounds else []
    lines, evaluations = [], []
    for generator in generators:
        rates = _rates(generator, config, prompts, workspace, ask_paid=ask_paid)
        asks = [_Ask(counts[split], generator.sampling.samples_for(split)) for split in SPLITS]
        lines.append(_of_generator(generator, rates, asks))
        if generator.name == answering:
            line = _of_generator(generator, rates, compared)
            evaluations.append(line._replace(who=f"{line.who}, evaluation"))
        answer = max(answer, rates.answer, key=len)
    samplings = [generator.sampling for generator in generators]
    edits = int(config.edits is not None)
    judged = [_Ask(counts[s], sum(g.samples_for(s) for g in samplings) + edits) for s in SPLITS]
    judged.append(_Ask(counts[GOLD_SPLIT], len(GOLD_ANSWERS)))
    if isinstance(config.edits, ModelEditor):
        edited = sum(counts[split] for split in SPLITS)
        lines.append(_of_editor(config, config.edits, policy, prompts, answer, edited))
    lines += [_of_judge(j, config, prompts, answer, judged) for j in _judges(config.scoring)]
    met = _duels(config, counts["heldout"]) if comparing_judge(config) else compared
    for judge in _judges(config.scoring.needed_for(config.evaluating_scorer)) if rounds else []:
        line = _of_judge(judge, config, prompts, answer, met)
        evaluations.append(line._replace(who=f"{line.who}, evaluation"))
    return lines + evaluations


def _judges(scoring: ScoringConfig) -> list[JudgeScorer]:
    return [scorer for scorer in scoring.judges if isinstance(scorer, JudgeScorer)]


def _compared(config: PipelineConfig, heldout: int) -> list[_Ask]:
    """Return the answers that rounds compare, besides those that generation makes anyway."""
    sampled = [_Ask(heldout, config.generation.heldout_samples_per_prompt)]
    return sampled + [_Ask(heldout, 1)] * (2 if config.evaluation.greedy else 0)


def _duels(config: PipelineConfig, heldout: int) -> list[_Ask]:
    """Return what a pairwise judge is shown: of each sample, and greedy, a new and a former one."""
    samples = config.generation.heldout_samples_per_prompt
    return [_Ask(heldout, 2)] * (samples + config.evaluation.greedy)


class _Rates(NamedTuple):
    """What a generator needs."""

    prompt_tokens: float
    """Of a request."""
    completion_tokens: float
    """Of a completion."""
    seconds: float | None
    """For a completion."""
    answer: str
    """A typical one."""
    basis: str


def _rates(
    generator: ReadyGenerator,
    config: PipelineConfig,
    prompts: pl.DataFrame,
    workspace: Workspace,
    *,
    ask_paid: bool,
) -> _Rates:
    """Return what a generator needs: measured on a sample, or guessed if that would cost."""
    if is_paid(generator.config) and not ask_paid:
        guessed = sum(map(_guessed_tokens, prompts["messages"].to_list()))
        basis = "at most; --yes measures it on a paid sample"
        most = generator.sampling.max_completion_tokens
        return _Rates(guessed / max(prompts.height, 1), most, None, "", basis)
    sample = _sampled(generator, config, prompts, workspace)
    completions = max(sample.completions, 1)
    basis = f"measured on {sample.prompts} prompts"
    if not isinstance(generator.config, TransformersGenerator):
        basis += "; faster with more in flight"
    return _Rates(
        sample.prompt_tokens / max(sample.prompts, 1),
        sample.completion_tokens / completions,
        sample.seconds / completions,
        sample.answer,
        basis,
    )


def _of_generator(generator: ReadyGenerator, rates: _Rates, asks: list[_Ask]) -> Line:
    """Return the line of all that a generator is asked; each request reads its prompt."""
    settings = generator.config
    most = settings.maximum_choices_per_request if isinstance(settings, OpenAIGenerator) else None
    requests = sum(ask.prompts * -(-ask.samples // (most or ask.samples)) for ask in asks)
    completions = sum(ask.prompts * ask.samples for ask in asks)
    read, written = (
        round(requests * rates.prompt_tokens),
        round(completions * rates.completion_tokens),
    )
    prices = getattr(settings, "prices", None)
    return Line(
        generator.name,
        sum(ask.prompts for ask in asks),
        requests,
        read,
        written,
        prices.cost(Usage(read, written)) if prices else None,
        None if rates.seconds is None else rates.seconds * completions,
        rates.basis,
    )


class _Sample(NamedTuple):
    prompts: int
    completions: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    answer: str
    """Of median length."""


def _sampled(
    generator: ReadyGenerator, config: PipelineConfig, prompts: pl.DataFrame, workspace: Workspace
) -> _Sample:
    """Have a generator answer a few train prompts, drawn by a hash; start-up is not counted."""
    train = prompts.filter(split="train")
    ids = sorted(train["prompt_id"], key=lambda one: content_hash([config.seed, one]))
    few = train.filter(train["prompt_id"].is_in(ids[:SAMPLED_PROMPTS]))
    with generator.engine(workspace, Budget()) as engine:
        # Every prompt is counted and checked, so that a too long one is found here.
        generation.plan_parts(prompts, engine, generator.sampling, config.generation)
        parts = generation.plan_parts(few, engine, generator.sampling, config.generation)
        batches = [generation.requests_of(part, generator.sampling) for part in parts]
        started = time.monotonic()
        answers = list(chain.from_iterable(engine.answers(batches, generator.sampling)))
        seconds = time.monotonic() - started
    completions = [sample for answer in answers for sample in answer.samples]
    texts = sorted((sample.text or "" for sample in completions), key=len)
    guessed = sum(map(_guessed_tokens, few["messages"].to_list()))
    counted = sum(answer.prompt_tokens or 0 for answer in answers)
    return _Sample(
        len(answers),
        len(completions),
        counted or guessed,
        sum(sample.tokens for sample in completions),
        seconds,
        texts[len(texts) // 2] if texts else "",
    )


def _of_judge(
    scorer: JudgeScorer,
    config: PipelineConfig,
    prompts: pl.DataFrame,
    answer: str,
    asks: list[_Ask],
) -> Line:
    """Return a judge's line: questions counted, their tokens by the length of a rendered one."""
    rubric = load_rubric(scorer.rubric)
    questions = sum(a.prompts * questions_per_prompt(a.samples, scorer, rubric) for a in asks)
    answer = answer or _longest(config)
    responses = [answer] * (1 if rubric.mode == "pointwise" else 2)
    typical, reference = _typical(prompts)
    shown = render(rubric, typical, responses, reference=reference, system_role=scorer.system_role)
    of_one = _guessed_tokens(shown)
    read, written = questions * of_one, questions * scorer.max_completion_tokens
    cost = scorer.prices.cost(Usage(read, written)) if scorer.prices else None
    basis = f"at most; {CHARACTERS_PER_TOKEN} characters a token"
    asked = sum(ask.prompts for ask in asks)
    return Line(scorer.name, asked, questions, read, written, cost, None, basis)


def _of_editor(
    config: PipelineConfig,
    editor: ModelEditor,
    policy: Policy,
    prompts: pl.DataFrame,
    answer: str,
    edited: int,
) -> Line:
    """Return the editor's line: at most one request a prompt, by the length of a rendered one."""
    ready = ready_editor(config, policy)
    told = load_instruction(editor.instruction)
    shown = edit_messages(told, _typical(prompts)[0], answer or _longest(config))
    read = edited * _guessed_tokens(shown)
    written = edited * ready.sampling.max_completion_tokens
    prices = getattr(editor.generator, "prices", None)
    cost = prices.cost(Usage(read, written)) if prices else None
    basis = f"at most; {CHARACTERS_PER_TOKEN} characters a token"
    return Line(f"edit:{ready.name}", edited, edited, read, written, cost, None, basis)


def _longest(config: PipelineConfig) -> str:
    """Return an answer as long as one can be."""
    return "x" * config.generation.max_completion_tokens * CHARACTERS_PER_TOKEN


def _typical(prompts: pl.DataFrame) -> tuple[list[dict[str, Any]], str | None]:
    """Return messages and reference of a prompt of median length."""
    known = sorted(
        prompts.select("messages", "reference").iter_rows(), key=lambda row: _guessed_tokens(row[0])
    )
    messages, reference = known[len(known) // 2]
    return messages, reference


def _guessed_tokens(messages: list[dict[str, Any]]) -> int:
    characters = sum(len(turn["content"]) for turn in messages)
    return -(-characters // CHARACTERS_PER_TOKEN)


def total(lines: list[Line]) -> Line:
    """Return the sums of all lines; a sum of which a part is not known is not known."""
    costs = [line.cost for line in lines if line.cost is not None]
    seconds = [line.seconds for line in lines]
    known = [value for value in seconds if value is not None]
    return Line(
        "total",
        max((line.prompts for line in lines), default=0),
        sum(line.requests for line in lines),
        sum(line.prompt_tokens for line in lines),
        sum(line.completion_tokens for line in lines),
        sum(costs) if costs else None,
        sum(known) if len(known) == len(seconds) else None,
        "start-up, training and what is done already are not in it",
    )
