"""LLM judges: pointwise on a rubric's scale, or pairwise in both orders, as rows of `judgments`.

An answer that can't be read is missing, never a low score; two orders that disagree are a tie.
"""

from __future__ import annotations

import asyncio
import hashlib
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol, Self, TypeGuard

import polars as pl
import pydantic

from stages.answer_text import one_line
from stages.budget import Prices, Usage
from stages.configuration import OPERATIONAL, Config
from stages.content_ids import content_hash, content_ids
from stages.endpoint_settings import EndpointConfig
from stages.endpoints import RequestFailedError
from stages.errors import ModelError
from stages.judge_answers import answer_schema, read_score
from stages.judge_prompts import Messages, Rubric, load_rubric, prompt_hash, render
from stages.judgment_rows import IDENTITY, as_judgments
from stages.progress import Tell, say_nothing
from stages.tables import JUDGMENTS
from stages.vllm_settings import VllmServerConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from stages.endpoints import EndpointPool, Reply

JUDGE_VERSION = "judge-1"
"""Raised when the same answers would give other judgments: they are then made again."""

ATTEMPTS = 2
"""How often a question is asked until its answer can be read."""

SHOWN_OF_ANSWER = 200
UNREADABLE_UNTIL_STOP = 20
"""Questions without a readable answer before any has one: then the others would not have one."""

PATH = "/chat/completions"


class JudgeScorer(Config):
    """A model that scores candidates by a rubric, behind an OpenAI-compatible endpoint."""

    kind: Literal["judge"] = "judge"
    name: str
    """The scorer's name in the tables."""
    model: str
    """The judge's name at the endpoint; of engine `vllm` a folder or a hub id."""
    rubric: str
    """A file in `configs/judges/`, without `.yaml`, or the path of your own (docs/judges.md)."""
    temperature: Annotated[float, pydantic.Field(ge=0, le=5)] = 0.0
    """0 is greedy."""
    max_completion_tokens: pydantic.PositiveInt = 512
    """Of one answer; one that is cut before its verdict is asked for again, then missing."""
    samples: Annotated[int, pydantic.Field(ge=1, le=64)] = 1
    """Verdicts on each question, with different seeds; their spread goes into the scores."""
    both_orders: bool = True
    """Pairwise: ask about each two candidates in both orders."""
    opponents_per_candidate: pydantic.PositiveInt | None = None
    """Pairwise: how many others of its prompt each candidate meets; null is all of them."""
    structured_output: Literal["auto", "json_schema", "off"] = "auto"
    """Ask for JSON of a schema; `auto` goes on without when the server rejects it."""
    system_role: bool = True
    """False puts the instructions into the user message, for templates without a system turn."""
    seed: int = 0
    """Decides who is shown first, who meets whom, and the seed of each request."""
    engine: Annotated[Literal["openai", "vllm"], OPERATIONAL] = "openai"
    """`vllm`: a server that prefmill starts; it takes the generator's when that is the same."""
    server: VllmServerConfig = VllmServerConfig()
    """How the server is started."""
    endpoint: Annotated[EndpointConfig, OPERATIONAL] = EndpointConfig()
    """Where the judge is and how it is spoken to."""
    prices: Annotated[Prices | None, OPERATIONAL] = None
    """What its tokens cost."""
    token_limit_field: Annotated[Literal["max_tokens", "max_completion_tokens"], OPERATIONAL] = (
        "max_completion_tokens"  # noqa: S105 - no password
    )
    """What the endpoint calls the limit of an answer's tokens."""

    @pydantic.model_validator(mode="after")
    def _samples_differ(self) -> Self:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("`samples` above 1 need a `temperature` above 0, or all are the same")
        return self


def is_pairwise(scorer: object) -> TypeGuard[JudgeScorer]:
    """Return whether a scorer is a judge that says which of two answers is better."""
    return isinstance(scorer, JudgeScorer) and load_rubric(scorer.rubric).mode == "pairwise"


