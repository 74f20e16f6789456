"""Who scores the candidates, and the verdicts of rules and people, as the `judgments` table."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self

import polars as pl
import pydantic

from stages.aggregation import JuryScorer, aggregate, jury_scores
from stages.answer_text import Verdict
from stages.configuration import NOT_EMPTY, OPERATIONAL, Config
from stages.content_ids import canonical_json, file_sha256
from stages.endpoint_settings import EndpointConfig
from stages.errors import DataError
from stages.judges import JudgeScorer
from stages.judgment_rows import as_judgments
from stages.log_probability import LogProbabilityScorer
from stages.progress import Tell, say_nothing
from stages.row_files import BadRows, read_rows, require_file
from stages.scorer_health import HealthConfig
from stages.text_classifier import TextClassifierScorer
from stages.verifiers import RUNS_CODE, Check, read_ground_truth, require_known
from stages.vllm_settings import VllmServerConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stages.reward_model import RewardOutcome

VERSION = 2

RULES_VERSION = "task-families-2"
"""Raised when a verifier changes: stored judgments are then made again."""


class RulesScorer(Config):
    """Each prompt's own verifier, with partial credit in [0, 1]; 1 is a success."""

    kind: Literal["rules"] = "rules"
    name: str = "rules"
    """The scorer's name in the tables."""
    allow_code_execution: bool = False
    """Let `python_tests` run the model's code, limited but not jailed (docs/verifiers.md)."""


class VotesScorer(Config):
    """People's votes from a file: one judgment per row, with candidate_id and score."""

    kind: Literal["votes"] = "votes"
    name: str
    """The scorer's name in the tables."""
    path: Path
    """JSONL, Parquet or CSV: candidate_id, score and, if wanted, voter and comment."""
    unknown_candidates: Literal["refuse", "warn"] = "refuse"
    """Votes on candidates that this run doesn't have: an error, or counted and named."""


class RewardModelScorer(Config):
    """A sequence-classification reward model, in this process or on a vLLM server."""

    kind: Literal["reward_model"] = "reward_model"
    name: str
    """The scorer's name in the tables."""
    model: str
    """A folder or a hub id."""
    output: str | None = None
    """Which output of a model with several, by its name in the model's `id2label`."""
    maximum_tokens: pydantic.PositiveInt | None = None
    """Longer conversations have no score; null: the model's own limit."""
    engine: Annotated[Literal["transformers", "vllm"], OPERATIONAL] = "transformers"
    """`vllm`: on a pooling server, which prefmill starts unless `endpoint.base_urls` names one."""
    server: VllmServerConfig = VllmServerConfig()
    """How the server is started."""
    endpoint: Annotated[EndpointConfig, OPERATIONAL] = EndpointConfig()
    """How the server is spoken to."""
    batch_tokens: Annotated[pydantic.PositiveInt, OPERATIONAL] = 16_384
    """Tokens of one batch in this process, padding included."""
    allow_other_template: Annotated[bool, OPERATIONAL] = False
    """Let its chat template or tokenizer differ from the policy's."""


class ImplicitRewardScorer(Config):
    """beta * (log pi - log pi_ref) of two models: what DPO makes of a policy and its reference."""

    kind: Literal["implicit_reward"] = "implicit_reward"
    name: str
    """The scorer's name in the tables."""
    model: str
    """pi: a folder or a hub id."""
    reference: str
    """pi_ref: a folder or a hub id, with the same tokenizer and chat template."""
    beta: pydantic.PositiveFloat = 0.1
    """The scale, as in the training that made the model."""
    batch_tokens: Annotated[pydantic.PositiveInt, OPERATIONAL] = 4096
    """Tokens of one batch, padding included: they bound the logits in memory."""
    allow_other_template: Annotated[bool, OPERATIONAL] = False
    """Let their chat template or tokenizer differ from the policy's."""


Scorer = Annotated[
    RulesScorer
    | VotesScorer
    | RewardModelScorer
    | JudgeScorer
    | ImplicitRewardScorer
    | TextClassifierScorer
    | LogProbabilityScorer
    | JuryScorer,
    pydantic.Field(discriminator="kind"),
]

Gauge = TextClassifierScorer | LogProbabilityScorer
"""Scorers whose higher score does not mean the better answer: they label nothing."""


class RewardSource(Protocol):
    """What scoring by rewards asks of a model; tests pass a fake one."""

    model_name: str
    weights_hash: str

    def score(
        self, conversations: Sequence[list[dict[str, str]]], tell: Tell = say_nothing
    ) -> list[RewardOutcome]:
        """Return a reward, or why there is none, per conversation, in their order."""


