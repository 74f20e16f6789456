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
        for request in self.requests:
            stored: list[Any] | None = journal.get(request.prompt_id)
            if stored is not None:
                prompt_id, samples, *rest = stored
                completions = [SampledCompletion(*sample) for sample in samples]
                self.answers[prompt_id] = Answer(prompt_id, completions, *rest)

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


def answer_prompts(
    writer: StageWriter,
    prompts: pl.DataFrame,
    generator: ReadyGenerator,
    config: PipelineConfig,
    first_part: int = 0,
) -> None:
    """Write the `candidates` of one generator, from part ``first_part`` on.

    An answer goes into a journal at once, and into its part-file when the part is whole: a killed
    run asks for nothing twice, and of a prompt with some of its completions for the others.
    Completions that are missing after all attempts are recorded as such at the end, when they are
    few; else the stage stops, and asks for them anew when it is started again. An engine is
    started only when a part isn't there.

    Raises:
        EndpointError: the servers are gone, or too many completions are missing.
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
            for part in parts:
                if part.index not in there:
                    part.recover(self.journal)
                    commits.add(part) if part.is_whole else left.update({part.index: part})
            batches = [part.unanswered for part in left.values()]
            waiting = sum(map(len, batches))
            self.writer.advance(asked - waiting, asked)
            part_of = {r.prompt_id: part for part in left.values() for r in part.requests}
            for answer in self.engine.answers(batches, self.sampling):
                part = part_of[answer.prompt_id]
                self._keep(part, answer)
                if part.is_whole:
                    commits.add(left.pop(part.index))
                waiting -= 1
                self.writer.advance(asked - waiting, asked)
            self._require_few_missing(left.values(), completions, config.maximum_missing_share)
            for part in left.values():
                commits.add(part)

    def _keep(self, part: _Part, answer: Answer) -> None:
        """Put an answer into its part and the journal, after those of its samples that are there.

        Raises:
            DataError: it holds another number of samples than asked.
        """
        answer = part.take(answer)
        if answer.missing < len(answer.samples):
            self.journal.put(answer.prompt_id, answer)

    def _commit(self, part: _Part) -> None:
        rows = generation.candidates_of(
            part.prompts, part.answers, self.engine, self.sampling, self.generator.name
        )
        self.writer.write("candidates", rows, part.index)
        self.journal.forget(list(part.answers))
        part.answers.clear()

    def _require_few_missing(
        self, parts: Iterable[_Part], asked: int, maximum_share: float
    ) -> None:
        """Return if few enough completions are missing to be recorded as such.

        Raises:
            EndpointError: more than the configured share; names the reasons and their counts.
        """
        counts = Counter(reason for part in parts for reason in part.missing())
        if counts.total() > maximum_share * asked:
            raise EndpointError(
                f"{counts.total()} of {asked} completions are missing: "
                + ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())),
                expected=f"at most a share of {maximum_share}",
                where=f"generator {self.generator.name!r}",
                remedy="look at the server, then start the same command again: only what is "
                "missing is asked for; or raise generation.maximum_missing_share",
            )


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
