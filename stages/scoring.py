"""Verdicts on candidates, as the `judgments` table, and their aggregate, the `scores` table."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import polars as pl
import pydantic

from stages.answer_text import Verdict
from stages.configuration import NOT_EMPTY, Config
from stages.content_ids import canonical_json, content_ids, file_sha256
from stages.errors import DataError, MissingFileError
from stages.prompt_sampling import read_rows
from stages.tables import JUDGMENTS, SCORES
from stages.verifiers import RUNS_CODE, Check, read_ground_truth, require_known

if TYPE_CHECKING:
    from collections.abc import Iterable

VERSION = 1

RULES_VERSION = "task-families-1"
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


Scorer = Annotated[RulesScorer | VotesScorer, pydantic.Field(discriminator="kind")]


class ScoringConfig(Config):
    """Who scores the candidates."""

    scorers: Annotated[tuple[Scorer, ...], NOT_EMPTY] = (RulesScorer(),)
    """Every scorer judges every candidate; people those that they voted on."""

    @pydantic.model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [scorer.name for scorer in self.scorers]
        if len(set(names)) < len(names):
            raise ValueError(f"two scorers have the same name: {', '.join(names)}")
        return self


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
        scorer=pl.lit(scorer.name),
        scorer_version=pl.lit(RULES_VERSION),
    )
    return _as_judgments(frame)


def _verdict(check: Check | None, text: str) -> Verdict:
    """Return the score and what the verifier said."""
    if check is None:
        return Verdict(None, "no verifier for this prompt")
    try:
        return check.check(text)
    # The tests look for texts that a verifier raises on. One that they missed must not stop a run,
    # nor count as a wrong answer.
    except Exception as error:  # noqa: BLE001
        return Verdict(None, f"the verifier failed: {type(error).__name__}")


VOTES_VERSION = "votes-1"
VOTE_COLUMNS = ("candidate_id", "score", "voter", "comment")


def read_votes(scorer: VotesScorer) -> pl.DataFrame:
    """Return the file's votes as text: candidate_id, score, voter, comment, in the file's order.

    Raises:
        MissingFileError: the file is not there.
        DataError: the file is broken, or a row has no candidate id or a column that isn't known.
    """
    if not scorer.path.is_file():
        raise MissingFileError(
            f"votes file {str(scorer.path)!r} is not there",
            expected="a JSONL, Parquet or CSV file",
            where=f"working directory {Path.cwd()}",
            remedy=f"correct `path` of the scorer {scorer.name!r}",
        )
    records = []
    for number, row in enumerate(read_rows(scorer.path), start=1):
        unknown = [str(name) for name in row if name not in VOTE_COLUMNS]
        if unknown or not row.get("candidate_id") or "score" not in row:
            raise DataError(
                f"a vote with unknown columns {unknown}" if unknown else "an incomplete vote",
                expected="candidate_id, score and, if wanted, voter and comment (pairwise votes "
                "are not read yet)",
                where=f"{scorer.path}, row {number}; columns there: {', '.join(map(str, row))}",
            )
        records.append([_as_text(row.get(name)) for name in VOTE_COLUMNS])
    return pl.DataFrame(records, schema=dict.fromkeys(VOTE_COLUMNS, pl.String), orient="row")


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
    strangers = votes.filter(~pl.col("candidate_id").is_in(known.implode()))
    if strangers.is_empty():
        return ""
    ids = strangers["candidate_id"].unique(maintain_order=True)
    named = ", ".join(ids.head(5)) + (", ..." if len(ids) > 5 else "")  # noqa: PLR2004
    found = (
        f"{strangers.height} of {votes.height} votes are on {len(ids)} unknown candidates: {named}"
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


def judge_by_votes(
    candidates: pl.DataFrame, votes: pl.DataFrame, scorer: VotesScorer
) -> pl.DataFrame:
    """Return one judgment per vote on one of ``candidates``.

    A score that isn't a finite number is missing, never low. The same voter's same vote on the
    same candidate counts once for each time that it stands in the file.
    """
    known = candidates.select("candidate_id").unique()
    cast = votes.join(known, on="candidate_id", how="semi", maintain_order="left")
    # Equal votes are told apart by their number, so that each keeps an id of its own.
    numbered = cast.with_columns(turn=pl.int_range(pl.len()).over(list(VOTE_COLUMNS)))
    frame = numbered.select(
        "candidate_id",
        pl.Series("score", [_finite(text) for text in cast["score"]], dtype=pl.Float64),
        pl.Series("raw", [_raw(vote) for vote in numbered.iter_rows(named=True)], dtype=pl.String),
        scorer=pl.lit(scorer.name),
        scorer_version=pl.lit(VOTES_VERSION),
    )
    return _as_judgments(frame)


def _finite(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _raw(vote: dict[str, Any]) -> str:
    """Return a vote as it was given, as JSON."""
    said = {name: vote[name] for name in VOTE_COLUMNS[1:] if vote[name] is not None}
    return canonical_json(said | ({"repeat": vote["turn"]} if vote["turn"] else {}))


def _as_judgments(frame: pl.DataFrame) -> pl.DataFrame:
    """Return ``frame`` with the ids and the columns that its scorer doesn't fill, as nulls."""
    schema = JUDGMENTS.empty().schema
    absent = [n for n in JUDGMENTS.column_names if n not in (*frame.columns, "judgment_id")]
    filled = frame.with_columns(pl.lit(None, dtype=schema[name]).alias(name) for name in absent)
    identity = ["candidate_id", "other_candidate_id", "order", "scorer", "scorer_version", "raw"]
    ids = content_ids(filled, "judgment", identity)
    return filled.with_columns(ids).select(JUDGMENTS.column_names)


def aggregate(judgments: pl.DataFrame, candidates: pl.DataFrame) -> pl.DataFrame:
    """Return the `scores` table: per candidate and scorer the mean, spread and missing share."""
    prompt_of = candidates.select("candidate_id", "prompt_id")
    # Sorted: a sum of floats depends on their order.
    grouped = (
        judgments.sort("judgment_id")
        .group_by("candidate_id", "scorer")
        .agg(
            pl.col("score").mean(),
            spread=pl.col("score").std(),
            judgments=pl.len().cast(pl.Int64),
            missing_share=pl.col("score").is_null().mean(),
        )
    )
    scored = grouped.join(prompt_of, on="candidate_id", how="inner")
    return scored.sort("candidate_id", "scorer").select(SCORES.column_names)