class ScoringConfig(Config):
    """Who scores the candidates."""

    scorers: Annotated[tuple[Scorer, ...], NOT_EMPTY] = (RulesScorer(),)
    """Every scorer judges every candidate; people those that they voted on."""
    health: HealthConfig = HealthConfig()
    """What the scorers must keep to, or the run stops before pairing."""

    @pydantic.model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [scorer.name for scorer in self.scorers]
        if len(set(names)) < len(names):
            raise ValueError(f"two scorers have the same name: {', '.join(names)}")
        single = {scorer.name for scorer in self.judges}
        for jury in self.juries:
            if unknown := set(jury.members) - single:
                raise ValueError(f"unknown members of {jury.name!r}: {', '.join(sorted(unknown))}")
        return self

    @property
    def judges(self) -> tuple[Scorer, ...]:
        """The scorers that judge by themselves."""
        return tuple(scorer for scorer in self.scorers if not isinstance(scorer, JuryScorer))

    @property
    def gauges(self) -> list[str]:
        """Names of those that say nothing about which answer is better."""
        return [scorer.name for scorer in self.scorers if isinstance(scorer, Gauge)]

    @property
    def asked(self) -> list[str]:
        """Names of those that judge every candidate: people vote on what they like."""
        return [scorer.name for scorer in self.judges if not isinstance(scorer, VotesScorer)]

    @property
    def juries(self) -> tuple[JuryScorer, ...]:
        """The scorers that are made of others' verdicts."""
        return tuple(scorer for scorer in self.scorers if isinstance(scorer, JuryScorer))

    def needed_for(self, name: str) -> ScoringConfig:
        """Return the scorer called ``name`` alone; of a jury, with its members."""
        chosen = [scorer for scorer in self.scorers if scorer.name == name]
        members = {m for jury in chosen if isinstance(jury, JuryScorer) for m in jury.members}
        kept = tuple(scorer for scorer in self.scorers if scorer.name in {name, *members})
        return self.model_copy(update={"scorers": kept})


def scores(
    judgments: pl.DataFrame, candidates: pl.DataFrame, config: ScoringConfig
) -> pl.DataFrame:
    """Return the `scores` table: a row per candidate and scorer, then those of the juries."""
    single = aggregate(judgments, candidates)
    return pl.concat([single, *(jury_scores(single, jury) for jury in config.juries)])


def read_checks(prompts: pl.DataFrame, scorer: RulesScorer) -> dict[str, Check]:
    """Return each prompt's verifier, ready to check answers, by prompt id.

    Prompts without a verifier, or without its ground truth, are left out.

    Raises:
        DataError: a prompt names a verifier that isn't known or that runs code which ``scorer``
            does not allow, or its ground truth is not what the verifier needs (names prompt, key).
    """
    facts = prompts.select("prompt_id", "verifier", "ground_truth")
    # An unknown verifier is a mistake also where no ground truth stands beside it.
    named = facts.drop_nulls("verifier").unique("verifier", maintain_order=True)
    for prompt_id, verifier, _ in named.iter_rows():
        if verifier in RUNS_CODE and not scorer.allow_code_execution:
            raise DataError(
                f"verifier {verifier!r} runs code that the model wrote, and that is not allowed",
                expected="`allow_code_execution: true` at the scorer of kind `rules`",
                where=f"the prompts' `verifier` column, {prompt_id}; scorer {scorer.name!r}",
                remedy="read docs/verifiers.md first: the limits are a seat belt and not a jail",
            )
        require_known(verifier)
    return {
        prompt_id: read_ground_truth(
            verifier, truth, f"the prompts' `ground_truth` column, {prompt_id}"
        )
        for prompt_id, verifier, truth in facts.drop_nulls().iter_rows()
    }


def judge_by_rules(
    candidates: pl.DataFrame, prompts: pl.DataFrame, scorer: RulesScorer
) -> pl.DataFrame:
    """Return one judgment per candidate, from its prompt's verifier.

    A candidate whose prompt names no verifier has a missing score, never a low one.

    Raises:
        DataError: as `read_checks`, about the prompts of these candidates; before any is judged.
    """
    answered = prompts.join(candidates, on="prompt_id", how="semi")
    checks = read_checks(answered, scorer)
    answers = candidates.select("candidate_id", "prompt_id", "completion")
    verdicts = [_verdict(checks.get(asked), text) for _, asked, text in answers.iter_rows()]
    frame = answers.select("candidate_id").with_columns(
        pl.Series("score", [value for value, _ in verdicts], dtype=pl.Float64),
        pl.Series("raw", [raw for _, raw in verdicts], dtype=pl.String),
        pl.Series("error", [_why_missing(verdict) for verdict in verdicts], dtype=pl.String),
        scorer=pl.lit(scorer.name),
        scorer_version=pl.lit(RULES_VERSION),
    )
    return as_judgments(frame)