class Memory(Protocol):
    """What keeps finished answers until their rows are stored; a dict is one for tests."""

    def get(self, key: str, /) -> Any:
        """Return the value stored under ``key``, or None."""

    def put(self, entries: dict[str, Any], /) -> None:
        """Store values, which are JSON, by key at once."""


class Question(NamedTuple):
    """What the judge is asked once: one candidate, or two in one order."""

    key: str
    candidate_id: str
    other_candidate_id: str | None
    order: str | None
    """Whether ``candidate_id`` is shown first or second."""
    sample: int


class Judge:
    """A scorer with its rubric and its servers; it remembers whether they take a JSON schema.

    Unless it is ``patient``, it stops where none of its first answers can be read.
    """

    def __init__(
        self, scorer: JudgeScorer, rubric: Rubric, pool: EndpointPool, *, patient: bool = False
    ) -> None:
        self.scorer, self.rubric, self.pool, self.patient = scorer, rubric, pool, patient
        self.prompt_hash = prompt_hash(rubric, system_role=scorer.system_role)
        taken = {"auto": None, "json_schema": True, "off": False}
        self._takes_schema: bool | None = taken[scorer.structured_output]
        self._finding_out = asyncio.Lock()
        self._read = self._unread = 0

    def prompt(
        self, conversation: Messages, responses: Sequence[str], reference: str | None = None
    ) -> Messages:
        """Return the messages about one response, or about two, the first of them as A."""
        system_role = self.scorer.system_role
        return render(
            self.rubric, conversation, responses, reference=reference, system_role=system_role
        )

    def answers(
        self, questions: Iterable[tuple[str, Messages]]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield (key, answer) for every (key, messages), in any order, each as soon as it is there.

        An answer is JSON: the judge's `text` word for word, `cut` at its length or not, `error`
        (null, `unparsed`, or why the request failed), and the tokens and seconds of all attempts.

        Raises:
            EndpointError, BudgetError: no further question could be asked.
            ModelError: none of the first answers could be read.
        """
        # A lock belongs to one event loop, and every map has its own.
        self._finding_out = asyncio.Lock()

        unreadable: list[tuple[str, dict[str, Any]]] = []

        async def work(question: tuple[str, Messages]) -> tuple[str, dict[str, Any]]:
            key, answer = question[0], await self._asked(*question)
            if answer["error"] == "unparsed" and self._gives_up():
                unreadable.append((key, answer))
                raise self._unreadable(answer)
            return key, answer

        try:
            yield from self.pool.map(work, questions)
        except ModelError:
            yield from unreadable
            raise

    def texts(self, prompts: Iterable[Messages]) -> list[str]:
        """Return the judge's answers to ``prompts``, in their order; "" where there is none."""
        numbered = ((str(number), prompt) for number, prompt in enumerate(prompts))
        found = {int(key): answer["text"] for key, answer in self.answers(numbered)}
        return [found[number] for number in range(len(found))]

    def score(self, answer: dict[str, Any]) -> float | None:
        """Return the answer's score, pairwise of the response shown first; None: unparsed."""
        return read_score(answer["text"], self.rubric, cut=answer["cut"])

    async def _asked(self, key: str, messages: Messages) -> dict[str, Any]:
        """Return the answer to one question, asked once more if it can't be read."""
        answer: dict[str, Any] = {"text": "", "cut": False, "error": "unparsed"}
        answer |= dict.fromkeys(("prompt_tokens", "completion_tokens", "latency_seconds"), 0)
        for attempt in range(ATTEMPTS):
            try:
                reply = await self._post(self._body(messages, f"{key}:{attempt}"))
            except RequestFailedError as error:
                return answer | {"error": error.reason}
            answer = _added(answer, reply)
            if self.score(answer) is not None:
                self._read += 1
                return answer | {"error": None}
        self._unread += 1
        return answer

    def _gives_up(self) -> bool:
        """Return whether the answer just counted is the one too many; those after it are kept."""
        return not (self.patient or self._read) and self._unread == UNREADABLE_UNTIL_STOP

    def _unreadable(self, answer: dict[str, Any]) -> ModelError:
        cut = ", cut at its length" if answer["cut"] else ""
        wanted, scale = "`winner`: A, B or tie", self.rubric.scale
        if scale is not None:
            criteria = ", ".join(criterion.name for criterion in self.rubric.criteria)
            wanted = f"`scores` of {criteria}, each from {scale.low} to {scale.high}"
        return ModelError(
            f"none of the first {self._unread} answers of {self.scorer.model!r} could be read as a "
            f"verdict; the last{cut}: {one_line(answer['text'], SHOWN_OF_ANSWER)!r}",
            expected=f"JSON with {wanted}; or another form of docs/judges.md",
            where=f"judge {self.scorer.name!r}, rubric {self.scorer.rubric!r}",
            remedy="raise `max_completion_tokens` where answers are cut; else a simpler rubric or "
            "another model. Only what was in flight was asked as well",
        )

    def _body(self, messages: Messages, seed: str) -> dict[str, Any]:
        digest = hashlib.sha256(f"{self.scorer.seed}:{seed}".encode()).digest()
        return {
            "model": self.scorer.model,
            "messages": messages,
            "temperature": self.scorer.temperature,
            self.scorer.token_limit_field: self.scorer.max_completion_tokens,
            # 31 bits: some servers take no more.
            "seed": int.from_bytes(digest[:4], "big") >> 1,
        }

    async def _post(self, body: dict[str, Any]) -> Reply:
        """Return the reply to ``body``, with the schema where the server takes it."""
        schema = {"name": "verdict", "strict": True, "schema": answer_schema(self.rubric)}
        strict = body | {"response_format": {"type": "json_schema", "json_schema": schema}}
        if self._takes_schema is None:
            # One request finds out while the others wait: a burst of rejections stops the pool.
            async with self._finding_out:
                if self._takes_schema is None:
                    return await self._first(body, strict)
        return await self.pool.post(PATH, strict if self._takes_schema else body)

    async def _first(self, body: dict[str, Any], strict: dict[str, Any]) -> Reply:
        """Return the reply, and remember whether it was the schema that the server refused.

        Servers word that in many ways; so it counts that they take the same request without it.
        """
        try:
            reply = await self.pool.post(PATH, strict)
        except RequestFailedError as error:
            if not error.reason.startswith(("rejected", "http_5")):
                raise
            reply = await self.pool.post(PATH, body)
            self._takes_schema = False
            return reply
        self._takes_schema = True
        return reply


def _added(answer: dict[str, Any], reply: Reply) -> dict[str, Any]:
    """Return ``answer`` with the text of a reply, and what it took added to what is there."""
    choices = reply.body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    choice = choice if isinstance(choice, dict) else {}
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    text = message.get("content") or message.get("refusal")
    usage = Usage.of(reply.body)
    return answer | {
        "text": text if isinstance(text, str) else "",
        "cut": choice.get("finish_reason") == "length",
        "prompt_tokens": answer["prompt_tokens"] + usage.prompt_tokens,
        "completion_tokens": answer["completion_tokens"] + usage.completion_tokens,
        "latency_seconds": answer["latency_seconds"] + reply.latency_seconds,
    }


def judge_candidates(
    candidates: pl.DataFrame,
    prompts: pl.DataFrame,
    judge: Judge,
    memory: Memory,
    tell: Tell = say_nothing,
) -> pl.DataFrame:
    """Return the judgments on ``candidates``, one row per verdict or with why there is none.

    All candidates of a prompt belong into one call. Row order plays no part: who is shown first
    and who meets whom is decided by hashes of ids.

    Args:
        candidates: rows of `candidates`; those without a completion are not asked about.
        prompts: rows of `prompts`, at least those of the candidates.
        judge: who is asked.
        memory: finished answers; what is in it is not asked for again.
        tell: called with how many questions have an answer, and of how many, after each.

    Raises:
        EndpointError, BudgetError, ModelError: no further question could be asked, or none of the
            first answers be read; ``memory`` holds the answers to those that were asked.
    """
    questions = plan_questions(candidates, judge)
    answers = {q.key: known for q in questions if (known := memory.get(q.key)) is not None}
    open_questions = [question for question in questions if question.key not in answers]
    rendered = _rendered(open_questions, candidates, prompts, judge)
    for key, answer in judge.answers(rendered) if open_questions else ():
        answers[key] = answer
        # A request that failed has no answer to keep: started again, the run asks anew.
        if answer["error"] in {None, "unparsed"}:
            memory.put({key: answer})
        tell(len(answers), len(questions))
    rows = [_row(question, answers[question.key], judge) for question in questions]
    return _as_table([*rows, *_unasked(candidates, questions)], judge)


def questions_per_prompt(candidates: int, scorer: JudgeScorer, rubric: Rubric) -> int:
    """Return how often the judge is asked about a prompt with so many different candidates."""
    ids = [str(number) for number in range(candidates)]
    if rubric.mode == "pointwise":
        return candidates * scorer.samples
    return len(_matches(ids, scorer)) * (2 if scorer.both_orders else 1) * scorer.samples


def plan_questions(candidates: pl.DataFrame, judge: Judge) -> list[Question]:
    """Return every question about ``candidates``, in an order that comes from their ids."""
    scorer = judge.scorer
    answered = candidates.drop_nulls("completion").sort("prompt_id", "candidate_id")
    asked: list[tuple[str, str | None, str | None]] = []
    if judge.rubric.mode == "pointwise":
        asked = [(candidate, None, None) for candidate in answered["candidate_id"]]
    else:
        for _, of_prompt in answered.group_by("prompt_id", maintain_order=True):
            for pair in _matches(of_prompt["candidate_id"].to_list(), scorer):
                lead, other = _drawn(pair, scorer.seed)
                orders = ("first", "second") if scorer.both_orders else ("first",)
                asked += [(lead, other, order) for order in orders]
    deciding = (scorer.model, scorer.temperature, scorer.max_completion_tokens, scorer.seed)
    settings = [JUDGE_VERSION, judge.prompt_hash, *deciding]
    return [
        Question(content_hash([*settings, *about, sample]), *about, sample)
        for about in asked
        for sample in range(scorer.samples)
    ]


def _drawn(ids: Iterable[str], seed: int) -> list[str]:
    """Return the ids in an order that nobody can prefer: that of hashes of seed and all ids."""
    held = sorted(ids)
    return sorted(held, key=lambda one: content_hash([seed, one, held]))


def _matches(ids: list[str], scorer: JudgeScorer) -> list[tuple[str, str]]:
    """Return who meets whom: everybody everybody, or k others each on a ring drawn by the seed.

    On the ring each meets its nearest; an odd k also the one opposite. Of an odd number of
    candidates an odd k leaves one with k + 1 (the Harary graph H(k, n); no design can avoid it).
    """
    k, n = scorer.opponents_per_candidate, len(ids)
    if k is None or k >= n - 1:
        return list(combinations(sorted(ids), 2))
    ring = _drawn(ids, scorer.seed)
    met = [(i, (i + step) % n) for step in range(1, k // 2 + 1) for i in range(n)]
    if k % 2:
        met += [(i, (i + (n + 1) // 2) % n) for i in range((n + 1) // 2)]
    return [(ring[i], ring[j]) for i, j in met]


def _rendered(
    questions: list[Question], candidates: pl.DataFrame, prompts: pl.DataFrame, judge: Judge
) -> Iterator[tuple[str, Messages]]:
    """Yield key and messages of each question."""
    facts = candidates.select("candidate_id", "prompt_id", "completion").iter_rows()
    known = {candidate: (prompt, text) for candidate, prompt, text in facts}
    asked = prompts.join(candidates, on="prompt_id", how="semi")
    facts = asked.select("prompt_id", "messages", "reference").iter_rows()
    about = {prompt: (messages, reference) for prompt, messages, reference in facts}
    for question in questions:
        prompt, text = known[question.candidate_id]
        shown = [text]
        if question.other_candidate_id is not None:
            shown.append(known[question.other_candidate_id][1])
        if question.order == "second":
            shown.reverse()
        messages, reference = about[prompt]
        yield question.key, judge.prompt(messages, shown, reference)


def _row(question: Question, answer: dict[str, Any], judge: Judge) -> dict[str, Any]:
    """Return one verdict's columns; a pairwise score is for ``candidate_id``."""
    score = judge.score(answer) if answer["error"] is None else None
    if score is not None and question.order == "second":
        score = 1 - score
    usage = Usage(answer["prompt_tokens"], answer["completion_tokens"])
    prices = judge.scorer.prices
    return {
        **question._asdict(),
        "score": score,
        "error": answer["error"],
        "raw": answer["text"],
        # Zeros: the request failed, or the server doesn't tell.
        "prompt_tokens": usage.prompt_tokens if any(usage) else None,
        "completion_tokens": usage.completion_tokens if any(usage) else None,
        "latency_seconds": answer["latency_seconds"] or None,
        "cost": prices.cost(usage) if prices and any(usage) else None,
    }


def _unasked(candidates: pl.DataFrame, questions: list[Question]) -> Iterator[dict[str, Any]]:
    """Yield the rows of candidates that no question is about: no completion, or nobody to meet."""
    asked = {one for q in questions for one in (q.candidate_id, q.other_candidate_id)}
    for candidate, text in candidates.select("candidate_id", "completion").iter_rows():
        if candidate not in asked:
            error = "no_completion" if text is None else "no_opponent"
            yield {"candidate_id": candidate, "sample": 0, "error": error, "raw": ""}


def _as_table(rows: list[dict[str, Any]], judge: Judge) -> pl.DataFrame:
    """Return the rows of `judgments`, with the two orders of each question brought together."""
    place = ["candidate_id", "other_candidate_id", "order"]
    found = [
        "score",
        "error",
        "raw",
        "prompt_tokens",
        "completion_tokens",
        "latency_seconds",
        "cost",
    ]
    schema = JUDGMENTS.empty().schema
    columns = {name: schema[name] for name in (*place, *found)} | {"sample": pl.Int64()}
    frame = pl.DataFrame(rows, schema=columns).sort(*place, "sample")
    if judge.rubric.mode == "pairwise" and judge.scorer.both_orders:
        frame = _agreed(frame)
    frame = frame.with_columns(
        scorer=pl.lit(judge.scorer.name),
        scorer_version=pl.lit(JUDGE_VERSION),
        scorer_model=pl.lit(judge.scorer.model),
        scorer_prompt_hash=pl.lit(judge.prompt_hash),
    )
    # Two samples can be word for word the same and are two judgments.
    ids = content_ids(frame, "judgment", [*IDENTITY, "scorer_prompt_hash", "sample"])
    return as_judgments(frame.drop("sample")).with_columns(ids)


def _agreed(frame: pl.DataFrame) -> pl.DataFrame:
    """Return ``frame`` with each pair's two orders agreeing: to a tie, or to a missing score.

    Any difference counts as disagreement, also win and tie: who wins only when shown first has
    not won (Zheng et al. 2023, arXiv 2306.05685, 3.4). One order alone is no verdict.
    """
    pair = ["candidate_id", "other_candidate_id", "sample"]
    score = pl.col("score")
    missing = score.is_null().any().over(pair)
    differ = ~missing & (score.min().over(pair) != score.max().over(pair))
    return frame.with_columns(
        score=pl.when(missing).then(None).when(differ).then(0.5).otherwise(score),
        error=pl.when(missing & score.is_not_null())
        .then(pl.lit("other_order_missing"))
        .otherwise("error"),
        flag=pl.when(differ).then(pl.lit("order_disagreement")),
    )
