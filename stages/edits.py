"""Edited answers: which answers to edit, and what came of it as `candidates` and `edits` rows.

Llama 3 (arXiv 2407.21783, 4.2.1): the better answer of a comparison is edited, and preferences are
edited > chosen > rejected.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import polars as pl
import pydantic

from stages.configuration import OPERATIONAL, Config
from stages.errors import DataError
from stages.generation import prompt_seed, with_ids
from stages.generation_settings import Generator
from stages.pairing import pair, taking_part
from stages.row_files import BadRows, read_rows, require_file
from stages.tables import CANDIDATES, EDITED, EDITS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stages.generation import Answer
    from stages.pairing import PairingConfig

VERSION = 1

COLUMNS = ("candidate_id", "text")


class ModelEditor(Config):
    """A model edits the best answer of each prompt whose answers are not all equal."""

    kind: Literal["model"] = "model"
    generator: Generator
    """The model and how it samples, as one of `generation.generators`; it gives one text each."""
    instruction: str = "improve"
    """A file of `configs/edits/` by name, or the path of your own YAML file."""


class PeopleEditor(Config):
    """People's edits from a file: one row per answer, with candidate_id and text."""

    kind: Literal["people"] = "people"
    path: Path
    """JSONL, Parquet or CSV: candidate_id of the answer that was edited, and the edited text."""
    unknown_candidates: Annotated[Literal["refuse", "warn"], OPERATIONAL] = "refuse"
    """Edits of candidates that this run doesn't have: an error, or counted and named."""


Editor = Annotated[ModelEditor | PeopleEditor, pydantic.Field(discriminator="kind")]


class EditedBy(NamedTuple):
    """What the rows of `candidates` say of the editor: their columns."""

    generator: str
    generator_hash: str
    model: str
    temperature: float = 0.0
    top_p: float = 0.0
    max_completion_tokens: int | None = None
    """None: no limit was set; the rows say their own length."""
    template_fingerprint: str | None = None
    instruction_hash: str | None = None
    seed: int = 0


def to_edit(
    candidates: pl.DataFrame,
    scores: pl.DataFrame,
    config: PairingConfig,
    edited_by_people: pl.Series | None = None,
) -> pl.DataFrame:
    """Return prompt_id, edited_candidate_id and rejected_candidate_id of the answers to edit.

    One a prompt, the chosen of its pair best over worst: where that strategy makes no pair (ties,
    one answer, scorers that don't agree) nothing is to be edited. People edit what they like: of
    theirs those that are scored above their prompt's worst.
    """
    before = config.before_edits
    best = pair(candidates, scores, before)
    if edited_by_people is None:
        best = best.rename({"chosen_candidate_id": "edited_candidate_id"})
    else:
        scored = taking_part(candidates, scores, before)
        scored = scored.filter(pl.col("candidate_id").is_in(edited_by_people.implode()))
        best = best.join(scored, on="prompt_id").filter(pl.col("score") > pl.col("rejected_score"))
        best = best.rename({"candidate_id": "edited_candidate_id"})
    chosen = best.select("prompt_id", "edited_candidate_id", "rejected_candidate_id")
    return chosen.sort("prompt_id", "edited_candidate_id")


