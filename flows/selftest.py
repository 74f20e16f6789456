"""Self-tests of labels on the configured scorers: permuted, inverted, planted, talked over."""

from __future__ import annotations

import json
import math
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from flows.forecast import is_paid
from flows.models import find_policy
from flows.progress import say
from flows.scorers import opened, opened_judge
from flows.stage_runner import RunContext, StageSpec, StageWriter
from flows.vllm_server import stop_all
from lineage.workspace import Dataset
from stages import generation, pairing, prompt_sampling, scoring
from stages.budget import Budget
from stages.errors import ConfigError, DataError
from stages.generation import Answer
from stages.generation_settings import GenerationConfig, Sampling
from stages.gold import ANSWERS, GoldConfig
from stages.injections import INJECTIONS, GoldPair, injection_flip_rate
from stages.judge_prompts import load_rubric
from stages.judges import JudgeScorer, questions_per_prompt
from stages.prompt_sampling import PromptSamplingConfig
from stages.prompt_sources import BundledSource
from stages.scorer_health import require_every_candidate, scorer_health
from stages.tables import GOLD_SPLIT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from flows.configuration import PipelineConfig
    from lineage.workspace import Workspace
    from stages.generation import Request
    from stages.scoring import Scorer, ScoringConfig

GOLD_PAIRS = 40
INJECTED_PAIRS = 2
"""Gold pairs whose damaged answer carries every injection: each costs two questions for each."""
MAXIMUM_UNREADABLE_SHARE = 0.05
"""Of a judge's answers about an injection; as validation allows of all judgments."""
CHANCE_Z = 1.645
"""One-sided 95 %: a scorer that tosses a coin passes once in twenty."""


class Finding(NamedTuple):
    """What one test found about one scorer."""

    test: str
    scorer: str
    """Empty: it is about prefmill's own stages."""
    passed: bool | None
    """None: only measured, or not possible with this scorer."""
    value: float | None
    limit: float | None
    detail: str


class _Planted:
    """An engine whose answers are the gold prompts' own, in the given order."""

    model_name = weights_hash = "selftest"
    template_fingerprint = None
    context_tokens = None
    control_tokens: frozenset[str] = frozenset()

    def __init__(self, prompts: pl.DataFrame, order: Sequence[str]) -> None:
        texts = prompts.select("prompt_id", "gold").iter_rows()
        self._texts = {prompt: [json.loads(gold)[kind] for kind in order] for prompt, gold in texts}

    def count_prompt_tokens(self, _conversations: Sequence[list[dict[str, str]]]) -> None:
        """Return None: there is no tokenizer."""

    def answers(
        self, batches: Iterable[Sequence[Request]], _sampling: Sampling
    ) -> Iterator[list[Answer]]:
        """Yield each prompt's answers."""
        for request in (request for batch in batches for request in batch):
            samples = [
                generation.SampledCompletion(text, "stop", len(text.split()))
                for text in self._texts[request.prompt_id]
            ]
            yield [Answer(request.prompt_id, samples)]


class _Judged(NamedTuple):
    """Candidates, the judgments on them and the scores."""

    candidates: pl.DataFrame
    judgments: pl.DataFrame
    scores: pl.DataFrame


