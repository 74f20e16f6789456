"""Prompts answered by a generator: part by part, every answer durable the moment it is there."""

from __future__ import annotations

from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from flows.spending import budget_of
from stages import generation
from stages.errors import EndpointError
from stages.generation import Answer, SampledCompletion

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future

    import polars as pl

    from flows.configuration import PipelineConfig
    from flows.generators import ReadyGenerator
    from flows.stage_runner import StageWriter
    from lineage.journal import Journal
    from stages.generation import Engine, Request
    from stages.generation_settings import GenerationConfig, Sampling

WORDLESS_UNTIL_STOP = 20
"""Prompts answered without a word before any has one: then the others would not have one."""
MOST_COMMITS_WAITING = 32
"""Parts that are whole and not written yet; with more the next answer waits."""


@dataclass
class _Part:
    """One part of the plan: its place, its prompts, what to ask and what is answered."""

    index: int
    prompts: pl.DataFrame
    requests: list[Request]
    answers: dict[str, Answer] = field(default_factory=dict)

    def completions(self, sampling: Sampling) -> int:
        """Return how many rows it becomes."""
        return self.prompts.height * sampling.samples_for(self.prompts["split"][0])

    def recover(self, journal: Journal) -> None:
        """Take the answers that an earlier attempt journaled."""
        self.answers |= journaled(journal, self.requests)

    def take(self, answer: Answer) -> Answer:
        """Add an answer to one of `unanswered`; return it with what was there before.

        Raises:
            DataError: it holds another number of samples than asked.
        """
        earlier = self.answers.get(answer.prompt_id)
        asked = earlier.missing if earlier else self.requests[0].samples
        generation.require_samples(answer, asked)
        whole = earlier.completed_by(answer) if earlier else answer
        self.answers[answer.prompt_id] = whole
        return whole

    @property
    def unanswered(self) -> list[Request]:
        """What to ask: the requests without an answer, and the rest of those with a part of one."""
        left = []
        for request in self.requests:
            answer = self.answers.get(request.prompt_id)
            if answer is None:
                left.append(request)
            elif answer.missing:
                left.append(request.after(answer))
        return left

    @property
    def is_whole(self) -> bool:
        """Whether every request is answered and no completion is missing."""
        return len(self.answers) == len(self.requests) and not any(self.missing())

    def missing(self) -> Iterable[str]:
        """Yield the reason of every completion that was asked for and did not come."""
        for request in self.requests:
            answer = self.answers.get(request.prompt_id)
            if answer is None:
                yield from ["not_answered"] * request.samples
            elif answer.missing:
                yield from (s.error or "unknown" for s in answer.samples if s.text is None)


class FirstWords:
    """What an engine's first answers are watched for: a model that only thinks has no word."""

    def __init__(self, where: str, *, heard: bool) -> None:
        """Take who answers, and whether there is a word already: then nothing is watched for."""
        self._where, self._heard = where, heard
        self._in_vain: list[Answer] = []

    def heard_in(self, answers: Iterable[Answer]) -> None:
        """Look for a word in answers of an earlier attempt."""
        self._heard = self._heard or any(map(_has_word, answers))

    def require(self, answers: Iterable[Answer]) -> None:
        """Return unless these and those before are the first ones, and none has a word.

        Raises:
            EndpointError: says why there was none, and how often.
        """
        answers = list(answers)
        self.heard_in(answers)
        if self._heard:
            return
        self._in_vain += answers
        if len(self._in_vain) >= WORDLESS_UNTIL_STOP:
            raise self._error()

    def _error(self) -> EndpointError:
        samples = [sample for answer in self._in_vain for sample in answer.samples]
        reasons = Counter(sample.error or "empty_completion" for sample in samples)
        return EndpointError(
            f"none of the first {len(self._in_vain)} prompts got a completion with a word in it: "
            f"{_counted(reasons)}",
            expected="text",
            where=self._where,
            remedy="raise `max_completion_tokens` if it is a model that thinks first; else "
            "look at the server. Only what was in flight was asked as well",
        )


def _has_word(answer: Answer) -> bool:
    return any((sample.text or "").strip() for sample in answer.samples)


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))


def journaled(journal: Journal, requests: Iterable[Request]) -> dict[str, Answer]:
    """Return what an earlier attempt journaled of the answers to ``requests``."""
    answers = {}
    for request in requests:
        stored: list[Any] | None = journal.get(request.prompt_id)
        if stored is not None:
            prompt_id, samples, *rest = stored
            completions = [SampledCompletion(*sample) for sample in samples]
            answers[request.prompt_id] = Answer(prompt_id, completions, *rest)
    return answers


def require_few_missing(
    reasons: Counter[str], most: float, found: str, expected: str, where: str
) -> None:
    """Return if at most ``most`` answers are missing: few enough to be recorded as such.

    Raises:
        EndpointError: they are more; says what was ``found``, the reasons and their counts.
    """
    if reasons.total() > most:
        raise EndpointError(
            f"{found}: {_counted(reasons)}",
            expected=expected,
            where=where,
            remedy="look at the server, then start the same command again: only what is "
            "missing is asked for; or raise generation.maximum_missing_share",
        )