def _verdict(check: Check | None, text: str | None) -> Verdict:
    """Return the score and what the verifier said."""
    if text is None:
        return Verdict(None, "no_completion")
    if check is None:
        return Verdict(None, "no verifier for this prompt")
    try:
        return check.check(text)
    # The tests look for texts that a verifier raises on. One that they missed must not stop a run,
    # nor count as a wrong answer.
    except Exception as error:  # noqa: BLE001
        return Verdict(None, f"the verifier failed: {type(error).__name__}")


def _why_missing(verdict: Verdict) -> str | None:
    return verdict.raw if verdict.score is None else None


def judge_by_rewards(
    candidates: pl.DataFrame,
    prompts: pl.DataFrame,
    name: str,
    model: RewardSource,
    tell: Tell = say_nothing,
) -> pl.DataFrame:
    """Return one judgment per candidate: the reward of its conversation, word for word in `raw`.

    A candidate without a completion, or too long for the model, has a missing score. ``tell`` gets
    how many are done, and of how many, now and then.
    """
    answers = candidates.join(prompts.select("prompt_id", "messages"), on="prompt_id", how="left")
    known = answers.filter(pl.col("completion").is_not_null())
    conversations = [
        [*messages, {"role": "assistant", "content": completion}]
        for messages, completion in zip(
            known["messages"].to_list(), known["completion"], strict=True
        )
    ]
    outcomes = model.score(conversations, tell)
    rewarded = known.select("candidate_id").with_columns(
        pl.Series("score", [outcome.score for outcome in outcomes], dtype=pl.Float64),
        pl.Series("error", [outcome.error for outcome in outcomes], dtype=pl.String),
        pl.Series("prompt_tokens", [outcome.tokens for outcome in outcomes], dtype=pl.Int64),
    )
    frame = candidates.select("candidate_id").join(rewarded, on="candidate_id", how="left")
    return as_judgments(
        frame.with_columns(
            pl.when(pl.col("score").is_null())
            .then(pl.col("error").fill_null("no_completion"))
            .alias("error"),
            raw=pl.coalesce(pl.col("score").cast(pl.String), "error", pl.lit("no_completion")),
            scorer=pl.lit(name),
            scorer_version=pl.lit(model.weights_hash),
            scorer_model=pl.lit(model.model_name),
        )
    )


VOTES_VERSION = "votes-2"
VOTE_COLUMNS = ("candidate_id", "other_candidate_id", "score", "voter", "comment")


def read_votes(scorer: VotesScorer) -> pl.DataFrame:
    """Return the file's votes as text, with the columns VOTE_COLUMNS, in the file's order.

    Raises:
        MissingFileError: the file is not there.
        DataError: the file is broken, a row has no candidate id or a column that isn't known, or
            the file mixes votes on one candidate with votes on two.
    """
    require_file(scorer.path, "votes", f"correct `path` of the scorer {scorer.name!r}")
    place, records = BadRows.of_file(scorer.path).place, []
    for number, row, _ in read_rows(scorer.path):
        unknown = [str(name) for name in row if name not in VOTE_COLUMNS]
        if unknown or not row.get("candidate_id") or "score" not in row:
            raise DataError(
                f"a vote with unknown columns {unknown}" if unknown else "an incomplete vote",
                expected="candidate_id, score and, if wanted, other_candidate_id, voter, comment",
                where=f"{place(number)}; columns there: {', '.join(row)}",
            )
        records.append([_as_text(row.get(name)) for name in VOTE_COLUMNS])
    votes = pl.DataFrame(records, schema=dict.fromkeys(VOTE_COLUMNS, pl.String), orient="row")
    if votes["other_candidate_id"].is_null().n_unique() > 1:
        raise DataError(
            "votes on one candidate and votes on two in one file",
            expected="other_candidate_id in every row or in none: their scores differ in meaning",
            where=str(scorer.path),
            remedy="split the file and name two scorers",
        )
    return votes


def _as_text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else str(value)


def votes_fingerprint(scorer: VotesScorer) -> str:
    """Return the hash of the votes file: changed votes are judged anew."""
    return file_sha256(scorer.path) if scorer.path.is_file() else "absent"