def selftest(
    config: PipelineConfig, workspace: Workspace, gold_pairs: int, *, ask_paid: bool
) -> list[Finding]:
    """Return what each test found about each scorer; people's votes and juries of them have none.

    Gold prompts with their two answers go through the stages of a real run: as generated, judged,
    scored and paired; then with the answers in each other's place, then with inverted judgments.

    Args:
        config: its scorers are asked, its pairing strategy and gold file are used.
        workspace: where a judge's memory and a server's log are put.
        gold_pairs: how many prompts.
        ask_paid: else a scorer with a paid endpoint is refused.

    Raises:
        ConfigError: a paid endpoint would be asked; says how often.
        PrefmillError: a scorer can't be used.
    """
    tested = _tested(config.scoring)
    prompts = _gold_prompts(config, gold_pairs)
    _require_consent(tested, prompts.height, ask_paid=ask_paid)
    straight = _answered(prompts, ANSWERS)
    # Other ids, other places among the prompts, and the damaged answer before the good one.
    swapped = _answered(prompts, ANSWERS[::-1]).sort(
        "prompt_id", descending=True, maintain_order=True
    )
    try:
        asked = [_asked(s, config, workspace, prompts, (straight, swapped)) for s in tested.judges]
        judges = [scorer for scorer in tested.judges if isinstance(scorer, JudgeScorer)]
        injected = [_injected(judge, config, workspace, prompts) for judge in judges]
    finally:
        stop_all()
    first, second = (
        _Judged(answers, judgments, scoring.scores(judgments, answers, tested))
        for answers, judgments in zip(
            (straight, swapped), map(pl.concat, zip(*asked, strict=True)), strict=True
        )
    )
    labels = _Labels(config.pairing, tested)
    return [
        *labels.permuted(first, second),
        *labels.inverted(first),
        *_planted(first, prompts, tested),
        *injected,
        _short_answer(prompts),
        *_short_judgments(first, tested),
    ]


def _tested(scoring_config: ScoringConfig) -> ScoringConfig:
    """Return the scorers that can be asked now which answer is better.

    Raises:
        ConfigError: there are none, such as with people's votes alone.
    """
    absent = {s.name for s in scoring_config.scorers if isinstance(s, scoring.VotesScorer)}
    absent |= {*scoring_config.gauges}
    absent |= {jury.name for jury in scoring_config.juries if absent & {*jury.members}}
    kept = tuple(scorer for scorer in scoring_config.scorers if scorer.name not in absent)
    if not kept:
        raise ConfigError(
            f"no scorer can be asked which answer is better: {', '.join(sorted(absent))}",
            expected="a scorer that prefers answers; people voted on others",
            where="scoring.scorers",
        )
    if absent:
        said = "people voted on other answers; gauges of a text prefer none"
        say(f"not tested: {', '.join(sorted(absent))} ({said})")
    return scoring_config.model_copy(update={"scorers": kept})


def _gold_prompts(config: PipelineConfig, count: int) -> pl.DataFrame:
    """Return rows of `prompts` of split gold: the run's own gold file's, else bundled ones."""
    path = config.prompts.gold.path if config.prompts.gold else None
    source = BundledSource(train=count, heldout=0)
    gold = GoldConfig(path=path, share=1.0)
    sampling = PromptSamplingConfig(sources=(source,), gold=gold, seed=config.seed)
    return prompt_sampling.sample(sampling).prompts.filter(split=GOLD_SPLIT)


def requests_of(scorer: Scorer, prompts: int) -> int:
    """Return how many questions the tests ask about a scorer's server."""
    if not isinstance(scorer, JudgeScorer):
        return 4 * prompts
    of_prompt = questions_per_prompt(2, scorer, load_rubric(scorer.rubric))
    return 2 * prompts * of_prompt + 2 * min(prompts, INJECTED_PAIRS) * (1 + len(INJECTIONS))


def _require_consent(tested: ScoringConfig, prompts: int, *, ask_paid: bool) -> None:
    paid = {s.name: requests_of(s, prompts) for s in tested.judges if is_paid(s)}
    sentence = ", ".join(f"{name!r} {count:,} requests" for name, count in paid.items())
    if paid and not ask_paid:
        raise ConfigError(
            f"paid endpoints would be asked: {sentence}",
            expected="consent",
            where="scorers with `prices` or a key",
            remedy="add --yes, or lower --pairs",
        )
    if paid:
        say(f"asking paid endpoints: {sentence}")


def _sampling(prompts: pl.DataFrame, order: Sequence[str]) -> Sampling:
    longest = max(len(json.loads(gold)[kind]) for gold in prompts["gold"] for kind in order)
    return Sampling(len(order), len(order), 0.0, 1.0, longest, None, 0)