def answer_prompts(
    writer: StageWriter,
    prompts: pl.DataFrame,
    generator: ReadyGenerator,
    config: PipelineConfig,
    first_part: int = 0,
) -> None:
    """Write the `candidates` of one generator, from part ``first_part`` on.

    An answer goes into a journal at once, with those that were computed together with it, and into
    its part-file when the part is whole: a killed run asks for nothing twice, and of a prompt with
    some of its completions for the others.
    Completions that are missing after all attempts are recorded as such at the end, when they are
    few; else the stage stops, and asks for them anew when it is started again. An engine is
    started only when a part isn't there.

    Raises:
        EndpointError: the servers are gone, too many completions are missing, or the first prompts
            get none with a word in it.
        BudgetError: the budget is spent.
    """
    per_generator = generation.count_parts(prompts, config.generation)
    indices = range(first_part, first_part + per_generator)
    there = {index for index in indices if writer.existing("candidates", index) is not None}
    with writer.journal(f"{first_part:05d}") as journal:
        if len(there) < per_generator:
            budget = budget_of(writer.context, config.budget)
            with generator.engine(writer.workspace, budget) as engine:
                plan = generation.plan_parts(prompts, engine, generator.sampling, config.generation)
                parts = [
                    _Part(index, of_part, generation.requests_of(of_part, generator.sampling))
                    for index, of_part in zip(indices, plan, strict=True)
                ]
                answering = _Answering(writer, journal, generator, engine)
                answering.run(parts, there, config.generation)
        journal.remove()


class _Answering:
    """One generator's answers on their way from its engine into part-files."""

    def __init__(
        self, writer: StageWriter, journal: Journal, generator: ReadyGenerator, engine: Engine
    ) -> None:
        self.writer, self.journal, self.generator = writer, journal, generator
        self.engine, self.sampling = engine, generator.sampling

    def run(self, parts: list[_Part], there: set[int], config: GenerationConfig) -> None:
        """Write the parts that aren't ``there``: the whole ones at once, the others at the end."""
        asked = sum(part.prompts.height for part in parts)
        completions = sum(part.completions(self.sampling) for part in parts)
        with _Commits(self._commit) as commits:
            left: dict[int, _Part] = {}
            first_words = FirstWords(f"generator {self.generator.name!r}", heard=bool(there))
            for part in parts:
                if part.index not in there:
                    part.recover(self.journal)
                    first_words.heard_in(part.answers.values())
                    commits.add(part) if part.is_whole else left.update({part.index: part})
            batches = [part.unanswered for part in left.values()]
            waiting = sum(map(len, batches))
            self.writer.advance(asked - waiting, asked)
            part_of = {r.prompt_id: part for part in left.values() for r in part.requests}
            for together in self.engine.answers(batches, self.sampling):
                self._keep(together, part_of)
                first_words.require(together)
                for index in sorted({part_of[answer.prompt_id].index for answer in together}):
                    if left[index].is_whole:
                        commits.add(left.pop(index))
                waiting -= len(together)
                self.writer.advance(asked - waiting, asked)
            share = config.maximum_missing_share
            missing = Counter(reason for part in left.values() for reason in part.missing())
            require_few_missing(
                missing,
                share * completions,
                f"{missing.total()} of {completions} completions are missing",
                f"at most a share of {share}",
                f"generator {self.generator.name!r}",
            )
            for part in left.values():
                commits.add(part)

    def _keep(self, together: list[Answer], part_of: dict[str, _Part]) -> None:
        """Put answers into their parts and, all or none, into the journal.

        Each stands after those of its samples that are there.

        Raises:
            DataError: one holds another number of samples than asked.
        """
        taken = [part_of[answer.prompt_id].take(answer) for answer in together]
        self.journal.put({a.prompt_id: a for a in taken if a.missing < len(a.samples)})

    def _commit(self, part: _Part) -> None:
        rows = generation.candidates_of(
            part.prompts, part.answers, self.engine, self.sampling, self.generator.name
        )
        self.writer.write("candidates", rows, part.index)
        self.journal.forget(list(part.answers))
        part.answers.clear()


class _Commits:
    """Parts on their way into files, one after the other in a thread: requests don't wait."""

    def __init__(self, commit: Callable[[_Part], None]) -> None:
        self._commit = commit
        self._thread = ThreadPoolExecutor(1, "commits")
        self._waiting: deque[Future[None]] = deque()

    def add(self, part: _Part) -> None:
        """Have a part written soon; raises what writing an earlier one raised."""
        self._waiting.append(self._thread.submit(self._commit, part))
        self._settle(MOST_COMMITS_WAITING)

    def _settle(self, most_waiting: int) -> None:
        while self._waiting and (len(self._waiting) > most_waiting or self._waiting[0].done()):
            self._waiting.popleft().result()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for all; after an error only for the one being written: the journal has them."""
        try:
            if kind is None:
                self._settle(0)
        finally:
            self._thread.shutdown(cancel_futures=True)