def unknown_votes(votes: pl.DataFrame, candidate_ids: Iterable[str], scorer: VotesScorer) -> str:
    """Return a sentence about votes on candidates that aren't among ``candidate_ids``, or "".

    Raises:
        DataError: there are some, and the scorer refuses them.
    """
    known = pl.Series("candidate_id", list(candidate_ids), dtype=pl.String)
    voted = votes.select(
        id=pl.concat_list("candidate_id", "other_candidate_id").list.drop_nulls()
    ).with_row_index()
    strangers = voted.explode("id").filter(~pl.col("id").is_in(known.implode()))
    if strangers.is_empty():
        return ""
    ids = strangers["id"].unique(maintain_order=True)
    named = ", ".join(ids.head(5)) + (", ..." if len(ids) > 5 else "")  # noqa: PLR2004
    found = (
        f"{strangers['index'].n_unique()} of {votes.height} votes are on {len(ids)} unknown "
        f"candidates: {named}"
    )
    if scorer.unknown_candidates == "refuse":
        raise DataError(
            found,
            expected="ids of this run's `candidates` table",
            where=f"{scorer.path}, scorer {scorer.name!r}",
            remedy="mend or delete those rows, or set `unknown_candidates: warn` when the file "
            "also holds votes on other runs",
        )
    return f"{found} ({scorer.path}, scorer {scorer.name!r})"


def require_same_prompt(votes: pl.DataFrame, candidates: pl.DataFrame, scorer: VotesScorer) -> None:
    """Return if every vote on two candidates is on two answers to one prompt.

    Raises:
        DataError: one is not; names its candidates.
    """
    prompt_of = candidates.select("candidate_id", "prompt_id")
    both = votes.join(prompt_of, on="candidate_id").join(
        prompt_of, left_on="other_candidate_id", right_on="candidate_id", suffix="_of_other"
    )
    apart = both.filter(pl.col("prompt_id") != pl.col("prompt_id_of_other"))
    if apart.height:
        first = apart.row(0, named=True)
        raise DataError(
            f"{apart.height} votes are on answers to two different prompts, such as "
            f"{first['candidate_id']} and {first['other_candidate_id']}",
            expected="two answers to one prompt",
            where=f"{scorer.path}, scorer {scorer.name!r}",
            remedy="mend or delete those rows",
        )


def judge_by_votes(
    candidates: pl.DataFrame, votes: pl.DataFrame, scorer: VotesScorer
) -> pl.DataFrame:
    """Return one judgment per vote on one of ``candidates``, or on two of them.

    Of a vote on two the score is 1 for the first, 0 for the other, 0.5 for a tie; another one is
    missing. A score that isn't a finite number is missing, never low. The same voter's same
    vote on the same candidate counts once for each time that it stands in the file.
    """
    known = candidates.select("candidate_id").unique()
    cast = votes.join(known, on="candidate_id", how="semi", maintain_order="left")
    single = pl.col("other_candidate_id").is_null()
    ids = candidates["candidate_id"].implode()
    cast = cast.filter(single | pl.col("other_candidate_id").is_in(ids))
    # Equal votes are told apart by their number, so that each keeps an id of its own.
    numbered = cast.with_columns(turn=pl.int_range(pl.len()).over(list(VOTE_COLUMNS)))
    frame = numbered.select(
        "candidate_id",
        "other_candidate_id",
        _vote_scores(numbered),
        pl.Series("raw", [_raw(vote) for vote in numbered.iter_rows(named=True)], dtype=pl.String),
        scorer=pl.lit(scorer.name),
        scorer_version=pl.lit(VOTES_VERSION),
    )
    unread = pl.when(pl.col("score").is_null()).then(pl.lit("not_a_score"))
    return as_judgments(frame.with_columns(error=unread))


def unread_votes(votes: pl.DataFrame, scorer: VotesScorer) -> str:
    """Return a sentence on votes that count as missing; empty when there are none."""
    missing = _vote_scores(votes).null_count()
    if not missing:
        return ""
    return (
        f"{missing} of {votes.height} votes count as missing: no finite number, or on two answers "
        f"and not from 0 to 1 ({scorer.path}, scorer {scorer.name!r})"
    )


def _vote_scores(votes: pl.DataFrame) -> pl.Series:
    """Return each vote's `score`, null where that is none."""
    scores = pl.Series("score", [_finite(text) for text in votes["score"]], dtype=pl.Float64)
    within = pl.col("other_candidate_id").is_null() | scores.is_between(0, 1)
    return votes.select(score=pl.when(within).then(scores))["score"]


def _finite(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _raw(vote: dict[str, Any]) -> str:
    """Return a vote as it was given, as JSON."""
    said = {name: vote[name] for name in VOTE_COLUMNS[2:] if vote[name] is not None}
    return canonical_json(said | ({"repeat": vote["turn"]} if vote["turn"] else {}))