def _answered(
    prompts: pl.DataFrame,
    order: Sequence[str],
    change: Callable[[Answer], Answer] = lambda answer: answer,
) -> pl.DataFrame:
    """Return the `candidates` made of the prompts' own answers, each engine's answer changed."""
    engine, sampling = _Planted(prompts, order), _sampling(prompts, order)
    settings = GenerationConfig(prompts_per_part=max(prompts.height, 1))
    asked = prompts.with_columns(split=pl.lit("train"))
    (part,) = generation.plan_parts(asked, engine, sampling, settings)
    given = engine.answers([generation.requests_of(part, sampling)], sampling)
    answers = {a.prompt_id: change(a) for a in chain.from_iterable(given)}
    return generation.candidates_of(part, answers, engine, sampling, "selftest")


def _asked(
    scorer: Scorer,
    config: PipelineConfig,
    workspace: Workspace,
    prompts: pl.DataFrame,
    both: tuple[pl.DataFrame, pl.DataFrame],
) -> list[pl.DataFrame]:
    """Return a scorer's judgments on each of two sets of candidates, asked like in a run."""
    spec = StageSpec("selftest", 1, {"scorer": scorer.name}, (), ())
    writer = StageWriter(RunContext(workspace, "selftest"), spec, lambda _done, _total: None)
    policy, nothing = find_policy(config.policy), Dataset("candidates", spec.key, ())
    with opened(scorer, writer, policy, _budget(config), nothing, patient=True) as judge:
        return [judge(answers, prompts) for answers in both]


def _budget(config: PipelineConfig) -> Budget:
    return Budget(config.budget.max_tokens, config.budget.max_cost)


class _Labels:
    """The tests on labels: who is chosen and who rejected, by their texts."""

    def __init__(self, pairs: pairing.PairingConfig, tested: ScoringConfig) -> None:
        self.pairs, self.tested = pairs, tested

    def permuted(self, first: _Judged, second: _Judged) -> Iterator[Finding]:
        """Yield per scorer how many labels change when the candidates change places."""
        for name in self._names():
            before, after = self._of(first, name), self._of(second, name)
            changed = len({prompt for prompt, *_ in before ^ after})
            detail = f"{changed} of {len(before)} labels changed with the candidates' places"
            passed: bool | None = changed == 0 if before or after else None
            if changed and self._by_chance(name):
                passed, detail = None, f"{detail}; its temperature is above 0, so some do by chance"
            yield Finding("permuted", name, passed, changed, 0, detail)

    def inverted(self, judged: _Judged) -> Iterator[Finding]:
        """Yield per scorer how many labels do not invert when every score does."""
        score = pl.col("score")
        pairwise = pl.col("other_candidate_id").is_not_null()
        opposite = pl.when(pairwise).then(1 - score).otherwise(-score)
        negated = judged.judgments.with_columns(opposite.alias("score"))
        scores = scoring.scores(negated, judged.candidates, self.tested)
        inverted = judged._replace(judgments=negated, scores=scores)
        for name in self._names():
            before, after = self._of(judged, name), self._of(inverted, name)
            mirrored = {(prompt, rejected, chosen) for prompt, chosen, rejected in before}
            wrong = len({prompt for prompt, *_ in mirrored ^ after})
            detail = f"{wrong} of {len(before)} labels did not invert with the scores"
            passed = wrong == 0 if before or after else None
            yield Finding("inverted", name, passed, wrong, 0, detail)

    def _names(self) -> list[str]:
        return [scorer.name for scorer in self.tested.scorers]

    def _by_chance(self, name: str) -> bool:
        members = self.tested.needed_for(name).judges
        return any(isinstance(s, JudgeScorer) and s.temperature > 0 for s in members)

    def _of(self, judged: _Judged, name: str) -> set[tuple[str, str, str]]:
        """Return (prompt id, chosen text, rejected text) of every pair that a scorer makes."""
        settings = self.pairs.by_scores_of(name)
        pairs = pairing.pair(judged.candidates, judged.scores, settings)
        texts = dict(judged.candidates.select("candidate_id", "completion").iter_rows())
        ids = pairs.select("prompt_id", "chosen_candidate_id", "rejected_candidate_id")
        return {(prompt, texts[chosen], texts[rejected]) for prompt, chosen, rejected in ids.rows()}