def edited_rows(
    targets: pl.DataFrame,
    answers: Mapping[str, Answer],
    editor: EditedBy,
    count_tokens: Callable[[list[str]], list[int]],
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the rows of `candidates` and of `edits` for the answers that were to be edited.

    An edit that is missing, empty, cut or the same as before has no completion there, and its
    reason in both tables; `edits` keeps its text.

    Args:
        targets: of `to_edit`, with the `completion` of each.
        answers: by the id of the edited answer; one sample each.
        editor: who edited.
        count_tokens: texts to their lengths in the policy's tokens: lengths are then comparable.
    """
    rows = [_row(target, answers[target["edited_candidate_id"]]) for target in _rows_of(targets)]
    own = {name: CANDIDATES.empty().schema[name] for name in _OWN}
    texts = {"reason": pl.String, "unusable_text": pl.String}
    frame = pl.DataFrame(rows, schema={**own, **texts}, orient="row")
    known = frame["completion"].drop_nulls()
    tokens = iter(count_tokens(known.to_list()))
    written = frame.select("completion", "completion_tokens").iter_rows()
    lengths = [said if text is None else next(tokens) for text, said in written]
    seeds = [prompt_seed(editor.seed, one) for one in targets["edited_candidate_id"]]
    same = editor._asdict() | {"weights_hash": EDITED}
    marked = frame.with_columns(
        pl.Series("completion_tokens", lengths, pl.Int64),
        pl.Series("seed", seeds, pl.Int64),
        *(
            pl.lit(same.get(name), dtype=kind).alias(name)
            for name, kind in CANDIDATES.empty().schema.items()
            if name not in {*_OWN, "candidate_id", "seed"}
        ),
    )
    zero = pl.lit(0, dtype=pl.Int64).alias("sample_index")
    limit = pl.coalesce("max_completion_tokens", "completion_tokens").alias("max_completion_tokens")
    candidates = with_ids(marked.with_columns(zero, limit))
    edits = pl.concat([targets, frame.select("reason", "unusable_text")], how="horizontal")
    edits = edits.with_columns(
        candidates["candidate_id"],
        instruction_hash=pl.lit(editor.instruction_hash, dtype=pl.String),
    )
    return candidates, edits.select(EDITS.column_names)


_OWN = (
    "prompt_id",
    "completion",
    "finish_reason",
    "error",
    "prompt_tokens",
    "completion_tokens",
    "latency_seconds",
    "cost",
)


def _rows_of(frame: pl.DataFrame) -> list[dict[str, Any]]:
    return list(frame.iter_rows(named=True))


def _row(target: dict[str, Any], answer: Answer) -> tuple[Any, ...]:
    """Return `_OWN` of one edit, then reason and text of one that cannot be used."""
    text, finish_reason, tokens, _, error = answer.samples[0]
    reason = _defect(text, finish_reason, target["completion"])
    why = (error or reason) if text is None else reason
    asked = (answer.prompt_tokens, tokens, answer.latency_seconds, answer.cost)
    if reason is None:
        return (target["prompt_id"], text, "stop", None, *asked, None, None)
    return (target["prompt_id"], None, "error", why, *asked, reason, text)


def _defect(text: str | None, finish_reason: str, before: str) -> str | None:
    """Return why an edit cannot be used; None: it can."""
    if text is None:
        return "edit_missing"
    if not text.strip():
        return "edit_empty"
    if finish_reason != "stop":
        return "edit_truncated"
    return "edit_unchanged" if text.strip() == before.strip() else None


def read_edits(editor: PeopleEditor) -> pl.DataFrame:
    """Return candidate_id and text of the file's rows, in its order.

    Raises:
        MissingFileError: the file is not there.
        DataError: the file is broken, a row has another column or no candidate id, or two rows
            edit the same answer.
    """
    require_file(editor.path, "edits", "correct `edits.path`")
    place, records = BadRows.of_file(editor.path).place, []
    for number, row, _ in read_rows(editor.path):
        candidate, text = row.get("candidate_id"), row.get("text")
        named = isinstance(candidate, str) and candidate
        if set(row) != set(COLUMNS) or not named or not isinstance(text, str | None):
            raise DataError(
                "not an edit",
                expected="exactly candidate_id and text, both text",
                where=f"{place(number)}; columns there: {', '.join(map(str, row))}",
            )
        records.append((candidate, text or ""))
    edits = pl.DataFrame(records, schema=dict.fromkeys(COLUMNS, pl.String), orient="row")
    twice = edits.filter(pl.col("candidate_id").is_duplicated())
    if twice.height:
        raise DataError(
            f"{twice['candidate_id'].n_unique()} answers are edited more than once, such as "
            f"{twice['candidate_id'][0]}",
            expected="one row per candidate_id",
            where=str(editor.path),
            remedy="keep one edit of each answer",
        )
    return edits


def unknown_edits(edits: pl.DataFrame, candidate_ids: pl.Series, editor: PeopleEditor) -> str:
    """Return a sentence about edits of candidates that aren't among ``candidate_ids``, or "".

    Raises:
        DataError: there are some, and they are refused.
    """
    strangers = edits.filter(~pl.col("candidate_id").is_in(candidate_ids.implode()))
    if strangers.is_empty():
        return ""
    found = (
        f"{strangers.height} of {edits.height} edits are of unknown candidates, such as "
        f"{strangers['candidate_id'][0]}"
    )
    if editor.unknown_candidates == "refuse":
        raise DataError(
            found,
            expected="ids of this run's `candidates` table",
            where=str(editor.path),
            remedy="mend or delete those rows, or set `edits.unknown_candidates: warn` when the "
            "file also holds edits of other runs",
        )
    return f"{found} ({editor.path})"