def _planted(judged: _Judged, prompts: pl.DataFrame, tested: ScoringConfig) -> Iterator[Finding]:
    """Yield the accuracy on the gold pairs, and the health measures that they allow."""
    judgments, scores, answers = judged.judgments, judged.scores, judged.candidates
    rows = scorer_health(judgments, scores, answers, prompts, tested.health)
    rules = {s.name for s in tested.scorers if isinstance(s, scoring.RulesScorer)}
    for row in rows.filter(measure="gold_accuracy").iter_rows(named=True):
        name, value, count, limit = row["scorer"], row["value"], row["count"], row["limit"]
        detail = f"of {prompts.height} gold pairs {count} are scored"
        passed: bool | None
        if value is None:
            # A rule that no prompt asks for is not to blame; a judge nobody can read is.
            passed = None if name in rules else False
        elif limit is None:
            limit = 0.5 + CHANCE_Z * 0.5 / math.sqrt(count)
            detail += "; the limit is what a coin stays below 19 times in 20"
            passed = value > limit
        else:
            passed = value >= limit
        yield Finding("gold_accuracy", name, passed, value, limit, detail)
    for row in rows.filter(pl.col("measure").is_in(["missing_rate", "flip_rate"])).rows(named=True):
        if row["value"] is not None:
            detail = f"of {row['count']} measured"
            values = (row["passed"], row["value"], row["limit"])
            yield Finding(row["measure"], row["scorer"], *values, detail)


def _injected(
    scorer: JudgeScorer, config: PipelineConfig, workspace: Workspace, prompts: pl.DataFrame
) -> Finding:
    """Return how often a judge's verdicts change, and can't be read, with an injection."""
    rubric = load_rubric(scorer.rubric)
    pairs = [
        GoldPair(messages, *(json.loads(gold)[kind] for kind in ANSWERS))
        for messages, gold in prompts.select("messages", "gold").head(INJECTED_PAIRS).iter_rows()
    ]
    with opened_judge(scorer, workspace, _budget(config), patient=True) as judge:
        report = injection_flip_rate(judge.texts, rubric, pairs, system_role=scorer.system_role)
    limit = MAXIMUM_UNREADABLE_SHARE
    passed = report.verdicts > 0 and report.unreadable <= limit * report.verdicts
    worst = sorted(report.by_injection, key=lambda name: -report.by_injection[name])[:3]
    detail = (
        f"flip rate: {report.changed} of {report.verdicts} verdicts changed, {report.unreadable} "
        f"unreadable (limit {limit:.0%}); most: {', '.join(worst) or 'none'}"
    )
    return Finding("injections", scorer.name, passed, report.flip_rate, None, detail)


def _short_answer(prompts: pl.DataFrame) -> Finding:
    """Return whether an engine's answer with a completion less than asked stops."""

    def shortened(answer: Answer) -> Answer:
        return answer._replace(samples=answer.samples[:-1])

    return _stops("", "a completion", lambda: _answered(prompts, ANSWERS, shortened))


def _short_judgments(judged: _Judged, tested: ScoringConfig) -> Iterator[Finding]:
    """Yield whether a scorer's judgments without one candidate's stop."""
    lost = judged.candidates["candidate_id"][0]
    about = pl.any_horizontal(pl.col("candidate_id", "other_candidate_id").eq_missing(lost))
    left = judged.judgments.filter(~about)
    for scorer in tested.judges:

        def check(name: str = scorer.name) -> None:
            require_every_candidate(left, judged.candidates, [name])

        yield _stops(scorer.name, "a candidate's judgments", check)


def _stops(scorer: str, what: str, act: Callable[[], object]) -> Finding:
    try:
        act()
    except DataError:
        return Finding("mismatch", scorer, True, None, None, f"without {what} the run stops")
    return Finding("mismatch", scorer, False, None, None, f"without {what} the run goes on")
